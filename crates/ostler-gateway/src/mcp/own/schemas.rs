//! JSON schemas of what tools take and give, made of those of the management API: a tool says of itself what the API
//! says, and neither can forget a field of the other.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use serde_json::{Map, Value, json};

/// Where a schema of the API's document refers to another.
const COMPONENT: &str = "#/components/schemas/";

/// The schemas of the API's types, by name.
static COMPONENTS: LazyLock<Map<String, Value>> = LazyLock::new(|| {
    let document: Value = serde_json::from_str(&ostler_api::openapi_json()).unwrap_or_default();
    document["components"]["schemas"].as_object().cloned().unwrap_or_default()
});

/// The schema of one of the API's types, which must be an object; whole in itself.
pub(super) fn of_type(name: &str) -> Value {
    whole(COMPONENTS.get(name).cloned().unwrap_or_else(|| json!({"type": "object"})))
}

/// The schema of an object with these properties, which may refer to the API's types.
pub(super) fn object(properties: Value, required: &[&str]) -> Value {
    let mut schema = json!({"type": "object", "properties": properties, "additionalProperties": false});
    if !required.is_empty() {
        schema["required"] = required.into();
    }
    whole(schema)
}

/// A schema together with all that it refers to.
fn whole(mut schema: Value) -> Value {
    let mut wanted = BTreeSet::new();
    localise(&mut schema, &mut wanted);
    let mut definitions = Map::new();
    while let Some(name) = wanted.pop_first() {
        if definitions.contains_key(&name) {
            continue;
        }
        let mut definition = COMPONENTS.get(&name).cloned().unwrap_or_default();
        localise(&mut definition, &mut wanted);
        definitions.insert(name, definition);
    }
    if !definitions.is_empty() {
        schema["$defs"] = definitions.into();
    }
    schema
}

/// Turns references to the API's document into such within the schema, and notes which.
fn localise(schema: &mut Value, wanted: &mut BTreeSet<String>) {
    match schema {
        Value::Object(members) => {
            for (key, inner) in members {
                let referred =
                    inner.as_str().and_then(|text| text.strip_prefix(COMPONENT)).map(str::to_owned);
                match referred.filter(|_| key == "$ref") {
                    Some(name) => {
                        *inner = format!("#/$defs/{name}").into();
                        wanted.insert(name);
                    }
                    None => localise(inner, wanted),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| localise(item, wanted)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schema_is_whole_in_itself() {
        let schema = of_type("ProcessView");
        assert_eq!(schema["type"], "object");
        let definitions = schema["$defs"].as_object().expect("definitions");
        for name in ["InstanceView", "LimitView", "EndView", "RestartWhen", "ProcessLimits"] {
            assert!(definitions[name].is_object(), "{name}");
        }
        assert!(!schema.to_string().contains(COMPONENT));
        assert_eq!(object(json!({}), &[]).get("$defs"), None);
        assert_eq!(of_type("NewProcess")["required"], json!(["command"]));
    }
}
