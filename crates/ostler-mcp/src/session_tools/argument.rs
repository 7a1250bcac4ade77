//! The session that a call names in its arguments, taken out before the server sees it.

use serde::de::{Deserializer as _, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::OwnNames;
use crate::envelope::{Envelope, Span};

/// A session that a call names in its arguments.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Taken {
    /// Its key; `None` where the argument is `null`, as models fill in what they leave out.
    pub key: Option<String>,
    /// What of the message is to go before the server sees it.
    pub edit: Span,
}

/// The arguments of a call name no session as they should; the text says how.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct NoName(String);

/// The session that a call of a tool names. `envelope` was read from `body`.
///
/// # Errors
/// [`NoName`] where it is named twice, or by something that is no text.
pub fn take(body: &[u8], envelope: &Envelope, own: &OwnNames) -> Result<Option<Taken>, NoName> {
    let inner = &envelope.inner;
    let (Some(tool), Some(arguments)) = (inner.name.as_deref(), inner.arguments.clone()) else {
        return Ok(None);
    };
    if &*envelope.method != "tools/call" || body.get(arguments.start) != Some(&b'{') {
        return Ok(None);
    }
    let names: Vec<&str> = own.arguments_of(tool).collect();
    let found = members(&body[arguments.clone()], &names)?;
    let (name, member) = match &found[..] {
        [] => return Ok(None),
        [one] => one,
        [(one, _), (other, _), ..] => {
            let why = if one == other {
                format!("the argument `{one}` stands twice")
            } else {
                format!("the session is named twice, by `{one}` and by `{other}`")
            };
            return Err(NoName(why));
        }
    };
    let at = |span: &Span| span.start + arguments.start..span.end + arguments.start;
    let key: Option<String> = serde_json::from_slice(&body[at(&member.value)])
        .map_err(|_| NoName(format!("the argument `{name}` must be a string")))?;
    Ok(Some(Taken { key, edit: at(&member.whole) }))
}

/// Where a member of an object stands.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Member {
    value: Span,
    /// With its name, and the comma that goes with it.
    whole: Span,
}

/// The members of these names of the object that `text` is, with their names.
fn members<'n>(text: &[u8], names: &[&'n str]) -> Result<Vec<(&'n str, Member)>, NoName> {
    let invalid = |error: serde_json::Error| NoName(format!("in `arguments`: {error}"));
    let mut found = Vec::new();
    let mut reader = serde_json::Deserializer::from_slice(text);
    reader.deserialize_map(Find { names, found: &mut found, text }).map_err(invalid)?;
    Ok(found.into_iter().map(|(name, key, value)| (name, with_comma(text, &key, value))).collect())
}

/// A member with the comma behind it, or else the one in front of it: what is left is an object again.
fn with_comma(text: &[u8], key: &Span, value: Span) -> Member {
    let space = |byte: &&u8| byte.is_ascii_whitespace();
    let after = value.end + text[value.end..].iter().take_while(space).count();
    let whole = if text.get(after) == Some(&b',') {
        key.start..after + 1
    } else {
        let before = key.start - text[..key.start].iter().rev().take_while(space).count();
        let has_comma = before > 0 && text[before - 1] == b',';
        (if has_comma { before - 1 } else { before })..value.end
    };
    Member { value, whole }
}

/// Finds the members of some names in a text: name, and where key and value stand.
struct Find<'f, 'n, 'm> {
    names: &'f [&'n str],
    found: &'f mut Vec<(&'n str, Span, Span)>,
    text: &'m [u8],
}

