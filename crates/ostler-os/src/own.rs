//! This process itself.

use std::io;

/// Resident memory of this process, in bytes.
///
/// # Errors
/// When `/proc/self/statm` cannot be read.
pub fn rss_bytes() -> io::Result<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages = statm.split_ascii_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok());
    let pages = pages.ok_or_else(|| io::Error::other("/proc/self/statm has no second number"))?;
    Ok(pages * rustix::param::page_size() as u64)
}

/// From this size on a freed allocation goes back to the system at once.
const RETURNED_FROM: i32 = 128 * 1024;

/// Keeps the C library's allocator from holding on to the memory of large messages. Left to itself it raises the
/// size from which it gives memory back each time a larger piece is freed (mallopt(3), "dynamic mmap
/// threshold"); from then on large bodies come from its heaps, and one small piece behind them keeps them
/// resident: of the bodies that were held at the same time, all could stay. To be called before threads are started.
pub fn give_back_large_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: `mallopt` takes two numbers and touches the allocator's own settings only, under its lock.
    // It reports failure, and then everything stays as it was.
    #[expect(unsafe_code, reason = "the C library has no safe interface to its allocator's settings")]
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, RETURNED_FROM);
    }
}

/// Gives memory that was freed back to the system. The C library keeps what a burst of clients took, in case of
/// another; after the burst it is of no use. The same holds of the program's pages, which are most of a resting
/// daemon's memory: what is needed again comes back from the page cache. Takes milliseconds: for a thread that may
/// block.
pub fn give_back_memory() {
    crate::shrink::shrink_program();
    // SAFETY: `malloc_trim` may be called at any time from any thread; it takes the allocator's own locks.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}
