//! `tools/list` as a client sees it: each tool with the argument, and Ostler's tools at the end of the last page.

use std::sync::LazyLock;

use bytes::Bytes;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::{ARGUMENT, CLEAN_UP, CREATE, MAX_TOOLS, OTHER_ARGUMENT, OwnArguments, OwnNames};
use crate::envelope::Span;
use crate::message::Message;

/// A page of `tools/list`, as pieces of the answer it was read from.
#[derive(Debug)]
pub struct Page<'m> {
    pub(super) tools: Vec<Tool<'m>>,
    /// All of `tools`.
    list: &'m RawValue,
    is_last: bool,
}

/// One tool of a page.
#[derive(Debug)]
pub(super) struct Tool<'m> {
    pub(super) name: String,
    pub(super) own: OwnArguments,
    /// Where the argument is put in: the object that `properties` is, or else the schema.
    place: Option<Place<'m>>,
}

#[derive(Debug)]
enum Place<'m> {
    Properties(&'m RawValue),
    Schema(&'m RawValue),
}

#[derive(Deserialize)]
struct Answer<'m> {
    #[serde(borrow)]
    result: Listing<'m>,
}

#[derive(Deserialize)]
struct Listing<'m> {
    #[serde(borrow)]
    tools: &'m RawValue,
    #[serde(default, rename = "nextCursor")]
    next: Option<String>,
}

#[derive(Deserialize)]
struct RawTool<'m> {
    name: String,
    #[serde(default, borrow, rename = "inputSchema", deserialize_with = "even_null")]
    schema: Option<&'m RawValue>,
}

#[derive(Deserialize)]
struct RawSchema<'m> {
    #[serde(default, borrow, deserialize_with = "even_null")]
    properties: Option<&'m RawValue>,
}

/// A member that is there, also where it is `null`: another of the same name must not stand beside it.
fn even_null<'m, D: Deserializer<'m>>(member: D) -> Result<Option<&'m RawValue>, D::Error> {
    <&RawValue>::deserialize(member).map(Some)
}

impl<'m> Page<'m> {
    /// Reads an answer to `tools/list`; `None` where it is not as one should be, or has more than [`MAX_TOOLS`] tools. A
    /// tool that is not as it should be is passed over.
    pub fn read(answer: &'m [u8]) -> Option<Self> {
        let Answer { result } = serde_json::from_slice(answer).ok()?;
        let tools: Vec<&RawValue> = serde_json::from_str(result.tools.get()).ok()?;
        if tools.len() > MAX_TOOLS {
            return None;
        }
        let tools = tools.into_iter().filter_map(Tool::read).collect();
        Some(Self { tools, list: result.tools, is_last: result.next.is_none() })
    }

    /// The page as a client sees it. `answer` is what it was read from; `own` has learnt from it.
    pub fn show(&self, answer: &Bytes, own: &OwnNames) -> Message {
        let mut edits: Vec<(Span, &[u8])> = Vec::with_capacity(4 * self.tools.len() + 4);
        let mut put_in = |at: usize, new: &'static str| edits.push((at..at, new.as_bytes()));
        let start = |raw: &RawValue| raw.get().as_ptr() as usize - answer.as_ptr() as usize;
        for tool in &self.tools {
            let (Some(place), Some(name)) = (&tool.place, own.arguments_of(&tool.name).next()) else {
                continue;
            };
            match place {
                Place::Properties(properties) => {
                    put_in(start(properties) + 1, argument(name));
                    put_in(start(properties) + 1, comma(properties));
                }
                Place::Schema(schema) => {
                    put_in(start(schema) + 1, "\"properties\":{");
                    put_in(start(schema) + 1, argument(name));
                    put_in(start(schema) + 1, "}");
                    put_in(start(schema) + 1, comma(schema));
                }
            }
        }
        let end = start(self.list) + self.list.get().len() - 1;
        let mut between = if self.list.get()[1..].trim_start() == "]" { "" } else { "," };
        let ours = [(CREATE, &CREATE_TOOL), (CLEAN_UP, &CLEAN_UP_TOOL)];
        for (_, tool) in ours.into_iter().filter(|(name, _)| self.is_last && own.is_ostlers(name)) {
            put_in(end, between);
            put_in(end, tool);
            between = ",";
        }
        Message::splice(answer, &edits)
    }
}