impl<'m> Visitor<'m> for Find<'_, '_, 'm> {
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
            // Unescaped: a server reads `session\u005fid` as `session_id`, too.
            let name = serde_json::from_str::<String>(key.get()).unwrap_or_default();
            // Two are too many already, and no more are kept.
            if let Some(known) = self.names.iter().find(|known| **known == name)
                && self.found.len() < 2
            {
                self.found.push((known, at(key), at(value)));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::Message;
    use crate::session_tools::list::Page;

    fn known(tools: &Value) -> OwnNames {
        let mut own = OwnNames::default();
        let answer = json!({"result": {"tools": tools}}).to_string();
        own.learn(&Page::read(answer.as_bytes()).expect("a list"));
        own
    }

    const HEAD: &str = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"t","arguments":"#;

    /// What a server sees of a call with these arguments, and the session taken out of it.
    fn taken(arguments: &str, own: &OwnNames) -> (String, Option<Taken>) {
        let body = Bytes::from(format!("{HEAD}{arguments}}}}}"));
        let envelope = Envelope::parse(&body).expect("a call");
        let taken = take(&body, &envelope, own).expect("it is well-formed");
        let edits: Vec<(Span, &[u8])> = taken.iter().map(|taken| (taken.edit.clone(), &b""[..])).collect();
        let seen = Message::splice(&body, &edits).to_bytes();
        Envelope::parse(&seen).expect("it stays well-formed");
        let arguments = &seen[HEAD.len()..seen.len() - 2];
        (String::from_utf8(arguments.to_vec()).expect("UTF-8"), taken)
    }

    fn key_of(taken: Option<Taken>) -> Option<String> {
        taken.expect("something is taken").key
    }

    #[test]
    fn the_session_is_taken_out_wherever_it_stands() {
        let own = known(&json!([{"name": "t", "inputSchema": {"type": "object"}}]));
        for (given, left) in [
            (r#"{"session_id":"k"}"#, "{}"),
            (r#"{ "session_id" : "k" }"#, "{ }"),
            (r#"{"session_id":"k","a":1}"#, r#"{"a":1}"#),
            (r#"{"a":1 , "session_id":"k"}"#, r#"{"a":1 }"#),
            (
                r#"{"a":1,"session_id":"k" ,"b":{"session_id":"other"}}"#,
                r#"{"a":1,"b":{"session_id":"other"}}"#,
            ),
            (r#"{"ostler_session":"k","a":[]}"#, r#"{"a":[]}"#),
            (r#"{"session\u005fid":"k"}"#, "{}"),
        ] {
            let (seen, taken) = taken(given, &own);
            assert_eq!(seen, left, "{given}");
            assert_eq!(key_of(taken).as_deref(), Some("k"), "{given}");
        }
        let (seen, nothing) = taken(r#"{"a":1,"session_id":null}"#, &own);
        assert_eq!((seen.as_str(), key_of(nothing)), (r#"{"a":1}"#, None));
        assert_eq!(taken(r#"{"a":1}"#, &own), (r#"{"a":1}"#.to_owned(), None));
        // What is no object is the server's to judge.
        assert_eq!(taken(r#"["session_id"]"#, &own), (r#"["session_id"]"#.to_owned(), None));
    }

    #[test]
    fn a_tool_keeps_an_argument_of_that_name_of_its_own() {
        let having = |names: &[&str]| {
            let properties: Value = names.iter().map(|name| ((*name).to_owned(), json!({}))).collect();
            known(&json!([{"name": "t", "inputSchema": {"type": "object", "properties": properties}}]))
        };
        let own = having(&["session_id"]);
        let mine = r#"{"session_id":"mine"}"#;
        assert_eq!(taken(mine, &own), (mine.to_owned(), None));
        let (seen, both) = taken(r#"{"session_id":"mine","ostler_session":"k"}"#, &own);
        assert_eq!((seen.as_str(), key_of(both).as_deref()), (mine, Some("k")));
        let all = r#"{"session_id":"mine","ostler_session":"mine"}"#;
        assert_eq!(taken(all, &having(&["session_id", "ostler_session"])), (all.to_owned(), None));
    }

    #[test]
    fn what_names_no_session_is_refused() {
        for (arguments, why) in [
            (r#"{"session_id":1}"#, "must be a string"),
            (r#"{"session_id":{"a":"b"}}"#, "must be a string"),
            (r#"{"session_id":"a","session_id":"b"}"#, "stands twice"),
            (r#"{"session_id":"a","x":1,"session_id":"b","session_id":"c"}"#, "stands twice"),
            (r#"{"session_id":"a","ostler_session":"a"}"#, "named twice"),
        ] {
            let body = format!("{HEAD}{arguments}}}}}");
            let envelope = Envelope::parse(body.as_bytes()).expect("a call");
            let refused = take(body.as_bytes(), &envelope, &OwnNames::default()).expect_err(arguments);
            assert!(refused.to_string().contains(why), "{arguments}: {refused}");
        }
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<i32>().prop_map(Value::from),
            ".{0,6}".prop_map(Value::from)
        ];
        leaf.prop_recursive(3, 12, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::btree_map("(a|session_id|,|\"|})", inner, 0..4)
                    .prop_map(|map| map.into_iter().collect::<Value>()),
            ]
        })
    }

    proptest! {
        /// Whatever stands around it, the argument goes, and everything else stays byte for byte what it was.
        #[test]
        fn nothing_but_the_argument_goes(
            before in proptest::collection::vec(("[b-f]{1,3}", value()), 0..4),
            after in proptest::collection::vec(("[g-k]{1,3}", value()), 0..4),
            key in ".{0,12}", space in "[ \t\n]{0,2}",
        ) {
            let member = |(name, value): &(String, Value)| format!("{space}{}{space}:{space}{value}{space}", json!(name));
            let others = || before.iter().chain(&after).map(member);
            let all: Vec<String> = before.iter().map(member)
                .chain([member(&("session_id".to_owned(), json!(key)))])
                .chain(after.iter().map(member)).collect();
            let (seen, taken) = taken(&format!("{{{}}}", all.join(",")), &OwnNames::default());
            prop_assert_eq!(key_of(taken), Some(key));
            let compact = |text: &str| text.chars().filter(|c| !" \t\n".contains(*c)).collect::<String>();
            let expected = format!("{{{}}}", others().collect::<Vec<_>>().join(","));
            prop_assert_eq!(compact(&seen), compact(&expected));
        }
    }
}
