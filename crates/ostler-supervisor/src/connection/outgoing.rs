//! What waits to be written to a process: small messages gathered, large ones shared.

use std::collections::VecDeque;
use std::io::{self, IoSlice};

use bytes::{Buf as _, Bytes, BytesMut};
use ostler_mcp::{Message, SHARE_FROM};

/// A gathered piece is closed at this size.
const PIECE: usize = 64 * 1024;
/// Most pieces given to one system call.
const PIECES_A_WRITE: usize = 16;

/// Above this many waiting bytes no further request is taken: the process does not read.
pub(super) const HIGH_WATER: usize = 256 * 1024;

/// Bytes on their way to the process, in order.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    pieces: VecDeque<Bytes>,
    tail: BytesMut,
    len: usize,
}

impl Outgoing {
    /// Appends a message and its line end.
    pub(super) fn push(&mut self, message: &Message) {
        self.len += message.len() + 1;
        if message.len() < SHARE_FROM {
            for part in message.parts() {
                self.tail.extend_from_slice(part);
            }
        } else {
            self.close_tail();
            self.pieces.extend(message.parts().iter().cloned());
        }
        self.tail.extend_from_slice(b"\n");
        if self.tail.len() >= PIECE {
            self.close_tail();
        }
    }

    fn close_tail(&mut self) {
        if !self.tail.is_empty() {
            self.pieces.push_back(self.tail.split().freeze());
        }
    }

    /// Whether everything was written.
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes that wait.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Writes as much as `write` takes; stops at its first error, `WouldBlock` included.
    pub(super) fn write_with(
        &mut self,
        mut write: impl FnMut(&[IoSlice<'_>]) -> io::Result<usize>,
    ) -> io::Result<()> {
        self.close_tail();
        while !self.pieces.is_empty() {
            let written = {
                let mut slices = [IoSlice::new(&[]); PIECES_A_WRITE];
                let mut count = 0;
                for (slot, piece) in slices.iter_mut().zip(&self.pieces) {
                    *slot = IoSlice::new(piece);
                    count += 1;
                }
                write(&slices[..count])?
            };
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            self.advance(written);
        }
        Ok(())
    }

    fn advance(&mut self, mut written: usize) {
        self.len -= written;
        while let Some(piece) = self.pieces.front_mut() {
            if piece.len() > written {
                piece.advance(written);
                return;
            }
            written -= piece.len();
            self.pieces.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_whole_and_in_order_however_little_is_taken_at_a_time() {
        let large = Message::splice(&Bytes::from(vec![b'x'; 100_000]), &[(5..6, b"-")]);
        for step in [1, 7, 4096, 1 << 20] {
            let mut outgoing = Outgoing::default();
            let mut expected = Vec::new();
            for n in 0..50 {
                let message = if n % 20 == 7 { large.clone() } else { Message::from(format!("message {n}")) };
                expected.extend_from_slice(&message.to_bytes());
                expected.push(b'\n');
                outgoing.push(&message);
            }
            let mut taken = Vec::new();
            outgoing
                .write_with(|slices| {
                    let before = taken.len();
                    for slice in slices {
                        let room = step - (taken.len() - before);
                        taken.extend_from_slice(&slice[..slice.len().min(room)]);
                        if taken.len() - before == step {
                            break;
                        }
                    }
                    Ok(taken.len() - before)
                })
                .unwrap();
            assert!(outgoing.is_empty());
            assert_eq!(taken, expected, "{step} bytes at a time");
        }
    }
}
