//! How short of memory and disk space the machine is.

use std::io::{self, Read as _};
use std::path::Path;

/// Share of time in which processes waited for memory, over the last ten seconds, in per cent
/// (Documentation/accounting/psi.rst of the kernel).
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct MemoryStall {
    /// At least one process waited.
    pub some_avg10: f64,
    /// All that could have run waited: nothing got done.
    pub full_avg10: f64,
}

/// The memory of the machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Memory {
    /// All of it, in bytes.
    pub total_bytes: u64,
    /// What new processes could have without swapping, in bytes, as the kernel estimates it.
    pub available_bytes: u64,
}

/// The space of a file system, for a user without privileges.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Space {
    /// All of it, in bytes.
    pub total_bytes: u64,
    /// Free, in bytes.
    pub free_bytes: u64,
    /// All inodes; 0 where the file system does not count them (btrfs).
    pub total_inodes: u64,
    /// Free inodes; 0 where it does not count them.
    pub free_inodes: u64,
}

/// `None` where the kernel does not measure it: built without, or booted with `psi=0`.
///
/// # Errors
/// When it does and yet it cannot be read.
pub fn memory_stall() -> io::Result<Option<MemoryStall>> {
    match std::fs::read_to_string("/proc/pressure/memory") {
        Ok(text) => parse_stall(&text).map(Some).ok_or_else(|| unreadable("/proc/pressure/memory", &text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        // What the kernel answers when it is switched off.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The machine's memory.
///
/// # Errors
/// When `/proc/meminfo` cannot be read.
pub fn memory() -> io::Result<Memory> {
    let text = beginning("/proc/meminfo")?;
    parse_memory(&text).ok_or_else(|| unreadable("/proc/meminfo", &text))
}

/// The first lines of a file, where what is wanted stands.
fn beginning(path: &str) -> io::Result<String> {
    let mut text = [0; 512];
    let length = std::fs::File::open(path)?.read(&mut text)?;
    Ok(String::from_utf8_lossy(&text[..length]).into_owned())
}

/// Processes and threads that there are on the machine.
pub fn threads() -> u16 {
    rustix::system::sysinfo().procs
}

/// How much processors have worked since the machine was started, all of them together, in milliseconds: what neither
/// idles nor waits for a disk, and no other machine took (proc_stat(5)).
///
/// # Errors
/// When `/proc/stat` cannot be read.
pub fn busy_ms() -> io::Result<u64> {
    let text = beginning("/proc/stat")?;
    let ticks = parse_busy(&text).ok_or_else(|| unreadable("/proc/stat", &text))?;
    Ok(ticks.saturating_mul(1000) / rustix::param::clock_ticks_per_second())
}

/// The space of the file system that `path` is on.
///
/// # Errors
/// When there is no such path, or it may not be looked at.
pub fn space(path: &Path) -> io::Result<Space> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(Space {
        total_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
        free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
        total_inodes: stat.f_files,
        free_inodes: stat.f_favail,
    })
}

fn unreadable(file: &str, text: &str) -> io::Error {
    let line = text.lines().next().unwrap_or_default();
    io::Error::new(io::ErrorKind::InvalidData, format!("{file} is not as expected; it begins with `{line}`"))
}

fn parse_stall(text: &str) -> Option<MemoryStall> {
    let average = |kind: &str| -> Option<f64> {
        let line = text.lines().find_map(|line| line.strip_prefix(kind)?.strip_prefix(' '))?;
        line.split_ascii_whitespace().find_map(|field| field.strip_prefix("avg10=")?.parse().ok())
    };
    Some(MemoryStall { some_avg10: average("some")?, full_avg10: average("full")? })
}

fn parse_busy(text: &str) -> Option<u64> {
    let mut fields = text.lines().next()?.strip_prefix("cpu ")?.split_ascii_whitespace();
    let ticks: Vec<u64> = fields.by_ref().take(8).map_while(|field| field.parse().ok()).collect();
    let [user, nice, system, _idle, _disk, irq, softirq, _stolen] = ticks[..] else { return None };
    Some(user + nice + system + irq + softirq)
}

fn parse_memory(text: &str) -> Option<Memory> {
    let bytes = |key: &str| -> Option<u64> {
        let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
        value.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    };
    // MemAvailable since Linux 3.14.
    Some(Memory { total_bytes: bytes("MemTotal")?, available_bytes: bytes("MemAvailable")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stall_is_read() {
        let text = "some avg10=1.50 avg60=0.10 avg300=0.00 total=123\nfull avg10=0.25 avg60=0.00 avg300=0.00 total=9\n";
        assert_eq!(parse_stall(text), Some(MemoryStall { some_avg10: 1.5, full_avg10: 0.25 }));
        assert_eq!(parse_stall("some avg10=1.50 avg60=0.10\n"), None);
        assert_eq!(parse_stall(""), None);
    }

    #[test]
    fn memory_is_read_in_bytes() {
        let text = "MemTotal:       24682904 kB\nMemFree:         8466852 kB\nMemAvailable:   23746480 kB\n";
        let expected = Memory { total_bytes: 24_682_904 * 1024, available_bytes: 23_746_480 * 1024 };
        assert_eq!(parse_memory(text), Some(expected));
        assert_eq!(parse_memory("MemTotalX: 1 kB\nMemAvailable: 1 kB\n"), None);
    }

    #[test]
    fn work_is_all_that_neither_idles_nor_waits() {
        let text = "cpu  10 2 300 100000 70 4 5 600 70 80\ncpu0 1 1 1 1 1 1 1 1 1 1\n";
        assert_eq!(parse_busy(text), Some(10 + 2 + 300 + 4 + 5));
        assert_eq!(parse_busy("cpu 1 2 3\n"), None);
        assert_eq!(parse_busy("cpu0 1 2 3 4 5 6 7 8 9 10\n"), None);
    }

    #[test]
    fn this_machine_has_some_of_each() {
        assert!(busy_ms().expect("stat") > 0 && threads() > 0);
        let memory = memory().expect("meminfo");
        assert!(memory.available_bytes > 0 && memory.available_bytes <= memory.total_bytes, "{memory:?}");
        let space = space(&std::env::temp_dir()).expect("statvfs");
        assert!(space.total_bytes > 0 && space.free_bytes <= space.total_bytes, "{space:?}");
        assert!(space.free_inodes <= space.total_inodes, "{space:?}");
        if let Some(stall) = memory_stall().expect("readable") {
            assert!((0.0..=100.0).contains(&stall.some_avg10) && stall.full_avg10 <= 100.0, "{stall:?}");
        }
        assert!(super::space(Path::new("/no/such/folder")).is_err());
    }
}
