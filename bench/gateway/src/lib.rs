//! The measuring half of the gateway benchmark.
//!
//! The binaries share five small parts: [`session`] opens a client session and makes its calls, [`http`] is the
//! lean Streamable HTTP client beneath, [`mcp`] builds the messages and checks the echoes, [`histogram`] keeps
//! latencies, [`tree`] reads what a process tree costs from `/proc`.
//! Linux only, because of the last one. `bench/README.md` says what each figure means.

pub mod histogram;
pub mod http;
pub mod mcp;
pub mod session;
pub mod tree;
