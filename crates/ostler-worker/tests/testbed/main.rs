//! The built-in worker as a process of its own.

use std::process::ExitCode;

fn main() -> ExitCode {
    ostler_worker::run()
}