impl<'m> Tool<'m> {
    fn read(text: &'m RawValue) -> Option<Self> {
        let RawTool { name, schema } = serde_json::from_str(text.get()).ok()?;
        let Some(schema) = schema.filter(|schema| schema.get().starts_with('{')) else {
            return Some(Self { name, own: OwnArguments::default(), place: None });
        };
        let parsed: Value = serde_json::from_str(schema.get()).ok()?;
        let own = OwnArguments { argument: has(&parsed, ARGUMENT), other: has(&parsed, OTHER_ARGUMENT) };
        drop(parsed);
        let place = match serde_json::from_str(schema.get()) {
            Ok(RawSchema { properties: None }) => Some(Place::Schema(schema)),
            Ok(RawSchema { properties: Some(inner) }) if inner.get().starts_with('{') => {
                Some(Place::Properties(inner))
            }
            Ok(RawSchema { properties: Some(_) }) | Err(_) => None,
        };
        Some(Self { name, own, place })
    }
}

/// Whether a schema speaks of an argument of this name: itself, or in what it is composed of. Of definitions, any may be
/// used at this level: to take one too many for the tool's own costs nothing but the name that is shown.
fn has(schema: &Value, name: &str) -> bool {
    let Value::Object(members) = schema else { return false };
    let requires = || {
        members.get("required").and_then(Value::as_array).is_some_and(|all| all.iter().any(|one| one == name))
    };
    if members.get("properties").is_some_and(|properties| properties.get(name).is_some()) || requires() {
        return true;
    }
    members.iter().any(|(keyword, inner)| match keyword.as_str() {
        "allOf" | "anyOf" | "oneOf" => {
            inner.as_array().is_some_and(|all| all.iter().any(|one| has(one, name)))
        }
        "if" | "then" | "else" => has(inner, name),
        "$defs" | "definitions" | "dependentSchemas" => {
            inner.as_object().is_some_and(|all| all.values().any(|one| has(one, name)))
        }
        _ => false,
    })
}

/// What must stand between what is put in front and what an object has.
fn comma(object: &RawValue) -> &'static str {
    if object.get()[1..].trim_start() == "}" { "" } else { "," }
}

/// The member of `properties` that the argument is.
fn argument(name: &str) -> &'static str {
    static BOTH: LazyLock<[String; 2]> = LazyLock::new(|| {
        let schema = json!({
            "type": "string",
            "description": "The session to work in: what create_session gave, or a name of your own. Calls with different \
                            sessions never share anything. Without it, all your calls are in one session."
        });
        [ARGUMENT, OTHER_ARGUMENT].map(|name| format!("\"{name}\":{schema}"))
    });
    &BOTH[usize::from(name == OTHER_ARGUMENT)]
}

static CREATE_TOOL: LazyLock<String> = LazyLock::new(|| {
    let session = json!({"type": "string", "description": "What to pass to other tools."});
    let tool = json!({
        "name": CREATE,
        "title": "Create a session",
        "description": "Makes a session with processes of its own, which no other session uses. Pass its session_id to the \
                        other tools, and to cleanup_session when you are done.",
        "inputSchema": {"type": "object", "properties": {}, "additionalProperties": false},
        "outputSchema": {"type": "object", "properties": {ARGUMENT: session}, "required": [ARGUMENT]},
        "annotations": {"readOnlyHint": false, "destructiveHint": false, "idempotentHint": false, "openWorldHint": false}
    });
    tool.to_string()
});

