//! Names of ports, and how a server is told which number a name has: `{port.NAME}` in its arguments and
//! variables, and `PORT_NAME` in its environment.

use std::ops::Range;

/// The longest name of a port, in bytes.
pub const NAME_MAX: usize = 32;

const OPEN: &str = "{port.";

/// Whether a text can be the name of a port: 1 to [`NAME_MAX`] of `a-z 0-9 _` with a letter first, so that the
/// variable of one is never that of another.
pub fn is_port_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.len() <= NAME_MAX
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

/// The variable that gives a server the number of its port `name`: `PORT_VIEWER` for `viewer`.
pub fn port_variable(name: &str) -> String {
    format!("PORT_{}", name.to_ascii_uppercase())
}

/// The places of `{port.NAME}` in a text, with the names, from the left. A `{port.` that is not closed ends the
/// search. The name is whatever stands there: see [`is_port_name`].
pub fn port_refs(text: &str) -> PortRefs<'_> {
    PortRefs { text, at: 0 }
}

/// The iterator of [`port_refs`].
#[derive(Clone, Debug)]
pub struct PortRefs<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Iterator for PortRefs<'a> {
    type Item = (Range<usize>, &'a str);

    fn next(&mut self) -> Option<Self::Item> {
        let start = self.at + self.text.get(self.at..)?.find(OPEN)?;
        let from = start + OPEN.len();
        let to = from + self.text[from..].find('}')?;
        self.at = to + 1;
        Some((start..self.at, &self.text[from..to]))
    }
}

/// Replaces every `{port.NAME}` by the number `port` gives for it, once: what is put in is not looked at again.
/// One without a number stays as it is; a configuration that loaded has none.
pub fn substitute(text: &str, port: impl Fn(&str) -> Option<u16>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut done = 0;
    for (range, name) in port_refs(text) {
        if let Some(number) = port(name) {
            out.push_str(&text[done..range.start]);
            out.push_str(&number.to_string());
            done = range.end;
        }
    }
    out.push_str(&text[done..]);
    out
}
