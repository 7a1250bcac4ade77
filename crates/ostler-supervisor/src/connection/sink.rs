//! Where a call's messages go: one answer for most calls, a stream ahead of it for some.

use ostler_mcp::Message;
use ostler_mcp::mux::Answer;
use tokio::sync::{mpsc, oneshot};

/// Messages of one call that may wait for its client to read them; further ones are dropped and counted.
pub const STREAM_QUEUE: usize = 64;

/// The first thing a call hears.
#[derive(Debug)]
pub enum First {
    /// The answer; most calls hear nothing else.
    Answer(Answer),
    /// Messages come ahead of the answer.
    Stream(CallStream),
}

/// The messages of a call that has more to say than its answer.
#[derive(Debug)]
pub struct CallStream {
    /// What comes ahead of the answer; closed when the answer is there.
    pub messages: mpsc::Receiver<Message>,
    /// The answer.
    pub answer: oneshot::Receiver<Answer>,
}

/// The connection's end of a call.
#[derive(Debug)]
pub struct CallSink(State);

#[derive(Debug)]
enum State {
    Quiet(oneshot::Sender<First>),
    Streaming(mpsc::Sender<Message>, oneshot::Sender<Answer>),
    /// Only between two states.
    Moving,
}

/// A message could not be given to the call: its client is gone or does not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Undelivered;

impl CallSink {
    /// A sink and the end on which its first message arrives.
    pub fn new() -> (Self, oneshot::Receiver<First>) {
        let (sender, receiver) = oneshot::channel();
        (Self(State::Quiet(sender)), receiver)
    }

    /// Gives the answer. A client that is gone does not get it.
    pub fn finish(self, answer: Answer) {
        match self.0 {
            State::Quiet(first) => drop(first.send(First::Answer(answer))),
            State::Streaming(_, end) => drop(end.send(answer)),
            State::Moving => {}
        }
    }

    /// Gives a message ahead of the answer.
    ///
    /// # Errors
    /// [`Undelivered`] when nobody reads it.
    pub fn emit(&mut self, message: Message) -> Result<(), Undelivered> {
        if let State::Quiet(_) = self.0 {
            let State::Quiet(first) = std::mem::replace(&mut self.0, State::Moving) else {
                return Err(Undelivered);
            };
            let (sender, messages) = mpsc::channel(STREAM_QUEUE);
            let (end, answer) = oneshot::channel();
            let lost = first.send(First::Stream(CallStream { messages, answer })).is_err();
            self.0 = State::Streaming(sender, end);
            if lost {
                return Err(Undelivered);
            }
        }
        match &self.0 {
            State::Streaming(sender, _) => sender.try_send(message).map_err(|_| Undelivered),
            State::Quiet(_) | State::Moving => Err(Undelivered),
        }
    }
}

#[cfg(test)]
mod tests {
    use ostler_mcp::Kind;

    use super::*;

    fn answer() -> Answer {
        Answer { kind: Kind::Result, message: Message::from("answer".to_owned()) }
    }

    #[tokio::test]
    async fn what_was_emitted_arrives_before_the_answer() {
        let (mut sink, first) = CallSink::new();
        sink.emit(Message::from("one".to_owned())).unwrap();
        sink.emit(Message::from("two".to_owned())).unwrap();
        sink.finish(answer());
        let Ok(First::Stream(mut stream)) = first.await else { panic!("a stream was due") };
        assert_eq!(stream.messages.recv().await.unwrap().to_bytes(), "one");
        assert_eq!(stream.messages.recv().await.unwrap().to_bytes(), "two");
        assert!(stream.messages.recv().await.is_none());
        assert_eq!(stream.answer.await.unwrap().message.to_bytes(), "answer");
    }

    #[tokio::test]
    async fn a_reader_that_stands_still_does_not_fill_memory() {
        let (mut sink, _first) = CallSink::new();
        let sent =
            (0..STREAM_QUEUE + 50).filter(|_| sink.emit(Message::from("x".to_owned())).is_ok()).count();
        assert_eq!(sent, STREAM_QUEUE);
    }
}
