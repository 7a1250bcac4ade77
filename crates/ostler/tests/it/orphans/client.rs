//! A client of the legacy era that can vanish at any moment: one connection for each request, nothing shared.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Instant;

use serde_json::{Value, json};

use crate::support::PATIENCE;

/// A request whose answer may not be there yet. Dropping it is what the daemon sees of a client that vanished.
pub(crate) struct Pending {
    stream: TcpStream,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    /// The status line and the headers.
    head: String,
    body: String,
}

impl Pending {
    /// `line` is the method and the path.
    fn send(address: &str, line: &str, session: Option<&str>, body: &str) -> Self {
        let mut stream = TcpStream::connect(address).expect("the daemon accepts");
        let session = session.map(|id| format!("Mcp-Session-Id: {id}\r\n")).unwrap_or_default();
        let head = format!(
            "{line} HTTP/1.1\r\nHost: {address}\r\nAccept: application/json, text/event-stream\r\n\
             Content-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n{session}\r\n",
            body.len()
        );
        stream.write_all(format!("{head}{body}").as_bytes()).expect("the daemon reads");
        Self { stream }
    }

    /// Waits for the whole answer.
    pub(crate) fn answer(mut self) -> Answer {
        let deadline = Instant::now() + PATIENCE;
        let (mut text, mut chunk) = (Vec::new(), [0; 4096]);
        loop {
            // Zero is no time limit, so it is refused: then the answer is late.
            let left = deadline.saturating_duration_since(Instant::now());
            self.stream.set_read_timeout(Some(left)).expect("an answer in time");
            match self.stream.read(&mut chunk).expect("an answer in time") {
                0 => break,
                length => text.extend_from_slice(&chunk[..length]),
            }
        }
        let text = String::from_utf8_lossy(&text).into_owned();
        let (head, body) = text.split_once("\r\n\r\n").expect("headers end with an empty line");
        Answer { head: head.to_owned(), body: body.to_owned() }
    }
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }
}

/// A client on its way into a session.
pub(crate) struct Opening {
    address: String,
    server: String,
    request: Pending,
}

/// A client in a session, with its stream of notifications open: that keeps the session from counting as silent.
pub(crate) struct Client {
    address: String,
    server: String,
    session: String,
    _listening: Pending,
}

impl Opening {
    /// Says `initialize` and does not wait.
    pub(crate) fn begin(address: &str, server: &str) -> Self {
        let hello = json!({
            "jsonrpc": "2.0", "id": 1, "method": "initialize",
            "params": {
                "protocolVersion": "2025-11-25", "capabilities": {},
                "clientInfo": {"name": "orphan-proof", "version": "1"},
            },
        });
        let request = Pending::send(address, &format!("POST /mcp/{server}"), None, &hello.to_string());
        Self { address: address.to_owned(), server: server.to_owned(), request }
    }

    /// Waits for the answer, whatever it is.
    pub(crate) fn answer(self) -> Answer {
        self.request.answer()
    }

    /// Waits until the session is there, and listens.
    pub(crate) fn finish(self) -> Client {
        let answer = self.request.answer();
        let session = answer.header("mcp-session-id").map(str::to_owned);
        let session = session.unwrap_or_else(|| panic!("`{}` gave no session: {answer:?}", self.server));
        let listening =
            Pending::send(&self.address, &format!("GET /mcp/{}", self.server), Some(&session), "");
        let client = Client { address: self.address, server: self.server, session, _listening: listening };
        client.post(&json!({"jsonrpc": "2.0", "method": "notifications/initialized"})).answer();
        client
    }
}

impl Client {
    fn post(&self, message: &Value) -> Pending {
        let line = format!("POST /mcp/{}", self.server);
        Pending::send(&self.address, &line, Some(&self.session), &message.to_string())
    }

    /// Tells the server something that it need not answer, of `bytes` bytes, and does not wait.
    pub(crate) fn tell(&self, bytes: usize) -> Pending {
        let padding = "x".repeat(bytes);
        self.post(&json!({
            "jsonrpc": "2.0", "method": "notifications/roots/list_changed", "params": {"padding": padding},
        }))
    }

    /// Ends the session and does not wait.
    pub(crate) fn delete(&self) -> Pending {
        Pending::send(&self.address, &format!("DELETE /mcp/{}", self.server), Some(&self.session), "")
    }

    /// Calls a tool with a message and does not wait.
    pub(crate) fn call(&self, tool: &str, message: &str) -> Pending {
        self.post(&json!({
            "jsonrpc": "2.0", "id": 2, "method": "tools/call",
            "params": {"name": tool, "arguments": {"message": message}},
        }))
    }

    /// Calls `echo` and checks what it says.
    pub(crate) fn check(&self) {
        let answer = self.call("echo", "are you there?").answer();
        assert!(answer.body.contains("are you there?"), "`{}` said {answer:?}", self.server);
    }
}
