//! What a process tree costs, read from `/proc`.
//!
//! A process belongs to the tree of a root if it descends from it, or if it inherited the root's mark in its
//! environment: a server whose parent died has another parent, but still its environment, so it cannot hide.

use serde::Serialize;
use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;

/// The environment variable the orchestrator gives every target; all descendants inherit it.
pub const MARK: &str = "OSTLER_BENCH_MARK";

/// The name (`comm`) of the benchmark's MCP server: its cost is told apart from the gateway's.
pub const SERVER_NAME: &str = "echo-server";

/// Nanoseconds per tick of `/proc/PID/stat`: the kernel's user-visible clock is 100 Hz on every architecture
/// Rust knows Linux on.
const TICK_NS: u64 = 10_000_000;

/// One look at a tree.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Sample {
    /// Processor time of the gateway's processes since each began, reaped children included, in nanoseconds.
    pub gateway_cpu_ns: u64,
    /// The same of the echo servers.
    pub server_cpu_ns: u64,
    /// Gateway processes: all of the tree but the echo servers; wrappers (`sh -c`) and guards count.
    pub gateway_processes: usize,
    /// Echo server processes.
    pub server_processes: usize,
    /// Resident memory of the gateway processes, each in full, in KiB.
    pub gateway_rss_kib: u64,
    /// The same in proportional shares: a page shared by n processes counts 1/n in each.
    pub gateway_pss_kib: u64,
    /// Resident memory of the root process alone, in KiB.
    pub root_rss_kib: u64,
    /// Resident memory of the echo servers, in KiB.
    pub server_rss_kib: u64,
}

impl Sample {
    /// All processes of the tree.
    pub fn processes(&self) -> usize {
        self.gateway_processes + self.server_processes
    }

    /// Resident memory of the tree, in KiB.
    pub fn rss_kib(&self) -> u64 {
        self.gateway_rss_kib + self.server_rss_kib
    }
}

/// Which processes to look at.
#[derive(Clone, Debug)]
pub struct Tree {
    /// The process the tree hangs from.
    pub root: u32,
    /// The value of [`MARK`] its members carry, when they were given one.
    pub mark: Option<String>,
}

struct Process {
    parent: u32,
    name: String,
    cpu_ns: u64,
    zombie: bool,
}

impl Tree {
    /// Looks at every process of the tree now. Processes that end during the look are left out; zombies hold no
    /// memory and no longer count as processes, but their time does.
    ///
    /// # Errors
    /// `/proc` cannot be listed.
    pub fn sample(&self) -> io::Result<Sample> {
        let processes = all_processes()?;
        let mut sample = Sample::default();
        for pid in self.members(&processes) {
            let process = &processes[&pid];
            let memory = if process.zombie { None } else { memory_of(pid) };
            let (rss, pss) = memory.unwrap_or_default();
            let alive = usize::from(memory.is_some());
            if process.name == SERVER_NAME {
                sample.server_cpu_ns += process.cpu_ns;
                sample.server_processes += alive;
                sample.server_rss_kib += rss;
            } else {
                sample.gateway_cpu_ns += process.cpu_ns;
                sample.gateway_processes += alive;
                sample.gateway_rss_kib += rss;
                sample.gateway_pss_kib += pss;
            }
            if pid == self.root {
                sample.root_rss_kib = rss;
            }
        }
        Ok(sample)
    }

    fn members(&self, processes: &HashMap<u32, Process>) -> HashSet<u32> {
        let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
        for (pid, process) in processes {
            children.entry(process.parent).or_default().push(*pid);
        }
        let mut open: Vec<u32> = processes.keys().copied().filter(|pid| self.is_marked(*pid)).collect();
        if processes.contains_key(&self.root) {
            open.push(self.root);
        }
        let mut members = HashSet::new();
        while let Some(pid) = open.pop() {
            if members.insert(pid) {
                open.extend(children.get(&pid).into_iter().flatten());
            }
        }
        members
    }

