//! Process trees, from one pass over `/proc/*/stat`.
//!
//! By hand and into reused memory: this is on the path that stops trees, which must work when memory is short,
//! and generic process listings are ten times slower (sysinfo#866). `/proc/<pid>/task/*/children` would be
//! shorter but needs a kernel option that many kernels lack.

use std::io::{self, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use rustix::fs::{CWD, Mode, OFlags, RawDir, openat};
use rustix::io::Errno;
use rustix::process::Pid;

/// One process as `/proc/<pid>/stat` describes it (proc_pid_stat(5)).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Process {
    /// Process id.
    pub pid: i32,
    /// Parent's process id; 0 for none.
    pub ppid: i32,
    /// Session id: the pid of the process that called `setsid`.
    pub session: i32,
    /// State letter: `R`, `S`, `D`, `T`, `Z`, ...
    pub state: u8,
    /// When it was started, in clock ticks since boot. With the pid and the boot id it names one process for good.
    pub start_time: u64,
    /// User and system time it has used, in clock ticks.
    pub cpu_ticks: u64,
    /// The same of its children that it has reaped, with what these had reaped.
    pub reaped_ticks: u64,
    /// Number of threads.
    pub threads: u32,
    /// Resident pages.
    pub rss_pages: u64,
}

impl Process {
    /// Whether it has ended and only its exit status is left. A process whose first thread has ended while others
    /// run shows the same letter and is not one: its other threads are counted.
    pub fn is_zombie(&self) -> bool {
        matches!(self.state, b'Z' | b'X' | b'x') && self.threads <= 1
    }

    /// The pair that names this process within one boot.
    pub fn id(&self) -> (i32, u64) {
        (self.pid, self.start_time)
    }
}

/// The longest `/proc/<pid>/stat` read: 52 numbers of at most 20 digits and a name of at most 64 bytes.
const STAT_BYTES: usize = 1536;

/// Bytes of directory entries read at once from `/proc`.
const DIR_BYTES: usize = 16 * 1024;

/// Whether `child` is this process's only child and has none itself. For a process with one thread. No where the
/// kernel does not tell (`/proc/PID/task/TID/children` is an option), so that callers look at all processes then.
pub(crate) fn is_alone(child: Pid) -> bool {
    let child = child.as_raw_nonzero().get();
    let me = Pid::as_raw(Some(rustix::process::getpid()));
    let children =
        |pid: i32, thread: &str| std::fs::read_to_string(format!("/proc/{pid}/task/{thread}/children"));
    if !children(me, &me.to_string()).is_ok_and(|own| own.trim() == child.to_string()) {
        return false;
    }
    let Ok(threads) = std::fs::read_dir(format!("/proc/{child}/task")) else { return false };
    let mut threads = threads.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    threads.all(|thread: io::Result<String>| {
        thread.and_then(|thread| children(child, &thread)).is_ok_and(|below| below.trim().is_empty())
    })
}

/// All processes of the machine at (nearly) one moment. Reuse one to scan without allocating.
#[derive(Default, Debug)]
pub struct Scan {
    /// Sorted by pid.
    processes: Vec<Process>,
    /// Indices into `processes`, sorted by parent.
    by_parent: Vec<u32>,
}

impl Scan {
    /// A first scan.
    ///
    /// # Errors
    /// When `/proc` cannot be opened or listed.
    pub fn take() -> io::Result<Self> {
        let mut scan = Self::default();
        scan.refresh()?;
        Ok(scan)
    }

