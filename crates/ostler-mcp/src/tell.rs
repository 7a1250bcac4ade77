//! Telling a server which session a request is of.

use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::envelope::{Envelope, EnvelopeError, Span};

/// The member of `_meta` that names the session: its public handle, such as `s12`.
pub const SESSION: &str = "io.ostler/session";

#[derive(Deserialize)]
struct Params<'m> {
    #[serde(default, borrow, rename = "_meta", deserialize_with = "even_null")]
    meta: Option<&'m RawValue>,
}

/// Of `_meta` only whether it names a session.
#[derive(Deserialize)]
struct Meta<'m> {
    #[serde(default, borrow, rename = "io.ostler/session", deserialize_with = "even_null")]
    session: Option<&'m RawValue>,
}

/// A member that is there, also where it is `null`: another of the same name must not stand beside it.
fn even_null<'m, D: Deserializer<'m>>(member: D) -> Result<Option<&'m RawValue>, D::Error> {
    <&RawValue>::deserialize(member).map(Some)
}

/// The edit of a request that names its session: where something is put in, and what. `envelope` was read from `body`.
///
/// # Errors
/// [`EnvelopeError::Invalid`] where the client names one itself, which is Ostler's alone to do, or its `_meta` is no object.
pub fn session_edit(
    body: &[u8],
    envelope: &Envelope,
    handle: &str,
) -> Result<(Span, Vec<u8>), EnvelopeError> {
    let invalid = |why: String| EnvelopeError::Invalid(why);
    let named = format!("\"{SESSION}\":{}", serde_json::Value::from(handle));
    let Some(params) = envelope.params.clone() else {
        let end = body.iter().rposition(|byte| *byte == b'}').unwrap_or(body.len());
        return Ok((end..end, format!(",\"params\":{{\"_meta\":{{{named}}}}}").into()));
    };
    let read: Params<'_> = serde_json::from_slice(&body[params.clone()])
        .map_err(|error| invalid(format!("in `params`: {error}")))?;
    let Some(meta) = read.meta else {
        return Ok(put_in(body, &params, &format!("\"_meta\":{{{named}}}")));
    };
    // A list would be read as the members in their order.
    if !meta.get().starts_with('{') {
        return Err(invalid("`_meta` must be an object".to_owned()));
    }
    let says: Meta<'_> =
        serde_json::from_str(meta.get()).map_err(|error| invalid(format!("in `_meta`: {error}")))?;
    if says.session.is_some() {
        return Err(invalid(format!("`_meta` has `{SESSION}`, which only Ostler says")));
    }
    let start = meta.get().as_ptr() as usize - body.as_ptr() as usize;
    Ok(put_in(body, &(start..start + meta.get().len()), &named))
}

/// `member` as the first of the object at `object`.
fn put_in(body: &[u8], object: &Span, member: &str) -> (Span, Vec<u8>) {
    let at = object.start + 1;
    let is_empty = body[at..object.end - 1].iter().all(u8::is_ascii_whitespace);
    let comma = if is_empty { "" } else { "," };
    (at..at, format!("{member}{comma}").into())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use serde_json::{Value, json};

    use super::*;
    use crate::Message;

    fn told(request: &str) -> Value {
        let body = Bytes::from(request.to_owned());
        let envelope = Envelope::parse(&body).expect("a request");
        let (at, new) = session_edit(&body, &envelope, "s12").expect("it can be told");
        let told = Message::splice(&body, &[(at, &new)]).to_bytes();
        serde_json::from_slice(&told)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&told)))
    }

    #[test]
    fn a_session_is_named_wherever_there_is_room_and_nothing_else_changes() {
        let head = r#"{"jsonrpc":"2.0","id":1,"method":"x""#;
        let with = |meta: Value| json!({"jsonrpc": "2.0", "id": 1, "method": "x", "params": meta});
        let named = json!({"_meta": {SESSION: "s12"}});
        assert_eq!(told(&format!("{head}}}")), with(named.clone()));
        assert_eq!(told(&format!("{head} , \"params\" : {{ }} }}")), with(named.clone()));
        assert_eq!(told(&format!("{head},\"params\":{{\"_meta\":{{ }}}}}}")), with(named));
        assert_eq!(
            told(&format!("{head},\"params\":{{\"a\":1}}}}")),
            with(json!({"_meta": {SESSION: "s12"}, "a": 1}))
        );
        assert_eq!(
            told(&format!("{head},\"params\":{{\"a\":[1],\"_meta\":{{\"progressToken\":7}}}}}}")),
            with(json!({"a": [1], "_meta": {SESSION: "s12", "progressToken": 7}}))
        );
    }

    #[test]
    fn a_client_does_not_name_it_itself() {
        for params in [
            r#"{"_meta":{"io.ostler/session":"s1"}}"#,
            r#"{"_meta":{"a":1,"io.ostler\/session":null,"io.ostler/session":2}}"#,
            r#"{"_meta":{"io.ostler\u002fsession":"s1"}}"#,
            r#"{"_meta":{"io.ostler/session":null}}"#,
            r#"{"_meta":[]}"#,
            r#"{"_meta":null}"#,
        ] {
            let body = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"x","params":{params}}}"#);
            let envelope = Envelope::parse(body.as_bytes()).expect("a request");
            assert!(session_edit(body.as_bytes(), &envelope, "s12").is_err(), "{params}");
        }
    }
}
