//! The modern HTTP headers that mirror parts of the body (2026-07-28, Streamable HTTP, "Request Metadata").
//!
//! As a server Ostler checks them, as a client of servers over HTTP it makes them ([`of_request`]).
//!
//! Whoever reads the body must refuse a request whose headers say something else, or a load balancer and the
//! server would act on different requests.

use std::borrow::Cow;
use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::envelope::Envelope;

/// Headers and body disagree; the text says how.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("Header mismatch: {0}")]
pub struct HeaderMismatch(pub String);

fn mismatch<T>(text: String) -> Result<T, HeaderMismatch> {
    Err(HeaderMismatch(text))
}

/// The value a header stands for: itself, or what its `=?base64?…?=` form encodes.
///
/// # Errors
/// When the encoded form is not Base64 of UTF-8, or the value holds bytes outside visible ASCII, space and tab.
pub fn decode<'h>(name: &str, value: &'h [u8]) -> Result<Cow<'h, str>, HeaderMismatch> {
    let plain = |b: &u8| matches!(b, b' '..=b'~' | b'\t');
    let text = match std::str::from_utf8(value) {
        Ok(text) if value.iter().all(plain) => text.trim_matches([' ', '\t']),
        _ => return mismatch(format!("{name} contains characters a header must not have")),
    };
    let Some(encoded) = text.strip_prefix("=?base64?").and_then(|rest| rest.strip_suffix("?=")) else {
        return Ok(Cow::Borrowed(text));
    };
    let decoded = STANDARD.decode(encoded).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    match decoded {
        Some(decoded) => Ok(Cow::Owned(decoded)),
        None => mismatch(format!("{name} is not valid Base64 of UTF-8")),
    }
}

/// A value as a header carries it: itself where a header can, else in its `=?base64?…?=` form ("Value Encoding").
pub fn encode(value: &str) -> Cow<'_, str> {
    let plain = value.bytes().all(|b| matches!(b, b' '..=b'~' | b'\t'));
    let kept = value.trim_matches([' ', '\t']).len() == value.len();
    if plain && kept && !value.starts_with("=?base64?") {
        return Cow::Borrowed(value);
    }
    Cow::Owned(format!("=?base64?{}?=", STANDARD.encode(value)))
}

/// The headers that a modern request carries to its server over HTTP, by name in lower case. `known` is what the
/// server's tools mirror.
pub fn of_request(envelope: &Envelope, message: &[u8], known: &ParamHeaders) -> Vec<(String, String)> {
    let mut headers = Vec::new();
    let mut add = |name: &str, value: &str| headers.push((name.to_owned(), encode(value).into_owned()));
    if let Some(version) = &envelope.inner.meta.protocol_version {
        add("mcp-protocol-version", version);
    }
    add("mcp-method", &envelope.method);
    let name = match &*envelope.method {
        "tools/call" | "prompts/get" => envelope.inner.name.as_deref(),
        "resources/read" => envelope.inner.uri.as_deref(),
        _ => None,
    };
    if let Some(name) = name {
        add("mcp-name", name);
    }
    if &*envelope.method == "tools/call"
        && let Some(tool) = name
    {
        let arguments = envelope.inner.arguments.clone().map(|span| &message[span]);
        headers.extend(known.of_call(tool, arguments));
    }
    headers
}

/// Whether a missing header is an error: over HTTP it is; a local stdio shim has no headers to mirror.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Missing {
    /// A missing header is refused.
    Refuse,
    /// A missing header says nothing; one that is there must agree.
    Allow,
}

