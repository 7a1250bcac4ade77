//! Standard error of a server, line by line into its log.

use std::sync::Arc;

use ostler_mcp::{Line, Lines};
use tokio::net::unix::pipe;

use crate::log::{Log, MAX_LINE, Stream};

/// Reads until every process that holds the stream has closed it. Never stands still, so the server never
/// blocks on it; what the log has no room for is dropped there.
pub(crate) async fn capture(stderr: pipe::Receiver, log: Arc<Log>) {
    let mut lines = Lines::new(MAX_LINE);
    loop {
        if stderr.readable().await.is_err() {
            break;
        }
        match stderr.try_read_buf(lines.space()) {
            Ok(0) => break,
            Ok(_) => take_lines(&mut lines, &log),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => {
                tracing::warn!(%error, "standard error cannot be read");
                break;
            }
        }
    }
    if let Some(rest) = lines.rest() {
        log.push(Stream::Stderr, &String::from_utf8_lossy(&rest));
    }
}

fn take_lines(lines: &mut Lines, log: &Log) {
    while let Some(line) = lines.next_line() {
        match line {
            Line::Complete(line) => log.push(Stream::Stderr, &String::from_utf8_lossy(&line)),
            Line::TooLong(bytes) => {
                log.push(Stream::Ostler, &format!("a line of {bytes} bytes on stderr was dropped"))
            }
        }
    }
}
