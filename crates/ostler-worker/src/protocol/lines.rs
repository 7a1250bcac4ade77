//! Splits what comes into lines, within a bound.

use super::{MAX_LINE, ProtocolError};

/// Takes bytes as they come, gives lines. Holds one line and what followed it, no more.
#[derive(Debug, Default)]
pub struct Lines {
    held: Vec<u8>,
    /// Where the next line begins.
    from: usize,
    /// Up to here there is no end of line.
    looked: usize,
}

impl Lines {
    /// Takes bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.from > 0 {
            self.held.drain(..self.from);
            self.looked -= self.from;
            self.from = 0;
        }
        // One large line is no reason to hold its room for ever.
        if self.held.is_empty() && self.held.capacity() > (1 << 20) {
            self.held = Vec::new();
        }
        self.held.extend_from_slice(bytes);
    }

    /// The next whole line that is not blank, without its end.
    ///
    /// # Errors
    /// When it is longer than [`MAX_LINE`]; what follows cannot be told from it any more.
    pub fn next_line(&mut self) -> Result<Option<&[u8]>, ProtocolError> {
        loop {
            let end = memchr::memchr(b'\n', &self.held[self.looked..]).map(|at| self.looked + at);
            let Some(end) = end else {
                self.looked = self.held.len();
                let long = self.held.len() - self.from >= MAX_LINE;
                return if long { Err(ProtocolError::TooLong) } else { Ok(None) };
            };
            let begin = self.from;
            self.from = end + 1;
            self.looked = end + 1;
            if end - begin >= MAX_LINE {
                return Err(ProtocolError::TooLong);
            }
            if !self.held[begin..end].iter().all(u8::is_ascii_whitespace) {
                return Ok(Some(&self.held[begin..end]));
            }
        }
    }

    /// Whether a line has begun whose end has not come.
    #[must_use]
    pub fn is_within_line(&self) -> bool {
        self.held.len() > self.from
    }
}
