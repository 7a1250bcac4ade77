//! Holds a node against the table of keys: unknown keys, wrong types, values out of range. What passes comes
//! out as typed values by path, each with its place.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ostler_domain::ports::{InvalidPortRange, PortRange, PortWish, is_port_name};

use crate::diagnostic::{Diagnostic, Findings, nearest};
use crate::keys::{self, Choice, Groups, Key, Kind, Named};
use crate::node::{Entry, Node, Value};
use crate::source::{Place, Source};
use crate::units::{self, UnitError};
use crate::upstream::is_header;

/// What messages call the outermost table.
pub(crate) const FILE: &str = "the file";

/// A value of the type its key takes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Typed {
    /// A table, whatever is in it.
    Table,
    Text(String),
    List(Vec<(String, Place)>),
    Map(Vec<(String, String, Place)>),
    Bool(bool),
    Count(u64),
    /// A fraction, or any other number with a point.
    Fraction(f64),
    Integer(i64),
    Duration(Duration),
    Size(u64),
    Address(SocketAddr),
    Choice(&'static str),
    PortRange(PortRange),
    Ports(Vec<(String, PortWish, Place)>),
}

impl Typed {
    /// Whether two values are the same, wherever they stand.
    pub(crate) fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::List(a), Self::List(b)) => a.iter().map(|i| &i.0).eq(b.iter().map(|i| &i.0)),
            (Self::Map(a), Self::Map(b)) => a.iter().map(|i| (&i.0, &i.1)).eq(b.iter().map(|i| (&i.0, &i.1))),
            (Self::Ports(a), Self::Ports(b)) => {
                a.iter().map(|i| (&i.0, i.1)).eq(b.iter().map(|i| (&i.0, i.1)))
            }
            _ => self == other,
        }
    }
}

/// A value and where it was given.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Found {
    pub(crate) value: Typed,
    pub(crate) place: Place,
}

/// What a table holds, by path: `restart.backoff.min`.
pub(crate) type Checked = BTreeMap<String, Found>;

/// Checks one source's nodes.
pub(crate) struct Checker<'a> {
    pub(crate) source: &'a Arc<Source>,
    pub(crate) out: &'a mut Findings,
}

