//! Sessions as arguments of tools: a model can pass an argument, and cannot set a header.
//!
//! Each tool of a server that has instances for single sessions is shown with one optional argument more, which is taken
//! out of a call before the server sees it; and two tools of Ostler's are shown beside the server's.

use std::collections::BTreeSet;

use bytes::Bytes;
use serde::de::{Deserializer as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::envelope::{Envelope, EnvelopeError, Span};
use crate::message::Message;

/// The argument that names a session.
pub const ARGUMENT: &str = "session_id";
/// The same, for a tool that has an argument of that name itself; understood by every tool.
pub const OTHER_ARGUMENT: &str = "ostler_session";
/// The tool that makes a session.
pub const CREATE: &str = "create_session";
/// The tool that ends one.
pub const CLEAN_UP: &str = "cleanup_session";

/// Most tools of which it is remembered that they have an argument of that name themselves.
const MAX_TOOLS: usize = 10_000;

/// What of these names a server has itself, as its `tools/list` said.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct OwnNames {
    known: bool,
    /// Tools with an argument [`ARGUMENT`] of their own.
    taking: BTreeSet<Box<str>>,
    /// Which of the two tools it has itself.
    tools: BTreeSet<Box<str>>,
}

impl OwnNames {
    /// Learns from an answer to `tools/list`. What was known of other tools stays.
    pub fn learn(&mut self, answer: &[u8]) {
        let Ok(parsed) = serde_json::from_slice::<Value>(answer) else { return };
        let Some(tools) = parsed["result"]["tools"].as_array() else { return };
        self.known = true;
        for tool in tools {
            let Some(name) = tool["name"].as_str() else { continue };
            if name == CREATE || name == CLEAN_UP {
                self.tools.insert(name.into());
            }
            if tool["inputSchema"]["properties"].get(ARGUMENT).is_none() {
                self.taking.remove(name);
            } else if self.taking.len() < MAX_TOOLS {
                self.taking.insert(name.into());
            }
        }
    }

    /// Whether a tool is Ostler's: one of the two, which the server does not have itself.
    pub fn is_ostlers(&self, tool: &str) -> bool {
        (tool == CREATE || tool == CLEAN_UP) && !self.tools.contains(tool)
    }

    /// The argument of this tool that names a session.
    fn argument_of(&self, tool: &str) -> &'static str {
        if self.taking.contains(tool) { OTHER_ARGUMENT } else { ARGUMENT }
    }
}

/// A session that a call names in its arguments.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Taken {
    /// Its key.
    pub key: String,
    /// What of the message is to go before the server sees it.
    pub edit: Span,
    /// Whether the argument is Ostler's for certain. It is not where the server has not listed its tools yet, and one of them may
    /// have an argument of this name.
    pub certain: bool,
}

/// The session that a call of a tool names. `envelope` was read from `body`.
///
/// # Errors
/// [`EnvelopeError::Invalid`] where it is named twice, or by something that is no text.
pub fn take(body: &[u8], envelope: &Envelope, own: &OwnNames) -> Result<Option<Taken>, EnvelopeError> {
    let inner = &envelope.inner;
    let (Some(tool), Some(arguments)) = (inner.name.as_deref(), inner.arguments.clone()) else { return Ok(None) };
    if &*envelope.method != "tools/call" || body.get(arguments.start) != Some(&b'{') {
        return Ok(None);
    }
    for name in [OTHER_ARGUMENT, ARGUMENT] {
        if name == ARGUMENT && own.argument_of(tool) != ARGUMENT {
            continue;
        }
        let Some(member) = member(body, &arguments, name)? else { continue };
        let key: String = serde_json::from_slice(&body[member.value])
            .map_err(|_| EnvelopeError::Invalid(format!("the argument `{name}` must be a text")))?;
        let certain = name == OTHER_ARGUMENT || own.known;
        return Ok(Some(Taken { key, edit: member.whole, certain }));
    }
    Ok(None)
}

/// Where a member of an object stands.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Member {
    value: Span,
    /// With its name, and the comma that goes with it.
    whole: Span,
}

