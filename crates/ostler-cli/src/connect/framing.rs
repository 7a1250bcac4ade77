//! Lines: newline-delimited messages in from the client and out to it.

use std::io;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

/// The largest message in either direction, in bytes: the daemon's own limit.
pub(crate) const MAX_MESSAGE: usize = 64 << 20;
/// How much is read at once, in bytes.
const READ_SIZE: usize = 64 << 10;
/// Messages that wait for the client to read; with more, whoever has one for it waits too.
const OUT_QUEUE: usize = 4;

/// What was read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// A line that is not blank, without its end.
    Text(Bytes),
    /// A line over [`MAX_MESSAGE`]; it was skipped.
    TooLong,
}

/// Reads lines. Dropping the future of [`Lines::next`] loses nothing.
pub(crate) struct Lines<R> {
    input: R,
    buffer: BytesMut,
    /// How much of the buffer is known to hold no line end.
    scanned: usize,
    skipping: bool,
    ended: bool,
    limit: usize,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    pub(crate) fn new(input: R) -> Self {
        Self::with_limit(input, MAX_MESSAGE)
    }

    fn with_limit(input: R, limit: usize) -> Self {
        Self { input, buffer: BytesMut::new(), scanned: 0, skipping: false, ended: false, limit }
    }

    /// The next line, or `None` at the end of the input. A last line without its end counts.
    pub(crate) async fn next(&mut self) -> io::Result<Option<Line>> {
        loop {
            if let Some(end) = memchr::memchr(b'\n', &self.buffer[self.scanned..]) {
                let line = self.buffer.split_to(self.scanned + end + 1);
                self.scanned = 0;
                if let Some(line) = self.finish(line.freeze()) {
                    return Ok(Some(line));
                }
                continue;
            }
            self.scanned = self.buffer.len();
            if self.scanned > self.limit {
                self.skipping = true;
                self.buffer = BytesMut::new();
                self.scanned = 0;
            }
            if self.ended {
                let rest = std::mem::take(&mut self.buffer);
                self.scanned = 0;
                return Ok(self.finish(rest.freeze()));
            }
            self.buffer.reserve(READ_SIZE);
            self.ended = self.input.read_buf(&mut self.buffer).await? == 0;
        }
    }

    fn finish(&mut self, line: Bytes) -> Option<Line> {
        if std::mem::take(&mut self.skipping) {
            return Some(Line::TooLong);
        }
        let text = line.trim_ascii();
        if text.len() > self.limit {
            return Some(Line::TooLong);
        }
        (!text.is_empty()).then(|| Line::Text(line.slice_ref(text)))
    }
}

/// Writes messages, one per line, each whole: a task of its own writes, so a caller that is cancelled leaves
/// no half line.
#[derive(Clone, Debug)]
pub(crate) struct Out {
    queue: mpsc::Sender<Bytes>,
    closed: watch::Receiver<bool>,
}

impl Out {
    /// Starts the writer; it ends when every `Out` is gone or the client no longer reads.
    pub(crate) fn start<W: AsyncWrite + Unpin + Send + 'static>(mut output: W) -> (Self, JoinHandle<()>) {
        let (queue, mut messages) = mpsc::channel::<Bytes>(OUT_QUEUE);
        let (say_closed, closed) = watch::channel(false);
        let writer = tokio::spawn(async move {
            while let Some(message) = messages.recv().await {
                let written = async {
                    output.write_all(&message).await?;
                    output.write_all(b"\n").await?;
                    output.flush().await
                };
                if written.await.is_err() {
                    break;
                }
            }
            say_closed.send_replace(true);
        });
        (Self { queue, closed }, writer)
    }

    /// Queues a message. When the client no longer reads, it is dropped; [`Out::closed`] tells.
    pub(crate) async fn send(&self, message: Bytes) {
        let _ = self.queue.send(one_line(message)).await;
    }

    /// Waits until the client no longer reads.
    pub(crate) async fn closed(&self) {
        let mut closed = self.closed.clone();
        // An error means that the writer is gone, which is the same.
        let _ = closed.wait_for(|closed| *closed).await;
    }
}

/// The message on one line. In valid JSON a line end can only stand between tokens, where a space means the
/// same.
fn one_line(message: Bytes) -> Bytes {
    if memchr::memchr2(b'\n', b'\r', &message).is_none() {
        return message;
    }
    let mut text = message.to_vec();
    for byte in &mut text {
        if matches!(byte, b'\n' | b'\r') {
            *byte = b' ';
        }
    }
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn lines(input: &[u8], limit: usize) -> Vec<Line> {
        let mut reader = Lines::with_limit(input, limit);
        let mut found = Vec::new();
        while let Some(line) = reader.next().await.expect("a slice can be read") {
            found.push(line);
        }
        found
    }

    fn text(text: &'static str) -> Line {
        Line::Text(Bytes::from_static(text.as_bytes()))
    }

    #[tokio::test]
    async fn lines_blank_lines_and_a_last_line_without_its_end() {
        assert_eq!(lines(b"{1}\r\n\n  \n{2}\n{3}", 100).await, [text("{1}"), text("{2}"), text("{3}")]);
        assert_eq!(lines(b"", 100).await, []);
    }

    #[tokio::test]
    async fn a_line_over_the_limit_is_skipped_and_said() {
        assert_eq!(lines(b"12345\n123456\n1\n", 5).await, [text("12345"), Line::TooLong, text("1")]);
        let long = [vec![b'x'; 3 * READ_SIZE], b"\nok\n".to_vec()].concat();
        assert_eq!(lines(&long, 1000).await, [Line::TooLong, text("ok")]);
    }

    #[tokio::test]
    async fn a_message_with_line_ends_is_written_as_one_line() {
        let (reader, writer) = tokio::io::duplex(1000);
        let (out, task) = Out::start(writer);
        out.send(Bytes::from_static(b"{\r\n  \"a\": \"\\n\"\n}")).await;
        drop(out);
        task.await.expect("the writer ends");
        assert_eq!(Lines::new(reader).next().await.expect("read"), Some(text("{    \"a\": \"\\n\" }")));
    }

    #[tokio::test]
    async fn a_client_that_no_longer_reads_is_noticed() {
        let (reader, writer) = tokio::io::duplex(8);
        let (out, _task) = Out::start(writer);
        drop(reader);
        out.send(Bytes::from_static(b"{}")).await;
        out.closed().await;
    }
}