impl Checker<'_> {
    pub(crate) fn place(&self, node: &Node) -> Place {
        Place::new(self.source, node.range.clone())
    }

    /// Checks a table, called `title` in messages. `prefix` is the path of its keys, ending in a dot.
    pub(crate) fn table(
        &mut self,
        groups: Groups,
        node: &Node,
        title: &str,
        prefix: &str,
        into: &mut Checked,
    ) {
        let Some(entries) = node.entries() else {
            self.wrong_type(node, title, "a table");
            return;
        };
        self.duplicates(entries, title);
        for entry in entries {
            if self.out.full() {
                return;
            }
            match keys::find(groups, &entry.key) {
                None => self.unknown_key(groups, entry, title),
                Some(Key { kind: Kind::Later, name, .. }) => self.later(entry, name),
                Some(Key { kind: Kind::Table(inner), .. }) => {
                    let inner_title = match title.strip_suffix(']') {
                        Some(open) => format!("{open}.{}]", entry.key),
                        None if prefix.is_empty() && title == FILE => format!("[{}]", entry.key),
                        None => format!("`{}` in {title}", entry.key),
                    };
                    let path = format!("{prefix}{}", entry.key);
                    // That it is there can mean something, even if it is empty.
                    let place = self.place(&entry.node);
                    into.insert(path.clone(), Found { value: Typed::Table, place });
                    self.table(inner, &entry.node, &inner_title, &format!("{path}."), into);
                }
                Some(Key { kind: Kind::Named(named), .. }) => self.around(named, entry, into),
                Some(key) => {
                    if let Some(value) = self.value(key, &entry.node) {
                        let place = self.place(&entry.node);
                        into.insert(format!("{prefix}{}", entry.key), Found { value, place });
                    }
                }
            }
        }
    }

    /// Checks the keys beside tables by name; these themselves, and that there is a table at all, are the loader's.
    fn around(&mut self, named: &Named, entry: &Entry, into: &mut Checked) {
        let Some(entries) = entry.node.entries().filter(|_| !named.around.is_empty()) else {
            return;
        };
        let own = entries.iter().filter(|inner| !named.is_one(inner)).cloned().collect();
        let node = Node::new(entry.node.range.clone(), Value::Map(own));
        self.table(named.around, &node, &format!("[{}]", entry.key), &format!("{}.", entry.key), into);
    }

    /// Refuses a key given twice, as JSON allows it: parsers differ in which one counts.
    pub(crate) fn duplicates(&mut self, entries: &[Entry], title: &str) {
        let mut seen: BTreeMap<&str, &Entry> = BTreeMap::new();
        for entry in entries {
            if let Some(first) = seen.insert(&entry.key, entry)
                && !self.out.full()
            {
                let error = Diagnostic::at(
                    Place::new(self.source, entry.key_range.clone()),
                    format!("`{}` is given twice in {title}", entry.key),
                )
                .other(Place::new(self.source, first.key_range.clone()), "first given here");
                self.out.error(error.help("keep one of the two"));
            }
        }
    }

    fn unknown_key(&mut self, groups: Groups, entry: &Entry, title: &str) {
        let place = Place::new(self.source, entry.key_range.clone());
        let mut error = Diagnostic::at(place, format!("unknown key `{}` in {title}", entry.key));
        let names = || keys::available(groups).map(|k| k.name);
        let near = nearest(&entry.key, names());
        if near.is_none()
            && let Some(home) = home_of(groups, title, &entry.key)
        {
            error = error.help(format!("`{}` is a key of {home}", entry.key));
        }
        let list: Vec<_> = names().map(|n| format!("`{n}`")).collect();
        self.out.error(error.nearest(near).expected(format!("one of {}", list.join(", "))));
    }

    fn later(&mut self, entry: &Entry, name: &str) {
        let place = Place::new(self.source, entry.key_range.clone());
        let error = Diagnostic::at(place, format!("`{name}` is not available in this version yet"));
        self.out.error(error.help("remove it for now"));
    }

    fn wrong_type(&mut self, node: &Node, what: &str, expected: &str) {
        let error = Diagnostic::at(self.place(node), format!("{what} cannot be {}", node.kind()));
        self.out.error(error.expected(expected));
    }

    /// Reads a key's value; `None` when it is wrong, which is then noted.
    pub(crate) fn value(&mut self, key: &Key, node: &Node) -> Option<Typed> {
        let name = format!("`{}`", key.name);
        match (&key.kind, &node.value) {
            (Kind::Text, Value::Text(text)) => Some(Typed::Text(text.clone())),
            (Kind::TextList, Value::List(items)) => self.list(&name, items),
            (Kind::TextMap, Value::Map(entries)) => self.map(&name, entries, is_variable, not_a_variable),
            (Kind::HeaderMap, Value::Map(entries)) => self.map(&name, entries, is_header, not_a_header),
            (Kind::Bool, Value::Bool(flag)) => Some(Typed::Bool(*flag)),
            (Kind::Count { min, max }, Value::Int(number)) => self.count(&name, node, *number, *min..=*max),
            (Kind::Fraction, Value::Float(number)) => self.number(&name, node, *number, 0.0..=1.0),
            (Kind::Fraction, Value::Int(number)) => self.number(&name, node, *number as f64, 0.0..=1.0),
            (Kind::Number { min, max }, Value::Float(number)) => {
                self.number(&name, node, *number, *min..=*max)
            }
            (Kind::Number { min, max }, Value::Int(number)) => {
                self.number(&name, node, *number as f64, *min..=*max)
            }
            (Kind::Integer { min, max }, Value::Int(number)) if (*min..=*max).contains(number) => {
                Some(Typed::Integer(*number))
            }
            (Kind::Integer { .. }, Value::Int(_)) => self.out_of_range(&name, node, &key.kind),
            (Kind::PortRange, Value::Text(text)) => self.port_range(&name, node, text),
            (Kind::Ports, Value::Map(entries)) => self.ports(&name, entries),
            (Kind::Duration { zero }, Value::Text(text)) => self.duration(key, node, text, *zero),
            (Kind::Size { min, max }, Value::Text(text)) => self.size(key, node, text, *min..=*max),
            (Kind::Duration { .. } | Kind::Size { .. }, Value::Int(_) | Value::Float(_)) => {
                let place = self.place(node);
                let line = place.line();
                self.unit(key, node, &line.text[line.mark.clone()], &UnitError::NoUnit);
                None
            }
            (Kind::Address, Value::Text(text)) => self.address(&name, node, text),
            (Kind::Choice(choices), Value::Text(word)) => self.choice(&name, node, word, choices),
            (kind, _) => {
                self.wrong_type(node, &name, &expected(kind));
                None
            }
        }
    }

    /// What is right in a list is passed on, so that it is checked further; the rest is noted as errors.
    fn list(&mut self, name: &str, items: &[Node]) -> Option<Typed> {
        let mut texts = Vec::new();
        for item in items {
            match item.text() {
                _ if self.out.full() => return None,
                Some(text) => texts.push((text.to_owned(), self.place(item))),
                None => self.wrong_type(item, &format!("an item of {name}"), "a text in quotes"),
            }
        }
        Some(Typed::List(texts))
    }

    /// A table of texts, whose keys are of a kind of names.
    fn map(
        &mut self,
        name: &str,
        entries: &[Entry],
        is_name: fn(&str) -> bool,
        not_a_name: fn(Place, &str) -> Diagnostic,
    ) -> Option<Typed> {
        self.duplicates(entries, name);
        let mut texts = Vec::new();
        for entry in entries {
            match entry.node.text() {
                _ if self.out.full() => return None,
                _ if !is_name(&entry.key) => {
                    let place = Place::new(self.source, entry.key_range.clone());
                    self.out.error(not_a_name(place, &entry.key));
                }
                Some(text) => texts.push((entry.key.clone(), text.to_owned(), self.place(&entry.node))),
                None => {
                    self.wrong_type(&entry.node, &format!("`{}` in {name}", entry.key), "a text in quotes");
                }
            }
        }
        Some(Typed::Map(texts))
    }

    fn count(
        &mut self,
        name: &str,
        node: &Node,
        number: i64,
        range: std::ops::RangeInclusive<u64>,
    ) -> Option<Typed> {
        match u64::try_from(number).ok().filter(|n| range.contains(n)) {
            Some(count) => Some(Typed::Count(count)),
            None => {
                let error = Diagnostic::at(self.place(node), format!("{name} is out of range"));
                self.out.error(error.expected(format!("a number from {} to {}", range.start(), range.end())));
                None
            }
        }
    }

    fn number(
        &mut self,
        name: &str,
        node: &Node,
        number: f64,
        range: std::ops::RangeInclusive<f64>,
    ) -> Option<Typed> {
        if range.contains(&number) {
            return Some(Typed::Fraction(number));
        }
        self.out_of_range(name, node, &Kind::Number { min: *range.start(), max: *range.end() })
    }

    fn out_of_range(&mut self, name: &str, node: &Node, kind: &Kind) -> Option<Typed> {
        let error = Diagnostic::at(self.place(node), format!("{name} is out of range"));
        self.out.error(error.expected(expected(kind)));
        None
    }

    fn port_range(&mut self, name: &str, node: &Node, text: &str) -> Option<Typed> {
        match text.parse::<PortRange>() {
            Ok(range) => Some(Typed::PortRange(range)),
            Err(InvalidPortRange(_)) => {
                let error = Diagnostic::at(self.place(node), format!("{name} is not a range of ports"));
                self.out.error(error.expected(expected(&Kind::PortRange)));
                None
            }
        }
    }

    fn ports(&mut self, name: &str, entries: &[Entry]) -> Option<Typed> {
        self.duplicates(entries, name);
        let mut ports = Vec::new();
        for entry in entries {
            if self.out.full() {
                return None;
            }
            let key_place = Place::new(self.source, entry.key_range.clone());
            if !is_port_name(&entry.key) {
                let message = format!("`{}` cannot be the name of a port", entry.key.escape_debug());
                let error = Diagnostic::at(key_place, message);
                self.out.error(error.expected("1 to 32 of a-z 0-9 _ with a letter first"));
                continue;
            }
            let wish = match &entry.node.value {
                Value::Text(word) if word == "auto" => Some(PortWish::Auto),
                Value::Int(number) => {
                    u16::try_from(*number).ok().filter(|port| *port != 0).map(PortWish::Fixed)
                }
                _ => None,
            };
            match wish {
                Some(wish) => ports.push((entry.key.clone(), wish, self.place(&entry.node))),
                None => {
                    let message = format!("`{}` in {name} is not a port", entry.key);
                    let error = Diagnostic::at(self.place(&entry.node), message);
                    self.out.error(error.expected("`\"auto\"` or a number from 1 to 65535"));
                }
            }
        }
        Some(Typed::Ports(ports))
    }

    fn duration(&mut self, key: &Key, node: &Node, text: &str, zero: bool) -> Option<Typed> {
        match units::duration(text) {
            Ok(found) if found.is_zero() && !zero => {
                let error = Diagnostic::at(self.place(node), format!("`{}` cannot be zero", key.name));
                self.out.error(error.expected(expected(&key.kind)));
                None
            }
            Ok(found) => Some(Typed::Duration(found)),
            Err(why) => {
                self.unit(key, node, text, &why);
                None
            }
        }
    }

    fn size(
        &mut self,
        key: &Key,
        node: &Node,
        text: &str,
        range: std::ops::RangeInclusive<u64>,
    ) -> Option<Typed> {
        match units::size(text) {
            Ok(bytes) if !range.contains(&bytes) => {
                let error = Diagnostic::at(self.place(node), format!("`{}` is out of range", key.name));
                let (min, max) = (units::show_size(*range.start()), units::show_size(*range.end()));
                self.out.error(error.expected(format!("a size from {min} to {max}")));
                None
            }
            Ok(bytes) => Some(Typed::Size(bytes)),
            Err(why) => {
                self.unit(key, node, text, &why);
                None
            }
        }
    }

    /// A duration or size that cannot be read, with what was probably meant.
    fn unit(&mut self, key: &Key, node: &Node, text: &str, why: &UnitError) {
        let (what, unit) = match key.kind {
            Kind::Size { .. } => ("size", "MiB"),
            _ => ("duration", "s"),
        };
        let number = text.trim();
        let (message, help) = match why {
            UnitError::NoUnit => (
                format!("`{}` has no unit", key.name),
                Some(format!("add a unit: `{} = \"{number}{unit}\"`", key.name)),
            ),
            UnitError::Unit(name, Some(near)) => (
                format!("`{name}` is not a unit of {what}"),
                Some(format!("did you mean `\"{}\"`?", number.replace(name.as_str(), near))),
            ),
            UnitError::Unit(name, None) => (format!("`{name}` is not a unit of {what}"), None),
            UnitError::TooLarge => (format!("`{}` is too large", key.name), None),
            UnitError::Shape => (format!("`{}` is not a {what}", key.name), None),
        };
        let mut error = Diagnostic::at(self.place(node), message).expected(expected(&key.kind));
        error.help = help;
        self.out.error(error);
    }

    fn address(&mut self, name: &str, node: &Node, text: &str) -> Option<Typed> {
        if let Ok(address) = text.parse() {
            return Some(Typed::Address(address));
        }
        let mut error = Diagnostic::at(self.place(node), format!("{name} is not an address and port"))
            .expected(expected(&Kind::Address));
        if let Some(port) = text.strip_prefix("localhost:") {
            error = error.help(format!("a name is not looked up: write `127.0.0.1:{port}`"));
        } else if text.parse::<std::net::IpAddr>().is_ok() {
            error = error.help("add a port, such as `:7320`");
        }
        self.out.error(error);
        None
    }

    fn choice(&mut self, name: &str, node: &Node, word: &str, choices: &'static [Choice]) -> Option<Typed> {
        let place = self.place(node);
        match choices.iter().find(|c| c.word == word) {
            Some(found) if found.available => return Some(Typed::Choice(found.word)),
            Some(found) => {
                let message = format!("{name} `{}` is not available in this version yet", found.word);
                self.out.error(Diagnostic::at(place, message).expected(words(choices)));
            }
            None => {
                let near = nearest(word, choices.iter().filter(|c| c.available).map(|c| c.word));
                let error = Diagnostic::at(place, format!("`{word}` is not a value of {name}"));
                self.out.error(error.expected(words(choices)).nearest(near));
            }
        }
        None
    }
}

