//! Reading the envelope of one JSON-RPC message without building its contents.
//!
//! A message is checked to be well-formed JSON and its envelope is located: the few members that a gateway
//! has to see are kept as byte ranges of the message, so that they can be replaced without re-serialising
//! the rest. Members that Ostler acts on must not stand twice: two readers would disagree about them. For the
//! same reason `Id` or `_meta.ProgressToken` is refused: readers that ignore case (Go's `encoding/json`) would
//! take it for the member that was replaced, and answer a call of another session.

use std::fmt;
use std::ops::Range;

use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use serde_json::value::RawValue;

/// A byte range of the message it was read from.
pub type Span = Range<usize>;

/// What a message is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// It has a method and an id: an answer is due.
    Request,
    /// It has a method and no id.
    Notification,
    /// It answers a request with a result.
    Result,
    /// It answers a request with an error of this code.
    Error(i64),
}

/// The envelope of a message: what kind it is, and where the members are that a gateway may touch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Envelope {
    /// What the message is.
    pub kind: Kind,
    /// The method, unescaped; empty for an answer.
    pub method: Box<str>,
    /// The id exactly as sent (`1`, `"1"`, `1.5`), quotes included.
    pub id: Option<Span>,
    /// All of `params`.
    pub params: Option<Span>,
    /// All of `result`.
    pub result: Option<Span>,
    /// What was found inside `params`.
    pub inner: Inner,
}

/// What a gateway looks at inside `params`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Inner {
    /// `name`, unescaped (`tools/call`, `prompts/get`).
    pub name: Option<Box<str>>,
    /// `uri`, unescaped (`resources/*`).
    pub uri: Option<Box<str>>,
    /// `level`, unescaped (`logging/setLevel`, `notifications/message`).
    pub level: Option<Box<str>>,
    /// `arguments` of a tool call.
    pub arguments: Option<Span>,
    /// `requestId` of `notifications/cancelled`, exactly as sent.
    pub request_id: Option<Span>,
    /// `progressToken` of `notifications/progress`, exactly as sent.
    pub progress_token: Option<Span>,
    /// What was found inside `_meta`.
    pub meta: Meta,
}

/// What a gateway looks at inside `params._meta`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Meta {
    /// `progressToken` of a request, exactly as sent.
    pub progress_token: Option<Span>,
    /// `io.modelcontextprotocol/protocolVersion`, unescaped.
    pub protocol_version: Option<Box<str>>,
    /// Whether `io.modelcontextprotocol/clientCapabilities` is an object.
    pub client_capabilities: bool,
    /// Whether `io.modelcontextprotocol/logLevel` is there.
    pub log_level: bool,
    /// `io.modelcontextprotocol/subscriptionId`, exactly as sent.
    pub subscription_id: Option<Span>,
}

/// Why a text is not a message.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum EnvelopeError {
    /// It is not JSON.
    #[error("not JSON: {0}")]
    Syntax(String),
    /// It is JSON, but not one JSON-RPC 2.0 message of MCP.
    #[error("not a JSON-RPC message: {0}")]
    Invalid(String),
}

const PROTOCOL_VERSION: &str = "io.modelcontextprotocol/protocolVersion";
const CLIENT_CAPABILITIES: &str = "io.modelcontextprotocol/clientCapabilities";
const LOG_LEVEL: &str = "io.modelcontextprotocol/logLevel";
const SUBSCRIPTION_ID: &str = "io.modelcontextprotocol/subscriptionId";

impl Envelope {
    /// Reads the envelope of `message`, which must be one JSON object with nothing but white space around it.
    ///
    /// # Errors
    /// [`EnvelopeError::Syntax`] when it is not JSON; [`EnvelopeError::Invalid`] when it is a batch, lacks
    /// `"jsonrpc": "2.0"`, has an id that is neither string nor number, `params` that are no object, a member
    /// twice that Ostler acts on, one that differs from a member that Ostler replaces in upper and lower case
    /// alone, or is neither request nor notification nor answer.
    pub fn parse(message: &[u8]) -> Result<Self, EnvelopeError> {
        // Checked as a whole: serde_json does not look at the text of members it passes over.
        let text = std::str::from_utf8(message)
            .map_err(|error| EnvelopeError::Syntax(format!("it is not UTF-8: {error}")))?;
        let mut de = serde_json::Deserializer::from_str(text);
        let top = match Top::deserialize(&mut de).and_then(|top| de.end().map(|()| top)) {
            Ok(top) => top,
            Err(error) if error.is_data() => return Err(EnvelopeError::Invalid(shape_hint(message, &error))),
            Err(error) => return Err(EnvelopeError::Syntax(error.to_string())),
        };
        top.into_envelope(message)
    }