/// The member of this name of the object at `object`.
fn member(body: &[u8], object: &Span, name: &str) -> Result<Option<Member>, EnvelopeError> {
    let text = &body[object.clone()];
    let invalid = |error: serde_json::Error| EnvelopeError::Invalid(format!("in `arguments`: {error}"));
    let mut found: Vec<(Span, Span)> = Vec::new();
    let mut reader = serde_json::Deserializer::from_slice(text);
    reader.deserialize_map(Find { name, found: &mut found, text }).map_err(invalid)?;
    let [(key, value)] = &found[..] else {
        return match found.len() {
            0 => Ok(None),
            _ => Err(EnvelopeError::Invalid(format!("the argument `{name}` stands twice"))),
        };
    };
    let space = |byte: &u8| byte.is_ascii_whitespace();
    let after = value.end + text[value.end..].iter().take_while(|byte| space(byte)).count();
    let whole = if text[after] == b',' {
        key.start..after + 1
    } else {
        let before = key.start - text[..key.start].iter().rev().take_while(|byte| space(byte)).count();
        let start = if text[before - 1] == b',' { before - 1 } else { before };
        start..value.end
    };
    let at = |span: &Span| span.start + object.start..span.end + object.start;
    Ok(Some(Member { value: at(value), whole: at(&whole) }))
}

/// Finds the members of a name in a text.
struct Find<'f, 'm> {
    name: &'f str,
    found: &'f mut Vec<(Span, Span)>,
    text: &'m [u8],
}

impl<'m> Visitor<'m> for Find<'_, 'm> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'m>>(self, mut map: A) -> Result<(), A::Error> {
        let at = |raw: &RawValue| {
            let start = raw.get().as_ptr() as usize - self.text.as_ptr() as usize;
            start..start + raw.get().len()
        };
        while let Some((key, value)) = map.next_entry::<&RawValue, &RawValue>()? {
            let is_it = serde_json::from_str::<String>(key.get()).is_ok_and(|key| key == self.name);
            if is_it {
                self.found.push((at(key), at(value)));
            }
        }
        Ok(())
    }
}

#[derive(Deserialize)]
struct Listing<'m> {
    #[serde(borrow)]
    tools: &'m RawValue,
    #[serde(default, rename = "nextCursor")]
    next: Option<String>,
}

#[derive(Deserialize)]
struct Tool<'m> {
    name: String,
    #[serde(default, borrow, rename = "inputSchema", deserialize_with = "raw")]
    schema: Option<&'m RawValue>,
}

#[derive(Deserialize)]
struct Schema<'m> {
    #[serde(default, borrow, deserialize_with = "raw")]
    properties: Option<&'m RawValue>,
}

fn raw<'m, D: Deserializer<'m>>(member: D) -> Result<Option<&'m RawValue>, D::Error> {
    <&RawValue>::deserialize(member).map(Some)
}

/// An answer to `tools/list` as a client sees it: each tool with the argument, and Ostler's tools at the end of the last
/// page. What is not as a list of tools should be is left as it is. `result` is where the result stands.
pub fn show(answer: &Bytes, result: &Span, own: &OwnNames) -> Message {
    edits(answer, result, own).map_or_else(
        || Message::from(answer.clone()),
        |edits| {
            let edits: Vec<(Span, &[u8])> =
                edits.iter().map(|(at, new)| (*at..*at, new.as_bytes())).collect();
            Message::splice(answer, &edits)
        },
    )
}

fn edits(answer: &[u8], result: &Span, own: &OwnNames) -> Option<Vec<(usize, String)>> {
    let start = |raw: &RawValue| raw.get().as_ptr() as usize - answer.as_ptr() as usize;
    let listing: Listing<'_> = serde_json::from_slice(answer.get(result.clone())?).ok()?;
    let tools: Vec<Tool<'_>> = serde_json::from_str(listing.tools.get()).ok()?;
    let mut edits = Vec::with_capacity(tools.len() + 1);
    for tool in &tools {
        let Some(object) = tool.schema.filter(|schema| schema.get().starts_with('{')) else { continue };
        let Ok(schema) = serde_json::from_str::<Schema<'_>>(object.get()) else { continue };
        let argument = format!("\"{}\":{}", own.argument_of(&tool.name), argument_schema());
        match schema.properties {
            Some(properties) if properties.get().starts_with('{') => {
                edits.push((start(properties) + 1, argument + comma(properties)));
            }
            Some(_) => {}
            None => edits.push((start(object) + 1, format!("\"properties\":{{{argument}}}{}", comma(object)))),
        }
    }
    if listing.next.is_none() {
        let mut ours: Vec<String> =
            [create_tool(), clean_up_tool()].iter().filter(|tool| own.is_ostlers(tool.0)).map(|tool| tool.1.to_string()).collect();
        if !tools.is_empty() && !ours.is_empty() {
            ours.insert(0, String::new());
        }
        edits.push((start(listing.tools) + listing.tools.get().len() - 1, ours.join(",")));
    }
    Some(edits)
}

