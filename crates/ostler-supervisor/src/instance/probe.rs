//! Asking an instance whether it is well, in each of the ways there are.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::{Request, Uri};
use hyper_util::rt::TokioIo;
use ostler_domain::{Era, Heartbeat, Launch, Probe, ports};
use ostler_mcp::Message;
use ostler_mcp::version;
use ostler_os::{Exit, GuardEvent, Limits, SpawnRequest};
use tokio::net::TcpStream;

use crate::connection::Connection;
use crate::launch::{Launcher, Output};
use crate::log::Log;

/// Bytes of a probing command's error output that are told when it fails.
const MAX_OUTPUT: usize = 500;

/// What a probe needs to know of the instance.
pub(super) struct Subject {
    pub(super) connection: Option<Arc<Connection>>,
    pub(super) era: Option<Era>,
    pub(super) ports: Arc<BTreeMap<String, u16>>,
    pub(super) launch: Launch,
    pub(super) log: Arc<Log>,
    pub(super) launcher: Arc<dyn Launcher>,
}

/// What a heartbeat showed at the last look.
#[derive(Clone, Debug, Default)]
pub(super) struct Pulse {
    line: u64,
    modified: Option<SystemTime>,
}

/// Probes once. The caller bounds the time, by dropping the future; a command is killed then.
pub(super) async fn probe(probe: &Probe, subject: &Subject, pulse: &mut Pulse) -> Result<(), String> {
    let filled = |text: &str| ports::substitute(text, |name| subject.ports.get(name).copied());
    match probe {
        Probe::None => Ok(()),
        Probe::Mcp => mcp(subject).await,
        Probe::Tcp { address } => tcp(&filled(address)).await,
        Probe::Http { url } => http(&filled(url)).await,
        Probe::Exec { command } => exec(command.iter().map(|word| filled(word)).collect(), subject).await,
        Probe::Heartbeat(heartbeat) => beat(heartbeat, subject, pulse),
    }
}

/// On the live connection. Any answer is a sign of life, an error too: a server need not know `ping`.
async fn mcp(subject: &Subject) -> Result<(), String> {
    let Some(connection) = &subject.connection else {
        return Err("there is no connection".to_owned());
    };
    let asked = match subject.era {
        Some(Era::Modern) => {
            connection.ask(|ticket| version::modern_request(ticket, "server/discover", "")).await
        }
        _ => {
            let ping = |ticket| {
                Message::from(format!("{{\"jsonrpc\":\"2.0\",\"id\":{ticket},\"method\":\"ping\"}}"))
            };
            connection.ask(ping).await
        }
    };
    asked.map(drop).map_err(|error| error.to_string())
}

async fn tcp(address: &str) -> Result<(), String> {
    TcpStream::connect(address).await.map(drop).map_err(|error| format!("connecting to {address}: {error}"))
}

async fn http(url: &str) -> Result<(), String> {
    let told = |error: &dyn std::fmt::Display| format!("GET {url}: {error}");
    let uri: Uri = url.parse().map_err(|error: http::uri::InvalidUri| told(&error))?;
    let authority = uri.authority().ok_or_else(|| told(&"it names no host"))?;
    let address = (authority.host().trim_matches(['[', ']']), authority.port_u16().unwrap_or(80));
    let stream = TcpStream::connect(address).await.map_err(|error| told(&error))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| told(&error))?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let request = Request::get(path).header("host", authority.as_str()).body(Empty::<Bytes>::new());
    let request = request.map_err(|error| told(&error))?;
    tokio::select! {
        // It ends when the answer is here or the peer hangs up; then the answer says how it went.
        _ = connection => Err(told(&"the connection was closed before an answer came")),
        answer = sender.send_request(request) => {
            let status = answer.map_err(|error| told(&error))?.status();
            if status.is_success() || status.is_redirection() { Ok(()) } else { Err(told(&status)) }
        }
    }
}

/// Behind a guard, like a server: dropped when it is late, it ends with all that it started.
async fn exec(words: Vec<String>, subject: &Subject) -> Result<(), String> {
    let [program, args @ ..] = words.as_slice() else {
        return Err("the probe's command is empty".to_owned());
    };
    let launch = &subject.launch;
    let mut set = launch.env.clone();
    set.extend(subject.ports.iter().map(|(name, port)| (ports::port_variable(name), port.to_string())));
    let request = SpawnRequest {
        program: program.into(),
        args: args.iter().map(Into::into).collect(),
        env: ostler_os::env::clean(&launch.inherit_env, &set, std::env::vars_os()),
        cwd: launch.cwd.clone(),
        limits: Limits::default(),
        mark: crate::random::mark(),
    };
    let mut launched =
        subject.launcher.launch(request).map_err(|error| format!("the probe `{program}`: {error}"))?;
    // Both are read, or a command that says much would stand still.
    let (said, _) = tokio::join!(tail(&launched.stderr), tail(&launched.stdout));
    while let Some(event) = launched.events.recv().await {
        match event {
            GuardEvent::LeaderExited(Exit::Code(0)) => return Ok(()),
            GuardEvent::LeaderExited(exit) => {
                let exit = crate::instance::driver::convert(exit);
                return Err(format!("the probe `{program}` {exit}{said}"));
            }
            GuardEvent::SpawnFailed(failure) => return Err(failure.message),
            _ => {}
        }
    }
    Err(format!("the probe `{program}` ended, and its guard with it"))
}

/// The last of what it writes there, once it has closed that.
async fn tail(output: &Output) -> String {
    let (mut kept, mut chunk) = (Vec::new(), [0; 1024]);
    while output.readable().await.is_ok() {
        match output.try_read(&mut chunk) {
            Ok(0) => break,
            Ok(length) => kept.extend_from_slice(&chunk[..length]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => break,
        }
        kept.drain(..kept.len().saturating_sub(MAX_OUTPUT));
    }
    let said = String::from_utf8_lossy(&kept);
    let said = said.trim();
    if said.is_empty() { String::new() } else { format!(": {said}") }
}

fn beat(heartbeat: &Heartbeat, subject: &Subject, pulse: &mut Pulse) -> Result<(), String> {
    match heartbeat {
        Heartbeat::Line => {
            let line = subject.log.latest_output();
            if line > pulse.line {
                pulse.line = line;
                return Ok(());
            }
            Err("it wrote no line since the last look".to_owned())
        }
        Heartbeat::File(path) => {
            let shown = path.display();
            let modified = std::fs::metadata(path).and_then(|metadata| metadata.modified());
            let modified = modified.map_err(|error| format!("{shown}: {error}"))?;
            if pulse.modified.replace(modified) == Some(modified) {
                return Err(format!("{shown} was not touched since the last look"));
            }
            Ok(())
        }
    }
}
