//! Where the fake MCP server is: well-behaved, and made to show who owns what (see
//! `src/bin/ostler-fake-server.rs`).

use std::path::PathBuf;

/// Overrides where the fake server is.
pub const FAKE_VARIABLE: &str = "OSTLER_FAKE_SERVER";

/// The fake server's program, up to date; built at need (see [`crate::program`]).
///
/// # Panics
/// When it can neither be built nor found.
pub fn path() -> PathBuf {
    crate::program::program("ostler-fake-server", FAKE_VARIABLE)
}