/// What must stand between what is put in front and what an object has.
fn comma(object: &RawValue) -> &'static str {
    let inside = &object.get().as_bytes()[1..object.get().len() - 1];
    if inside.iter().all(u8::is_ascii_whitespace) { "" } else { "," }
}

fn argument_schema() -> Value {
    serde_json::json!({
        "type": "string",
        "description": "The session to work in, as `create_session` gave it. Calls with different sessions never share anything. \
                        Without it, all calls of this client are one session."
    })
}

/// A tool: its name, and what `tools/list` says of it.
type Shown = (&'static str, Value);

fn create_tool() -> Shown {
    let tool = serde_json::json!({
        "name": CREATE,
        "title": "Create a session",
        "description": "Makes a session of its own, with processes that no other session uses. Pass its id as `session_id` to other tools.",
        "inputSchema": {"type": "object", "properties": {}},
        "outputSchema": {
            "type": "object",
            "properties": {"session_id": {"type": "string"}},
            "required": ["session_id"]
        }
    });
    (CREATE, tool)
}

fn clean_up_tool() -> Shown {
    let tool = serde_json::json!({
        "name": CLEAN_UP,
        "title": "End a session",
        "description": "Ends a session that `create_session` made, and all that runs for it.",
        "inputSchema": {
            "type": "object",
            "properties": {"session_id": {"type": "string", "description": "The session to end."}},
            "required": ["session_id"]
        }
    });
    (CLEAN_UP, tool)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn known(tools: &Value) -> OwnNames {
        let mut own = OwnNames::default();
        own.learn(json!({"result": {"tools": tools}}).to_string().as_bytes());
        own
    }

    /// What a server sees of a call with these arguments, and the session taken out of it.
    fn taken(arguments: &str, own: &OwnNames) -> (String, Option<Taken>) {
        let head = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"t","arguments":"#;
        let body = Bytes::from(format!("{head}{arguments}}}}}"));
        let envelope = Envelope::parse(&body).expect("a call");
        let taken = take(&body, &envelope, own).expect("it is well-formed");
        let edits: Vec<(Span, &[u8])> = taken.iter().map(|taken| (taken.edit.clone(), &b""[..])).collect();
        let seen = Message::splice(&body, &edits).to_bytes();
        Envelope::parse(&seen).expect("it stays well-formed");
        let arguments = &seen[head.len()..seen.len() - 2];
        (String::from_utf8(arguments.to_vec()).expect("UTF-8"), taken)
    }

    #[test]
    fn the_session_is_taken_out_wherever_it_stands() {
        let own = known(&json!([{"name": "t", "inputSchema": {"type": "object"}}]));
        for (given, left) in [
            (r#"{"session_id":"k"}"#, "{}"),
            (r#"{ "session_id" : "k" }"#, "{ }"),
            (r#"{"session_id":"k","a":1}"#, r#"{"a":1}"#),
            (r#"{"a":1 , "session_id":"k"}"#, r#"{"a":1 }"#),
            (r#"{"a":1,"session_id":"k" ,"b":{"session_id":"other"}}"#, r#"{"a":1,"b":{"session_id":"other"}}"#),
            (r#"{"ostler_session":"k","a":[]}"#, r#"{"a":[]}"#),
            (r#"{"session\u005fid":"k"}"#, "{}"),
        ] {
            let (seen, taken) = taken(given, &own);
            assert_eq!(seen, left, "{given}");
            let taken = taken.unwrap_or_else(|| panic!("{given}: nothing was taken"));
            assert!(taken.key == "k" && taken.certain, "{given}: {taken:?}");
        }
        assert_eq!(taken(r#"{"a":1}"#, &own), (r#"{"a":1}"#.to_owned(), None));
    }

    #[test]
    fn a_tool_keeps_an_argument_of_that_name_of_its_own() {
        let schema = json!({"type": "object", "properties": {"session_id": {"type": "string"}}});
        let own = known(&json!([{"name": "t", "inputSchema": schema}]));
        assert_eq!(taken(r#"{"session_id":"mine"}"#, &own), (r#"{"session_id":"mine"}"#.to_owned(), None));
        let (seen, both) = taken(r#"{"session_id":"mine","ostler_session":"k"}"#, &own);
        assert_eq!((seen.as_str(), both.expect("taken").key.as_str()), (r#"{"session_id":"mine"}"#, "k"));
        // What the tools are is not known yet.
        assert!(!taken(r#"{"session_id":"k"}"#, &OwnNames::default()).1.expect("perhaps").certain);
    }

    #[test]
    fn what_names_no_session_is_refused() {
        for arguments in [r#"{"session_id":1}"#, r#"{"session_id":null}"#, r#"{"session_id":"a","session_id":"b"}"#] {
            let body = format!(
                r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"t","arguments":{arguments}}}}}"#
            );
            let envelope = Envelope::parse(body.as_bytes()).expect("a call");
            assert!(take(body.as_bytes(), &envelope, &OwnNames::default()).is_err(), "{arguments}");
        }
    }

    fn shown(tools: &Value, next: Option<&str>) -> Value {
        let mut answer = json!({"jsonrpc": "2.0", "id": 1, "result": {"tools": tools, "ttlMs": 0}});
        if let Some(next) = next {
            answer["result"]["nextCursor"] = next.into();
        }
        let body = Bytes::from(answer.to_string());
        let envelope = Envelope::parse(&body).expect("an answer");
        let message = show(&body, &envelope.result.expect("a result"), &known(tools)).to_bytes();
        serde_json::from_slice(&message).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&message)))
    }

    #[test]
    fn every_tool_is_shown_with_the_argument_and_two_tools_more() {
        let tools = json!([
            {"name": "plain", "inputSchema": {"type": "object"}},
            {"name": "empty", "inputSchema": {}},
            {"name": "some", "inputSchema": {"properties": {"a": {"type": "string"}}, "required": ["a"]}},
            {"name": "own", "inputSchema": {"properties": {"session_id": {"type": "integer"}}}},
            {"name": "strange", "inputSchema": true},
        ]);
        let result = &shown(&tools, None)["result"];
        let names: Vec<&str> =
            result["tools"].as_array().expect("tools").iter().filter_map(|tool| tool["name"].as_str()).collect();
        assert_eq!(names, ["plain", "empty", "some", "own", "strange", CREATE, CLEAN_UP]);
        for (at, argument) in [(0, ARGUMENT), (1, ARGUMENT), (2, ARGUMENT), (3, OTHER_ARGUMENT)] {
            let tool = &result["tools"][at];
            assert_eq!(tool["inputSchema"]["properties"][argument]["type"], "string", "{tool}");
        }
        assert_eq!(result["tools"][2]["inputSchema"]["required"], json!(["a"]));
        assert_eq!(result["tools"][3]["inputSchema"]["properties"]["session_id"]["type"], "integer");
        assert_eq!((&result["tools"][4], &result["ttlMs"]), (&tools[4], &json!(0)));
    }

    #[test]
    fn ostlers_tools_are_on_the_last_page_and_give_way_to_the_servers() {
        let tools = json!([{"name": CREATE, "inputSchema": {"type": "object"}}]);
        assert_eq!(shown(&tools, Some("more"))["result"]["tools"].as_array().expect("tools").len(), 1);
        let last = shown(&tools, None);
        let names: Vec<&Value> =
            last["result"]["tools"].as_array().expect("tools").iter().map(|tool| &tool["name"]).collect();
        assert_eq!(names, [CREATE, CLEAN_UP]);
        assert_eq!(shown(&json!([]), None)["result"]["tools"].as_array().expect("tools").len(), 2);
        assert!(!known(&tools).is_ostlers(CREATE) && known(&tools).is_ostlers(CLEAN_UP));
    }
}
