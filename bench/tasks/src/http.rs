//! A lean client of an HTTP API over a unix socket: one keep-alive connection, one exchange in flight.
//!
//! It shares the machine with what it measures, so it does as little as it can: one write per request, no header
//! map, buffers kept from exchange to exchange.

use std::io::{self, Write as _};
use std::path::Path;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// A reply longer than this is refused: ten thousand tasks of a batch are below it.
const LONGEST_REPLY: usize = 16 << 20;

/// One connection.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
    body: Vec<u8>,
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// What the attempt failed with.
    pub async fn open(socket: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(socket).await?;
        Ok(Self { stream, input: Vec::with_capacity(4096), output: Vec::new(), body: Vec::new() })
    }

    /// Asks for `path`.
    ///
    /// # Errors
    /// The connection failed, or the reply is none as far as this client knows them.
    pub async fn get(&mut self, path: &str) -> io::Result<u16> {
        self.output.clear();
        write!(self.output, "GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n\r\n")?;
        self.exchange().await
    }

    /// Posts JSON to `path`.
    ///
    /// # Errors
    /// As [`Connection::get`].
    pub async fn post(&mut self, path: &str, json: &[u8]) -> io::Result<u16> {
        self.output.clear();
        write!(
            self.output,
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            json.len()
        )?;
        self.output.extend_from_slice(json);
        self.exchange().await
    }

    /// The body of the last reply.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// Sends what is in `output` and reads the whole reply; answers its status.
    async fn exchange(&mut self) -> io::Result<u16> {
        self.stream.write_all(&self.output).await?;
        self.input.clear();
        self.body.clear();
        loop {
            if self.stream.read_buf(&mut self.input).await? == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the daemon closed the connection"));
            }
            if let Some(status) = parse(&self.input, &mut self.body)? {
                return Ok(status);
            }
            if self.input.len() > LONGEST_REPLY {
                return Err(bad("a reply that is longer than this client accepts"));
            }
        }
    }
}

/// The status of the reply in `input` once it is complete, its body in `body`.
fn parse(input: &[u8], body: &mut Vec<u8>) -> io::Result<Option<u16>> {
    let Some(end) = memchr::memmem::find(input, b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(&input[..end]).map_err(|_| bad("a head that is no text"))?;
    let rest = &input[end + 4..];
    let mut lines = head.split("\r\n");
    let status = lines
        .next()
        .and_then(|line| line.strip_prefix("HTTP/1.1 "))
        .and_then(|line| line.get(..3)?.parse().ok())
        .ok_or_else(|| bad("no HTTP/1.1 status line"))?;
    let named = |wanted: &str| {
        let mut headers = head.split("\r\n").skip(1).filter_map(|line| line.split_once(':'));
        headers.find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value.trim())
    };
    if named("transfer-encoding").is_some() {
        return Ok(unchunk(rest, body)?.then_some(status));
    }
    let length: usize = match named("content-length") {
        Some(length) => length.parse().map_err(|_| bad("a Content-Length that is no number"))?,
        None => 0,
    };
    let Some(whole) = rest.get(..length) else { return Ok(None) };
    body.extend_from_slice(whole);
    Ok(Some(status))
}

/// Puts the chunks together; true when the last one is there, else nothing is.
fn unchunk(mut rest: &[u8], body: &mut Vec<u8>) -> io::Result<bool> {
    body.clear();
    loop {
        let Some(end) = memchr::memmem::find(rest, b"\r\n") else { return Ok(false) };
        let size = std::str::from_utf8(&rest[..end])
            .ok()
            .and_then(|line| usize::from_str_radix(line.split(';').next()?.trim(), 16).ok())
            .filter(|size| *size <= LONGEST_REPLY)
            .ok_or_else(|| bad("a chunk without a size"))?;
        let Some(chunk) = rest.get(end + 2..end + 2 + size + 2) else { return Ok(false) };
        if size == 0 {
            return Ok(true);
        }
        body.extend_from_slice(&chunk[..size]);
        rest = &rest[end + 2 + size + 2..];
    }
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the daemon sent {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_is_read_once_complete() {
        let plain: &[u8] = b"HTTP/1.1 202 Accepted\r\nCONTENT-LENGTH: 5\r\n\r\nhello";
        let chunked: &[u8] =
            b"HTTP/1.1 202 Accepted\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhe\r\n3;x\r\nllo\r\n0\r\n\r\n";
        for whole in [plain, chunked] {
            for split in 0..whole.len() {
                assert_eq!(parse(&whole[..split], &mut Vec::new()).expect("no error"), None, "at {split}");
            }
            let mut body = Vec::new();
            assert_eq!(parse(whole, &mut body).expect("no error"), Some(202));
            assert_eq!(body, b"hello");
        }
        assert!(parse(b"nonsense\r\n\r\n", &mut Vec::new()).is_err());
        let none = parse(b"HTTP/1.1 204 No Content\r\n\r\n", &mut Vec::new());
        assert_eq!(none.expect("no error"), Some(204));
    }
}
