//! The Model Context Protocol on raw envelopes.
//!
//! Bodies pass through as they came: only ids, progress tokens, `cancelled.requestId` and `subscriptionId`
//! are replaced, byte for byte in place. [`envelope`] finds them, [`message`] replaces them and splits lines,
//! [`mux`] decides who owns each message on a process that several sessions share, [`version`] knows the
//! revisions and the handshakes of both eras, [`headers`] checks the modern HTTP headers against the body and
//! makes them, [`sse`] reads server-sent events.
//!
//! Nothing here knows a socket, a runtime or a clock.

pub mod envelope;
pub mod headers;
pub mod message;
pub mod mux;
pub mod rpc;
pub mod session_tools;
pub mod sse;
pub mod tell;
pub mod version;

pub use envelope::{Envelope, EnvelopeError, Kind};
pub use message::{Line, Lines, Message, SHARE_FROM, on_one_line};
pub use sse::{Sse, SseReader};
