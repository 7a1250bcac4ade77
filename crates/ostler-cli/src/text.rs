//! How figures and foreign text are shown to people.

use std::time::{Duration, UNIX_EPOCH};

/// The end of the year 9999, with which RFC 3339 ends, too.
const LAST_MOMENT: Duration = Duration::from_millis(253_402_300_799_999);

/// A number of bytes, rounded down: `0B`, `512B`, `3.4M`, `120M`, `1.5G`.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "K", "M", "G", "T"];
    let mut unit = 0;
    let mut tenths = u128::from(bytes) * 10;
    while tenths >= 10 * 1024 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    if unit == 0 || tenths >= 100 {
        format!("{}{}", tenths / 10, UNITS[unit])
    } else {
        format!("{}.{}{}", tenths / 10, tenths % 10, UNITS[unit])
    }
}

/// Reads a number of bytes with its unit, as the configuration writes it: `500MiB`, `2GB`, `4096B`.
///
/// # Errors
/// What is wrong with the text, and what would be right.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 7] = [
        ("B", 1),
        ("KB", 1000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
    ];
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = (&text[..digits], text[digits..].trim_start());
    let number: u64 =
        number.parse().map_err(|_| "it is not a number with a unit, such as 500MiB".to_owned())?;
    let Some((_, factor)) = UNITS.iter().find(|(known, _)| *known == unit) else {
        return Err("the unit must be B, KB, MB, GB, KiB, MiB or GiB, such as in 500MiB".to_owned());
    };
    number.checked_mul(*factor).ok_or_else(|| "it is more than can be counted".to_owned())
}

/// Reads a length of time with its unit, as the configuration writes it: `90s`, `2h 30m`.
///
/// # Errors
/// What is wrong with the text, and what would be right.
pub(crate) fn span(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|error| format!("{error}; write it with its unit, such as 90s or 2h"))
}

/// A moment that a person names: on the clock, or from now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Moment {
    /// So long after 1970.
    At(Duration),
    /// So long after now.
    In(Duration),
}

impl Moment {
    /// The same in milliseconds since 1970, given that it is `now` so long after it.
    pub(crate) fn unix_ms(self, now: Duration) -> u64 {
        let since_1970 = match self {
            Self::At(since_1970) => since_1970,
            Self::In(from_now) => now.saturating_add(from_now),
        };
        u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX)
    }
}

/// Reads a moment, `2026-07-28T09:30:00Z`, or a length of time from now.
///
/// # Errors
/// What is wrong with the text, and what would be right.
pub(crate) fn when(text: &str) -> Result<Moment, String> {
    let wrong = || "write a moment such as 2026-07-28T09:30:00Z, or a time from now such as 90s".to_owned();
    match humantime::parse_rfc3339_weak(text) {
        Ok(moment) => moment.duration_since(UNIX_EPOCH).map(Moment::At).map_err(|_| wrong()),
        Err(_) => humantime::parse_duration(text).map(Moment::In).map_err(|_| wrong()),
    }
}

/// A duration in its two largest units: `420ms`, `12s`, `3m04s`, `2h05m`, `3d04h`.
pub(crate) fn duration(ms: u64) -> String {
    let s = ms / 1000;
    match s {
        0 => format!("{ms}ms"),
        1..60 => format!("{s}s"),
        60..3600 => format!("{}m{:02}s", s / 60, s % 60),
        3600..86_400 => format!("{}h{:02}m", s / 3600, s / 60 % 60),
        _ => format!("{}d{:02}h", s / 86_400, s / 3600 % 24),
    }
}

/// A moment as UTC, `2026-07-28T09:30:00.125Z`.
pub(crate) fn moment(unix_ms: u64) -> String {
    // Farther than a calendar goes is no moment that an event can have.
    let since_1970 = Duration::from_millis(unix_ms).min(LAST_MOMENT);
    humantime::format_rfc3339_millis(UNIX_EPOCH + since_1970).to_string()
}

/// Foreign text, safe for a terminal: control characters (but tab) are shown as escapes, so that a server's
/// log line or a client's name cannot move the cursor, set the title or hide what stands before it.
pub(crate) fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        // The bidirectional controls reorder what stands beside them.
        let reorders = matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if (c.is_control() && c != '\t') || reorders {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let cases = [
            (0, "0B"),
            (1023, "1023B"),
            (1024, "1.0K"),
            (3_565_159, "3.4M"),
            (125_829_120, "120M"),
            (1_610_612_736, "1.5G"),
            (1 << 60, "1048576T"),
        ];
        for (bytes, shown) in cases {
            assert_eq!(size(bytes), shown);
        }
    }

    #[test]
    fn sizes_are_read_with_their_unit() {
        for (text, size) in [("500MiB", 500 << 20), ("2 GB", 2_000_000_000), ("0B", 0), ("1KiB", 1024)] {
            assert_eq!(bytes(text), Ok(size), "{text}");
        }
        for text in ["", "64", "64mib", "MiB", "-1MiB", "1.5GiB", "99999999999GiB"] {
            assert!(bytes(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn moments_and_lengths_of_time_are_read() {
        let now = Duration::from_secs(1_000_000);
        let at = |text: &str| when(text).expect(text).unix_ms(now);
        assert_eq!(at("2026-07-28T09:30:00.125Z"), 1_785_231_000_125);
        assert_eq!(at("2026-07-28 09:30:00"), 1_785_231_000_000);
        assert_eq!(at("1h 30s"), 1_003_630_000);
        assert_eq!(span("1500ms"), Ok(Duration::from_millis(1500)));
        for text in ["", "5", "1969-12-31T23:59:59Z", "tomorrow", "-5s"] {
            assert!(when(text).is_err(), "{text:?}");
        }
        assert!(span("5").expect_err("no unit").contains("such as 90s"));
    }

    #[test]
    fn durations() {
        let cases = [
            (0, "0ms"),
            (999, "999ms"),
            (59_999, "59s"),
            (184_000, "3m04s"),
            (7_500_000, "2h05m"),
            (273_600_000, "3d04h"),
        ];
        for (ms, shown) in cases {
            assert_eq!(duration(ms), shown);
        }
    }

    #[test]
    fn moments() {
        let cases = [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (951_868_800_000, "2000-03-01T00:00:00.000Z"),
            (1_785_231_000_125, "2026-07-28T09:30:00.125Z"),
            (4_107_542_399_999, "2100-02-28T23:59:59.999Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
            (u64::MAX, "9999-12-31T23:59:59.999Z"),
        ];
        for (ms, shown) in cases {
            assert_eq!(moment(ms), shown);
        }
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(visible("a\tb \u{1b}[2Jc\r\n\u{202e}d é"), "a\tb \\u{1b}[2Jc\\r\\n\\u{202e}d é");
    }
}