    /// The id's text within `message`, the message this envelope was read from.
    pub fn id_text<'m>(&self, message: &'m [u8]) -> Option<&'m [u8]> {
        self.id.clone().map(|span| &message[span])
    }

    /// Whether the message belongs to the modern era: it names its protocol version itself.
    pub fn is_modern(&self) -> bool {
        self.inner.meta.protocol_version.is_some()
    }
}

/// A batch is a common mistake with a better answer than serde's "invalid type: sequence".
fn shape_hint(message: &[u8], error: &serde_json::Error) -> String {
    match message.iter().find(|b| !b.is_ascii_whitespace()) {
        Some(b'[') => "a batch; send each message by itself".to_owned(),
        _ => error.to_string(),
    }
}

/// The top level of a message, as borrowed pieces of it.
#[derive(Default)]
struct Top<'m> {
    version: bool,
    id: Option<&'m RawValue>,
    method: Option<Box<str>>,
    params: Option<(&'m RawValue, Params<'m>)>,
    result: Option<&'m RawValue>,
    error: Option<i64>,
}

impl<'m> Top<'m> {
    fn into_envelope(self, message: &[u8]) -> Result<Envelope, EnvelopeError> {
        let invalid = |why: &str| Err(EnvelopeError::Invalid(why.to_owned()));
        if !self.version {
            return invalid("`jsonrpc` must be \"2.0\"");
        }
        let kind = match (self.method.is_some(), self.id.is_some(), self.result.is_some(), self.error) {
            (true, true, false, None) => Kind::Request,
            (true, false, false, None) => Kind::Notification,
            (false, true, true, None) => Kind::Result,
            (false, _, false, Some(code)) => Kind::Error(code),
            _ => return invalid("it is neither a request, a notification nor an answer"),
        };
        if let Some(id) = self.id
            && !is_key(id)
            && !(matches!(kind, Kind::Error(_)) && id.get() == "null")
        {
            return invalid("`id` must be a string or a number");
        }
        let at = |raw: &RawValue| span_of(message, raw);
        let inner = self.params.as_ref().map(|(_, params)| params.locate(message)).transpose()?;
        Ok(Envelope {
            kind,
            method: self.method.unwrap_or_default(),
            id: self.id.filter(|id| id.get() != "null").map(at),
            params: self.params.map(|(raw, _)| at(raw)),
            result: self.result.map(at),
            inner: inner.unwrap_or_default(),
        })
    }
}

/// Where `raw`, a piece borrowed from `message`, stands in it.
fn span_of(message: &[u8], raw: &RawValue) -> Span {
    let start = raw.get().as_ptr() as usize - message.as_ptr() as usize;
    start..start + raw.get().len()
}

/// Ids and tokens are strings or numbers.
fn is_key(raw: &RawValue) -> bool {
    matches!(raw.get().as_bytes().first(), Some(b'"' | b'-' | b'0'..=b'9'))
}

/// Takes a member's value, refusing the second of the same name.
fn once<'m, A: MapAccess<'m>, T: Deserialize<'m>>(
    map: &mut A,
    slot: &mut Option<T>,
    name: &'static str,
) -> Result<(), A::Error> {
    if slot.is_some() {
        return Err(A::Error::custom(format!("`{name}` stands twice")));
    }
    *slot = Some(map.next_value()?);
    Ok(())
}

impl<'m> Deserialize<'m> for Top<'m> {
    fn deserialize<D: Deserializer<'m>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(TopVisitor)
    }
}

struct TopVisitor;

impl<'m> Visitor<'m> for TopVisitor {
    type Value = Top<'m>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'m>>(self, mut map: A) -> Result<Top<'m>, A::Error> {
        let mut top = Top::default();
        let (mut version, mut error, mut params) = (None::<Box<str>>, None::<ErrorCode>, None::<&RawValue>);
        while let Some(key) = map.next_key_seed(TOP_KEYS)? {
            match key {
                "jsonrpc" => once(&mut map, &mut version, "jsonrpc")?,
                "id" => once(&mut map, &mut top.id, "id")?,
                "method" => once(&mut map, &mut top.method, "method")?,
                "params" => once(&mut map, &mut params, "params")?,
                "result" => once(&mut map, &mut top.result, "result")?,
                "error" => once(&mut map, &mut error, "error")?,
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        top.version = version.as_deref() == Some("2.0");
        top.error = error.map(|e| e.code);
        if let Some(raw) = params {
            let inner = serde_json::from_str(raw.get()).map_err(|e| match raw.get().starts_with('{') {
                true => A::Error::custom(format!("in `params`: {e}")),
                false => A::Error::custom("`params` must be an object"),
            })?;
            top.params = Some((raw, inner));
        }
        Ok(top)
    }
}

/// The member names that matter at one place of a message. As a seed it reads a name, without allocating, as
/// the one it equals; others read as empty.
#[derive(Clone, Copy)]
struct Keys {
    /// Names that Ostler replaces or tells messages apart by: one that differs from these in case alone is
    /// refused.
    strict: &'static [&'static str],
    /// Names that are only looked at.
    plain: &'static [&'static str],
}

