//! Sessions as arguments of tools: conversations that nothing but a handle tells apart.

use std::sync::Arc;

use hyper::Method;
use serde_json::{Value, json};

use crate::client::{Http, JSON, MODERN, Reply, modern, post_modern, request, text, tool_call, with_token};
use crate::support::{Daemon, PATIENCE, wait_until};

fn daemon(words: &str) -> Daemon {
    daemon_with(words, "")
}

fn daemon_with(words: &str, more: &str) -> Daemon {
    let fake = ostler_testkit::fake::path();
    let config = format!(
        "[servers.fake]\ncommand = \"{}\"\nargs = [\"modern\", {words}]\nscope = \"session\"\ntell_session = true\n{more}",
        fake.display()
    );
    Daemon::start(&config, &[])
}

async fn call(http: &Arc<Http>, tool: &str, arguments: &Value) -> Value {
    post_modern(http, "fake", &modern(tool_call(1, tool, arguments))).await.answer().await
}

/// The same with a header, at a path.
async fn call_with(http: &Arc<Http>, path: &str, header: (&str, &str), arguments: &Value) -> Reply {
    let request = modern(tool_call(1, "state", arguments));
    let mut headers = JSON.to_vec();
    headers.extend([
        ("mcp-protocol-version", MODERN),
        ("mcp-method", "tools/call"),
        ("mcp-name", "state"),
        header,
    ]);
    http.send(Method::POST, path, &headers, request.to_string()).await
}

/// What the process that answered has seen.
fn state(answer: &Value) -> Value {
    serde_json::from_str(text(answer)).expect("JSON")
}

/// What the server saw of a call's arguments.
async fn seen(http: &Arc<Http>, arguments: &Value) -> Value {
    serde_json::from_str(text(&call(http, "arguments", arguments).await)).expect("JSON")
}

async fn create(http: &Arc<Http>) -> String {
    let answer = call(http, "create_session", &json!({})).await;
    let handle = answer["result"]["structuredContent"]["session_id"].as_str();
    handle.unwrap_or_else(|| panic!("no handle: {answer}")).to_owned()
}

/// The text of a result that says the call failed.
fn failed(answer: &Value) -> &str {
    assert_eq!(answer["result"]["isError"], true, "{answer}");
    text(answer)
}

async fn list(http: &Arc<Http>) -> Vec<Value> {
    let answer =
        post_modern(http, "fake", &modern(request(1, "tools/list", &json!({})))).await.answer().await;
    answer["result"]["tools"].as_array().unwrap_or_else(|| panic!("no tools: {answer}")).clone()
}

fn named<'t>(tools: &'t [Value], name: &str) -> &'t Value {
    tools.iter().find(|tool| tool["name"] == name).unwrap_or_else(|| panic!("no `{name}`: {tools:?}"))
}

#[tokio::test]
async fn conversations_on_one_connection_are_told_apart_by_their_handles_alone() {
    let daemon = daemon("");
    let http = Http::new(daemon.address());
    let tools = list(&http).await;
    assert_eq!(named(&tools, "echo")["inputSchema"]["properties"]["session_id"]["type"], "string");
    assert_eq!(named(&tools, "cleanup_session")["inputSchema"]["required"], json!(["session_id"]));
    let (one, two) = (create(&http).await, create(&http).await);
    assert!(one != two && one.starts_with("ses_") && one.len() == 36, "{one}");
    let mut calls = Vec::new();
    for handle in [&one, &two, &one] {
        calls.push(state(&call(&http, "state", &json!({"session_id": handle})).await));
    }
    calls.push(state(&call(&http, "state", &json!({})).await));
    let of =
        |at: usize| (calls[at]["pid"].as_u64().expect("a pid"), calls[at]["calls"].as_u64().expect("calls"));
    assert!(of(0).0 != of(1).0 && of(0).0 == of(2).0 && ![of(0).0, of(1).0].contains(&of(3).0), "{calls:?}");
    assert_eq!([of(0).1, of(1).1, of(2).1, of(3).1], [1, 1, 2, 1], "each has what it did itself");
    assert_eq!(http.connections(), 1, "nothing but the handles told them apart");
}

