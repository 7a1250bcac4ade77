//! Answers to requests of the server itself, which it has no room for yet.
//!
//! What clients send is taken only while the server reads. What the server asks comes whether or not it reads, and a
//! server that was not read until it does would stand still where it reads only when it has written. So it is read
//! on, and so many answers wait; further ones are dropped.

use std::collections::VecDeque;

use ostler_mcp::Message;

use super::ends::Writer;
use super::outgoing::HIGH_WATER;

/// Most bytes of answers to requests of the server that wait for it to read, beyond [`HIGH_WATER`].
pub(super) const REPLIES_MAX: usize = 1 << 20;

/// Bytes that each costs besides its text.
const EACH: usize = 128;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Replies {
    waiting: VecDeque<Message>,
    bytes: usize,
}

impl Replies {
    /// Appends an answer; false, and it is dropped, where too many wait.
    pub(super) fn push(&mut self, reply: Message, writer: &mut Writer) -> bool {
        if self.waiting.is_empty() && writer.len() < HIGH_WATER {
            writer.push(reply);
            return true;
        }
        let bytes = self.bytes + reply.len() + EACH;
        let fits = bytes <= REPLIES_MAX;
        if fits {
            self.bytes = bytes;
            self.waiting.push_back(reply);
        }
        fits
    }

    /// Gives the writer what it has room for again; whether that was anything.
    pub(super) fn pass_on(&mut self, writer: &mut Writer) -> bool {
        let before = self.waiting.len();
        while writer.len() < HIGH_WATER
            && let Some(reply) = self.waiting.pop_front()
        {
            self.bytes -= reply.len() + EACH;
            writer.push(reply);
        }
        self.waiting.len() < before
    }
}