const TOP_KEYS: Keys = Keys { strict: &["jsonrpc", "id", "method", "params", "result", "error"], plain: &[] };
const PARAMS_KEYS: Keys =
    Keys { strict: &["progressToken", "_meta"], plain: &["name", "uri", "level", "arguments", "requestId"] };
const META_KEYS: Keys = Keys {
    strict: &["progressToken"],
    plain: &[PROTOCOL_VERSION, CLIENT_CAPABILITIES, LOG_LEVEL, SUBSCRIPTION_ID],
};
const ERROR_KEYS: Keys = Keys { strict: &[], plain: &["code"] };

impl<'de> DeserializeSeed<'de> for Keys {
    type Value = &'static str;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<&'static str, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Keys {
    type Value = &'static str;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a member name")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<&'static str, E> {
        if let Some(known) = self.strict.iter().chain(self.plain).find(|known| **known == text) {
            return Ok(known);
        }
        match self.strict.iter().find(|known| same_but_for_case(known, text)) {
            Some(known) => Err(E::custom(format!("`{text}` must be written `{known}`"))),
            None => Ok(""),
        }
    }
}

/// Whether readers that fold case take the two for the same. Two letters beyond ASCII fold to one within
/// (Unicode, CaseFolding.txt).
fn same_but_for_case(known: &str, text: &str) -> bool {
    let fold = |c: char| match c {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        c => c.to_ascii_lowercase(),
    };
    known.chars().map(fold).eq(text.chars().map(fold))
}

/// The code of a JSON-RPC error object; the rest of it is passed over.
struct ErrorCode {
    code: i64,
}

impl<'de> Deserialize<'de> for ErrorCode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = ErrorCode;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an error object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<ErrorCode, A::Error> {
                let mut code = None;
                while let Some(key) = map.next_key_seed(ERROR_KEYS)? {
                    match key {
                        "code" => once(&mut map, &mut code, "code")?,
                        _ => drop(map.next_value::<IgnoredAny>()?),
                    }
                }
                Ok(ErrorCode { code: code.unwrap_or(0) })
            }
        }
        deserializer.deserialize_map(V)
    }
}

/// `params`, as borrowed pieces.
#[derive(Default)]
struct Params<'m> {
    name: Option<&'m RawValue>,
    uri: Option<&'m RawValue>,
    level: Option<&'m RawValue>,
    arguments: Option<&'m RawValue>,
    request_id: Option<&'m RawValue>,
    progress_token: Option<&'m RawValue>,
    meta: Option<MetaRaw<'m>>,
}

impl Params<'_> {
    fn locate(&self, message: &[u8]) -> Result<Inner, EnvelopeError> {
        let at = |raw: &RawValue| span_of(message, raw);
        let meta = self.meta.as_ref();
        let version = meta.and_then(|m| m.protocol_version);
        Ok(Inner {
            name: text(self.name),
            uri: text(self.uri),
            level: text(self.level),
            arguments: self.arguments.map(at),
            request_id: key_span(self.request_id, "requestId", message)?,
            progress_token: key_span(self.progress_token, "progressToken", message)?,
            meta: Meta {
                progress_token: key_span(meta.and_then(|m| m.progress_token), "progressToken", message)?,
                protocol_version: text(version),
                client_capabilities: meta
                    .and_then(|m| m.client_capabilities)
                    .is_some_and(|raw| raw.get().starts_with('{')),
                log_level: meta.is_some_and(|m| m.log_level.is_some()),
                subscription_id: key_span(meta.and_then(|m| m.subscription_id), SUBSCRIPTION_ID, message)?,
            },
        })
    }
}

/// A member's text when it is a string; the server judges members of another type.
fn text(raw: Option<&RawValue>) -> Option<Box<str>> {
    raw.and_then(|raw| serde_json::from_str(raw.get()).ok())
}

