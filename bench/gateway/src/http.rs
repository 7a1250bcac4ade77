//! A lean Streamable HTTP client: one keep-alive connection, one exchange in flight.
//!
//! It shares the machine with what it measures, so it does as little as it can: one write per request, no header
//! map, buffers kept from call to call. It knows bodies with a length, chunked bodies and event streams.

use std::io;
use std::net::SocketAddr;
use std::time::Instant;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A reply longer than this is refused: the benchmark's are below one kilobyte.
const LONGEST_REPLY_BYTES: usize = 1 << 20;

/// One session's connection.
pub struct Connection {
    stream: TcpStream,
    input: Vec<u8>,
    body: Vec<u8>,
    output: Vec<u8>,
    prefix: String,
    /// Where in `body` the message of the last reply lies.
    message: std::ops::Range<usize>,
}

/// What came back for one request, apart from the message itself ([`Connection::message`]).
pub struct Reply {
    /// The HTTP status.
    pub status: u16,
    /// The value of `Mcp-Session-Id`, when the reply has one.
    pub session: Option<String>,
    /// When the message was complete. For an event stream that is before its end.
    pub at: Instant,
}

impl Connection {
    /// Connects to `address`; requests go to `path`.
    ///
    /// # Errors
    /// What the connection attempt failed with.
    pub async fn open(address: SocketAddr, path: &str) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let prefix = format!(
            "POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n\
             Accept: application/json, text/event-stream\r\n"
        );
        Ok(Self {
            stream,
            input: Vec::with_capacity(4096),
            body: Vec::with_capacity(4096),
            output: Vec::with_capacity(1024),
            prefix,
            message: 0..0,
        })
    }

    /// From now on every request carries the negotiated revision and the session's id, where there is one.
    pub fn join(&mut self, session: Option<&str>, protocol_version: &str) {
        self.prefix += &format!("MCP-Protocol-Version: {protocol_version}\r\n");
        if let Some(session) = session {
            self.prefix += &format!("Mcp-Session-Id: {session}\r\n");
        }
    }

    /// Posts `message` and reads the whole reply, so that the connection is free for the next.
    ///
    /// # Errors
    /// The connection failed or ended, or the reply is not HTTP/1.1 as far as this client knows it.
    pub async fn post(&mut self, message: &str) -> io::Result<Reply> {
        use io::Write as _;
        self.output.clear();
        write!(self.output, "{}Content-Length: {}\r\n\r\n{message}", self.prefix, message.len())?;
        self.stream.write_all(&self.output).await?;
        self.input.clear();
        self.body.clear();
        self.message = 0..0;
        let head = loop {
            self.fill().await?;
            if let Some(head) = Head::parse(&self.input)? {
                break head;
            }
        };
        let at = self.read_body(&head).await?;
        Ok(Reply { status: head.status, session: head.session, at })
    }

    /// The message of the last reply: its body, or the first answer among its events. Empty when there was none.
    pub fn message(&self) -> &[u8] {
        &self.body[self.message.clone()]
    }

    /// Reads until the body is complete; answers when its message was.
    async fn read_body(&mut self, head: &Head) -> io::Result<Instant> {
        let mut position = head.length;
        let mut message_at = None;
        loop {
            let complete = match head.body {
                BodyLength::Known(length) => {
                    if self.input.len() < head.length + length {
                        false
                    } else {
                        self.body.extend_from_slice(&self.input[head.length..head.length + length]);
                        true
                    }
                }
                BodyLength::Chunked => unchunk(&self.input, &mut position, &mut self.body)?,
            };
            if message_at.is_none() && (complete || head.events) {
                let found = if head.events { first_answer(&self.body) } else { Some(0..self.body.len()) };
                if let Some(range) = found {
                    self.message = range;
                    message_at = Some(Instant::now());
                }
            }
            if complete {
                return Ok(message_at.unwrap_or_else(Instant::now));
            }
            self.fill().await?;
        }
    }

    async fn fill(&mut self) -> io::Result<()> {
        if self.input.len() > LONGEST_REPLY_BYTES {
            return Err(io::Error::other("the reply is longer than this client accepts"));
        }
        if self.stream.read_buf(&mut self.input).await? == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection"));
        }
        Ok(())
    }
}

enum BodyLength {
    Known(usize),
    Chunked,
}

struct Head {
    status: u16,
    /// Bytes of the head, the blank line included.
    length: usize,
    body: BodyLength,
    events: bool,
    session: Option<String>,
}

