//! One client session, over Streamable HTTP or directly over a server's stdio.

use crate::http::Connection;
use crate::{mcp, tree};
use serde::Deserialize;
use std::borrow::Cow;
use std::io;
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Instant;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// How to reach what is measured.
#[derive(Clone, Debug)]
pub enum Target {
    /// A Streamable HTTP endpoint.
    Http {
        /// Where it listens.
        address: SocketAddr,
        /// Its path, `/mcp` for most.
        path: String,
    },
    /// A server of its own per session, started with these words.
    Stdio {
        /// The program and its arguments.
        command: Vec<String>,
        /// The value of [`tree::MARK`] the servers get.
        mark: String,
    },
}

impl Target {
    /// Reads `http://ADDRESS:PORT/PATH`; the address is a number, so that no name is looked up.
    ///
    /// # Errors
    /// Says what is wrong with `url`.
    pub fn from_url(url: &str) -> Result<Self, String> {
        let wrong = || format!("{url:?} is not http://ADDRESS:PORT/PATH with a numeric address");
        let rest = url.strip_prefix("http://").ok_or_else(wrong)?;
        let (address, path) = rest.split_once('/').unwrap_or((rest, ""));
        Ok(Self::Http { address: address.parse().map_err(|_| wrong())?, path: format!("/{path}") })
    }
}

/// An initialised session; dropping it lets the client vanish: no DELETE, the connection just ends.
pub enum Session {
    /// Over HTTP.
    Http(Box<Connection>),
    /// With a server of its own.
    Stdio(Box<Pipes>),
}

/// A server started for one session.
pub struct Pipes {
    stdin: ChildStdin,
    stdout: ChildStdout,
    line: Vec<u8>,
    output: Vec<u8>,
    _child: Child,
}

#[derive(Deserialize)]
struct InitializeReply<'a> {
    #[serde(borrow)]
    result: InitializeResult<'a>,
}

#[derive(Deserialize)]
struct InitializeResult<'a> {
    #[serde(rename = "protocolVersion", borrow)]
    protocol_version: Cow<'a, str>,
}

impl Session {
    /// Connects (or starts a server) and does the whole legacy handshake.
    ///
    /// # Errors
    /// What failed, with the beginning of the answer where the answer is the reason.
    pub async fn open(target: &Target) -> Result<Self, String> {
        match target {
            Target::Http { address, path } => {
                let mut connection =
                    Connection::open(*address, path).await.map_err(|error| format!("connect: {error}"))?;
                let reply = connection
                    .post(&mcp::initialize())
                    .await
                    .map_err(|error| format!("initialize: {error}"))?;
                let refused = |what: &str, connection: &Connection, status: u16| {
                    format!("{what}: status {status}: {}", mcp::excerpt(connection.message()))
                };
                let version = negotiated(connection.message())
                    .ok_or_else(|| refused("initialize", &connection, reply.status))?;
                // A stateless front mints no session; its calls need none.
                connection.join(reply.session.as_deref(), &version);
                let reply = connection
                    .post(mcp::INITIALIZED)
                    .await
                    .map_err(|error| format!("notifications/initialized: {error}"))?;
                if reply.status >= 300 {
                    return Err(refused("notifications/initialized", &connection, reply.status));
                }
                Ok(Self::Http(Box::new(connection)))
            }
            Target::Stdio { command, mark } => {
                let mut pipes = Pipes::start(command, mark).map_err(|error| format!("start: {error}"))?;
                let handshake = async {
                    pipes.exchange(&mcp::initialize()).await?;
                    pipes.send(mcp::INITIALIZED).await
                };
                handshake.await.map_err(|error| format!("handshake: {error}"))?;
                negotiated(pipes.message())
                    .ok_or_else(|| format!("initialize: {}", mcp::excerpt(pipes.message())))?;
                Ok(Self::Stdio(Box::new(pipes)))
            }
        }
    }

    /// Makes one call and answers with when its reply was complete; [`Session::message`] is the reply.
    ///
    /// # Errors
    /// The connection or the pipe failed: the session is over.
    pub async fn call(&mut self, message: &str) -> io::Result<Instant> {
        match self {
            Self::Http(connection) => Ok(connection.post(message).await?.at),
            Self::Stdio(pipes) => pipes.exchange(message).await,
        }
    }

    /// The reply to the last call.
    pub fn message(&self) -> &[u8] {
        match self {
            Self::Http(connection) => connection.message(),
            Self::Stdio(pipes) => pipes.message(),
        }
    }
}

impl Pipes {
    fn start(command: &[String], mark: &str) -> io::Result<Self> {
        let [program, arguments @ ..] = command else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "no command was given"));
        };
        let mut child = Command::new(program)
            .args(arguments)
            .env(tree::MARK, mark)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let (stdin, stdout) = child
            .stdin
            .take()
            .zip(child.stdout.take())
            .ok_or_else(|| io::Error::other("the server's pipes were not made"))?;
        Ok(Self { stdin, stdout, line: Vec::with_capacity(4096), output: Vec::new(), _child: child })
    }

    async fn send(&mut self, message: &str) -> io::Result<()> {
        self.output.clear();
        self.output.extend_from_slice(message.as_bytes());
        self.output.push(b'\n');
        self.stdin.write_all(&self.output).await
    }

    /// One message there, one line back.
    async fn exchange(&mut self, message: &str) -> io::Result<Instant> {
        self.send(message).await?;
        self.line.clear();
        while !self.line.ends_with(b"\n") {
            if self.stdout.read_buf(&mut self.line).await? == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed its output"));
            }
        }
        Ok(Instant::now())
    }

    fn message(&self) -> &[u8] {
        self.line.trim_ascii_end()
    }
}

/// The revision an `initialize` was answered with.
fn negotiated(reply: &[u8]) -> Option<String> {
    let reply: InitializeReply<'_> = serde_json::from_slice(reply).ok()?;
    Some(reply.result.protocol_version.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let Ok(Target::Http { address, path }) = Target::from_url("http://127.0.0.1:80/mcp/echo") else {
            panic!("a plain URL is read");
        };
        assert_eq!((address.port(), path.as_str()), (80, "/mcp/echo"));
        assert!(Target::from_url("http://localhost/mcp").is_err());
        assert!(Target::from_url("https://127.0.0.1:80/").is_err());
    }
}
