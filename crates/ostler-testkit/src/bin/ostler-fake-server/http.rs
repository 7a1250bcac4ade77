//! The fake server at a port: Streamable HTTP, and HTTP with server-sent events. A thread for each connection; only
//! what Ostler's client sends is understood, and that is checked.

use std::collections::HashMap;
use std::io::{self, BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

use crate::wire::{Said, Streams};
use crate::{Fake, lock, wire};

/// How often a stream that has nothing to say looks whether its client is there.
const LOOK: Duration = Duration::from_millis(20);

/// Streams that lost their connection, by the ids of their requests.
type Parked = Mutex<HashMap<String, Receiver<Said>>>;

struct Server {
    fake: Arc<Fake>,
    streams: &'static Streams,
    /// HTTP with server-sent events: everything is said on the one stream.
    sse: bool,
    parked: Parked,
}

/// Serves at the port until it is ended. 98, `EADDRINUSE`, when the port is another's.
pub(crate) fn serve(fake: Arc<Fake>, port: u16, sse: bool) -> ExitCode {
    let Ok(listener) = TcpListener::bind(("127.0.0.1", port)) else { return ExitCode::from(98) };
    let server = Arc::new(Server { fake, streams: wire::listen(!sse), sse, parked: Parked::default() });
    for stream in listener.incoming().flatten() {
        let server = Arc::clone(&server);
        // A client that hangs up is no trouble of the server's.
        std::thread::spawn(move || drop(server.connection(stream)));
    }
    ExitCode::SUCCESS
}

/// One request.
struct Asked {
    method: String,
    path: String,
    headers: HashMap<String, String>,
    body: Vec<u8>,
}

impl Asked {
    fn read(from: &mut BufReader<TcpStream>) -> io::Result<Option<Self>> {
        let mut line = String::new();
        if from.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let mut words = line.split_whitespace().map(str::to_owned);
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let mut headers = HashMap::new();
        loop {
            let mut line = String::new();
            from.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        let mut body = vec![0; length];
        from.read_exact(&mut body)?;
        Ok(Some(Self { method, path, headers, body }))
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

fn session() -> String {
    format!("fake-{}", std::process::id())
}

fn head(to: &mut TcpStream, status: &str, more: &str) -> io::Result<()> {
    to.write_all(format!("HTTP/1.1 {status}\r\n{more}\r\n").as_bytes())
}

fn whole(to: &mut TcpStream, status: &str, kind: &str, body: &str) -> io::Result<()> {
    head(to, status, &format!("Content-Type: {kind}\r\nContent-Length: {}\r\n", body.len()))?;
    to.write_all(body.as_bytes())
}

fn events_head(to: &mut TcpStream, more: &str) -> io::Result<()> {
    head(
        to,
        "200 OK",
        &format!("Content-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n{more}"),
    )
}

fn event(to: &mut TcpStream, text: &str) -> io::Result<()> {
    to.write_all(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes())
}

/// Whether the other side has closed the connection, which is not to send anything meanwhile.
fn hung_up(stream: &TcpStream) -> bool {
    let looked = stream.set_nonblocking(true).and_then(|()| stream.peek(&mut [0]));
    let _ = stream.set_nonblocking(false);
    match looked {
        Ok(0) => true,
        Ok(_) => false,
        Err(error) => error.kind() != ErrorKind::WouldBlock,
    }
}

impl Server {
    fn connection(&self, stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut to = stream.try_clone()?;
        let mut from = BufReader::new(stream);
        while let Some(asked) = Asked::read(&mut from)? {
            if let Some(wanted) = self.fake.secret()
                && asked.header("authorization") != Some(wanted)
            {
                whole(&mut to, "401 Unauthorized", "text/plain", "who are you?")?;
                continue;
            }
            let keep = match asked.method.as_str() {
                "POST" if self.sse => self.message(&asked, &mut to)?,
                "GET" if self.sse => self.all(&mut to)?,
                "POST" => self.post(&asked, &mut to)?,
                "GET" => self.listen(&asked, &mut to)?,
                "DELETE" => {
                    eprintln!("session ended");
                    whole(&mut to, "200 OK", "text/plain", "")?;
                    true
                }
                _ => whole(&mut to, "405 Method Not Allowed", "text/plain", "").map(|()| true)?,
            };
            if !keep {
                break;
            }
        }
        Ok(())
    }

    /// HTTP with server-sent events: a message.
    fn message(&self, asked: &Asked, to: &mut TcpStream) -> io::Result<bool> {
        let Ok(message) = serde_json::from_slice::<Value>(&asked.body) else {
            return whole(to, "400 Bad Request", "text/plain", "not JSON").map(|()| true);
        };
        if asked.path != "/message?session=1" {
            return whole(to, "404 Not Found", "text/plain", "no such session").map(|()| true);
        }
        // Before it is accepted: what is sent after that comes after it.
        self.fake.hear(message);
        whole(to, "202 Accepted", "text/plain", "Accepted").map(|()| true)
    }

    /// HTTP with server-sent events: the stream.
    fn all(&self, to: &mut TcpStream) -> io::Result<bool> {
        let said = self.streams.open_common();
        events_head(to, "")?;
        event(to, "event: endpoint\r\ndata: /message?session=1\r\n\r\n")?;
        loop {
            match said.recv_timeout(LOOK) {
                Ok(Said::Message(message)) => event(to, &format!("event: message\ndata: {message}\n\n"))?,
                Ok(Said::Cut) | Err(RecvTimeoutError::Disconnected) => return Ok(false),
                Err(RecvTimeoutError::Timeout) if hung_up(to) => return Ok(false),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// Streamable HTTP: a message.
    fn post(&self, asked: &Asked, to: &mut TcpStream) -> io::Result<bool> {
        let Ok(message) = serde_json::from_slice::<Value>(&asked.body) else {
            return whole(to, "400 Bad Request", "text/plain", "not JSON").map(|()| true);
        };
        if let Some((status, code, why)) = self.wrong(asked, &message) {
            let error = json!({"jsonrpc": "2.0", "id": null, "error": {"code": code, "message": why}});
            return whole(to, status, "application/json", &error.to_string()).map(|()| true);
        }
        let (Some(_), Some(id)) = (message["method"].as_str(), message.get("id").cloned()) else {
            self.fake.hear(message);
            return whole(to, "202 Accepted", "text/plain", "").map(|()| true);
        };
        let named = match message["method"] == "initialize" {
            true => format!("Mcp-Session-Id: {}\r\n", session()),
            false => String::new(),
        };
        let modern = is_modern(&message);
        let said = self.streams.open(&id.to_string());
        if self.fake.is("json") {
            wire::speak_for(&Value::Null);
            self.fake.hear(message);
            return self.answer_alone(&said, &id, to, &named);
        }
        events_head(to, &named)?;
        event(to, &format!("id: {id}/0\ndata:\n\n"))?;
        self.fake.hear(message);
        self.stream(said, &id.to_string(), modern, to)
    }

    /// What is wrong with a request's headers.
    fn wrong(&self, asked: &Asked, message: &Value) -> Option<(&'static str, i64, String)> {
        if is_modern(message) {
            let named = &message["params"]["name"];
            let pairs = [
                ("mcp-method", &message["method"]),
                ("mcp-name", if message["method"] == "tools/call" { named } else { &Value::Null }),
            ];
            let odd = pairs.iter().find(|(name, value)| asked.header(name) != value.as_str());
            let version = asked.header("mcp-protocol-version") == Some("2026-07-28");
            if self.fake.is("legacy") {
                return Some((
                    "400 Bad Request",
                    -32000,
                    "Bad Request: Unsupported protocol version".to_owned(),
                ));
            }
            return match odd {
                Some((name, _)) => Some(("400 Bad Request", -32020, format!("{name} does not match"))),
                None if version => None,
                None => Some(("400 Bad Request", -32020, "the version is missing".to_owned())),
            };
        }
        let known = asked.header("mcp-session-id") == Some(session().as_str());
        if message["method"] == "initialize" || (known && !self.fake.forgets()) {
            return None;
        }
        Some(("404 Not Found", -32001, "Session not found".to_owned()))
    }

    /// Says everything that belongs to a request, up to its answer.
    fn stream(&self, said: Receiver<Said>, id: &str, modern: bool, to: &mut TcpStream) -> io::Result<bool> {
        let mut number = 0;
        loop {
            match said.recv_timeout(LOOK) {
                Ok(Said::Message(message)) => {
                    number += 1;
                    let text = match self.fake.is("slow") {
                        true => format!("id: {id}/{number}\r\ndata: {message}\r\n\r\n"),
                        false => format!("id: {id}/{number}\ndata: {message}\n\n"),
                    };
                    match self.fake.is("slow") {
                        true => slowly(to, &text)?,
                        false => event(to, &text)?,
                    }
                    if message.get("method").is_none() {
                        self.streams.close(id);
                        to.write_all(b"0\r\n\r\n")?;
                        return Ok(true);
                    }
                }
                Ok(Said::Cut) => {
                    lock(&self.parked).insert(id.to_owned(), said);
                    return Ok(false);
                }
                Err(RecvTimeoutError::Disconnected) => return Ok(false),
                Err(RecvTimeoutError::Timeout) if hung_up(to) => {
                    if modern {
                        let id: Value = serde_json::from_str(id).unwrap_or_default();
                        self.fake
                            .hear(json!({"method": "notifications/cancelled", "params": {"requestId": id}}));
                    }
                    return Ok(false);
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// The answer as JSON, of several lines; what comes ahead of it goes elsewhere.
    fn answer_alone(
        &self,
        said: &Receiver<Said>,
        id: &Value,
        to: &mut TcpStream,
        more: &str,
    ) -> io::Result<bool> {
        while let Ok(said) = said.recv() {
            let Said::Message(message) = said else { continue };
            if message.get("method").is_some() {
                wire::send_for(None, &message);
                continue;
            }
            self.streams.close(&id.to_string());
            let body = serde_json::to_string_pretty(&message).unwrap_or_default();
            let length = body.len();
            head(
                to,
                "200 OK",
                &format!("Content-Type: application/json\r\nContent-Length: {length}\r\n{more}"),
            )?;
            to.write_all(body.as_bytes())?;
            return Ok(true);
        }
        Ok(false)
    }

    /// Streamable HTTP: the stream of everything else, or the rest of one that was cut.
    fn listen(&self, asked: &Asked, to: &mut TcpStream) -> io::Result<bool> {
        let of =
            asked.header("last-event-id").and_then(|last| last.split_once('/')).map(|(id, _)| id.to_owned());
        if let Some(id) = of {
            let parked = lock(&self.parked).remove(&id);
            let Some(said) = parked else {
                return whole(to, "404 Not Found", "text/plain", "no such stream").map(|()| true);
            };
            events_head(to, "")?;
            return self.stream(said, &id, false, to);
        }
        if self.fake.is("no-stream") || asked.header("mcp-session-id").is_none() {
            return whole(to, "405 Method Not Allowed", "text/plain", "").map(|()| true);
        }
        if self.fake.refuses_stream() {
            return whole(to, "503 Service Unavailable", "text/plain", "not now").map(|()| true);
        }
        let said = self.streams.open_common();
        events_head(to, "")?;
        loop {
            match said.recv_timeout(LOOK) {
                Ok(Said::Message(message)) => event(to, &format!("data: {message}\n\n"))?,
                Ok(Said::Cut) | Err(RecvTimeoutError::Disconnected) => return Ok(false),
                Err(RecvTimeoutError::Timeout) if hung_up(to) => return Ok(false),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }
}

/// In pieces, each a chunk of its own.
fn slowly(to: &mut TcpStream, text: &str) -> io::Result<()> {
    for piece in text.as_bytes().chunks(7) {
        to.write_all(format!("{:x}\r\n", piece.len()).as_bytes())?;
        to.write_all(piece)?;
        to.write_all(b"\r\n")?;
        to.flush()?;
    }
    Ok(())
}

fn is_modern(message: &Value) -> bool {
    message["params"]["_meta"].get("io.modelcontextprotocol/protocolVersion").is_some()
}
