//! Which boot of the machine this is: pids and start times mean something within one boot only.

use std::io;

/// The kernel's id of this boot (`/proc/sys/kernel/random/boot_id`), a UUID as text.
///
/// # Errors
/// When `/proc` is not mounted or may not be read.
pub fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}
