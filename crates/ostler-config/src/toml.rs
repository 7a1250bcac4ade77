//! TOML to the common tree.

use std::ops::Range;

use toml_edit::{Document, Item, Key, TableLike, Value as TomlValue};

use crate::node::{Entry, Node, Value};

/// Reads one value, as it would stand after `key =`, with ranges in the text.
///
/// # Errors
///
/// The place and the parser's reason.
pub(crate) fn parse_value(text: &str) -> Result<Node, (Range<usize>, String)> {
    const KEY: &str = "v=";
    let document =
        parse(&format!("{KEY}{text}")).map_err(|(range, message)| (back(&range, KEY.len()), message))?;
    match document.entries() {
        Some([only]) => Ok(only.node.clone().moved(&|range| back(range, KEY.len()))),
        _ => Err((0..text.len(), "more than one value".into())),
    }
}

fn back(range: &Range<usize>, by: usize) -> Range<usize> {
    range.start.saturating_sub(by)..range.end.saturating_sub(by)
}

/// Reads a whole file.
///
/// # Errors
///
/// The place and the parser's reason.
pub(crate) fn parse(text: &str) -> Result<Node, (Range<usize>, String)> {
    match Document::parse(text) {
        Ok(document) => Ok(Node::new(0..0, table(document.as_table(), &(0..0)))),
        Err(error) => Err((error.span().unwrap_or(0..0), error.message().to_owned())),
    }
}

/// A table's entries. A table that dotted keys imply has no place of its own and stands where its key does.
fn table(table: &dyn TableLike, fallback: &Range<usize>) -> Value {
    let entries = table.iter().filter_map(|(name, _)| {
        let (key, item) = table.get_key_value(name)?;
        let key_range = Key::span(key).unwrap_or_else(|| fallback.clone());
        Some(Entry { key: name.to_owned(), node: item_node(item, &key_range), key_range })
    });
    Value::Map(entries.collect())
}

fn item_node(item: &Item, fallback: &Range<usize>) -> Node {
    let range = item.span().unwrap_or_else(|| fallback.clone());
    let value = match item {
        Item::None => Value::Null,
        Item::Value(value) => return value_node(value, fallback),
        Item::Table(inner) => table(inner, &range),
        Item::ArrayOfTables(tables) => Value::List(
            tables
                .iter()
                .map(|t| {
                    let range = t.span().unwrap_or_else(|| fallback.clone());
                    Node::new(range.clone(), table(t, &range))
                })
                .collect(),
        ),
    };
    Node::new(range, value)
}

fn value_node(value: &TomlValue, fallback: &Range<usize>) -> Node {
    let range = value.span().unwrap_or_else(|| fallback.clone());
    let inner = match value {
        TomlValue::String(text) => Value::Text(text.value().clone()),
        TomlValue::Integer(number) => Value::Int(*number.value()),
        TomlValue::Float(number) => Value::Float(*number.value()),
        TomlValue::Boolean(flag) => Value::Bool(*flag.value()),
        TomlValue::Datetime(_) => Value::Date,
        TomlValue::Array(items) => Value::List(items.iter().map(|v| value_node(v, &range)).collect()),
        TomlValue::InlineTable(inner) => table(inner, &range),
    };
    Node::new(range, inner)
}
