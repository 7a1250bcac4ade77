//! Asking an instance whether it is well, in each of the ways there are.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::{Request, Uri};
use hyper_util::rt::TokioIo;
use ostler_domain::{Era, Heartbeat, Launch, Probe, ports};
use ostler_mcp::{Kind, Message, rpc, version};
use tokio::net::TcpStream;

use super::driver::environment;
use super::{InstanceHandle, Snapshot, handshake};
use crate::connection::Connection;
use crate::core::Core;
use crate::launch::Launcher;
use crate::log::Log;
use crate::program::Program;
use crate::server::Server;

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

/// Whether an instance serves, asked once in the way its health is, where that is one quick question: no command is run
/// and no heartbeat awaited. The caller bounds the time.
pub(crate) async fn is_well(
    core: &Core,
    server: &Server,
    handle: &InstanceHandle,
    snapshot: &Snapshot,
) -> Result<(), String> {
    let quick = match &server.spec.health.probe {
        Probe::Exec { .. } | Probe::Heartbeat(_) | Probe::None if snapshot.connection.is_some() => {
            &Probe::Mcp
        }
        Probe::Exec { .. } | Probe::Heartbeat(_) => &Probe::None,
        quick => quick,
    };
    let subject = Subject {
        connection: snapshot.connection.clone(),
        era: snapshot.era,
        ports: Arc::clone(&snapshot.ports),
        launch: server.spec.launch.clone(),
        log: Arc::clone(&handle.log),
        launcher: Arc::clone(&core.launcher),
    };
    probe(quick, &subject, &mut Pulse::default()).await
}

/// On the live connection. Any answer of the server is a sign of life, an error too: it need not know `ping`.
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
    match asked {
        // Ostler's own word for a question that did not get there, or whose answer did not come.
        Ok(answer) if matches!(answer.kind, Kind::Error(rpc::INSTANCE_LOST | rpc::PROBE_REFUSED)) => {
            Err(handshake::told(&answer))
        }
        Ok(_) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
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
    let answer = sender.send_request(request);
    tokio::pin!(answer);
    let answer = tokio::select! {
        answer = &mut answer => answer,
        // It may end with the answer, which is there then; else that says why there is none.
        _ = connection => answer.await,
    };
    let status = answer.map_err(|error| told(&error))?.status();
    if status.is_success() || status.is_redirection() { Ok(()) } else { Err(told(&status)) }
}

/// Dropped when it is late, it ends with all that it started.
async fn exec(words: Vec<String>, subject: &Subject) -> Result<(), String> {
    let [program, args @ ..] = words.as_slice() else {
        return Err("the probe's command is empty".to_owned());
    };
    let env = environment(&subject.launch, &subject.ports);
    let cwd = subject.launch.cwd.clone();
    let program = Program { program: program.clone(), args: args.to_vec(), env, cwd };
    program.run(&*subject.launcher).await.map_err(|trouble| format!("the probe {}", trouble.into_text()))
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
