//! The messages of the model: the same function writes what one side sends and what the other side must read,
//! so that the two are compared byte for byte.

use crate::message::SHARE_FROM;

/// Ids and tokens that every session uses alike: each is another one to a reader that keeps them exactly.
pub(super) const KEYS: [&str; 14] = [
    "1",
    "\"1\"",
    "1.0",
    "1.5",
    "1e3",
    "1000",
    "-0",
    "1180591620717411303424",
    "\"a\\\"\\\\b\"",
    "\"\\u00e9\"",
    "\"é😀\"",
    "\"\"",
    "2",
    "30064771073",
];

/// A progress token for most messages, none for some.
pub(super) fn key_or_none(which: usize) -> Option<&'static str> {
    (!which.is_multiple_of(5)).then(|| KEYS[which % KEYS.len()])
}

/// The code of the errors that the model's process answers with.
pub(super) const SERVER_CODE: i64 = 77;

/// A request in one of several shapes: the id first or last, names escaped, white space, a body that is large
/// enough to be shared instead of copied.
pub(super) fn request_text(shape: usize, id: &str, token: Option<&str>, serial: u64) -> String {
    let meta = token
        .map(|token| format!(r#""_meta":{{"progressToken":{token},"x":{serial}}},"#))
        .unwrap_or_default();
    match shape {
        0 => format!(
            r#"{{"jsonrpc":"2.0","id":{id},"method":"tools/call","params":{{{meta}"name":"t","n":{serial}}}}}"#
        ),
        1 => {
            let meta = token
                .map(|token| format!(r#""\u005fmeta" : {{ "progress\u0054oken" : {token} }} , "#))
                .unwrap_or_default();
            format!(
                "{{ \"params\" : {{ {meta}\"id\":1,\"n\":{serial} }},\t\"method\":\"tools\\/call\",\"jsonrpc\":\"2.0\",\"\\u0069d\" : {id} }} "
            )
        }
        _ => {
            let pad = "é".repeat(SHARE_FROM / 2);
            format!(
                r#"{{"method":"tools/call","id":{id},"params":{{"pad":"{pad}",{meta}"n":{serial}}},"jsonrpc":"2.0"}}"#
            )
        }
    }
}

pub(super) fn answer_text(shape: usize, id: &str, subscription: bool, serial: u64) -> String {
    let meta = match subscription {
        true => format!(r#""_meta":{{"io.modelcontextprotocol/subscriptionId":{id}}},"#),
        false => String::new(),
    };
    match shape {
        0 => format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{{meta}"n":{serial}}}}}"#),
        1 => format!(r#"{{"result":{{{meta}"id":1,"n":{serial}}}, "\u0069d" : {id} ,"jsonrpc":"2.0"}}"#),
        2 => format!(
            r#"{{"jsonrpc":"2.0","error":{{"code":{SERVER_CODE},"message":"{serial}","data":{{"id":1}}}},"id":{id}}}"#
        ),
        _ => {
            let pad = "x".repeat(SHARE_FROM);
            format!(r#"{{"jsonrpc":"2.0","result":{{"pad":"{pad}",{meta}"n":{serial}}},"id":{id}}}"#)
        }
    }
}

pub(super) fn progress_text(shape: usize, token: &str, serial: u64) -> String {
    match shape {
        0 => format!(
            r#"{{"jsonrpc":"2.0","method":"notifications/progress","params":{{"progressToken":{token},"progress":{serial}}}}}"#
        ),
        _ => format!(
            r#"{{"params":{{"progress":{serial},"_meta":{{"progressToken":1}},"progressToken" : {token}}},"method":"notifications/progress","jsonrpc":"2.0"}}"#
        ),
    }
}