    /// Scans again into the same memory. On an error the scan is empty or partial and must not be relied on.
    ///
    /// # Errors
    /// When `/proc` cannot be opened or listed.
    pub fn refresh(&mut self) -> io::Result<()> {
        self.processes.clear();
        self.by_parent.clear();
        let proc =
            openat(CWD, c"/proc", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let mut buffer = [MaybeUninit::<u8>::uninit(); DIR_BYTES];
        let mut entries = RawDir::new(&proc, &mut buffer);
        while let Some(entry) = entries.next() {
            let Some(pid) = entry?.file_name().to_str().ok().and_then(|name| name.parse::<i32>().ok()) else {
                continue;
            };
            if let Some(process) = read_at(&proc, pid)? {
                self.processes.push(process);
            }
        }
        self.index();
        Ok(())
    }

    fn index(&mut self) {
        self.processes.sort_unstable_by_key(|process| process.pid);
        self.processes.dedup_by_key(|process| process.pid);
        let count = u32::try_from(self.processes.len()).unwrap_or(u32::MAX);
        self.by_parent.extend(0..count);
        let processes = &self.processes;
        self.by_parent.sort_unstable_by_key(|&index| processes[index as usize].ppid);
    }

    /// Every process seen, by pid.
    pub fn processes(&self) -> &[Process] {
        &self.processes
    }

    /// The process with this pid.
    pub fn get(&self, pid: i32) -> Option<&Process> {
        self.processes
            .binary_search_by_key(&pid, |process| process.pid)
            .ok()
            .map(|index| &self.processes[index])
    }

    /// The children of `parent`, zombies included.
    pub fn children(&self, parent: i32) -> impl Iterator<Item = &Process> {
        let at = |index: &u32| &self.processes[*index as usize];
        let first = self.by_parent.partition_point(|index| at(index).ppid < parent);
        self.by_parent[first..].iter().map(at).take_while(move |process| process.ppid == parent)
    }

    /// Appends to `into` every descendant of `root`, without `root`, parents before children, zombies included.
    ///
    /// A process that moved while the scan ran can be missed: look again until the answer is empty, and take
    /// only the kernel's word (`ECHILD` of a subreaper) for "nobody left".
    pub fn descendants(&self, root: i32, into: &mut Vec<Process>) {
        let mut next = into.len();
        into.extend(self.children(root).filter(|child| child.pid != root));
        // Each process has one parent, so each is appended once: this ends.
        while next < into.len() {
            let parent = into[next].pid;
            into.extend(self.children(parent).filter(|child| child.pid != root));
            next += 1;
        }
    }
}

/// Reads one process; `None` when there is none with this pid.
///
/// # Errors
/// When `/proc` cannot be read for another reason (descriptors or memory are short).
pub fn read(pid: i32) -> io::Result<Option<Process>> {
    let mut path = [0_u8; 40];
    let length = print(&mut path, format_args!("/proc/{pid}/stat"));
    read_path(CWD, &path[..length], pid)
}

fn read_at(proc: &OwnedFd, pid: i32) -> io::Result<Option<Process>> {
    let mut path = [0_u8; 40];
    let length = print(&mut path, format_args!("{pid}/stat"));
    read_path(proc, &path[..length], pid)
}

/// Formats into `buffer` without allocating and gives the length used.
fn print(buffer: &mut [u8], arguments: std::fmt::Arguments<'_>) -> usize {
    let whole = buffer.len();
    let mut rest = &mut buffer[..];
    rest.write_fmt(arguments).expect("a path of /proc fits its buffer");
    whole - rest.len()
}

fn read_path(directory: impl std::os::fd::AsFd, path: &[u8], pid: i32) -> io::Result<Option<Process>> {
    let file = match openat(directory, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT | Errno::SRCH | Errno::ACCESS) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let mut line = [0_u8; STAT_BYTES];
    let length = loop {
        match rustix::io::read(&file, &mut line) {
            Ok(length) => break length,
            Err(Errno::INTR) => {}
            Err(Errno::SRCH | Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    };
    Ok(parse(pid, &line[..length]))
}

/// Parses a stat line. The name in parentheses may itself contain spaces and parentheses, so fields are counted
/// from the last closing one.
fn parse(pid: i32, line: &[u8]) -> Option<Process> {
    let after_name = line.iter().rposition(|&byte| byte == b')')? + 2;
    let rest = std::str::from_utf8(line.get(after_name..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    // Field numbers of proc_pid_stat(5), from 3 (state).
    let state = *fields.next()?.as_bytes().first()?;
    let ppid = fields.next()?.parse().ok()?;
    let session = fields.nth(1)?.parse().ok()?; // 6
    let user: u64 = fields.nth(7)?.parse().ok()?; // 14
    let system: u64 = fields.next()?.parse().ok()?; // 15
    // These two are signed.
    let reaped = |field: &str| field.parse::<i64>().ok().map(|ticks| ticks.try_into().unwrap_or(0));
    let reaped_user: u64 = reaped(fields.next()?)?; // 16
    let reaped_system: u64 = reaped(fields.next()?)?; // 17
    let threads = fields.nth(2)?.parse().ok()?; // 20
    let start_time = fields.nth(1)?.parse().ok()?; // 22
    let rss_pages = fields.nth(1)?.parse::<i64>().ok()?.try_into().unwrap_or(0); // 24
    let (cpu_ticks, reaped_ticks) = (user + system, reaped_user + reaped_system);
    Some(Process { pid, ppid, session, state, start_time, cpu_ticks, reaped_ticks, threads, rss_pages })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &[u8] =
        b"4242 (a) b (c)) S 17 18 19 0 -1 4194304 21 22 23 24 31 11 25 26 20 0 5 0 987654 1000 77 \
        18446744073709551615 1 1 0 0 0 0 0 0 0 0 0 0 17 0 0 0 0 0 0\n";

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let process = parse(4242, LINE).expect("parses");
        let expected = Process {
            pid: 4242,
            ppid: 17,
            session: 19,
            state: b'S',
            start_time: 987_654,
            cpu_ticks: 42,
            reaped_ticks: 51,
            threads: 5,
            rss_pages: 77,
        };
        assert_eq!(process, expected);
    }

    #[test]
    fn a_cut_line_is_no_process() {
        for end in [0, 5, 20, 40, 80] {
            assert_eq!(parse(4242, &LINE[..end]), None, "cut at {end}");
        }
    }

    #[test]
    fn this_process_is_found_under_its_parent() {
        let scan = Scan::take().expect("/proc is readable");
        let me = i32::try_from(std::process::id()).expect("a pid");
        let own = *scan.get(me).expect("sees itself");
        assert_eq!(read(me).expect("readable").expect("alive").id(), own.id());
        assert!(scan.children(own.ppid).any(|child| child.pid == me));
        let mut below = Vec::new();
        scan.descendants(own.ppid, &mut below);
        assert!(below.iter().any(|process| process.pid == me));
    }

    fn scan_of(pairs: &[(i32, i32)]) -> Scan {
        let template = parse(1, LINE).expect("parses");
        let processes = pairs.iter().map(|&(pid, ppid)| Process { pid, ppid, ..template }).collect();
        let mut scan = Scan { processes, by_parent: Vec::new() };
        scan.index();
        scan
    }

    #[test]
    fn descendants_are_all_below_and_only_those() {
        let scan = scan_of(&[(1, 0), (2, 1), (9, 2), (3, 9), (4, 3), (5, 1), (6, 5)]);
        let mut below = Vec::new();
        scan.descendants(2, &mut below);
        assert_eq!(below.iter().map(|process| process.pid).collect::<Vec<_>>(), [9, 3, 4]);
    }

    #[test]
    fn a_cycle_from_a_torn_scan_ends() {
        let scan = scan_of(&[(2, 4), (3, 2), (4, 3)]);
        let mut below = Vec::new();
        scan.descendants(2, &mut below);
        assert_eq!(below.iter().map(|process| process.pid).collect::<Vec<_>>(), [3, 4]);
    }

    #[test]
    fn a_process_whose_first_thread_ended_is_alive() {
        let mut process = parse(4242, LINE).expect("parses");
        process.state = b'Z';
        assert!(!process.is_zombie(), "five threads");
        process.threads = 1;
        assert!(process.is_zombie());
    }

    #[test]
    fn no_process_has_pid_zero() {
        assert_eq!(read(0).expect("readable"), None);
    }
}
