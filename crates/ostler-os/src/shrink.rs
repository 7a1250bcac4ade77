//! Giving back the memory that a program's own bytes take once they were needed: most are for the start only.

use std::fs;
use std::path::Path;

/// Takes the pages of this process's programs and libraries out of its memory. They are clean pages of files, so
/// the few that are still needed come back from the page cache when it touches them; a guard keeps well
/// below a megabyte that way, and there may be hundreds. Only for a process with one thread.
pub(crate) fn shrink() {
    drop_pages(|_| true);
}

/// The same for the program alone, whose mappings no thread ever takes away: for a process with many.
pub(crate) fn shrink_program() {
    let Ok(program) = fs::read_link("/proc/self/exe") else { return };
    drop_pages(|path| Path::new(path) == program);
}

fn drop_pages(of: impl Fn(&str) -> bool) {
    let Ok(smaps) = fs::read_to_string("/proc/self/smaps") else { return };
    for (start, length) in clean_file_mappings(&smaps, of) {
        // SAFETY: the range is a mapping of this process that cannot be written to and of which the process has
        // no page of its own, as the kernel has just said; nobody maps something else there meanwhile, because
        // there is no other thread, or because it is the program itself. `DontNeed` drops such pages from the page
        // table only: the next access reads the same bytes from the file again.
        let dropped = unsafe {
            rustix::mm::madvise(start as *mut std::ffi::c_void, length, rustix::mm::Advice::LinuxDontNeed)
        };
        // Nothing depends on it.
        let _ = dropped;
    }
}

/// Start and length of the mappings (proc_pid_smaps(5)) that hold nothing but unchanged bytes of a file. What the
/// dynamic linker wrote to before it was made read-only is none of them: it has anonymous pages.
fn clean_file_mappings(smaps: &str, of: impl Fn(&str) -> bool) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut current = None;
    for line in smaps.lines() {
        if let Some(anonymous) = line.strip_prefix("Anonymous:") {
            found.extend(current.take().filter(|_| anonymous.trim() == "0 kB"));
        } else if let Some(mapping) = read_only_file(line, &of) {
            current = mapping;
        }
    }
    found
}

/// The mapping that a line of smaps begins, if it is read-only and of a file that is meant; `None` for a line that
/// begins none.
fn read_only_file(line: &str, of: impl Fn(&str) -> bool) -> Option<Option<(usize, usize)>> {
    let mut words = line.split_ascii_whitespace();
    let (range, mode) = (words.next()?, words.next()?);
    let (start, end) = range.split_once('-')?;
    let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
    let of_a_file = words.nth(2).is_some() && {
        // The rest of the line: a path may hold spaces.
        let path = line.find('/').map_or("", |at| &line[at..]);
        !path.is_empty() && of(path)
    };
    let usable = of_a_file && mode.starts_with('r') && !mode.contains('w');
    Some(usable.then(|| (start, end.saturating_sub(start))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_unchanged_bytes_of_files_are_given_back() {
        let smaps = "\
55d0c0a00000-55d0c0b00000 r-xp 00001000 fe:00 42  /usr/bin/x
Rss:                 100 kB
Anonymous:             0 kB
55d0c0b00000-55d0c0b01000 r--p 00001000 fe:00 42  /usr/bin/x
Rss:                   4 kB
Anonymous:             4 kB
55d0c0b01000-55d0c0b02000 rw-p 00001000 fe:00 42  /usr/bin/x
Anonymous:             0 kB
7ffd00000000-7ffd00001000 r-xp 00000000 00:00 0  [vdso]
Anonymous:             0 kB
7ffd00002000-7ffd00003000 r--p 00000000 00:00 0
Anonymous:             0 kB
";
        assert_eq!(clean_file_mappings(smaps, |_| true), [(0x55d0_c0a0_0000, 0x10_0000)]);
        assert_eq!(clean_file_mappings(smaps, |path| path == "/usr/bin/x").len(), 1);
        assert_eq!(clean_file_mappings(smaps, |path| path == "/usr/bin/y"), []);
    }

    /// Resident bytes of these mappings, as smaps gives them: exactly, where statm may lag behind.
    fn resident(mappings: &[(usize, usize)]) -> u64 {
        let smaps = fs::read_to_string("/proc/self/smaps").expect("smaps");
        let (mut total, mut counts) = (0, false);
        for line in smaps.lines() {
            if let Some(rss) = line.strip_prefix("Rss:").filter(|_| counts) {
                total += rss.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024;
            } else if let Some(mapping) = read_only_file(line, |_: &str| true) {
                counts = mapping.is_some_and(|mapping| mappings.contains(&mapping));
            }
        }
        total
    }

    #[test]
    fn a_process_goes_on_without_the_pages_of_its_program() {
        let program = fs::read_link("/proc/self/exe").expect("this test");
        let smaps = fs::read_to_string("/proc/self/smaps").expect("smaps");
        let mappings = clean_file_mappings(&smaps, |path| Path::new(path) == program);
        for &(start, length) in &mappings {
            // SAFETY: reads each page of a mapping of this program once, which nobody takes away.
            unsafe {
                let start = start as *mut std::ffi::c_void;
                rustix::mm::madvise(start, length, rustix::mm::Advice::LinuxPopulateRead).expect("a mapping");
            }
        }
        let before = resident(&mappings);
        shrink_program();
        let after = resident(&mappings);
        // What runs meanwhile needs a part of the program, and not all of it.
        assert!(after < before, "{before} bytes before, {after} after");
    }
}
