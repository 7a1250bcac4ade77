//! The write-ahead log's own chain. Each frame's checksum covers all frames before it, so SQLite stops at the first that
//! does not fit and drops what follows without a word. Here it is counted.
//!
//! The format: <https://www.sqlite.org/fileformat2.html#walformat>.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

const HEADER: usize = 32;
const FRAME_HEADER: usize = 24;

/// How a log looks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Chain {
    /// Frames up to the first that does not fit.
    pub(super) sound: u64,
    /// Frames of the same log from there on: what SQLite drops.
    pub(super) dropped: u64,
    /// Whether the log's header does not fit, so that all frames are dropped.
    pub(super) headless: bool,
}

/// Reads a log; none where there is nothing in it.
pub(super) fn chain(path: &Path) -> io::Result<Option<Chain>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let len = file.metadata()?.len();
    if len == 0 {
        return Ok(None);
    }
    let mut file = BufReader::with_capacity(1 << 20, file);
    let mut header = [0; HEADER];
    if fill(&mut file, &mut header)? < HEADER {
        return Ok(Some(Chain { headless: true, ..Chain::default() }));
    }
    let word = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().expect("four bytes"));
    let big = word(0) & 1 == 1;
    let sums = checksum(big, (0, 0), &header[..24]);
    let page = word(8) as usize;
    if word(0) & !1 != 0x377f_0682 || sums != (word(24), word(28)) || !(512..=65536).contains(&page) {
        return Ok(Some(Chain { headless: true, ..Chain::default() }));
    }
    follow(&mut file, page, big, sums, &header[16..24])
}

fn follow(
    file: &mut impl Read,
    page: usize,
    big: bool,
    mut sums: (u32, u32),
    salts: &[u8],
) -> io::Result<Option<Chain>> {
    let mut chain = Chain::default();
    let mut frame = vec![0; FRAME_HEADER + page];
    let mut whole = true;
    loop {
        let got = fill(file, &mut frame)?;
        if got < FRAME_HEADER {
            return Ok(Some(chain));
        }
        let word = |at: usize| u32::from_be_bytes(frame[at..at + 4].try_into().expect("four bytes"));
        // Frames of an earlier round stay behind the end of this one, with other salts.
        let same = &frame[8..16] == salts;
        let fits = same && got == frame.len() && {
            sums = checksum(big, sums, &frame[..8]);
            sums = checksum(big, sums, &frame[FRAME_HEADER..]);
            sums == (word(16), word(20))
        };
        whole &= fits;
        if whole {
            chain.sound += 1;
        } else if same {
            chain.dropped += 1;
        }
    }
}

/// SQLite's: over pairs of words in the order of the machine that wrote the log.
fn checksum(big: bool, (mut a, mut b): (u32, u32), bytes: &[u8]) -> (u32, u32) {
    for pair in bytes.chunks_exact(8) {
        let word = |at: usize| {
            let word = pair[at..at + 4].try_into().expect("four bytes");
            if big { u32::from_be_bytes(word) } else { u32::from_le_bytes(word) }
        };
        a = a.wrapping_add(word(0)).wrapping_add(b);
        b = b.wrapping_add(word(4)).wrapping_add(a);
    }
    (a, b)
}

/// Reads until the buffer is full or the file ends.
fn fill(file: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut got = 0;
    while got < buffer.len() {
        match file.read(&mut buffer[got..]) {
            Ok(0) => break,
            Ok(more) => got += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(got)
}
