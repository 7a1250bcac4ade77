//! What an `http-request` asks for, made sure of before anything is sent.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, CONTENT_TYPE, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use serde::Deserialize;
use serde_json::value::RawValue;
use url::Url;

use crate::job::{Job, error};
use crate::protocol::{ErrorKind, TaskError};
use crate::shell::Encoding;

/// Redirects followed where nothing is said.
const REDIRECTS: u32 = 5;
/// Most that can be asked for.
const MAX_REDIRECTS: u32 = 20;
/// Most headers.
const MAX_HEADERS: usize = 100;
/// Bytes of a body where nothing is said.
const BODY: usize = 1 << 20;
/// Those that belong to the connection, or that say how long the body is.
const OURS: [&str; 8] = [
    "host",
    "connection",
    "content-length",
    "transfer-encoding",
    "upgrade",
    "te",
    "trailer",
    "proxy-connection",
];

/// The payload.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked<'p> {
    url: String,
    method: Option<String>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    body: Option<String>,
    #[serde(borrow)]
    json: Option<&'p RawValue>,
    body_base64: Option<String>,
    timeout_ms: Option<u64>,
    max_body: Option<usize>,
    redirects: Option<u32>,
    #[serde(default)]
    encoding: Encoding,
}

/// A request that can be sent.
#[derive(Clone)]
pub(super) struct Spec {
    pub(super) url: Url,
    pub(super) method: Method,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    pub(super) time: Option<Duration>,
    pub(super) max_body: usize,
    pub(super) redirects: u32,
    pub(super) encoding: Encoding,
}

fn invalid(message: &str) -> TaskError {
    error(ErrorKind::Invalid, message)
}

impl Spec {
    pub(super) fn of(asked: Asked<'_>, job: &Job) -> Result<Self, TaskError> {
        let url = Url::parse(&asked.url).map_err(|why| invalid(&format!("`url` {:?}: {why}", asked.url)))?;
        is_http(&url).map_err(|why| invalid(&why))?;
        let method = asked.method.as_deref().unwrap_or("GET");
        let method: Method = method.parse().map_err(|_| invalid(&format!("`method` {method:?} is none")))?;
        if method == Method::CONNECT {
            return Err(invalid("`method` CONNECT makes a tunnel, which is no request"));
        }
        let mut headers = headers(&asked.headers)?;
        let bodies = [asked.body.is_some(), asked.json.is_some(), asked.body_base64.is_some()];
        if bodies.iter().filter(|there| **there).count() > 1 {
            return Err(invalid("only one of `body`, `json` and `body_base64`"));
        }
        let body = if let Some(encoded) = asked.body_base64 {
            let body = base64::engine::general_purpose::STANDARD.decode(encoded);
            body.map_err(|why| invalid(&format!("`body_base64`: {why}")))?.into()
        } else if let Some(json) = asked.json {
            headers.entry(CONTENT_TYPE).or_insert(HeaderValue::from_static("application/json"));
            Bytes::copy_from_slice(json.get().as_bytes())
        } else {
            asked.body.unwrap_or_default().into()
        };
        let redirects = asked.redirects.unwrap_or(REDIRECTS);
        if redirects > MAX_REDIRECTS {
            return Err(invalid(&format!("`redirects` is {redirects}; {MAX_REDIRECTS} is the most")));
        }
        let max_body = asked.max_body.unwrap_or(BODY).min(job.output);
        let time = asked.timeout_ms.map(Duration::from_millis);
        Ok(Self { url, method, headers, body, time, max_body, redirects, encoding: asked.encoding })
    }
}

/// Whether requests can be sent there.
pub(super) fn is_http(url: &Url) -> Result<(), String> {
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!("{url} is neither http nor https"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("a name or password in a URL gets into logs: use the header `authorization`".to_owned());
    }
    if url.host().is_none() {
        return Err(format!("{url} names no host"));
    }
    Ok(())
}

fn headers(asked: &BTreeMap<String, String>) -> Result<HeaderMap, TaskError> {
    if asked.len() > MAX_HEADERS {
        return Err(invalid(&format!("{} headers; {MAX_HEADERS} is the most", asked.len())));
    }
    let mut headers = HeaderMap::new();
    headers.insert(USER_AGENT, HeaderValue::from_static(concat!("ostler/", env!("CARGO_PKG_VERSION"))));
    // What comes is handed on as it is.
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    for (name, value) in asked {
        let known: HeaderName =
            name.parse().map_err(|_| invalid(&format!("header {name:?}: that is no name of one")))?;
        if OURS.contains(&known.as_str()) {
            return Err(invalid(&format!("header {name:?} is the connection's and cannot be set")));
        }
        let value = HeaderValue::from_str(value);
        headers.insert(known, value.map_err(|_| invalid(&format!("header {name:?}: its value is none")))?);
    }
    Ok(headers)
}
