//! Durations and sizes, written with their units.

use std::time::Duration;

/// The longest duration a key takes: what is meant as "never" still fits every clock's arithmetic.
pub(crate) const MAX_DURATION: Duration = Duration::from_secs(365 * 24 * 3600);

const DURATION_UNITS: &[(&str, f64)] =
    &[("ms", 0.001), ("s", 1.0), ("m", 60.0), ("h", 3600.0), ("d", 86400.0)];

const SIZE_UNITS: &[(&str, u64)] = &[
    ("B", 1),
    ("KB", 1000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
];

/// Why a text is not a duration or size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum UnitError {
    /// A number alone.
    NoUnit,
    /// A unit that is not one; with the nearest that is.
    Unit(String, Option<&'static str>),
    /// Not a number with a unit at all.
    Shape,
    /// More than can be counted.
    TooLarge,
}

/// Reads `10s`, `1.5h`, `1h30m`: numbers with the units ms, s, m, h, d.
pub(crate) fn duration(text: &str) -> Result<Duration, UnitError> {
    let mut rest = text.trim();
    let mut seconds = 0.0;
    if rest.is_empty() {
        return Err(UnitError::Shape);
    }
    while !rest.is_empty() {
        let (number, unit, tail) = split(rest)?;
        let known = DURATION_UNITS.iter().find(|(name, _)| *name == unit);
        let Some((_, factor)) = known else {
            return Err(unknown(unit, DURATION_UNITS.iter().map(|(n, _)| *n)));
        };
        seconds += number * factor;
        rest = tail;
    }
    // Whole microseconds, so that "0.1s" and "100ms" are the same.
    let micros = (seconds * 1e6).round();
    if micros > MAX_DURATION.as_micros() as f64 {
        return Err(UnitError::TooLarge);
    }
    Ok(Duration::from_micros(micros as u64))
}

/// Reads `64MiB`, `500KB`, `4096B`: a number with a unit, of thousands (KB) or of 1024 (KiB).
pub(crate) fn size(text: &str) -> Result<u64, UnitError> {
    let (number, unit, tail) = split(text.trim())?;
    if !tail.is_empty() {
        return Err(UnitError::Shape);
    }
    let known = SIZE_UNITS.iter().find(|(name, _)| *name == unit);
    let Some((_, factor)) = known else {
        return Err(unknown(unit, SIZE_UNITS.iter().map(|(n, _)| *n)));
    };
    let bytes = (number * *factor as f64).round();
    // 2^53: the largest count that `f64` keeps exactly.
    if bytes > (1_u64 << 53) as f64 { Err(UnitError::TooLarge) } else { Ok(bytes as u64) }
}

/// A size as it is written, in the largest unit of which it is a whole number.
pub(crate) fn show_size(bytes: u64) -> String {
    let units = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    let whole = units.into_iter().find(|(_, factor)| bytes >= *factor && bytes.is_multiple_of(*factor));
    let (unit, factor) = whole.unwrap_or(("B", 1));
    format!("{}{unit}", bytes / factor)
}

/// A number, the letters after it, and what follows.
fn split(text: &str) -> Result<(f64, &str, &str), UnitError> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number: f64 = text[..digits].parse().map_err(|_| UnitError::Shape)?;
    let rest = text[digits..].trim_start();
    if rest.is_empty() {
        return Err(UnitError::NoUnit);
    }
    let letters = rest.find(|c: char| !c.is_alphabetic()).unwrap_or(rest.len());
    if letters == 0 {
        return Err(UnitError::Shape);
    }
    Ok((number, &rest[..letters], rest[letters..].trim_start()))
}

fn unknown(unit: &str, known: impl Iterator<Item = &'static str>) -> UnitError {
    let long = match unit.to_lowercase().as_str() {
        "sec" | "secs" | "second" | "seconds" => Some("s"),
        "min" | "mins" | "minute" | "minutes" => Some("m"),
        "hr" | "hrs" | "hour" | "hours" => Some("h"),
        "day" | "days" => Some("d"),
        "msec" | "millis" | "milliseconds" => Some("ms"),
        "k" => Some("KiB"),
        "g" => Some("GiB"),
        _ => None,
    };
    let alike = known.into_iter().find(|k| k.eq_ignore_ascii_case(unit));
    UnitError::Unit(unit.to_owned(), alike.or(long))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_numbers_with_units() {
        for (text, millis) in
            [("10s", 10_000), ("500ms", 500), ("5m", 300_000), ("1h30m", 5_400_000), ("0.1s", 100), ("0s", 0)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        assert_eq!(duration("1d"), Ok(Duration::from_secs(86_400)));
        assert_eq!(duration("10"), Err(UnitError::NoUnit));
        assert_eq!(duration("10sec"), Err(UnitError::Unit("sec".into(), Some("s"))));
        assert_eq!(duration("10S"), Err(UnitError::Unit("S".into(), Some("s"))));
        assert_eq!(duration("10q"), Err(UnitError::Unit("q".into(), None)));
        assert_eq!(duration("9999d"), Err(UnitError::TooLarge));
        for text in ["", " ", "s", "-1s", "1.2.3s", ".s", "1s,", "ten s", "1e3s5"] {
            assert!(duration(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn sizes_are_a_number_with_a_unit() {
        for (text, bytes) in [
            ("64MiB", 64 << 20),
            ("500KB", 500_000),
            ("4096B", 4096),
            ("1.5GiB", 3 << 29),
            ("1 MB", 1_000_000),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["0B", "1KiB", "1000B", "16320KiB", "16MiB", "1048576GiB"] {
            assert_eq!(size(text).map(show_size).as_deref(), Ok(text));
        }
        assert_eq!(size("64"), Err(UnitError::NoUnit));
        assert_eq!(size("64mib"), Err(UnitError::Unit("mib".into(), Some("MiB"))));
        assert_eq!(size("99999999999GiB"), Err(UnitError::TooLarge));
        for text in ["", "MiB", "-1MiB", "1MiB2", "1MiB 2MiB"] {
            assert!(size(text).is_err(), "{text:?}");
        }
    }
}