impl Head {
    /// The head at the start of `input`, once it is complete.
    fn parse(input: &[u8]) -> io::Result<Option<Self>> {
        let Some(end) = memchr::memmem::find(input, b"\r\n\r\n") else {
            return Ok(None);
        };
        let text = std::str::from_utf8(&input[..end]).map_err(|_| bad("a head that is not text"))?;
        let mut lines = text.split("\r\n");
        let status = lines
            .next()
            .and_then(|line| line.strip_prefix("HTTP/1.1 "))
            .and_then(|rest| rest.get(..3))
            .and_then(|digits| digits.parse().ok())
            .ok_or_else(|| bad("no HTTP/1.1 status line"))?;
        let mut head =
            Self { status, length: end + 4, body: BodyLength::Known(0), events: false, session: None };
        for (name, value) in lines.filter_map(|line| line.split_once(':')) {
            let value = value.trim();
            if name.eq_ignore_ascii_case("content-length") {
                head.body = BodyLength::Known(value.parse().map_err(|_| bad("a broken Content-Length"))?);
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                head.body = BodyLength::Chunked;
            } else if name.eq_ignore_ascii_case("content-type") {
                head.events = value.starts_with("text/event-stream");
            } else if name.eq_ignore_ascii_case("mcp-session-id") {
                head.session = Some(value.to_owned());
            }
        }
        Ok(Some(head))
    }
}

/// Moves every complete chunk from `input` at `position` to `body`; true once the last one was seen.
fn unchunk(input: &[u8], position: &mut usize, body: &mut Vec<u8>) -> io::Result<bool> {
    loop {
        let rest = &input[*position..];
        let Some(line_end) = memchr::memmem::find(rest, b"\r\n") else {
            return Ok(false);
        };
        let size = std::str::from_utf8(&rest[..line_end])
            .ok()
            .and_then(|line| line.split(';').next())
            .and_then(|digits| usize::from_str_radix(digits.trim(), 16).ok())
            .filter(|size| *size <= LONGEST_REPLY_BYTES)
            .ok_or_else(|| bad("a broken chunk size"))?;
        let data = line_end + 2;
        if size == 0 {
            // The last chunk; a blank line follows the trailers, of which there are none or some.
            return Ok(rest[line_end..].ends_with(b"\r\n\r\n"));
        }
        let Some(chunk) = rest.get(data..data + size) else {
            return Ok(false);
        };
        if rest.len() < data + size + 2 {
            return Ok(false);
        }
        body.extend_from_slice(chunk);
        *position += data + size + 2;
    }
}

/// The data of the first event that answers a request, once that event is complete. Priming events (empty data)
/// and whatever the server asks or notes by itself (they have a `method`) are passed over.
fn first_answer(body: &[u8]) -> Option<std::ops::Range<usize>> {
    let mut start = 0;
    while let Some(length) = memchr::memchr(b'\n', &body[start..]) {
        let line = body[start..start + length].trim_ascii_end();
        if let Some(data) = line.strip_prefix(b"data:").map(<[u8]>::trim_ascii)
            && !data.is_empty()
            && memchr::memmem::find(data, br#""method":"#).is_none()
        {
            // `data` is a piece of `line`, which starts at `start`; both end at the same trimmed byte.
            let end = start + line.len();
            return Some(end - data.len()..end);
        }
        start += length + 1;
    }
    None
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the server sent {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_once_complete() {
        let text = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n\
                     TRANSFER-ENCODING: chunked\r\nmcp-session-id: abc\r\n\r\nrest";
        assert!(Head::parse(&text[..40]).expect("no error").is_none());
        let head = Head::parse(text).expect("no error").expect("complete");
        assert_eq!((head.status, head.events, head.session.as_deref()), (200, true, Some("abc")));
        assert!(matches!(head.body, BodyLength::Chunked));
        assert_eq!(&text[head.length..], b"rest");
        assert!(Head::parse(b"garbage\r\n\r\n").is_err());
    }

    #[test]
    fn chunks_survive_every_split() {
        let whole = b"5\r\nhello\r\n6;x=y\r\n world\r\n0\r\n\r\n";
        for split in 0..whole.len() {
            let (mut position, mut body) = (0, Vec::new());
            assert!(!unchunk(&whole[..split], &mut position, &mut body).expect("no error"), "at {split}");
            assert!(unchunk(whole, &mut position, &mut body).expect("no error"), "at {split}");
            assert_eq!(body, b"hello world", "at {split}");
        }
        assert!(unchunk(b"zz\r\n", &mut 0, &mut Vec::new()).is_err());
    }

    #[test]
    fn the_first_answer_is_found_among_events() {
        let events =
            b"id: 1\ndata: \n\nevent: message\r\ndata: {\"method\":\"x\"}\r\n\r\ndata: {\"id\":1}\n\n";
        let range = first_answer(events).expect("an answer");
        assert_eq!(&events[range], b"{\"id\":1}");
        assert!(first_answer(b"data: {\"id\":1}").is_none());
    }
}