/// Whether the operating system takes this as a variable's name.
pub(crate) fn is_variable(name: &str) -> bool {
    !name.is_empty() && !name.contains(['=', '\0'])
}

/// The error for a name that it does not take.
pub(crate) fn not_a_variable(place: Place, name: &str) -> Diagnostic {
    Diagnostic::at(place, format!("`{}` cannot be the name of a variable", name.escape_debug()))
        .expected("a name without `=`, such as `GITHUB_TOKEN`")
}

fn not_a_header(place: Place, name: &str) -> Diagnostic {
    Diagnostic::at(place, format!("`{}` cannot be the name of a header", name.escape_debug()))
        .expected("letters, digits and dashes, such as `Authorization`")
}

/// What a kind of key takes, as messages say it.
pub(crate) fn expected(kind: &Kind) -> String {
    match kind {
        Kind::Text => "a text in quotes".into(),
        Kind::TextList => r#"a list of texts such as `["a", "b"]`"#.into(),
        Kind::TextMap => r#"a table of texts such as `{ NAME = "value" }`"#.into(),
        Kind::HeaderMap => r#"a table of texts such as `{ Authorization = "Bearer ..." }`"#.into(),
        Kind::Bool => "`true` or `false`".into(),
        Kind::Count { min, max } => format!("a number from {min} to {max}"),
        Kind::Fraction => "a number from 0.0 to 1.0".into(),
        Kind::Number { min, max } => format!("a number from {min:?} to {max:?}"),
        Kind::Integer { min, max } => format!("a number from {min} to {max}"),
        Kind::PortRange => r#"the first and the last port, such as `"8001-9000"`"#.into(),
        Kind::Ports => r#"a table of ports such as `{ viewer = "auto" }`"#.into(),
        Kind::Duration { .. } => "a duration such as `\"10s\"`, `\"500ms\"` or `\"5m\"`".into(),
        Kind::Size { .. } => "a size such as `\"64MiB\"` or `\"500KB\"`".into(),
        Kind::Address => "an IP address and port such as `\"127.0.0.1:7320\"`".into(),
        Kind::Choice(choices) => words(choices),
        Kind::Table(_) | Kind::Named(_) | Kind::Later => "a table".into(),
    }
}

