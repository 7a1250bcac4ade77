//! Typed values in layers: what was said, over the defaults of the table of keys.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ostler_domain::ports::{PortRange, PortWish};

use crate::check::{Checked, Checker, Found, Typed};
use crate::diagnostic::Findings;
use crate::keys::{self, Groups};
use crate::source::{Place, Source};
use crate::toml;

/// Looks values up by path. The accessors are for keys of the given type that have a default, and panic for
/// others: which key has which type is fixed in the table, and the tests read every one of them.
pub(crate) struct Values<'a> {
    /// First found, first taken.
    pub(crate) layers: &'a [&'a Checked],
}

/// That a table was said.
pub(crate) struct Said<'a> {
    /// Where.
    pub(crate) place: &'a Place,
    /// In the first layer: of this server itself, and not of all.
    pub(crate) by_itself: bool,
}

impl Values<'_> {
    pub(crate) fn get(&self, path: &str) -> Option<&Found> {
        self.layers.iter().find_map(|layer| layer.get(path))
    }

    /// Whether anybody said it: the last layer is the table of keys itself, which is no place to point at.
    pub(crate) fn is_said(&self, path: &str) -> bool {
        self.layers.iter().rev().skip(1).any(|layer| layer.contains_key(path))
    }

    /// Where the first layer has a table or a key of it, of those layers in which people said something.
    pub(crate) fn table_said(&self, table: &str) -> Option<Said<'_>> {
        let inside = |path: &str| {
            path.strip_prefix(table).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        let said = self.layers.split_last().map_or(&[][..], |(_, said)| said);
        said.iter().enumerate().find_map(|(layer, checked)| {
            let (_, found) = checked.iter().find(|(path, _)| inside(path))?;
            Some(Said { place: &found.place, by_itself: layer == 0 })
        })
    }

    pub(crate) fn place(&self, path: &str) -> Place {
        self.found(path).place.clone()
    }

    /// Where two keys that are at odds are told of: the first that is said in the first layer that says one.
    pub(crate) fn place_of_first_said(&self, paths: [&str; 2]) -> Place {
        let said = self.layers.iter().find_map(|layer| paths.iter().find_map(|path| layer.get(*path)));
        said.map_or_else(|| self.place(paths[0]), |found| found.place.clone())
    }

    fn found(&self, path: &str) -> &Found {
        self.get(path).unwrap_or_else(|| unreachable!("`{path}` has a default"))
    }

    pub(crate) fn text(&self, path: &str) -> Option<(&str, &Place)> {
        match self.get(path) {
            Some(Found { value: Typed::Text(text), place }) => Some((text, place)),
            _ => None,
        }
    }

    pub(crate) fn list(&self, path: &str) -> &[(String, Place)] {
        match &self.found(path).value {
            Typed::List(items) => items,
            other => unreachable!("`{path}` is a list, not {other:?}"),
        }
    }

    /// The texts of a list.
    pub(crate) fn texts(&self, path: &str) -> Vec<String> {
        self.list(path).iter().map(|(text, _)| text.clone()).collect()
    }

    pub(crate) fn map(&self, path: &str) -> &[(String, String, Place)] {
        match &self.found(path).value {
            Typed::Map(entries) => entries,
            other => unreachable!("`{path}` is a table, not {other:?}"),
        }
    }

    pub(crate) fn flag(&self, path: &str) -> bool {
        match self.found(path).value {
            Typed::Bool(flag) => flag,
            ref other => unreachable!("`{path}` is a boolean, not {other:?}"),
        }
    }

    /// A count, or a size in bytes.
    pub(crate) fn count(&self, path: &str) -> usize {
        match self.found(path).value {
            Typed::Count(number) | Typed::Size(number) => usize::try_from(number).unwrap_or(usize::MAX),
            ref other => unreachable!("`{path}` is a number, not {other:?}"),
        }
    }

    pub(crate) fn fraction(&self, path: &str) -> f64 {
        match self.found(path).value {
            Typed::Fraction(number) => number,
            ref other => unreachable!("`{path}` is a fraction, not {other:?}"),
        }
    }

    pub(crate) fn duration(&self, path: &str) -> Duration {
        match self.found(path).value {
            Typed::Duration(duration) => duration,
            ref other => unreachable!("`{path}` is a duration, not {other:?}"),
        }
    }

    pub(crate) fn address(&self, path: &str) -> SocketAddr {
        match self.found(path).value {
            Typed::Address(address) => address,
            ref other => unreachable!("`{path}` is an address, not {other:?}"),
        }
    }

    pub(crate) fn port_range(&self, path: &str) -> PortRange {
        self.optional_range(path).unwrap_or_else(|| unreachable!("`{path}` is a range of ports"))
    }

    pub(crate) fn optional_range(&self, path: &str) -> Option<PortRange> {
        match self.get(path)?.value {
            Typed::PortRange(range) => Some(range),
            ref other => unreachable!("`{path}` is a range of ports, not {other:?}"),
        }
    }

    pub(crate) fn ports(&self, path: &str) -> &[(String, PortWish, Place)] {
        match &self.found(path).value {
            Typed::Ports(ports) => ports,
            other => unreachable!("`{path}` is a table of ports, not {other:?}"),
        }
    }

    /// A count, or a size in bytes, that may be absent.
    pub(crate) fn optional_count(&self, path: &str) -> Option<u64> {
        match self.get(path)?.value {
            Typed::Count(number) | Typed::Size(number) => Some(number),
            ref other => unreachable!("`{path}` is a number, not {other:?}"),
        }
    }

    pub(crate) fn optional_duration(&self, path: &str) -> Option<Duration> {
        self.get(path).map(|_| self.duration(path))
    }

    /// A number with a point that may be absent.
    pub(crate) fn optional_number(&self, path: &str) -> Option<f64> {
        self.get(path).map(|_| self.fraction(path))
    }

    /// A whole number that may be absent, or negative.
    pub(crate) fn optional_integer(&self, path: &str) -> Option<i64> {
        match self.get(path)?.value {
            Typed::Integer(number) => Some(number),
            ref other => unreachable!("`{path}` is a whole number, not {other:?}"),
        }
    }

    /// A word of a choice that may be absent.
    pub(crate) fn optional_word(&self, path: &str) -> Option<&'static str> {
        self.get(path).map(|_| self.word(path))
    }

    pub(crate) fn word(&self, path: &str) -> &'static str {
        match self.found(path).value {
            Typed::Choice(word) => word,
            ref other => unreachable!("`{path}` is a choice, not {other:?}"),
        }
    }
}

/// The defaults of a table, read from the table of keys the way a file is.
///
/// # Panics
///
/// Where the table of keys holds a default that its own checks refuse; a test reads all of them.
pub(crate) fn defaults(groups: Groups) -> Checked {
    let mut found = Checked::new();
    for (path, key) in keys::leaves(groups) {
        let Some(text) = key.default else { continue };
        let source: Arc<Source> = Source::variable("default", text);
        let node = toml::parse_value(text).unwrap_or_else(|(_, why)| panic!("default of `{path}`: {why}"));
        let mut out = Findings::default();
        let mut checker = Checker { source: &source, out: &mut out };
        let place = checker.place(&node);
        let value =
            checker.value(key, &node).unwrap_or_else(|| panic!("default of `{path}`: {:?}", checker.out));
        found.insert(path, Found { value, place });
    }
    found
}