#[tokio::test]
async fn the_server_never_sees_the_argument_and_all_else_stays() {
    let daemon = daemon("");
    let http = Http::new(daemon.address());
    // The first call of all, by a name, with nobody having listed the tools.
    assert_eq!(seen(&http, &json!({"a": 1, "session_id": "client-1"})).await, json!({"a": 1}));
    assert_eq!(seen(&http, &json!({"ostler_session": "client-1"})).await, json!({}));
    assert_eq!(
        seen(&http, &json!({"session_id": null, "b": {"session_id": 1}})).await,
        json!({"b": {"session_id": 1}})
    );
    let handle = create(&http).await;
    let arguments = json!({"steps": 2, "session_id": handle, "tag": "mine"});
    let call = with_token(modern(tool_call("id", "progress", &arguments)), &json!("token"));
    let said = post_modern(&http, "fake", &call).await.rest().await;
    let tokens: Vec<&Value> = said.iter().map(|one| &one["params"]["progressToken"]).collect();
    assert_eq!(tokens, [&json!("token"), &json!("token"), &Value::Null], "{said:?}");
    assert_eq!((&said[2]["id"], text(&said[2])), (&json!("id"), "mine"));
    // Who hangs up cancels the call, in its session.
    let arguments = json!({"ms": 100_000, "session_id": handle, "tag": "given up"});
    let sleep = with_token(modern(tool_call(1, "sleep", &arguments)), &json!(1));
    let mut reply = post_modern(&http, "fake", &sleep).await;
    assert_eq!(reply.next().await.expect("progress")["params"]["progressToken"], 1);
    drop(reply);
    let here = json!({"session_id": handle});
    let cancelled = async {
        while state(&self::call(&http, "state", &here).await)["cancelled"] != json!(["given up"]) {}
    };
    tokio::time::timeout(PATIENCE, cancelled).await.expect("the server is told");
    // It is told of the session nevertheless.
    let told = |answer: &Value| state(answer)["io.ostler/session"].as_str().expect("a session").to_owned();
    let by_handle = told(&self::call(&http, "meta", &here).await);
    assert_ne!(by_handle, told(&self::call(&http, "meta", &json!({})).await));
    // A process for the name, the handle, and who shows neither.
    wait_until("what served to learn the tools is gone", || daemon.ps().len() == 3);
}

#[tokio::test]
async fn a_handle_that_ended_says_so_to_the_model() {
    let daemon = daemon("");
    let http = Http::new(daemon.address());
    let handle = create(&http).await;
    let here = json!({"session_id": handle});
    state(&call(&http, "state", &here).await);
    let ended = call(&http, "cleanup_session", &here).await;
    assert_eq!(
        (&ended["result"]["structuredContent"], &ended["result"]["isError"]),
        (&here, &json!(false)),
        "{ended}"
    );
    for tool in ["state", "cleanup_session"] {
        let why = call(&http, tool, &here).await;
        assert!(failed(&why).starts_with("no such session: it ended"), "{why}");
    }
    wait_until("nothing of it runs", || daemon.ps().iter().all(|row| row["pid"].is_null()));
    let never = call(&http, "state", &json!({"session_id": format!("ses_{:032x}", 7)})).await;
    assert!(failed(&never).contains("never made") && failed(&never).contains("create_session"), "{never}");
    for (tool, arguments, why) in [
        ("state", json!({"session_id": 7}), "the argument `session_id` must be a string"),
        ("state", json!({"session_id": "a b"}), "1 to 128 visible ASCII characters"),
        ("state", json!({"session_id": "a", "ostler_session": "a"}), "named twice"),
        ("cleanup_session", json!({}), "is missing"),
        ("cleanup_session", json!({"session_id": []}), "in `arguments`"),
    ] {
        let answer = call(&http, tool, &arguments).await;
        assert!(failed(&answer).contains(why), "{answer}");
    }
    assert_eq!(daemon.status()["sessions"], 0, "nothing was opened by being asked for");
    let by_header = call_with(&http, "/mcp/fake", ("ostler-session", &handle), &json!({})).await;
    assert_eq!(by_header.status, 404);
}

