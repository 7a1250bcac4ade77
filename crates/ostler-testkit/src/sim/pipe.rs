//! Pipes between the daemon and a simulated process: full, slow and cut where the dice say so.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::BytesMut;
use ostler_supervisor::launch::simulated;
use tokio::sync::Notify;

use crate::dice::Dice;

/// Bytes a simulated pipe holds: less than Linux's 64 KiB, so that it is full sooner.
const CAPACITY: usize = 2048;

/// One pipe. Clones are the same.
#[derive(Clone, Debug)]
pub(super) struct Pipe(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    bytes: VecDeque<u8>,
    writer_closed: bool,
    reader_closed: bool,
    /// The daemon's task that waits for this end.
    waiting: Option<Waker>,
    /// The process at the other end.
    process: Arc<Notify>,
    dice: Dice,
}

impl State {
    fn wake(&mut self) {
        if let Some(waker) = self.waiting.take() {
            waker.wake();
        }
    }

    /// Part of `most`, at least one: how much a system call moves is never promised.
    fn part(&mut self, most: usize) -> usize {
        if self.dice.chance(70) { most } else { self.dice.size(most) + 1 }
    }
}

impl Pipe {
    pub(super) fn new(dice: Dice, process: Arc<Notify>) -> Self {
        let state = State {
            bytes: VecDeque::new(),
            writer_closed: false,
            reader_closed: false,
            waiting: None,
            process,
            dice,
        };
        Self(Arc::new(Mutex::new(state)))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The process writes; what the daemon has no ears for is lost.
    pub(super) fn write(&self, bytes: &[u8]) {
        let mut state = self.lock();
        if !state.writer_closed && !state.reader_closed {
            state.bytes.extend(bytes);
            state.wake();
        }
    }

    /// The process closes the end it writes to.
    pub(super) fn close_writer(&self) {
        let mut state = self.lock();
        state.writer_closed = true;
        state.wake();
    }

    /// The process closes the end it reads from.
    pub(super) fn close_reader(&self) {
        let mut state = self.lock();
        state.reader_closed = true;
        state.bytes.clear();
        state.wake();
    }

    /// The process reads a line, without its end.
    pub(super) fn read_line(&self) -> Option<Vec<u8>> {
        let mut state = self.lock();
        let end = state.bytes.iter().position(|byte| *byte == b'\n');
        // A line that is longer than the pipe never ends in it.
        let end = end.or_else(|| (state.bytes.len() >= CAPACITY).then(|| state.bytes.len() - 1))?;
        let mut line: Vec<u8> = state.bytes.drain(..=end).collect();
        line.pop();
        state.wake();
        Some(line)
    }

    /// The daemon reads up to `most` bytes; none is the end.
    fn take(&self, most: usize) -> io::Result<Vec<u8>> {
        let mut state = self.lock();
        let room = most.min(state.bytes.len());
        if room == 0 {
            return if state.writer_closed { Ok(Vec::new()) } else { Err(io::ErrorKind::WouldBlock.into()) };
        }
        let taken = state.part(room);
        Ok(state.bytes.drain(..taken).collect())
    }

    /// Whether the daemon has closed its end and everything was read.
    pub(super) fn at_end(&self) -> bool {
        let state = self.lock();
        state.writer_closed && !state.bytes.contains(&b'\n')
    }
}

/// The daemon's end of a process's standard input.
#[derive(Debug)]
pub(super) struct InputEnd(pub(super) Pipe);

impl simulated::Input for InputEnd {
    fn poll_writable(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.0.lock();
        if state.reader_closed || state.bytes.len() < CAPACITY {
            return Poll::Ready(Ok(()));
        }
        state.waiting = Some(context.waker().clone());
        Poll::Pending
    }

    fn try_write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut state = self.0.lock();
        if state.reader_closed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let offered: usize = slices.iter().map(|slice| slice.len()).sum();
        let room = CAPACITY.saturating_sub(state.bytes.len()).min(offered);
        if room == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let taken = state.part(room);
        let bytes = slices.iter().flat_map(|slice| slice.iter().copied()).take(taken);
        state.bytes.extend(bytes);
        state.process.notify_one();
        Ok(taken)
    }
}

impl Drop for InputEnd {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.writer_closed = true;
        state.process.notify_one();
    }
}

/// The daemon's end of a process's standard output or error.
#[derive(Debug)]
pub(super) struct OutputEnd(pub(super) Pipe);

impl simulated::Output for OutputEnd {
    fn poll_readable(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.0.lock();
        if state.writer_closed || !state.bytes.is_empty() {
            return Poll::Ready(Ok(()));
        }
        state.waiting = Some(context.waker().clone());
        Poll::Pending
    }

    fn try_read_buf(&self, buffer: &mut BytesMut) -> io::Result<usize> {
        let bytes = self.0.take(buffer.capacity() - buffer.len())?;
        buffer.extend_from_slice(&bytes);
        Ok(bytes.len())
    }

    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.0.take(buffer.len())?;
        buffer[..bytes.len()].copy_from_slice(&bytes);
        Ok(bytes.len())
    }
}

impl Drop for OutputEnd {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.reader_closed = true;
        state.bytes.clear();
    }
}
