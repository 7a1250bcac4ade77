//! A minimal MCP stdio server with one tool, `echo`: fast enough never to be what a gateway benchmark measures.
//!
//! One thread, one read and one write per batch: whatever arrived together is answered together. It speaks the
//! legacy handshake; with `--modern` it answers `server/discover` too, and stamps results as revision 2026-07-28
//! asks. It ends at the end of its input.

use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;

/// Revisions the legacy handshake accepts; any other is answered with the last.
const LEGACY_VERSIONS: [&str; 3] = ["2025-03-26", "2025-06-18", "2025-11-25"];
/// A line longer than this ends the server: the benchmark's are below one kilobyte.
const LONGEST_LINE_BYTES: usize = 64 << 20;
const READ_BYTES: usize = 64 << 10;

#[derive(Deserialize)]
struct Request<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    method: Option<Cow<'a, str>>,
    #[serde(borrow)]
    params: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct InitializeParams<'a> {
    #[serde(rename = "protocolVersion", borrow)]
    protocol_version: Cow<'a, str>,
}

#[derive(Deserialize)]
struct CallParams<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(borrow)]
    arguments: EchoArguments<'a>,
}

#[derive(Deserialize)]
struct EchoArguments<'a> {
    #[serde(borrow)]
    text: &'a RawValue,
}

fn main() -> io::Result<()> {
    let modern = std::env::args().skip(1).any(|argument| argument == "--modern");
    // Straight from the descriptors: the standard handles buffer by line or by 8 KiB, each a system call more.
    let mut input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut output = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let mut pending = Vec::with_capacity(READ_BYTES);
    let mut answers = Vec::with_capacity(READ_BYTES);
    let mut block = vec![0; READ_BYTES];
    loop {
        let length = input.read(&mut block)?;
        if length == 0 {
            return Ok(());
        }
        pending.extend_from_slice(&block[..length]);
        let complete = memchr::memrchr(b'\n', &pending).map_or(0, |last| last + 1);
        for line in pending[..complete].split(|byte| *byte == b'\n') {
            if !line.trim_ascii().is_empty() {
                answer(line, modern, &mut answers)?;
            }
        }
        pending.drain(..complete);
        if pending.len() > LONGEST_LINE_BYTES {
            return Err(io::Error::other("a line longer than 64 MiB"));
        }
        if !answers.is_empty() {
            output.write_all(&answers)?;
            answers.clear();
        }
    }
}

/// Appends the answer to one line, if it asks for one.
fn answer(line: &[u8], modern: bool, out: &mut Vec<u8>) -> io::Result<()> {
    let Ok(request) = serde_json::from_slice::<Request<'_>>(line) else {
        return failure("null", -32700, "not a JSON-RPC message", out);
    };
    // What has no id is a notification, what has no method an answer to something never asked.
    let (Some(id), Some(method)) = (request.id.map(RawValue::get), request.method) else {
        return Ok(());
    };
    let params = request.params.map_or("{}", RawValue::get);
    // What revision 2026-07-28 wants in every result, and in those that may be cached.
    let stamp = if modern { r#""resultType":"complete","# } else { "" };
    let cacheable = if modern { r#""ttlMs":60000,"cacheScope":"public","# } else { "" };
    match method.as_ref() {
        "tools/call" => match serde_json::from_str::<CallParams<'_>>(params) {
            Ok(call) if call.name == "echo" => writeln!(
                out,
                r#"{{"jsonrpc":"2.0","id":{id},"result":{{{stamp}"content":[{{"type":"text","text":{}}}]}}}}"#,
                call.arguments.text.get()
            ),
            Ok(_) => failure(id, -32602, "unknown tool: there is only echo", out),
            Err(_) => failure(id, -32602, "echo takes {\\\"text\\\": string}", out),
        },
        "initialize" => {
            let version = serde_json::from_str::<InitializeParams<'_>>(params)
                .ok()
                .and_then(|asked| LEGACY_VERSIONS.into_iter().find(|known| *known == asked.protocol_version))
                .unwrap_or(LEGACY_VERSIONS[LEGACY_VERSIONS.len() - 1]);
            writeln!(
                out,
                r#"{{"jsonrpc":"2.0","id":{id},"result":{{"protocolVersion":"{version}","capabilities":{{"tools":{{}}}},"serverInfo":{{"name":"bench-echo","version":"1"}}}}}}"#
            )
        }
        "server/discover" if modern => writeln!(
            out,
            r#"{{"jsonrpc":"2.0","id":{id},"result":{{{stamp}{cacheable}"supportedVersions":["2026-07-28"],"capabilities":{{"tools":{{}}}}}}}}"#
        ),
        "ping" => writeln!(out, r#"{{"jsonrpc":"2.0","id":{id},"result":{{}}}}"#),
        "tools/list" => writeln!(
            out,
            r#"{{"jsonrpc":"2.0","id":{id},"result":{{{stamp}{cacheable}"tools":[{{"name":"echo","description":"Answers with its text.","inputSchema":{{"type":"object","properties":{{"text":{{"type":"string"}}}},"required":["text"]}}}}]}}}}"#
        ),
        _ => failure(id, -32601, "method not found", out),
    }
}

fn failure(id: &str, code: i32, message: &str, out: &mut Vec<u8>) -> io::Result<()> {
    writeln!(out, r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":{code},"message":"{message}"}}}}"#)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(line: &str, modern: bool) -> serde_json::Value {
        let mut out = Vec::new();
        answer(line.as_bytes(), modern, &mut out).expect("writing to memory");
        if out.is_empty() {
            return serde_json::Value::Null;
        }
        assert_eq!(out.pop(), Some(b'\n'));
        assert!(!out.contains(&b'\n'), "one message is one line");
        serde_json::from_slice(&out).expect("answers are JSON")
    }

    #[test]
    fn ids_and_texts_come_back_as_sent() {
        let line = r#"{"jsonrpc":"2.0","id":"a\"1","method":"tools/call","params":{"name":"echo","arguments":{"text":"ä\n\u0000"}}}"#;
        let reply = ask(line, false);
        assert_eq!(reply["id"], "a\"1");
        assert_eq!(reply["result"]["content"][0]["text"], "ä\n\u{0}");
    }

    #[test]
    fn versions_and_eras() {
        let asked = |version: &str| {
            let line = format!(
                r#"{{"jsonrpc":"2.0","id":1,"method":"initialize","params":{{"protocolVersion":"{version}"}}}}"#
            );
            ask(&line, false)["result"]["protocolVersion"].clone()
        };
        assert_eq!(asked("2025-06-18"), "2025-06-18");
        assert_eq!(asked("1999-01-01"), "2025-11-25");
        let discover = r#"{"jsonrpc":"2.0","id":1,"method":"server/discover"}"#;
        assert_eq!(ask(discover, false)["error"]["code"], -32601);
        assert_eq!(ask(discover, true)["result"]["supportedVersions"][0], "2026-07-28");
    }

    #[test]
    fn what_cannot_be_answered() {
        assert_eq!(ask("{", false)["error"]["code"], -32700);
        assert_eq!(ask(r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#, false), ask("{}", false));
        let wrong =
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","arguments":{}}}"#;
        assert_eq!(ask(wrong, false)["error"]["code"], -32602);
    }
}