/// Checks `MCP-Protocol-Version`, `Mcp-Method` and `Mcp-Name` against the body.
///
/// # Errors
/// [`HeaderMismatch`] naming the header and both values.
pub fn check_standard<'h>(
    envelope: &Envelope,
    header: impl Fn(&str) -> Option<&'h [u8]>,
    missing: Missing,
) -> Result<(), HeaderMismatch> {
    let version = envelope.inner.meta.protocol_version.as_deref();
    compare("MCP-Protocol-Version", header("mcp-protocol-version"), version, missing)?;
    compare("Mcp-Method", header("mcp-method"), Some(&envelope.method), missing)?;
    let named = match &*envelope.method {
        "tools/call" | "prompts/get" => envelope.inner.name.as_deref(),
        "resources/read" => envelope.inner.uri.as_deref(),
        _ => return Ok(()),
    };
    compare("Mcp-Name", header("mcp-name"), named, missing)
}

fn compare(
    name: &str,
    header: Option<&[u8]>,
    body: Option<&str>,
    missing: Missing,
) -> Result<(), HeaderMismatch> {
    match (header, body) {
        (None, None) => Ok(()),
        (None, Some(_)) if missing == Missing::Allow => Ok(()),
        (None, Some(_)) => mismatch(format!("{name} is missing")),
        (Some(header), Some(body)) if decode(name, header)? == body => Ok(()),
        (Some(header), Some(body)) => mismatch(format!(
            "{name} header value '{}' does not match body value '{body}'",
            String::from_utf8_lossy(header)
        )),
        (Some(_), None) => mismatch(format!("{name} is given, but the body has no such value")),
    }
}

/// The parameters of tools that are mirrored into `Mcp-Param-*` headers, as a server's `tools/list` said.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ParamHeaders {
    tools: HashMap<Box<str>, Vec<Mirror>>,
}

/// One mirrored parameter.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Mirror {
    /// `mcp-param-…`, in lower case.
    header: Box<str>,
    /// The chain of `properties` keys that leads to it.
    path: Vec<Box<str>>,
}

impl ParamHeaders {
    /// Most tools kept with mirrored parameters.
    pub const MAX_TOOLS: usize = 10_000;
    /// Deepest nesting of mirrored parameters.
    pub const MAX_DEPTH: usize = 32;

    /// Learns from an answer to `tools/list`: each tool it names replaces what was known of it. Returns the
    /// cursor of the next page.
    pub fn learn(&mut self, answer: &[u8]) -> Option<String> {
        let parsed: Value = serde_json::from_slice(answer).ok()?;
        let result = parsed.get("result")?;
        for tool in result.get("tools").and_then(Value::as_array).into_iter().flatten() {
            let Some(name) = tool.get("name").and_then(Value::as_str) else { continue };
            let mut mirrors = Vec::new();
            if let Some(schema) = tool.get("inputSchema") {
                find_mirrors(schema, &mut Vec::new(), &mut mirrors);
            }
            if mirrors.is_empty() {
                self.tools.remove(name);
            } else if self.tools.len() < Self::MAX_TOOLS || self.tools.contains_key(name) {
                self.tools.insert(name.into(), mirrors);
            }
        }
        result.get("nextCursor").and_then(Value::as_str).map(str::to_owned)
    }

    /// Whether any tool mirrors a parameter.
    pub fn is_empty(&self) -> bool {
        self.tools.is_empty()
    }

    /// The `Mcp-Param-*` headers of a call of `tool`; `arguments` is their JSON text.
    fn of_call(&self, tool: &str, arguments: Option<&[u8]>) -> Vec<(String, String)> {
        let Some(mirrors) = self.tools.get(tool) else { return Vec::new() };
        let arguments: Value =
            arguments.and_then(|text| serde_json::from_slice(text).ok()).unwrap_or(Value::Null);
        let header = |mirror: &Mirror| {
            let value = mirror.path.iter().try_fold(&arguments, |value, key| value.get(&**key))?;
            let text = match value {
                Value::Null => return None,
                Value::String(text) => Cow::Borrowed(text.as_str()),
                other => Cow::Owned(other.to_string()),
            };
            Some((mirror.header.to_string(), encode(&text).into_owned()))
        };
        mirrors.iter().filter_map(header).collect()
    }

