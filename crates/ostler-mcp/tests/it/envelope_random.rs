//! Random messages, written in random ways: what [`Envelope::parse`] finds agrees with what a reader that builds
//! the whole value finds.

use bytes::Bytes;
use ostler_mcp::envelope::{Span, subscription_in_result};
use ostler_mcp::{Envelope, Kind, on_one_line};
use proptest::prelude::*;
use serde_json::Value;

const VERSION: &str = "io.modelcontextprotocol/protocolVersion";
const CAPABILITIES: &str = "io.modelcontextprotocol/clientCapabilities";
const LOG_LEVEL: &str = "io.modelcontextprotocol/logLevel";
const SUBSCRIPTION: &str = "io.modelcontextprotocol/subscriptionId";

/// JSON as it is written: scalars as their text, members in their order.
#[derive(Clone, Debug)]
enum Json {
    Text(&'static str),
    String(String),
    Array(Vec<Json>),
    Object(Vec<(&'static str, Json)>),
}

fn scalar() -> impl Strategy<Value = Json> {
    let text = proptest::sample::select(vec![
        "null",
        "true",
        "false",
        "0",
        "-0",
        "1",
        "1.5",
        "1e3",
        "-1E-2",
        "1180591620717411303424",
        "\"\"",
        "\"1\"",
        "\"2.0\"",
        r#""\ud83d\ude00\\\"""#,
        "{}",
        "[]",
    ]);
    prop_oneof![3 => text.prop_map(Json::Text), 1 => "[a-zé\"\\\\\u{7f}\n😀]{0,6}".prop_map(Json::String)]
}

fn value() -> impl Strategy<Value = Json> {
    scalar().prop_recursive(3, 12, 3, |inner| {
        let name = proptest::sample::select(vec!["id", "params", "_meta", "x", "progressToken", "jsonrpc"]);
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..3).prop_map(Json::Array),
            proptest::collection::vec((name, inner), 0..3).prop_map(Json::Object),
        ]
    })
}

/// An object of some of these members, in any order; each is there now and then.
fn some_of(members: Vec<(u32, &'static str, BoxedStrategy<Json>)>) -> BoxedStrategy<Json> {
    let members: Vec<_> = members
        .into_iter()
        .map(|(percent, name, value)| {
            proptest::option::weighted(f64::from(percent) / 101.0, value)
                .prop_map(move |value| value.map(|value| (name, value)))
        })
        .collect();
    members
        .prop_map(|members| members.into_iter().flatten().collect::<Vec<_>>())
        .prop_shuffle()
        .prop_map(Json::Object)
        .boxed()
}

fn key() -> BoxedStrategy<Json> {
    let text =
        ["1", "\"1\"", "1.5", "1e3", "1180591620717411303424", r#""a\"\u00e9""#, "\"\""].map(Json::Text);
    prop_oneof![20 => proptest::sample::select(text.to_vec()), 1 => scalar()].boxed()
}

fn usually(text: &'static [&'static str]) -> BoxedStrategy<Json> {
    let texts: Vec<Json> = text.iter().map(|text| Json::Text(text)).collect();
    prop_oneof![20 => proptest::sample::select(texts), 1 => scalar()].boxed()
}

fn meta() -> BoxedStrategy<Json> {
    let object = some_of(vec![
        (50, "progressToken", key()),
        (40, VERSION, usually(&["\"2026-07-28\""])),
        (40, CAPABILITIES, value().boxed()),
        (30, LOG_LEVEL, scalar().boxed()),
        (30, SUBSCRIPTION, key()),
        (30, "protocolVersion", scalar().boxed()),
        (30, "other", value().boxed()),
    ]);
    prop_oneof![12 => object, 1 => value()].boxed()
}

fn params() -> BoxedStrategy<Json> {
    let object = some_of(vec![
        (40, "name", usually(&["\"echo\"", "\"\\u00e9\""])),
        (30, "uri", scalar().boxed()),
        (30, "level", scalar().boxed()),
        (40, "arguments", value().boxed()),
        (20, "requestId", key()),
        (20, "progressToken", key()),
        (60, "_meta", meta()),
        (30, "id", value().boxed()),
        (20, VERSION, scalar().boxed()),
    ]);
    prop_oneof![20 => object, 1 => value()].boxed()
}

fn message() -> BoxedStrategy<Json> {
    let error = some_of(vec![
        (90, "code", usually(&["-32601", "0", "77"])),
        (60, "message", scalar().boxed()),
        (30, "data", value().boxed()),
    ]);
    let members = |id, method, params_in, result, failed| {
        some_of(vec![
            (97, "jsonrpc", usually(&["\"2.0\"", "\"\\u0032.0\""])),
            (id, "id", key()),
            (method, "method", usually(&["\"tools/call\"", "\"a\\/b\""])),
            (params_in, "params", params()),
            (result, "result", prop_oneof![params(), value()].boxed()),
            (failed, "error", prop_oneof![10 => error.clone(), 1 => value()].boxed()),
            (20, "extra", value().boxed()),
        ])
    };
    prop_oneof![
        4 => members(95, 100, 90, 1, 1),
        3 => members(1, 100, 90, 1, 1),
        3 => members(97, 1, 5, 99, 1),
        2 => members(90, 1, 5, 1, 99),
        1 => members(50, 50, 50, 50, 50),
        1 => value(),
    ]
    .boxed()
}

/// Writes `json` with white space and escapes chosen by `dice`.
fn write(json: &Json, dice: &mut impl Iterator<Item = u8>, to: &mut String) {
    let space = |dice: &mut dyn Iterator<Item = u8>, to: &mut String| {
        to.push_str(["", "", "", " ", "\n", "\r\n\t"][usize::from(dice.next().unwrap_or(0)) % 6]);
    };
    space(dice, to);
    match json {
        Json::Text(text) => to.push_str(text),
        Json::String(text) => write_string(text, dice, to),
        Json::Array(items) => {
            to.push('[');
            for (at, item) in items.iter().enumerate() {
                to.push_str(if at > 0 { "," } else { "" });
                write(item, dice, to);
            }
            to.push(']');
        }
        Json::Object(members) => {
            to.push('{');
            for (at, (name, item)) in members.iter().enumerate() {
                to.push_str(if at > 0 { "," } else { "" });
                space(dice, to);
                write_string(name, dice, to);
                space(dice, to);
                to.push(':');
                write(item, dice, to);
            }
            to.push('}');
        }
    }
    space(dice, to);
}

fn write_string(text: &str, dice: &mut impl Iterator<Item = u8>, to: &mut String) {
    to.push('"');
    for c in text.chars() {
        if matches!(c, '"' | '\\' | '\n') || dice.next().unwrap_or(1).is_multiple_of(16) {
            let mut units = [0; 2];
            c.encode_utf16(&mut units).iter().for_each(|unit| to.push_str(&format!("\\u{unit:04X}")));
        } else {
            to.push(c);
        }
    }
    to.push('"');
}

/// Whether an object with names that matter has one of them twice, in the places that are looked at.
fn doubled(json: &Json) -> bool {
    let twice = |json: &Json, names: &[&str]| match json {
        Json::Object(members) => {
            names.iter().any(|name| members.iter().filter(|(member, _)| member == name).count() > 1)
        }
        _ => false,
    };
    let member = |json: &Json, name: &str| match json {
        Json::Object(members) => {
            members.iter().find(|(member, _)| *member == name).map(|(_, value)| value.clone())
        }
        _ => None,
    };
    let params = member(json, "params");
    let meta = params.as_ref().and_then(|params| member(params, "_meta"));
    twice(json, &["id", "params", "jsonrpc"])
        || params.is_some_and(|params| twice(&params, &["progressToken", "_meta"]))
        || meta.is_some_and(|meta| twice(&meta, &["progressToken"]))
}

/// What kind of message this is, judged by its value; `None` for what must be refused.
fn kind_of(value: &Value) -> Option<Kind> {
    let object = value.as_object()?;
    let is_key = |value: &Value| value.is_string() || value.is_number();
    (object.get("jsonrpc")? == "2.0").then_some(())?;
    let method = object.get("method").map(Value::is_string);
    let error = object.get("error").map(|error| match error.as_object()?.get("code") {
        None => Some(0),
        Some(code) => code.as_i64(),
    });
    let result = object.get("result");
    let id = object.get("id");
    let kind = match (method, id, result, error) {
        (Some(true), Some(id), None, None) if is_key(id) => Kind::Request,
        (Some(true), None, None, None) => Kind::Notification,
        (None, Some(id), Some(_), None) if is_key(id) => Kind::Result,
        (None, id, None, Some(Some(code))) if id.is_none_or(|id| is_key(id) || id.is_null()) => {
            Kind::Error(code)
        }
        _ => return None,
    };
    let keys = ["/params/requestId", "/params/progressToken", "/params/_meta/progressToken"];
    let subscription = value.pointer("/params/_meta").and_then(|meta| meta.get(SUBSCRIPTION));
    let params_ok = object.get("params").is_none_or(Value::is_object);
    let keys_ok = keys.iter().filter_map(|at| value.pointer(at)).chain(subscription).all(is_key);
    (params_ok && keys_ok).then_some(kind)
}

/// The span's text is the whole member and nothing but it.
fn same(text: &str, span: &Option<Span>, value: Option<&Value>) -> Result<(), TestCaseError> {
    let found: Option<Value> = span.clone().map(|span| serde_json::from_str(&text[span]).unwrap());
    prop_assert_eq!(found.as_ref(), value, "{:?}", span);
    if let Some(span) = span {
        prop_assert_eq!(text[span.clone()].trim(), &text[span.clone()]);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3_000))]

