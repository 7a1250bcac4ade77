//! The common tree: what TOML, JSON and environment variables are all read into, with places kept.

use std::ops::Range;

/// A value and where it stands, in bytes of its source.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Node {
    pub(crate) range: Range<usize>,
    pub(crate) value: Value,
}

/// What a node holds.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Text(String),
    Int(i64),
    Float(f64),
    Bool(bool),
    Null,
    /// A TOML date or time: no key takes one.
    Date,
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// One key of a map. A map keeps its order, and a key given twice (JSON allows it) is there twice.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) key_range: Range<usize>,
    pub(crate) node: Node,
}

impl Node {
    pub(crate) fn new(range: Range<usize>, value: Value) -> Self {
        Self { range, value }
    }

    /// The kind of value, as messages call it.
    pub(crate) fn kind(&self) -> &'static str {
        match self.value {
            Value::Text(_) => "a text",
            Value::Int(_) | Value::Float(_) => "a number",
            Value::Bool(_) => "a boolean",
            Value::Null => "null",
            Value::Date => "a date",
            Value::List(_) => "a list",
            Value::Map(_) => "a table",
        }
    }

    /// The entries of a map; `None` for anything else.
    pub(crate) fn entries(&self) -> Option<&[Entry]> {
        match &self.value {
            Value::Map(entries) => Some(entries),
            _ => None,
        }
    }

    /// The last value of a key in a map, as JSON parsers count.
    pub(crate) fn get(&self, key: &str) -> Option<&Node> {
        self.entries()?.iter().rev().find(|e| e.key == key).map(|e| &e.node)
    }

    /// The text, if it is one.
    pub(crate) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The same tree with every range changed.
    pub(crate) fn moved(self, to: &dyn Fn(&Range<usize>) -> Range<usize>) -> Self {
        let value = match self.value {
            Value::List(items) => Value::List(items.into_iter().map(|n| n.moved(to)).collect()),
            Value::Map(entries) => Value::Map(
                entries
                    .into_iter()
                    .map(|e| Entry { key_range: to(&e.key_range), node: e.node.moved(to), key: e.key })
                    .collect(),
            ),
            other => other,
        };
        Self { range: to(&self.range), value }
    }
}