#[tokio::test]
async fn a_session_too_many_is_refused_in_words() {
    let daemon = daemon_with("", "[limits]\nsessions = 1\n");
    let http = Http::new(daemon.address());
    let handle = create(&http).await;
    let why = call(&http, "create_session", &json!({})).await;
    assert!(failed(&why).starts_with("1 sessions exist already (limits.sessions)"), "{why}");
    let by_name = modern(tool_call(1, "state", &json!({"session_id": "another"})));
    assert_eq!(post_modern(&http, "fake", &by_name).await.status, 503);
    state(&call(&http, "state", &json!({"session_id": handle})).await);
}

/// The path, the header, the argument, the cookie, none.
#[tokio::test]
async fn of_several_keys_the_first_counts() {
    let daemon = daemon("");
    let http = Http::new(daemon.address());
    list(&http).await;
    let mut pids = Vec::new();
    let (cookie, argument) = (("cookie", "ostler_session=c"), json!({"session_id": "a"}));
    for (path, header, arguments) in [
        ("/mcp/fake/s/p", ("ostler-session", "h"), &argument),
        ("/mcp/fake", ("ostler-session", "h"), &argument),
        ("/mcp/fake", cookie, &argument),
        ("/mcp/fake", cookie, &json!({})),
    ] {
        let answer = call_with(&http, path, header, arguments).await.answer().await;
        pids.push(state(&answer)["pid"].as_u64().expect("a pid"));
    }
    for (key, pid) in ["p", "h", "a", "c"].iter().zip(pids) {
        let path = format!("/mcp/fake/s/{key}");
        let answer = call_with(&http, &path, ("x-other", "x"), &json!({})).await.answer().await;
        assert_eq!(state(&answer)["pid"], pid, "{key}");
    }
}

#[tokio::test]
async fn a_server_keeps_names_of_its_own() {
    let daemon = daemon("\"sessions\"");
    let http = Http::new(daemon.address());
    // With nobody having listed the tools; what had to be started to know is given back.
    assert_eq!(text(&call(&http, "create_session", &json!({})).await), "made by the server");
    assert_eq!(seen(&http, &json!({"session_id": 7})).await, json!({"session_id": 7}));
    wait_until("one process is left", || daemon.ps().len() == 1);
    let tools = list(&http).await;
    let arguments = &named(&tools, "arguments")["inputSchema"]["properties"];
    assert_eq!(
        (&arguments["session_id"]["type"], &arguments["ostler_session"]["type"]),
        (&json!("integer"), &json!("string"))
    );
    assert_eq!(tools.iter().filter(|tool| tool["name"] == "create_session").count(), 1);
    let both = json!({"session_id": 7, "ostler_session": "mine"});
    assert_eq!(seen(&http, &both).await, json!({"session_id": 7}));
    assert_eq!(daemon.ps().len(), 2, "it is in a session of its own");
    named(&tools, "cleanup_session");
}

/// Progress ahead of the answer makes a stream of it.
#[tokio::test]
async fn a_list_that_comes_in_a_stream_is_shown_the_same() {
    let daemon = daemon("");
    let http = Http::new(daemon.address());
    let plain = list(&http).await;
    let asked = with_token(modern(request("id", "tools/list", &json!({}))), &json!(7));
    let mut reply = post_modern(&http, "fake", &asked).await;
    assert_eq!(reply.header("content-type"), Some("text/event-stream"));
    let said = reply.rest().await;
    assert_eq!((said.len(), &said[1]["id"]), (2, &json!("id")), "{said:?}");
    assert_eq!(said[1]["result"]["tools"], json!(plain));
    assert_eq!(said[1]["result"]["cacheScope"], "private", "what else it says stays");
    named(&plain, "create_session");
}
