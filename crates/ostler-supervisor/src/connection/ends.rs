//! The two ends of a connection: where messages for the server go, and where its messages come from. Of a process
//! they are its standard input and output, which carry lines; of a server on the network, queues of messages to and
//! from [`crate::upstream`].

use std::collections::VecDeque;
use std::io;

use bytes::Bytes;
use ostler_mcp::Message;
use ostler_mcp::mux::Ticket;
use tokio::sync::mpsc;

use super::outgoing::Outgoing;
use crate::launch::{Input, Output};

/// Messages that may wait in each direction between a connection and what carries them over the network.
pub(crate) const LINK: usize = 64;

/// What comes from a server on the network.
#[derive(Debug)]
pub(crate) enum Frame {
    /// A message, on one line.
    Message {
        /// Its text. Large ones are counted against the budget already.
        text: Bytes,
        /// The call whose own stream it came on, over a transport that has such streams.
        of: Option<Ticket>,
    },
    /// A request came to nothing on its way: this is the answer that says so. The process may be at its end, of
    /// which more can be said a moment later.
    Broken(Bytes),
    /// No message can come any more, for this reason.
    Closed(String),
}

/// The connection's ends of the two queues.
#[derive(Debug)]
pub(crate) struct Link {
    /// For the server. Closed when it is to hear nothing more.
    pub(crate) to_server: mpsc::Sender<Message>,
    /// From the server.
    pub(crate) from_server: mpsc::Receiver<Frame>,
}

/// Where messages for the server go.
#[derive(Debug)]
pub(super) enum Writer {
    /// A pipe, which takes bytes.
    Pipe(Input, Outgoing),
    /// A queue, and what it has no room for yet, with its bytes.
    Queue(mpsc::Sender<Message>, VecDeque<Message>, usize),
    /// It takes nothing any more.
    Closed,
}

impl Writer {
    /// Appends a message.
    pub(super) fn push(&mut self, message: Message) {
        match self {
            Self::Pipe(_, outgoing) => outgoing.push(&message),
            Self::Queue(_, waiting, bytes) => {
                *bytes += message.len();
                waiting.push_back(message);
            }
            Self::Closed => {}
        }
    }

    /// Whether everything was written.
    pub(super) fn is_empty(&self) -> bool {
        match self {
            Self::Pipe(_, outgoing) => outgoing.is_empty(),
            Self::Queue(_, waiting, _) => waiting.is_empty(),
            Self::Closed => true,
        }
    }

    /// Bytes that wait.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Pipe(_, outgoing) => outgoing.len(),
            Self::Queue(_, _, bytes) => *bytes,
            Self::Closed => 0,
        }
    }

    /// Writes what is taken now.
    ///
    /// # Errors
    /// When nothing will be taken any more; the writer is closed then.
    pub(super) fn write(&mut self) -> io::Result<()> {
        let written = match self {
            Self::Pipe(input, outgoing) => outgoing.write_with(|slices| input.try_write_vectored(slices)),
            Self::Queue(sender, waiting, bytes) => send(sender, waiting, bytes),
            Self::Closed => Ok(()),
        };
        match written {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                *self = Self::Closed;
                Err(error)
            }
            _ => Ok(()),
        }
    }

    /// Resolves when it takes something again; never for one that is closed. Cancel-safe.
    pub(super) async fn writable(&self) {
        match self {
            Self::Pipe(input, _) => drop(input.writable().await),
            // The place is given back: it is taken when there is something to put there.
            Self::Queue(sender, ..) => drop(sender.reserve().await),
            Self::Closed => std::future::pending().await,
        }
    }
}

fn send(
    sender: &mpsc::Sender<Message>,
    waiting: &mut VecDeque<Message>,
    bytes: &mut usize,
) -> io::Result<()> {
    while !waiting.is_empty() {
        match sender.try_reserve() {
            Ok(place) => {
                let Some(message) = waiting.pop_front() else { break };
                *bytes -= message.len();
                place.send(message);
            }
            Err(mpsc::error::TrySendError::Full(())) => return Err(io::ErrorKind::WouldBlock.into()),
            Err(mpsc::error::TrySendError::Closed(())) => return Err(io::ErrorKind::BrokenPipe.into()),
        }
    }
    Ok(())
}

/// Where the server's messages come from.
#[derive(Debug)]
pub(super) enum Reader {
    /// A pipe, which gives bytes.
    Pipe(Output),
    /// A queue, and what was taken from it. After [`Reader::readable`] an empty one is at its end.
    Queue(mpsc::Receiver<Frame>, Vec<Frame>),
}

impl Reader {
    /// Resolves when there is something, or the end. Cancel-safe.
    pub(super) async fn readable(&mut self) -> io::Result<()> {
        match self {
            Self::Pipe(output) => output.readable().await,
            Self::Queue(receiver, taken) => {
                if taken.is_empty() {
                    receiver.recv_many(taken, LINK).await;
                }
                Ok(())
            }
        }
    }

    /// What comes from the network from now on is of no use to anybody.
    pub(super) fn stop(&mut self) {
        if let Self::Queue(receiver, taken) = self {
            receiver.close();
            while receiver.try_recv().is_ok() {}
            taken.clear();
        }
    }
}