    /// Checks the `Mcp-Param-*` headers of a call of `tool`; `arguments` is their JSON text.
    ///
    /// # Errors
    /// [`HeaderMismatch`] naming the header and both values.
    pub fn check<'h>(
        &self,
        tool: &str,
        arguments: Option<&[u8]>,
        header: impl Fn(&str) -> Option<&'h [u8]>,
    ) -> Result<(), HeaderMismatch> {
        let Some(mirrors) = self.tools.get(tool) else { return Ok(()) };
        let arguments: Value =
            arguments.and_then(|text| serde_json::from_slice(text).ok()).unwrap_or(Value::Null);
        for mirror in mirrors {
            let value = mirror.path.iter().try_fold(&arguments, |value, key| value.get(&**key));
            mirror.check(value, header(&mirror.header))?;
        }
        Ok(())
    }
}

impl Mirror {
    fn check(&self, value: Option<&Value>, header: Option<&[u8]>) -> Result<(), HeaderMismatch> {
        let name = &*self.header;
        let body = match value {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) => Some(Cow::Borrowed(text.as_str())),
            Some(other) => Some(Cow::Owned(other.to_string())),
        };
        let header = header.map(|header| decode(name, header)).transpose()?;
        match (header, body) {
            (None, None) => Ok(()),
            (None, Some(_)) => mismatch(format!("{name} is missing, but the argument is given")),
            (Some(_), None) => mismatch(format!("{name} is given, but the argument is not")),
            (Some(header), Some(body)) if header == body || same_number(&header, value) => Ok(()),
            (Some(header), Some(body)) => {
                mismatch(format!("{name} header value '{header}' does not match argument '{body}'"))
            }
        }
    }
}

/// Integers are compared as numbers: `42.0` and `42` are equal (2026-07-28, "Server Validation", note).
fn same_number(header: &str, value: Option<&Value>) -> bool {
    let Some(value) = value.filter(|value| value.is_number()) else { return false };
    // Doubles cannot tell integers beyond 2^53 apart.
    if let (Ok(header), Ok(body)) = (header.parse::<i128>(), value.to_string().parse::<i128>()) {
        return header == body;
    }
    value.as_f64().is_some_and(|number| header.parse::<f64>() == Ok(number))
}

