//! Output of a process, line by line into its log.

use std::sync::Arc;
use std::time::Duration;

use ostler_os::pipe::{USUAL, WIDE};
use tokio::time::timeout;

use crate::launch::Output;
use crate::log::{Log, MAX_LINE, Stream};

/// What is read at once, in bytes: all that a pipe holds, behind the beginning of the longest line that is kept.
const BUFFER: usize = USUAL + MAX_LINE;
/// The same of a pipe that was found more than half full, and is made wider: its process has to stop for the reader less
/// often.
const WIDE_BUFFER: usize = WIDE + MAX_LINE;

/// A process that has written nothing for this long has no buffer: most are silent most of the time, and there may
/// be hundreds.
const QUIET: Duration = Duration::from_secs(1);

/// How long output is read on once its process, or its tree, has ended, where somebody else holds the pipe open.
pub(crate) const LAST_WORDS: Duration = Duration::from_millis(200);

/// Reads until every process that holds the pipe has closed it. Never stands still, so the process never blocks on
/// it; what the log has no room for is dropped and counted there.
pub(crate) async fn capture(pipe: Output, stream: Stream, log: Arc<Log>) {
    let mut held = Held::default();
    loop {
        if readable(&pipe, &mut held).await.is_err() {
            break;
        }
        match pipe.try_read(held.room()) {
            Ok(0) => break,
            Ok(length) => {
                if length > USUAL / 2 && !held.wide {
                    held.wide = pipe.hold(WIDE);
                }
                held.take(length, stream, &log);
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => {
                tracing::warn!(%error, stream = stream.as_str(), "the output of a process cannot be read");
                break;
            }
        }
    }
    held.finish(stream, &log);
}

/// Resolves when there is something to read.
async fn readable(pipe: &Output, held: &mut Held) -> std::io::Result<()> {
    if !held.buffer.is_empty() {
        match timeout(QUIET, pipe.readable()).await {
            Ok(readable) => return readable,
            Err(_) => held.rest(pipe),
        }
    }
    pipe.readable().await
}

/// What was read and not taken yet: less than a line.
#[derive(Default)]
struct Held {
    /// Empty, or [`BUFFER`] long, or [`WIDE_BUFFER`].
    buffer: Vec<u8>,
    /// The pipe is wide.
    wide: bool,
    filled: usize,
    /// Bytes dropped so far of the line that is being read, which is too long.
    overlong: usize,
}

impl Held {
    /// Where to read to.
    fn room(&mut self) -> &mut [u8] {
        let wanted = if self.wide { WIDE_BUFFER } else { BUFFER };
        if self.buffer.len() < wanted {
            self.buffer.resize(wanted, 0);
        }
        &mut self.buffer[self.filled..]
    }

    /// There has been nothing to read for a while.
    fn rest(&mut self, pipe: &Output) {
        if self.filled == 0 {
            self.buffer = Vec::new();
            // It is empty, so it may be made as small as it was.
            self.wide = self.wide && !pipe.hold(USUAL);
        }
    }

    /// Takes `length` more bytes of the buffer.
    fn take(&mut self, length: usize, stream: Stream, log: &Log) {
        let fresh = self.filled;
        self.filled += length;
        if let Some(end) = memchr::memrchr(b'\n', &self.buffer[fresh..self.filled]) {
            let whole = fresh + end + 1;
            let begin = if self.overlong > 0 { self.end_overlong(fresh, whole, stream, log) } else { 0 };
            if begin < whole {
                log.push_lines(stream, &self.buffer[begin..whole]);
            }
            self.buffer.copy_within(whole..self.filled, 0);
            self.filled -= whole;
        }
        if self.filled > MAX_LINE {
            self.overlong += self.filled - MAX_LINE;
            self.filled = MAX_LINE;
        }
    }

    /// Takes the line that is too long, whose beginning is kept; the bytes from `fresh` to `whole` hold its end.
    /// Gives the place behind that.
    fn end_overlong(&mut self, fresh: usize, whole: usize, stream: Stream, log: &Log) -> usize {
        let end = memchr::memchr(b'\n', &self.buffer[fresh..whole]).map_or(whole, |end| fresh + end);
        let dropped = std::mem::take(&mut self.overlong) + end - fresh;
        log.push_cut(stream, &String::from_utf8_lossy(&self.buffer[..MAX_LINE]), dropped);
        end + 1
    }

    /// The last line may lack its end.
    fn finish(&mut self, stream: Stream, log: &Log) {
        if self.overlong > 0 {
            self.end_overlong(self.filled, self.filled, stream, log);
        } else if self.filled > 0 {
            log.push(stream, &String::from_utf8_lossy(&self.buffer[..self.filled]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds a text in pieces of `size` bytes, as reads would bring it.
    fn fed(text: &str, size: usize) -> Vec<String> {
        let log = Log::new(100);
        let mut held = Held::default();
        for piece in text.as_bytes().chunks(size) {
            let mut rest = piece;
            while !rest.is_empty() {
                let room = held.room();
                let length = rest.len().min(room.len());
                room[..length].copy_from_slice(&rest[..length]);
                held.take(length, Stream::Stderr, &log);
                held.rest(&Output::Nobody);
                rest = &rest[length..];
            }
        }
        held.finish(Stream::Stderr, &log);
        log.after(0, 1000).into_iter().map(|line| line.text.into()).collect()
    }

    #[test]
    fn lines_are_the_same_however_they_arrive() {
        let long = "x".repeat(2 * BUFFER + 3);
        let text = format!("one\ntwo\r\n\n{long}\nthree\n{long}\nlast");
        for size in [1, 7, 1000, BUFFER, 1_000_000] {
            let lines = fed(&text, size);
            let cut = format!("{} [cut: {} more bytes]", &long[..MAX_LINE], long.len() - MAX_LINE);
            let expected = ["one", "two", "", &cut, "three", &cut, "last"];
            assert_eq!(lines, expected, "in pieces of {size}");
        }
    }

    #[tokio::test]
    async fn a_pipe_that_is_found_full_is_wide_for_as_long_as_it_is_busy() {
        let (write, read) = tokio::net::unix::pipe::pipe().expect("a pipe");
        let log = Arc::new(Log::new(10));
        let line = [b"x".repeat(99), b"\n".to_vec()].concat();
        write.writable().await.expect("a pipe");
        while write.try_write(&line).is_ok() {}
        let reading = tokio::spawn(capture(read.into(), Stream::Stdout, Arc::clone(&log)));
        let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
        for wanted in [WIDE, USUAL] {
            while ostler_os::pipe::capacity(&write).expect("a pipe") != wanted {
                assert!(tokio::time::Instant::now() < deadline, "it never holds {wanted} bytes");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        write.writable().await.expect("a pipe");
        write.try_write(b"last\n").expect("there is room");
        drop(write);
        reading.await.expect("it ends with the pipe");
        assert_eq!(log.after(0, 1)[0].text.as_ref(), "last");
    }

    #[test]
    fn a_line_of_the_longest_length_is_whole() {
        let line = "y".repeat(MAX_LINE);
        assert_eq!(fed(&format!("{line}\n"), 1000), [line]);
    }
}
