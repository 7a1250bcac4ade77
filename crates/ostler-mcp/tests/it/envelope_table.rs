//! Envelopes one rule at a time.

use bytes::Bytes;
use ostler_mcp::envelope::subscription_in_result;
use ostler_mcp::{Envelope, EnvelopeError, Kind, on_one_line};

/// Reads a message and says in short what was found.
fn check(message: &str, expected: &str) {
    let found = match Envelope::parse(message.as_bytes()) {
        Ok(envelope) => {
            let part =
                |span: &Option<std::ops::Range<usize>>| span.clone().map_or("-", |span| &message[span]);
            let (kind, method, inner) = (envelope.kind, &envelope.method, &envelope.inner);
            let tokens = (part(&inner.progress_token), part(&inner.meta.progress_token));
            format!("{kind:?} {method} id={} tokens={},{}", part(&envelope.id), tokens.0, tokens.1)
        }
        Err(EnvelopeError::Syntax(_)) => "syntax".to_owned(),
        Err(EnvelopeError::Invalid(why)) => format!("invalid: {why}"),
    };
    assert_eq!(found.split(" at line").next().unwrap(), expected, "{message}");
}

#[test]
fn each_kind_of_message_is_told_apart() {
    check(r#"{"jsonrpc":"2.0","id":1,"method":"m"}"#, "Request m id=1 tokens=-,-");
    check(r#"{"jsonrpc":"2.0","method":"m"}"#, "Notification m id=- tokens=-,-");
    check(r#"{"jsonrpc":"2.0","id":"a","result":null}"#, r#"Result  id="a" tokens=-,-"#);
    check(r#"{"jsonrpc":"2.0","id":1,"error":{"code":-5,"message":""}}"#, "Error(-5)  id=1 tokens=-,-");
    check(r#"{"jsonrpc":"2.0","id":null,"error":{"message":""}}"#, "Error(0)  id=- tokens=-,-");
    check(r#"{"jsonrpc":"2.0","error":{"code":1}}"#, "Error(1)  id=- tokens=-,-");
}

#[test]
fn what_is_neither_is_refused() {
    let neither = "invalid: it is neither a request, a notification nor an answer";
    for members in [
        r#""id":1"#,
        r#""result":1"#,
        r#""id":1,"result":1,"error":{"code":1}"#,
        r#""id":1,"method":"m","result":1"#,
        r#""id":1,"method":"m","error":{"code":1}"#,
        r#""params":{}"#,
    ] {
        check(&format!(r#"{{"jsonrpc":"2.0",{members}}}"#), neither);
    }
}

#[test]
fn an_id_is_a_string_or_a_number_and_is_kept_as_sent() {
    for id in [
        "1",
        "\"1\"",
        "1.5",
        "-0",
        "1e3",
        "1180591620717411303424",
        "1e999",
        r#""\u00e9\"\\""#,
        "\"é\"",
        "\"\"",
    ] {
        check(
            &format!(r#"{{"jsonrpc":"2.0", "id" : {id} ,"method":"m"}}"#),
            &format!("Request m id={id} tokens=-,-"),
        );
    }
    for id in ["null", "true", "{}", "[1]"] {
        check(
            &format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"m"}}"#),
            "invalid: `id` must be a string or a number",
        );
        let token = format!(
            r#"{{"jsonrpc":"2.0","id":1,"method":"m","params":{{"_meta":{{"progressToken":{id}}}}}}}"#
        );
        check(&token, "invalid: `progressToken` must be a string or a number");
    }
    for id in ["01", "+1", ".5", "1.", "0x1", "NaN", "'a'", "\"\\x\"", "\"\t\""] {
        check(&format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"m"}}"#), "syntax");
    }
}

#[test]
fn the_version_must_be_2_0() {
    let wrong = r#"invalid: `jsonrpc` must be "2.0""#;
    check(r#"{"id":1,"method":"m"}"#, wrong);
    check(r#"{"jsonrpc":"1.0","id":1,"method":"m"}"#, wrong);
    check(r#"{"jsonrpc":"2.0\u0000","id":1,"method":"m"}"#, wrong);
    check(r#"{"jsonrpc":"\u0032.0","id":1,"method":"m"}"#, "Request m id=1 tokens=-,-");
    for other in ["2.0", "2", "null", "{}"] {
        let message = format!(r#"{{"jsonrpc":{other},"id":1,"method":"m"}}"#);
        let error = Envelope::parse(message.as_bytes()).unwrap_err();
        assert!(matches!(error, EnvelopeError::Invalid(_)), "{message}: {error}");
    }
}

#[test]
fn a_batch_is_refused_with_its_own_words() {
    let batch = "invalid: a batch; send each message by itself";
    check(r#"[{"jsonrpc":"2.0","id":1,"method":"m"}]"#, batch);
    check(" \n[]", batch);
    for other in ["1", "\"a\"", "null"] {
        let error = Envelope::parse(other.as_bytes()).unwrap_err();
        assert!(matches!(error, EnvelopeError::Invalid(_)), "{other}: {error}");
    }
}

#[test]
fn members_that_matter_stand_once() {
    for (member, value) in [
        ("jsonrpc", "\"2.0\""),
        ("id", "1"),
        ("method", "\"m\""),
        ("params", "{}"),
        ("result", "1"),
        ("error", "{}"),
    ] {
        let twice = format!(r#"{{"{member}":{value},"jsonrpc":"2.0","{member}":{value}}}"#);
        check(&twice, &format!("invalid: `{member}` stands twice"));
    }
    for member in ["name", "uri", "level", "arguments", "requestId", "progressToken"] {
        let params = format!(r#""{member}":1,"{member}":1"#);
        check(&with_params(&params), &format!("invalid: in `params`: `{member}` stands twice"));
    }
    check(&with_params(r#""_meta":{},"_meta":{}"#), "invalid: in `params`: `_meta` stands twice");
    for member in
        ["progressToken", "io.modelcontextprotocol/subscriptionId", "io.modelcontextprotocol/logLevel"]
    {
        let params = format!(r#""_meta":{{"{member}":1,"{member}":1}}"#);
        check(&with_params(&params), &format!("invalid: in `params`: `{member}` stands twice"));
    }
    check(r#"{"jsonrpc":"2.0","id":1,"error":{"code":1,"code":2}}"#, "invalid: `code` stands twice");
    // What Ostler does not act on may stand as it likes.
    check(&with_params(r#""x":1,"x":2,"arguments":{"id":1,"id":2}"#), "Request m id=1 tokens=-,-");
}

/// A request with these members of `params`.
fn with_params(params: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":1,"method":"m","params":{{{params}}}}}"#)
}

#[test]
fn names_are_the_same_however_they_are_escaped() {
    check(r#"{"jsonrpc":"2.0","\u0069d":7,"m\u0065thod":"a\/b"}"#, "Request a/b id=7 tokens=-,-");
    check(r#"{"jsonrpc":"2.0","id":1,"\u0069d":2,"method":"m"}"#, "invalid: `id` stands twice");
    check(&with_params(r#""\u005fmeta":{"progress\u0054oken":"t"}"#), r#"Request m id=1 tokens=-,"t""#);
    check(&with_params(r#""_meta":{},"\u005fmeta":{}"#), "invalid: in `params`: `_meta` stands twice");
}

#[test]
fn names_that_differ_in_case_alone_are_refused_where_they_matter() {
    for (name, known) in [
        ("Id", "id"),
        ("ID", "id"),
        ("\\u0049d", "id"),
        ("JsonRPC", "jsonrpc"),
        ("Method", "method"),
        ("PARAMS", "params"),
        ("param\u{17f}", "params"),
        ("Result", "result"),
        ("eRror", "error"),
    ] {
        let message = format!(r#"{{"jsonrpc":"2.0","id":1,"{name}":2,"method":"m"}}"#);
        let shown = name.replace("\\u0049", "I");
        check(&message, &format!("invalid: `{shown}` must be written `{known}`"));
    }
    for params in [
        r#""_Meta":{}"#,
        r#""ProgressToken":1"#,
        "\"progressTo\u{212a}en\":1",
        r#""_meta":{"progresstoken":1}"#,
    ] {
        let error = Envelope::parse(with_params(params).as_bytes()).unwrap_err().to_string();
        assert!(error.contains("must be written"), "{params}: {error}");
    }
    for params in [r#""Name":1,"requestID":2,"x":{"ID":1}"#, r#""_meta":{"Id":1,"_Meta":2}"#] {
        check(&with_params(params), "Request m id=1 tokens=-,-");
    }
    check(r#"{"jsonrpc":"2.0","id":1,"ids":2,"i":3,"":4,"method":"m"}"#, "Request m id=1 tokens=-,-");
}

#[test]
fn params_must_be_an_object_and_meta_is_for_the_server_to_judge() {
    for params in ["null", "[]", "1", "\"a\"", "true"] {
        let message = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"m","params":{params}}}"#);
        check(&message, "invalid: `params` must be an object");
    }
    for meta in ["null", "[]", "[[{}],1]", "1", "-1", "1.5", "\"a\"", "true"] {
        check(&with_params(&format!(r#""_meta":{meta}"#)), "Request m id=1 tokens=-,-");
    }
}

#[test]
fn white_space_may_surround_a_message_and_nothing_else_may() {
    let message = r#"{"jsonrpc":"2.0","id":1,"method":"m"}"#;
    check(&format!(" \t\r\n{message}\n\r\t "), "Request m id=1 tokens=-,-");
    for around in [
        format!("{message}{message}"),
        format!("{message},"),
        format!("\u{feff}{message}"),
        format!("{message}\0"),
    ] {
        check(&around, "syntax");
    }
    check("", "syntax");
    for cut in 1..message.len() {
        check(&message[..cut], "syntax");
    }
}

#[test]
fn text_that_is_not_utf_8_is_refused_wherever_it_stands() {
    for message in [
        &b"{\"jsonrpc\":\"2.0\",\"id\":\"\xff\",\"method\":\"m\"}"[..],
        b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"\xc3\"}",
        b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"m\",\"other\":\"\xff\"}",
        b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"m\",\"\xff\":1}",
        b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"m\",\"params\":{\"x\":\"\xed\xa0\x80\"}}",
        b"{\"jsonrpc\":\"2.0\",\"id\":1,\"error\":{\"code\":1,\"message\":\"\xff\"}}",
    ] {
        let error = Envelope::parse(message).unwrap_err();
        assert!(matches!(error, EnvelopeError::Syntax(_)), "{}", String::from_utf8_lossy(message));
    }
}

#[test]
fn nesting_without_end_does_not_exhaust_the_stack() {
    let (open, close) = ("[".repeat(500_000), "]".repeat(500_000));
    let objects = format!("{}1{}", r#"{"a":"#.repeat(500_000), "}".repeat(500_000));
    for deep in [format!("{open}{close}"), objects] {
        check(&format!(r#"{{"jsonrpc":"2.0","id":1,"method":"m","x":{deep}}}"#), "Request m id=1 tokens=-,-");
        check(
            &with_params(&format!(r#""arguments":{deep},"x":{deep},"_meta":{{"x":{deep}}}"#)),
            "Request m id=1 tokens=-,-",
        );
        check(&with_params(&format!(r#""_meta":[{deep}]"#)), "Request m id=1 tokens=-,-");
        check(&format!(r#"{{"jsonrpc":"2.0","id":1,"result":{deep}}}"#), "Result  id=1 tokens=-,-");
    }
    check(&with_params(&format!(r#""x":{open}"#)), "syntax");
    check(&open, "invalid: a batch; send each message by itself");
}

#[test]
fn a_huge_message_is_read() {
    let text = "é\\n".repeat(8 << 20);
    let message = format!(r#"{{"jsonrpc":"2.0","result":{{"text":"{text}"}},"id":"last"}}"#);
    let envelope = Envelope::parse(message.as_bytes()).unwrap();
    assert_eq!(envelope.kind, Kind::Result);
    assert_eq!(envelope.id_text(message.as_bytes()), Some(&b"\"last\""[..]));
}

#[test]
fn what_a_modern_request_says_of_itself_is_found() {
    let message = with_params(
        r#""name":"\u0065cho","uri":"file:\/\/x","level":"info","arguments":{"a":[1]},"_meta":{
            "io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{},
            "io.modelcontextprotocol/logLevel":"debug","protocolVersion":"no","name":"no"}"#,
    );
    let envelope = Envelope::parse(message.as_bytes()).unwrap();
    let inner = &envelope.inner;
    assert!(envelope.is_modern());
    assert_eq!(inner.name.as_deref(), Some("echo"));
    assert_eq!(inner.uri.as_deref(), Some("file://x"));
    assert_eq!(inner.level.as_deref(), Some("info"));
    assert_eq!(&message[inner.arguments.clone().unwrap()], r#"{"a":[1]}"#);
    assert_eq!(inner.meta.protocol_version.as_deref(), Some("2026-07-28"));
    assert!(inner.meta.client_capabilities && inner.meta.log_level);
    let legacy = with_params(r#""io.modelcontextprotocol/protocolVersion":"2026-07-28","name":5"#);
    let envelope = Envelope::parse(legacy.as_bytes()).unwrap();
    assert!(!envelope.is_modern());
    assert_eq!(envelope.inner.name, None);
}

#[test]
fn the_subscription_in_a_result_is_found() {
    let find = |result: &str| {
        let message = format!(r#"{{"jsonrpc":"2.0","id":1,"result": {result} }}"#);
        let envelope = Envelope::parse(message.as_bytes()).unwrap();
        let span = subscription_in_result(message.as_bytes(), &envelope.result.unwrap());
        span.map(|span| message[span].to_owned())
    };
    let key = "io.modelcontextprotocol/subscriptionId";
    assert_eq!(find(&format!(r#"{{"a":1,"_meta":{{"{key}" : "x" }}}}"#)).as_deref(), Some("\"x\""));
    assert_eq!(find(r#"{"_meta":{"io.modelcontextprotocol\/subscriptionId":17}}"#).as_deref(), Some("17"));
    for none in ["{}", "null", "[1]", "7", r#"{"_meta":null}"#] {
        assert_eq!(find(none), None, "{none}");
    }
    assert_eq!(find(&format!(r#"{{"{key}":1}}"#)), None);
    assert_eq!(find(&format!(r#"{{"_meta":{{"{key}":null}}}}"#)), None);
}

#[test]
fn a_body_of_several_lines_becomes_one_of_the_same_meaning() {
    let body = "{\r\n\t\"a\": \"x\\ny\",\n\"b\":\r1}\n";
    for bytes in [Bytes::from(body.to_owned()), Bytes::from_static(body.as_bytes())] {
        let line = on_one_line(bytes);
        assert_eq!(line, "{  \t\"a\": \"x\\ny\", \"b\": 1} ");
    }
    // A part of a larger buffer leaves the rest of it alone.
    let whole = Bytes::from("1\n2\n".to_owned());
    assert_eq!(on_one_line(whole.slice(0..2)), "1 ");
    assert_eq!(whole, "1\n2\n");
    assert_eq!(on_one_line("{}".into()), "{}");
    assert_eq!(on_one_line("{\r}".into()), "{ }");
}