static CLEAN_UP_TOOL: LazyLock<String> = LazyLock::new(|| {
    let session = json!({"type": "string", "description": "The session to end."});
    let tool = json!({
        "name": CLEAN_UP,
        "title": "End a session",
        "description": "Ends a session, and all that runs for it.",
        "inputSchema": {
            "type": "object",
            "properties": {ARGUMENT: session},
            "required": [ARGUMENT],
            "additionalProperties": false
        },
        "outputSchema": {"type": "object", "properties": {ARGUMENT: {"type": "string"}}, "required": [ARGUMENT]},
        "annotations": {"readOnlyHint": false, "destructiveHint": true, "idempotentHint": true, "openWorldHint": false}
    });
    tool.to_string()
});

#[cfg(test)]
mod tests {
    use super::*;

    fn shown_as(tools: &str, more: &str) -> Value {
        let body = Bytes::from(format!(
            r#"{{"jsonrpc":"2.0","id":1,"result":{{"resultType":"complete","tools":{tools},"ttlMs":7{more}}}}}"#
        ));
        let page = Page::read(&body).expect("a list of tools");
        let mut own = OwnNames::default();
        own.learn(&page);
        let message = page.show(&body, &own).to_bytes();
        serde_json::from_slice(&message)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&message)))
    }

    fn shown(tools: &Value) -> Value {
        shown_as(&tools.to_string(), "")
    }

    fn names(answer: &Value) -> Vec<&str> {
        let tools = answer["result"]["tools"].as_array().expect("tools");
        tools.iter().map(|tool| tool["name"].as_str().unwrap_or_default()).collect()
    }

    #[test]
    fn every_tool_is_shown_with_the_argument_and_two_tools_more() {
        let tools = json!([
            {"name": "plain", "inputSchema": {"type": "object"}},
            {"name": "empty", "inputSchema": {}},
            {"name": "some", "inputSchema": {"properties": {"a": {"type": "string"}}, "required": ["a"]}},
            {"name": "own", "inputSchema": {"properties": {"session_id": {"type": "integer"}}}},
            {"name": "both", "inputSchema": {"properties": {"session_id": {}, "ostler_session": {}}}},
            {"name": "strange", "inputSchema": true},
            {"inputSchema": {}},
        ]);
        let answer = shown(&tools);
        let result = &answer["result"];
        assert_eq!(
            names(&answer),
            ["plain", "empty", "some", "own", "both", "strange", "", CREATE, CLEAN_UP]
        );
        for (at, argument) in [(0, ARGUMENT), (1, ARGUMENT), (2, ARGUMENT), (3, OTHER_ARGUMENT)] {
            let tool = &result["tools"][at];
            assert_eq!(tool["inputSchema"]["properties"][argument]["type"], "string", "{tool}");
        }
        assert_eq!(result["tools"][2]["inputSchema"]["required"], json!(["a"]));
        assert_eq!(result["tools"][3]["inputSchema"]["properties"]["session_id"]["type"], "integer");
        for at in [4, 5, 6] {
            assert_eq!(result["tools"][at], tools[at]);
        }
        assert_eq!((&result["ttlMs"], &result["resultType"]), (&json!(7), &json!("complete")));
    }

    #[test]
    fn an_argument_is_a_tools_own_wherever_its_schema_says_so() {
        let inner = json!({"properties": {"session_id": {}}});
        for schema in [
            json!({"required": ["session_id"]}),
            json!({"allOf": [{}, inner]}),
            json!({"anyOf": [inner]}),
            json!({"oneOf": [{"then": inner}]}),
            json!({"$ref": "#/$defs/a", "$defs": {"a": inner}}),
            json!({"$ref": "#/definitions/a", "definitions": {"a": inner}}),
            json!({"dependentSchemas": {"a": inner}}),
        ] {
            let answer = shown(&json!([{"name": "t", "inputSchema": schema}]));
            let properties = &answer["result"]["tools"][0]["inputSchema"]["properties"];
            assert!(
                properties["ostler_session"].is_object() && properties["session_id"].is_null(),
                "{schema}"
            );
        }
        // That of another object is not.
        let deep = json!([{"name": "t", "inputSchema": {"properties": {"a": inner}}}]);
        assert!(shown(&deep)["result"]["tools"][0]["inputSchema"]["properties"]["session_id"].is_object());
    }

    #[test]
    fn ostlers_tools_are_on_the_last_page_and_give_way_to_the_servers() {
        let tools = json!([{"name": CREATE, "inputSchema": {"type": "object"}}]).to_string();
        assert_eq!(names(&shown_as(&tools, r#","nextCursor":"more""#)), [CREATE]);
        assert_eq!(names(&shown_as(&tools, "")), [CREATE, CLEAN_UP]);
        assert_eq!(names(&shown_as("[]", "")), [CREATE, CLEAN_UP]);
        assert_eq!(names(&shown_as("[ \t]", "")), [CREATE, CLEAN_UP]);
        assert_eq!(names(&shown_as("[]", r#","nextCursor":"more""#)), [""; 0]);
    }

    #[test]
    fn white_space_and_escapes_do_not_matter() {
        let tools =
            r#"[ { "name" : "\u0074" , "input\u0053chema" : { "properties" : { } , "type":"object" } } ]"#;
        let answer = shown_as(tools, "");
        assert_eq!(names(&answer), ["t", CREATE, CLEAN_UP]);
        assert!(
            answer["result"]["tools"][0]["inputSchema"]["properties"]["session_id"].is_object(),
            "{answer}"
        );
    }

    #[test]
    fn what_is_no_list_is_nobodys() {
        for answer in [
            r#"{"result":{"tools":{}}}"#,
            r#"{"result":{"tools":[],"tools":[]}}"#,
            r#"{"result":{"tools":[],"nextCursor":1}}"#,
            r#"{"result":[]}"#,
            r#"{"error":{}}"#,
            "",
        ] {
            assert!(Page::read(answer.as_bytes()).is_none(), "{answer}");
        }
        let many = |count: usize| format!(r#"{{"result":{{"tools":[{}1]}}}}"#, "1,".repeat(count - 1));
        assert!(Page::read(many(MAX_TOOLS).as_bytes()).is_some());
        assert!(Page::read(many(MAX_TOOLS + 1).as_bytes()).is_none());
    }

    #[test]
    fn what_is_learnt_of_one_page_stays_after_another() {
        let page = |name: &str, own: &str| {
            format!(
                r#"{{"result":{{"tools":[{{"name":"{name}","inputSchema":{{"properties":{{"{own}":{{}}}}}}}}]}}}}"#
            )
        };
        let mut own = OwnNames::default();
        assert!(!own.is_known());
        for (name, has) in [("a", "session_id"), ("b", "session_id"), ("create_session", "x"), ("b", "x")] {
            own.learn(&Page::read(page(name, has).as_bytes()).expect("a page"));
        }
        assert!(
            own.is_known() && !own.is_ostlers(CREATE) && own.is_ostlers(CLEAN_UP) && !own.is_ostlers("a")
        );
        assert!(own.arguments_of("a").eq([OTHER_ARGUMENT]));
        assert!(own.arguments_of("b").eq([ARGUMENT, OTHER_ARGUMENT]), "what a later page says counts");
        let mut other = OwnNames::default();
        other.add(&own);
        assert_eq!(other, own);
    }

    #[test]
    fn of_a_server_with_too_many_such_tools_no_plain_argument_is_ostlers() {
        let mut own = OwnNames::default();
        for page in 0..=1 {
            let tool = |n: usize| json!({"name": format!("{page}.{n}"), "inputSchema": {"required": ["session_id"]}});
            let tools: Vec<Value> = (0..=MAX_TOOLS / 2).map(tool).collect();
            let answer = json!({"result": {"tools": tools}}).to_string();
            own.learn(&Page::read(answer.as_bytes()).expect("a page"));
        }
        let mut missed = OwnNames::default();
        missed.miss_page();
        for own in [own, missed] {
            assert!(own.has_more() && own.arguments_of("unheard of").eq([OTHER_ARGUMENT]));
            assert!(!own.is_ostlers(CREATE), "it may be the server's");
        }
    }
}