/// Mirrored parameters are reachable through `properties` alone ("Schema Extension").
fn find_mirrors(schema: &Value, path: &mut Vec<Box<str>>, found: &mut Vec<Mirror>) {
    let properties = schema.get("properties").and_then(Value::as_object);
    if path.len() >= ParamHeaders::MAX_DEPTH {
        return;
    }
    for (key, property) in properties.into_iter().flatten() {
        path.push(key.as_str().into());
        if let Some(name) = property.get("x-mcp-header").and_then(Value::as_str) {
            let header = format!("mcp-param-{}", name.to_ascii_lowercase()).into();
            found.push(Mirror { header, path: path.clone() });
        }
        find_mirrors(property, path, found);
        path.pop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope(text: &str) -> Envelope {
        Envelope::parse(text.as_bytes()).unwrap()
    }

    const CALL: &str = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"héllo",
        "_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}}"#;

    fn check(headers: &[(&str, &str)], missing: Missing) -> Result<(), HeaderMismatch> {
        let find = |name: &str| headers.iter().find(|(n, _)| *n == name).map(|(_, v)| v.as_bytes());
        check_standard(&envelope(CALL), find, missing)
    }

    #[test]
    fn standard_headers_must_agree_with_the_body() {
        let version = ("mcp-protocol-version", "2026-07-28");
        let name = ("mcp-name", "=?base64?aMOpbGxv?=");
        assert_eq!(check(&[version, ("mcp-method", "tools/call"), name], Missing::Refuse), Ok(()));
        for bad in [
            vec![version, name],
            vec![version, ("mcp-method", "tools/call")],
            vec![version, ("mcp-method", "TOOLS/CALL"), name],
            vec![version, ("mcp-method", "tools/call"), ("mcp-name", "hello")],
            vec![version, ("mcp-method", "tools/call"), ("mcp-name", "=?base64?%%%?=")],
            vec![("mcp-protocol-version", "2025-11-25"), ("mcp-method", "tools/call"), name],
        ] {
            assert!(check(&bad, Missing::Refuse).is_err(), "{bad:?}");
        }
        assert_eq!(check(&[], Missing::Allow), Ok(()));
        assert!(check(&[("mcp-method", "tools/list")], Missing::Allow).is_err());
    }

    #[test]
    fn mirrored_parameters_must_agree_with_the_arguments() {
        let mut known = ParamHeaders::default();
        let list = br#"{"result":{"nextCursor":"2","tools":[{"name":"t","inputSchema":{"type":"object","properties":{
            "region":{"type":"string","x-mcp-header":"Region"},
            "deep":{"type":"object","properties":{"n":{"type":"integer","x-mcp-header":"N"}}}}}}]}}"#;
        assert_eq!(known.learn(list).as_deref(), Some("2"));
        let check = |arguments: &str, headers: &[(&str, &str)]| {
            let find = |name: &str| headers.iter().find(|(n, _)| *n == name).map(|(_, v)| v.as_bytes());
            known.check("t", Some(arguments.as_bytes()), find).is_ok()
        };
        assert!(check(
            r#"{"region":"eu","deep":{"n":42}}"#,
            &[("mcp-param-region", "eu"), ("mcp-param-n", "42.0")]
        ));
        assert!(check("{}", &[]));
        assert!(check(r#"{"region":null}"#, &[]));
        assert!(!check(r#"{"deep":{"n":9007199254740993}}"#, &[("mcp-param-n", "9007199254740992")]));
        assert!(!check(r#"{"region":"eu"}"#, &[]));
        assert!(!check(r#"{"region":"eu"}"#, &[("mcp-param-region", "us")]));
        assert!(!check("{}", &[("mcp-param-region", "us")]));
        assert!(!check(r#"{"region":"eu"}"#, &[("mcp-param-region", "=?base64?ZXU?=")]));
    }

    /// What is made for a request passes the check of it.
    #[test]
    fn made_headers_agree_with_the_body() {
        let mut known = ParamHeaders::default();
        known.learn(
            br#"{"result":{"tools":[{"name":"h\u00e9llo","inputSchema":{"type":"object","properties":{
            "region":{"type":"string","x-mcp-header":"Region"},"n":{"type":"integer","x-mcp-header":"N"},
            "none":{"type":"string","x-mcp-header":"None"}}}}]}}"#,
        );
        for region in ["eu", "d\u{fc}n ", "=?base64?ZXU?=", "", " lead", "line\nend", "\u{1F40E}"] {
            let arguments = serde_json::json!({"region": region, "n": 42}).to_string();
            let text = CALL.replace("\"name\"", &format!("\"arguments\":{arguments},\"name\""));
            let envelope = envelope(&text);
            let made = of_request(&envelope, text.as_bytes(), &known);
            let find =
                |name: &str| made.iter().find(|(made, _)| made == name).map(|(_, value)| value.as_bytes());
            assert_eq!(check_standard(&envelope, find, Missing::Refuse), Ok(()), "{made:?}");
            assert_eq!(known.check("h\u{e9}llo", Some(arguments.as_bytes()), find), Ok(()), "{made:?}");
            assert_eq!(made.len(), 5, "{made:?}");
            let fits = |value: &String| http_safe(value);
            assert!(made.iter().all(|(_, value)| fits(value)), "{made:?}");
        }
    }

    fn http_safe(value: &str) -> bool {
        value.bytes().all(|b| matches!(b, b' '..=b'~'))
    }
}