    #[test]
    fn the_envelope_is_what_the_whole_value_says(
        json in message(), dice in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let mut text = String::new();
        write(&json, &mut dice.into_iter(), &mut text);
        let value: Value = serde_json::from_str(&text).unwrap();
        let parsed = Envelope::parse(text.as_bytes());
        let expected = kind_of(&value).filter(|_| !doubled(&json));
        prop_assert_eq!(parsed.as_ref().ok().map(|envelope| envelope.kind), expected, "{}: {:?}", text, parsed);
        let Ok(envelope) = parsed else { return Ok(()) };

        let id = value.get("id").filter(|id| !id.is_null());
        same(&text, &envelope.id, id)?;
        same(&text, &envelope.params, value.get("params"))?;
        same(&text, &envelope.result, value.get("result"))?;
        prop_assert_eq!(&*envelope.method, value.get("method").and_then(Value::as_str).unwrap_or(""));
        let (inner, meta) = (&envelope.inner, &envelope.inner.meta);
        let params = |name: &str| value.get("params").and_then(|params| params.get(name));
        let in_meta = |name: &str| params("_meta").and_then(|meta| meta.get(name));
        for (found, name) in [(&inner.name, "name"), (&inner.uri, "uri"), (&inner.level, "level")] {
            prop_assert_eq!(found.as_deref(), params(name).and_then(Value::as_str));
        }
        same(&text, &inner.arguments, params("arguments"))?;
        same(&text, &inner.request_id, params("requestId"))?;
        same(&text, &inner.progress_token, params("progressToken"))?;
        same(&text, &meta.progress_token, in_meta("progressToken"))?;
        same(&text, &meta.subscription_id, in_meta(SUBSCRIPTION))?;
        prop_assert_eq!(meta.protocol_version.as_deref(), in_meta(VERSION).and_then(Value::as_str));
        prop_assert_eq!(meta.client_capabilities, in_meta(CAPABILITIES).is_some_and(Value::is_object));
        prop_assert_eq!(meta.log_level, in_meta(LOG_LEVEL).is_some());
        if let Some(result) = &envelope.result {
            let in_result = value["result"].get("_meta").and_then(|meta| meta.get(SUBSCRIPTION));
            let found = subscription_in_result(text.as_bytes(), result);
            if let Some(span) = found {
                same(&text, &Some(span), in_result)?;
            }
        }
    }

