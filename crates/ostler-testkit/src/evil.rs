//! Where the evil child is: a program that misbehaves as told (see `src/bin/ostler-evil.rs`).

use std::path::PathBuf;

/// Overrides where the evil child is.
pub const EVIL_VARIABLE: &str = "OSTLER_EVIL";

/// The evil child's program, up to date; built at need (see [`crate::program`]).
///
/// # Panics
/// When it can neither be built nor found.
pub fn path() -> PathBuf {
    crate::program::program("ostler-evil", EVIL_VARIABLE)
}
