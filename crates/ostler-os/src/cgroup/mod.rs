//! Control groups: which of them this daemon may use, and a leaf of its own for each tree.
//!
//! ```text
//!   <own cgroup>/                          where the daemon was started; never anything above or beside it
//!     ostler-<pid>-<start>-<ns>-<boot>/    the *home* of one daemon, named so that nobody else's is taken for it
//!       daemon/                            version 2 with controllers only: the daemon and its guards themselves,
//!                                          because a cgroup that hands out controllers may hold no process
//!       <mark>/                            the *leaf* of one tree: its limits, its counters, `cgroup.kill`
//! ```
//!
//! The guard makes the leaf before the server exists and removes it when the tree is empty ([`leaf`]). Homes of
//! daemons that have ended are removed at the next daemon's start ([`home`]). Version 1 has a hierarchy for each
//! controller; a tree gets a leaf there only for what it is limited in.

pub(crate) mod find;
pub(crate) mod home;
pub(crate) mod leaf;

use std::fs::OpenOptions;
use std::io::{self, Read as _, Write as _};
use std::path::Path;

/// The longest control file read: all that are read here hold a few short lines, but for lists of processes.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// Writes one value to a control file. Each write is one order to the kernel, so it must not be split.
pub(crate) fn write(path: &Path, value: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes())
}

/// Reads a control file, up to [`MAX_FILE_BYTES`].
pub(crate) fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    std::fs::File::open(path)?.take(MAX_FILE_BYTES).read_to_string(&mut text)?;
    Ok(text)
}

/// The number behind `key` in a file of lines `key number`.
pub(crate) fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// The only number of a file.
pub(crate) fn number(path: &Path) -> Option<u64> {
    read(path).ok()?.trim().parse().ok()
}

/// The processes in a cgroup; none when it is not there.
pub(crate) fn members(directory: &Path) -> Vec<i32> {
    let text = read(&directory.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_the_whole_word() {
        let text = "low 0\nmax 7\noom 3\noom_kill 2\n";
        assert_eq!(keyed(text, "oom_kill"), Some(2));
        assert_eq!(keyed(text, "oom"), Some(3));
        assert_eq!(keyed(text, "oo"), None);
        assert_eq!(keyed(text, "max"), Some(7));
    }
}