/// The words of a choice that this version has.
fn words(choices: &[Choice]) -> String {
    let words: Vec<_> = choices.iter().filter(|c| c.available).map(|c| format!("`\"{}\"`", c.word)).collect();
    words.join(" or ")
}

/// The table a key belongs to, for one that stands in the table `title` of these keys: one below that, before others.
fn home_of(groups: Groups, title: &str, name: &str) -> Option<String> {
    fn search(groups: Groups, title: &str, name: &str) -> Option<String> {
        if keys::available(groups).any(|k| k.name == name) {
            return Some(format!("[{title}]"));
        }
        below(groups, title, name)
    }
    fn below(groups: Groups, title: &str, name: &str) -> Option<String> {
        keys::all(groups).find_map(|k| match k.kind {
            Kind::Table(inner) => search(inner, &format!("{title}.{}", k.name), name),
            _ => None,
        })
    }
    fn named(key: &Key, name: &str) -> Option<String> {
        let Kind::Named(named) = &key.kind else { return None };
        search(named.around, key.name, name)
            .or_else(|| search(named.each, &format!("{}.NAME", key.name), name))
    }
    let own = title.strip_prefix('[').and_then(|title| title.strip_suffix(']'));
    let near = own.and_then(|title| {
        below(groups, title, name).or_else(|| keys::find(keys::ROOT, title).and_then(|k| named(k, name)))
    });
    near.or_else(|| {
        keys::all(keys::ROOT).find_map(|k| match k.kind {
            _ if k.name == name => Some("the file itself, as a table of its own".to_owned()),
            Kind::Table(inner) if k.name != "defaults" => search(inner, k.name, name),
            _ => named(k, name),
        })
    })
}
