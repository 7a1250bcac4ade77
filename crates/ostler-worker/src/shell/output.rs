//! What a command prints: the beginning is kept, the rest is read and counted.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use base64::Engine as _;
use rustix::io::Errno;
use serde::Deserialize;

/// How bytes become text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Encoding {
    /// As UTF-8; what is none becomes U+FFFD.
    #[default]
    Text,
    /// As they are, in base64.
    Base64,
}

impl Encoding {
    pub(crate) fn text(self, bytes: &[u8]) -> String {
        match self {
            Self::Text => String::from_utf8_lossy(bytes).into_owned(),
            Self::Base64 => base64::engine::general_purpose::STANDARD.encode(bytes),
        }
    }
}

pub(super) struct Captured {
    end: Option<OwnedFd>,
    kept: Vec<u8>,
    max: usize,
    dropped: u64,
}

impl Captured {
    pub(super) fn new(end: OwnedFd, max: usize) -> Self {
        Self { end: Some(end), kept: Vec::new(), max, dropped: 0 }
    }

    /// Where it comes from, until it is closed.
    pub(super) fn end(&self) -> Option<BorrowedFd<'_>> {
        self.end.as_ref().map(AsFd::as_fd)
    }

    /// Reads once what is there. Whether there may be more at once.
    pub(super) fn read(&mut self) -> bool {
        let Some(end) = &self.end else { return false };
        let mut buffer = [0u8; 16 << 10];
        match rustix::io::read(end, &mut buffer) {
            Ok(0) => self.end = None,
            Ok(read) => {
                let keep = read.min(self.max - self.kept.len());
                self.kept.extend_from_slice(&buffer[..keep]);
                self.dropped += (read - keep) as u64;
                return true;
            }
            Err(Errno::INTR) => return true,
            Err(Errno::AGAIN) => {}
            Err(_) => self.end = None,
        }
        false
    }

    pub(super) fn text(&self, encoding: Encoding) -> String {
        encoding.text(&self.kept)
    }

    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }
}
