//! Text for people: durations they can read, and reasons cut to a length that a log can hold.

use std::time::Duration;

/// The longest reason kept, in bytes. What servers say about themselves can be of any length.
pub const REASON_MAX: usize = 1024;

/// The most process ids kept in one happening.
pub const PIDS_MAX: usize = 32;

/// Cuts a reason to [`REASON_MAX`] bytes, at a character, and marks the cut.
pub(crate) fn clip(mut text: String) -> String {
    const MARK: &str = " [cut]";
    if text.len() > REASON_MAX {
        text.truncate(text.floor_char_boundary(REASON_MAX - MARK.len()));
        text.push_str(MARK);
    }
    text
}

/// An address without what may be secret in it: user, password, query and fragment.
pub fn without_secrets(address: &str) -> String {
    let address = address.split(['?', '#']).next().unwrap_or_default();
    let (scheme, rest) = address.split_once("://").map_or(("", address), |(scheme, rest)| (scheme, rest));
    let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
    let host = authority.rsplit('@').next().unwrap_or_default();
    let colon = if scheme.is_empty() { "" } else { "://" };
    format!("{scheme}{colon}{host}{path}")
}

/// A duration as a person would say it: `250 ms`, `1.5 s`, `10 min`, `2 h 5 min`.
pub fn human(duration: Duration) -> String {
    let ms = duration.as_millis();
    let secs = duration.as_secs();
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..10_000 if ms % 1000 >= 100 => format!("{}.{} s", secs, ms % 1000 / 100),
        1_000..120_000 => format!("{secs} s"),
        120_000..7_200_000 if secs.is_multiple_of(60) => format!("{} min", secs / 60),
        120_000..7_200_000 => format!("{} min {} s", secs / 60, secs % 60),
        _ if (secs / 60).is_multiple_of(60) => format!("{} h", secs / 3600),
        _ => format!("{} h {} min", secs / 3600, secs / 60 % 60),
    }
}

/// A number of bytes as a person would say it: `512 B`, `1.5 KiB`, `500 MiB`, `4 GiB`.
pub fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut unit = 0;
    // Tenths of the unit; below ten of it they are told, above they only distract.
    let mut tenths = u128::from(bytes) * 10;
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    if unit > 0 && tenths < 100 && !tenths.is_multiple_of(10) {
        format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
    } else {
        format!("{} {}", tenths / 10, UNITS[unit])
    }
}