    #[test]
    fn one_line_means_the_same(json in value(), dice in proptest::collection::vec(any::<u8>(), 0..100)) {
        let mut text = String::new();
        write(&json, &mut dice.into_iter(), &mut text);
        let line = on_one_line(Bytes::from(text.clone()));
        prop_assert!(!line.iter().any(|byte| matches!(byte, b'\n' | b'\r')));
        let value: Value = serde_json::from_str(&text).unwrap();
        prop_assert_eq!(serde_json::from_slice::<Value>(&line).unwrap(), value);
    }

    /// Bytes of a message changed, dropped, added or moved: never a panic, and whatever is taken for a message is
    /// JSON of UTF-8 with every span on a whole value.
    #[test]
    fn a_damaged_message_is_refused_or_still_one(
        json in message(), changes in proptest::collection::vec((any::<u16>(), any::<u8>(), 0u8..5), 0..5),
    ) {
        let mut text = String::new();
        write(&json, &mut std::iter::empty(), &mut text);
        let bytes = changes.into_iter().fold(text.into_bytes(), damage);
        let Ok(envelope) = Envelope::parse(&bytes) else { return Ok(()) };
        let text = std::str::from_utf8(&bytes).unwrap();
        serde_json::from_str::<serde::de::IgnoredAny>(text).unwrap();
        let inner = envelope.inner;
        let in_params = [inner.arguments, inner.request_id, inner.progress_token];
        let in_meta = [inner.meta.progress_token, inner.meta.subscription_id];
        let top = [envelope.id, envelope.params, envelope.result];
        for span in top.into_iter().chain(in_params).chain(in_meta).flatten() {
            serde_json::from_str::<serde::de::IgnoredAny>(&text[span]).unwrap();
        }
    }

    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(envelope) = Envelope::parse(&bytes) {
            prop_assert!(envelope.id_text(&bytes).is_none_or(|id| !id.is_empty()));
        }
    }
}

fn damage(mut bytes: Vec<u8>, (at, byte, how): (u16, u8, u8)) -> Vec<u8> {
    let at = usize::from(at) % (bytes.len() + 1);
    match how {
        0 if at < bytes.len() => bytes[at] = byte,
        1 => bytes.insert(at, byte),
        2 if at < bytes.len() => drop(bytes.remove(at)),
        3 => bytes.truncate(at),
        _ => bytes.rotate_left(at),
    }
    bytes
}
