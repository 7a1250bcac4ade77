//! JSON, with comments and trailing commas as MCP clients tolerate them, to the common tree.

use std::ops::Range;

use jsonc_parser::ast::{ObjectPropName, Value as JsonValue};
use jsonc_parser::common::Ranged;
use jsonc_parser::{CollectOptions, CommentCollectionStrategy, ParseOptions, parse_to_ast};

use crate::node::{Entry, Node, Value};

/// VS Code's dialect: comments and trailing commas, nothing else beyond JSON.
const DIALECT: ParseOptions = ParseOptions {
    allow_comments: true,
    allow_loose_object_property_names: false,
    allow_trailing_commas: true,
    allow_missing_commas: false,
    allow_single_quoted_strings: false,
    allow_hexadecimal_numbers: false,
    allow_unary_plus_numbers: false,
    allow_bare_decimal_point_numbers: false,
    allow_non_finite_numbers: false,
    allow_extended_string_escapes: false,
};

/// Reads a whole file. An empty one counts as an empty object.
///
/// # Errors
///
/// The place and the parser's reason.
pub(crate) fn parse(text: &str) -> Result<Node, (Range<usize>, String)> {
    let collect = CollectOptions { comments: CommentCollectionStrategy::Off, tokens: false };
    match parse_to_ast(text, &collect, &DIALECT) {
        Ok(result) => Ok(result.value.map_or(Node::new(0..0, Value::Map(Vec::new())), node)),
        Err(error) => {
            let range = error.range();
            let mut reason = error.kind().to_string();
            if let Some(first) = reason.get_mut(..1) {
                first.make_ascii_lowercase();
            }
            Err((range.start..range.end, reason))
        }
    }
}

fn node(value: JsonValue<'_>) -> Node {
    let range = value.range();
    let inner = match value {
        JsonValue::StringLit(text) => Value::Text(text.value.into_owned()),
        JsonValue::NumberLit(number) => number
            .value
            .parse()
            .map(Value::Int)
            .or_else(|_| number.value.parse().map(Value::Float))
            .unwrap_or(Value::Float(f64::NAN)),
        JsonValue::BooleanLit(flag) => Value::Bool(flag.value),
        JsonValue::NullKeyword(_) => Value::Null,
        JsonValue::Array(array) => Value::List(array.elements.into_iter().map(node).collect()),
        JsonValue::Object(object) => Value::Map(
            object
                .properties
                .into_iter()
                .map(|property| {
                    let name = match &property.name {
                        ObjectPropName::String(text) => text.range,
                        ObjectPropName::Word(word) => word.range,
                    };
                    Entry {
                        key: property.name.into_string(),
                        key_range: name.start..name.end,
                        node: node(property.value),
                    }
                })
                .collect(),
        ),
    };
    Node::new(range.start..range.end, inner)
}
