//! The JSON schema of `ostler.toml`, for editors and for the documentation's test.

use serde_json::{Map, Value, json};

use crate::keys::{self, Groups, Key, Kind};
use crate::node;
use crate::toml;

/// The JSON schema (draft 2020-12) of `ostler.toml`: every key this version has, with its type, default and
/// meaning.
pub fn json_schema() -> Value {
    let mut schema = table(keys::ROOT, "Ostler's configuration, ostler.toml.");
    if let Some(root) = schema.as_object_mut() {
        root.insert("$schema".into(), "https://json-schema.org/draft/2020-12/schema".into());
        root.insert("title".into(), "ostler.toml".into());
    }
    schema
}

fn table(groups: Groups, doc: &str) -> Value {
    let properties: Map<_, _> = keys::available(groups).map(|k| (k.name.to_owned(), property(k))).collect();
    let mut schema = json!({
        "type": "object",
        "description": doc,
        "properties": properties,
        "additionalProperties": false,
    });
    // A server is one or the other: a program to run, or the address of one that runs elsewhere.
    if ["command", "url", "transport"].iter().all(|name| keys::find(groups, name).is_some()) {
        schema["anyOf"] = json!([{ "required": ["command"] }, { "required": ["url"] }]);
    }
    schema
}

fn property(key: &Key) -> Value {
    let mut schema = match &key.kind {
        Kind::Table(groups) => return table(groups, key.doc),
        Kind::Named(named) => {
            let mut schema = json!({
                "type": "object",
                "propertyNames": { "pattern": named.pattern },
                "additionalProperties": table(named.each, &format!("One {}.", named.what)),
            });
            if !named.around.is_empty() {
                schema["properties"] = table(named.around, "")["properties"].take();
            }
            schema
        }
        Kind::Text | Kind::Address | Kind::Later => json!({ "type": "string" }),
        Kind::TextList => json!({ "type": "array", "items": { "type": "string" } }),
        Kind::TextMap | Kind::HeaderMap => {
            json!({ "type": "object", "additionalProperties": { "type": "string" } })
        }
        Kind::Bool => json!({ "type": "boolean" }),
        Kind::Count { min, max } => json!({ "type": "integer", "minimum": min, "maximum": max }),
        Kind::Number { min, max } => json!({ "type": "number", "minimum": min, "maximum": max }),
        Kind::Integer { min, max } => json!({ "type": "integer", "minimum": min, "maximum": max }),
        Kind::PortRange => json!({ "type": "string", "pattern": r"^\s*[0-9]+\s*-\s*[0-9]+\s*$" }),
        Kind::Ports => json!({
            "type": "object",
            "propertyNames": { "pattern": "^[a-z][a-z0-9_]{0,31}$" },
            "additionalProperties": {
                "anyOf": [{ "const": "auto" }, { "type": "integer", "minimum": 1, "maximum": 65535 }],
            },
        }),
        Kind::Fraction => json!({ "type": "number", "minimum": 0, "maximum": 1 }),
        Kind::Duration { .. } => json!({
            "type": "string",
            "pattern": r"^\s*([0-9]+(\.[0-9]*)?\s*(ms|s|m|h|d)\s*)+$",
        }),
        Kind::Size { .. } => json!({
            "type": "string",
            "pattern": r"^\s*[0-9]+(\.[0-9]*)?\s*([KMG]i?)?B\s*$",
        }),
        Kind::Choice(choices) => json!({
            "type": "string",
            "oneOf": choices.iter().filter(|c| c.available)
                .map(|c| json!({ "const": c.word, "description": c.doc })).collect::<Vec<_>>(),
        }),
    };
    schema["description"] = key.doc.into();
    if let Some(default) = key.default.and_then(|text| toml::parse_value(text).ok()) {
        schema["default"] = plain(&default.value);
    }
    schema
}

/// A default as JSON.
fn plain(value: &node::Value) -> Value {
    match value {
        node::Value::Text(text) => text.as_str().into(),
        node::Value::Int(number) => (*number).into(),
        node::Value::Float(number) => (*number).into(),
        node::Value::Bool(flag) => (*flag).into(),
        node::Value::Null | node::Value::Date => Value::Null,
        node::Value::List(items) => items.iter().map(|n| plain(&n.value)).collect(),
        node::Value::Map(entries) => {
            Value::Object(entries.iter().map(|e| (e.key.clone(), plain(&e.node.value))).collect())
        }
    }
}