    fn is_marked(&self, pid: u32) -> bool {
        let Some(mark) = &self.mark else { return false };
        let wanted = format!("{MARK}={mark}");
        fs::read(format!("/proc/{pid}/environ"))
            .is_ok_and(|environment| environment.split(|byte| *byte == 0).any(|one| one == wanted.as_bytes()))
    }
}

/// Processor time this process has used so far, in nanoseconds.
///
/// # Errors
/// `/proc/self/stat` cannot be read or has another form than the kernel documents.
pub fn own_cpu_ns() -> io::Result<u64> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let process = parse_stat(&stat).ok_or_else(|| io::Error::other("/proc/self/stat has an unknown form"))?;
    Ok(process.cpu_ns)
}

fn all_processes() -> io::Result<HashMap<u32, Process>> {
    let mut processes = HashMap::new();
    for entry in fs::read_dir("/proc")? {
        let Ok(pid) = entry?.file_name().to_string_lossy().parse::<u32>() else {
            continue;
        };
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
            continue;
        };
        if let Some(process) = parse_stat(&stat) {
            processes.insert(pid, process);
        }
    }
    Ok(processes)
}

/// Reads one line of `/proc/PID/stat`: `pid (comm) state ppid ...`; `comm` may itself contain parentheses.
/// Fields are counted as in proc_pid_stat(5): state 3, ppid 4, utime 14, stime 15, cutime 16, cstime 17.
fn parse_stat(stat: &str) -> Option<Process> {
    let (front, back) = stat.rsplit_once(')')?;
    let (_, name) = front.split_once('(')?;
    let fields: Vec<&str> = back.split_ascii_whitespace().collect();
    let field = |number: usize| fields.get(number - 3).copied();
    let ticks: Option<u64> = (14..=17).map(|number| field(number)?.parse::<u64>().ok()).sum();
    Some(Process {
        parent: field(4)?.parse().ok()?,
        name: name.to_owned(),
        cpu_ns: ticks? * TICK_NS,
        zombie: field(3)? == "Z",
    })
}

/// Resident and proportional memory of one process, in KiB.
fn memory_of(pid: u32) -> Option<(u64, u64)> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let figure = |name: &str| {
        let line = rollup.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_ascii_whitespace().next()?.parse().ok()
    };
    Some((figure("Rss:")?, figure("Pss:")?))
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    #[test]
    fn a_stat_line_with_a_nasty_name() {
        let line = "42 (a) (b) S 7 1 1 0 -1 0 0 0 0 0 3 4 5 6 20 0 1 0 0 0 0";
        let process = parse_stat(line).expect("parsed");
        assert_eq!((process.parent, process.name.as_str()), (7, "a) (b"));
        assert_eq!(process.cpu_ns, 18 * TICK_NS);
        assert!(parse_stat("nonsense").is_none());
    }

    #[test]
    fn this_process_is_its_own_tree() {
        let sample = Tree { root: std::process::id(), mark: None }.sample().expect("/proc");
        assert!(sample.gateway_processes >= 1);
        assert!(sample.root_rss_kib > 0 && sample.gateway_rss_kib >= sample.root_rss_kib);
        assert!(sample.gateway_pss_kib > 0);
    }

    #[test]
    fn a_marked_process_is_found_wherever_it_hangs() {
        let mark = format!("test-{}", std::process::id());
        let mut child = std::process::Command::new("cat")
            .env(MARK, &mark)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("cat starts");
        // Until it answers it may still be on its way into its program, and shows no environment yet.
        child.stdin.as_mut().expect("a pipe").write_all(b"x").expect("it reads");
        child.stdout.as_mut().expect("a pipe").read_exact(&mut [0]).expect("it answers");
        // The root is a process that never exists, so only the mark leads to the child.
        let sample = Tree { root: u32::MAX, mark: Some(mark) }.sample().expect("/proc");
        drop(child.stdin.take());
        child.wait().expect("cat ends with its input");
        assert_eq!(sample.gateway_processes, 1);
    }
}
