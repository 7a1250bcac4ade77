//! Counting processes by a mark they inherit, so that nothing can hide from a test: neither a new parent, nor a
//! new session, nor closed files take an environment away.

use std::fs;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal};

/// The variable that carries a test's mark.
pub const MARK_VARIABLE: &str = "OSTLER_TEST_MARK";

/// How often `/proc` is looked at while waiting.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// A mark of one test. A process counts when its environment, or its argument list, has the mark as one whole
/// entry: a process that clears its environment can be given the mark as an argument instead.
///
/// Dropping it kills whatever still carries it, so that a failed test leaves nothing behind.
#[derive(Debug)]
pub struct Mark {
    entry: String,
}

/// A process that carries a mark.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Marked {
    /// Its pid.
    pub pid: i32,
    /// Its argument list, for messages.
    pub command: String,
    /// The line `State:` of its status: `S (sleeping)`, for example.
    pub state: String,
}

impl Default for Mark {
    fn default() -> Self {
        Self::new()
    }
}

impl Mark {
    /// A mark nobody else has.
    ///
    /// # Panics
    /// When the kernel gives no random bytes.
    pub fn new() -> Self {
        let mut bytes = [0_u8; 16];
        getrandom::fill(&mut bytes).expect("the kernel gives random bytes");
        Self { entry: format!("{MARK_VARIABLE}={:032x}", u128::from_be_bytes(bytes)) }
    }

    /// Name and value of the variable to set for a process, and so for everything it starts.
    pub fn env(&self) -> (String, String) {
        (MARK_VARIABLE.to_owned(), self.entry[MARK_VARIABLE.len() + 1..].to_owned())
    }

    /// The living processes that carry the mark, this one excepted.
    pub fn processes(&self) -> Vec<Marked> {
        let Ok(entries) = fs::read_dir("/proc") else {
            return Vec::new();
        };
        let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
        pids.filter_map(|pid| self.look(pid)).collect()
    }

    /// Their pids.
    pub fn pids(&self) -> Vec<i32> {
        self.processes().into_iter().map(|marked| marked.pid).collect()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.processes().len()
    }

    /// Waits until none is left.
    ///
    /// # Errors
    /// Those left after `deadline`.
    pub fn wait_empty(&self, deadline: Duration) -> Result<(), Vec<Marked>> {
        self.wait_for(deadline, <[Marked]>::is_empty).map(drop)
    }

    /// Waits until there are at least `count`.
    ///
    /// # Errors
    /// Those there are after `deadline`.
    pub fn wait_count(&self, count: usize, deadline: Duration) -> Result<Vec<Marked>, Vec<Marked>> {
        self.wait_for(deadline, |marked| marked.len() >= count)
    }

    /// Waits until the marked processes are as wanted.
    ///
    /// # Errors
    /// Those there are after `deadline`.
    pub fn wait_for(
        &self,
        deadline: Duration,
        wanted: impl Fn(&[Marked]) -> bool,
    ) -> Result<Vec<Marked>, Vec<Marked>> {
        let end = Instant::now() + deadline;
        loop {
            let last = Instant::now() >= end;
            let marked = self.processes();
            if wanted(&marked) {
                return Ok(marked);
            }
            if last {
                return Err(marked);
            }
            pause();
        }
    }

    fn look(&self, pid: i32) -> Option<Marked> {
        if pid == std::process::id().cast_signed() {
            return None;
        }
        let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let has = |text: &[u8]| text.split(|&byte| byte == 0).any(|entry| entry == self.entry.as_bytes());
        if !has(&environ) && !has(&arguments) {
            return None;
        }
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let state = status.lines().find_map(|line| line.strip_prefix("State:"))?.trim().to_owned();
        let command = String::from_utf8_lossy(&arguments).replace('\0', " ").trim().to_owned();
        Some(Marked { pid, command, state })
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        // Bounded: something that starts faster than it can be killed is the next person's to see.
        for _ in 0..200 {
            let left = self.processes();
            if left.is_empty() {
                return;
            }
            // Opened before the second look, so that a number taken by a stranger meanwhile is not signalled.
            let opened: Vec<(i32, OwnedFd)> = left.iter().filter_map(|marked| open(marked.pid)).collect();
            for (pid, fd) in &opened {
                if self.look(*pid).is_some() {
                    let _ = rustix::process::pidfd_send_signal(fd, Signal::STOP);
                }
            }
            for (pid, fd) in &opened {
                if self.look(*pid).is_some() {
                    let _ = rustix::process::pidfd_send_signal(fd, Signal::KILL);
                }
            }
            pause();
        }
    }
}

fn open(pid: i32) -> Option<(i32, OwnedFd)> {
    let fd = rustix::process::pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
    Some((pid, fd))
}

#[expect(
    clippy::disallowed_methods,
    reason = "the kernel tells nobody of processes that are not one's children"
)]
fn pause() {
    std::thread::sleep(LOOK_EVERY);
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(10);

    fn sleeper(mark: &Mark) -> std::process::Child {
        let (name, value) = mark.env();
        Command::new("sleep").arg("600").env(name, value).stdin(Stdio::null()).spawn().expect("sleep starts")
    }

    #[test]
    fn what_carries_the_mark_is_counted_until_it_ends() {
        let mark = Mark::new();
        assert_eq!(mark.count(), 0);
        let mut child = sleeper(&mark);
        let found = mark.wait_count(1, DEADLINE).expect("found");
        assert_eq!(found[0].pid, child.id().cast_signed());
        child.kill().expect("killed");
        mark.wait_empty(DEADLINE).expect("a zombie does not count");
        child.wait().expect("reaped");
    }

    #[test]
    fn another_mark_does_not_count_and_a_failed_wait_names_what_is_left() {
        let (mark, other) = (Mark::new(), Mark::new());
        let mut child = sleeper(&mark);
        mark.wait_count(1, DEADLINE).expect("found");
        assert_eq!(other.count(), 0);
        let left = mark.wait_empty(Duration::ZERO).expect_err("one is left");
        assert_eq!(left[0].command, "sleep 600");
        drop(mark);
        let status = child.wait().expect("dropping the mark killed it");
        assert!(!status.success());
    }
}