fn key_span(raw: Option<&RawValue>, name: &str, message: &[u8]) -> Result<Option<Span>, EnvelopeError> {
    match raw {
        None => Ok(None),
        Some(raw) if is_key(raw) => Ok(Some(span_of(message, raw))),
        Some(_) => Err(EnvelopeError::Invalid(format!("`{name}` must be a string or a number"))),
    }
}

impl<'m> Deserialize<'m> for Params<'m> {
    fn deserialize<D: Deserializer<'m>>(deserializer: D) -> Result<Self, D::Error> {
        struct V;
        impl<'m> Visitor<'m> for V {
            type Value = Params<'m>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'m>>(self, mut map: A) -> Result<Params<'m>, A::Error> {
                let mut params = Params::default();
                while let Some(key) = map.next_key_seed(PARAMS_KEYS)? {
                    match key {
                        "name" => once(&mut map, &mut params.name, "name")?,
                        "uri" => once(&mut map, &mut params.uri, "uri")?,
                        "level" => once(&mut map, &mut params.level, "level")?,
                        "arguments" => once(&mut map, &mut params.arguments, "arguments")?,
                        "requestId" => once(&mut map, &mut params.request_id, "requestId")?,
                        "progressToken" => once(&mut map, &mut params.progress_token, "progressToken")?,
                        "_meta" => once(&mut map, &mut params.meta, "_meta")?,
                        _ => drop(map.next_value::<IgnoredAny>()?),
                    }
                }
                Ok(params)
            }
        }
        deserializer.deserialize_map(V)
    }
}

/// `_meta`, as borrowed pieces; anything but an object reads as empty and is the server's to judge.
#[derive(Default)]
struct MetaRaw<'m> {
    progress_token: Option<&'m RawValue>,
    protocol_version: Option<&'m RawValue>,
    client_capabilities: Option<&'m RawValue>,
    log_level: Option<&'m RawValue>,
    subscription_id: Option<&'m RawValue>,
}

impl<'m> Deserialize<'m> for MetaRaw<'m> {
    fn deserialize<D: Deserializer<'m>>(deserializer: D) -> Result<Self, D::Error> {
        struct V;
        impl<'m> Visitor<'m> for V {
            type Value = MetaRaw<'m>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a `_meta` object")
            }
            fn visit_unit<E>(self) -> Result<MetaRaw<'m>, E> {
                Ok(MetaRaw::default())
            }
            fn visit_bool<E>(self, _: bool) -> Result<MetaRaw<'m>, E> {
                Ok(MetaRaw::default())
            }
            fn visit_i64<E>(self, _: i64) -> Result<MetaRaw<'m>, E> {
                Ok(MetaRaw::default())
            }
            fn visit_u64<E>(self, _: u64) -> Result<MetaRaw<'m>, E> {
                Ok(MetaRaw::default())
            }
            fn visit_f64<E>(self, _: f64) -> Result<MetaRaw<'m>, E> {
                Ok(MetaRaw::default())
            }
            fn visit_str<E>(self, _: &str) -> Result<MetaRaw<'m>, E> {
                Ok(MetaRaw::default())
            }
            fn visit_seq<A: SeqAccess<'m>>(self, mut seq: A) -> Result<MetaRaw<'m>, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(MetaRaw::default())
            }
            fn visit_map<A: MapAccess<'m>>(self, mut map: A) -> Result<MetaRaw<'m>, A::Error> {
                let mut meta = MetaRaw::default();
                while let Some(key) = map.next_key_seed(META_KEYS)? {
                    match key {
                        "progressToken" => once(&mut map, &mut meta.progress_token, key)?,
                        PROTOCOL_VERSION => once(&mut map, &mut meta.protocol_version, key)?,
                        CLIENT_CAPABILITIES => once(&mut map, &mut meta.client_capabilities, key)?,
                        LOG_LEVEL => once(&mut map, &mut meta.log_level, key)?,
                        SUBSCRIPTION_ID => once(&mut map, &mut meta.subscription_id, key)?,
                        _ => drop(map.next_value::<IgnoredAny>()?),
                    }
                }
                Ok(meta)
            }
        }
        deserializer.deserialize_any(V)
    }
}

/// Where `_meta["io.modelcontextprotocol/subscriptionId"]` stands in the result of an answer, so that the
/// subscription's own id can be put back; `None` where the result has none.
pub fn subscription_in_result(message: &[u8], result: &Span) -> Option<Span> {
    let raw: &RawValue = serde_json::from_slice(&message[result.clone()]).ok()?;
    let params: Params<'_> = serde_json::from_str(raw.get()).ok()?;
    params.meta?.subscription_id.filter(|raw| is_key(raw)).map(|raw| span_of(message, raw))
}
