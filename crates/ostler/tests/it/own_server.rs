//! Ostler's own MCP server, in both eras, at both doors.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::process::Stdio;

use hyper::Method;
use serde_json::{Value, json};

use crate::client::{
    Http, JSON, LEGACY, MODERN, code, initialize, modern, post_modern, request, text, tool_call,
};
use crate::support::{Daemon, PATIENCE, wait_until};

fn daemon() -> Daemon {
    let fake = ostler_testkit::fake::path();
    Daemon::start(
        &format!(
            "[servers.fake]\ncommand = \"{}\"\nargs = [\"modern\"]\nscope = \"session\"\n\
             pool = {{ spare = 0, max = 3 }}\n",
            fake.display()
        ),
        &[],
    )
}

/// What `/mcp/ostler` answers on the unix socket to a message with these headers: status, head and body.
pub(crate) fn local(daemon: &Daemon, headers: &[(&str, &str)], message: &Value) -> (u16, String, Value) {
    let body = message.to_string();
    let mut head = format!(
        "POST /mcp/ostler HTTP/1.1\r\nHost: ostler\r\nConnection: close\r\nContent-Length: {}\r\n",
        body.len()
    );
    for (name, value) in JSON.iter().chain(headers) {
        head += &format!("{name}: {value}\r\n");
    }
    let mut stream = UnixStream::connect(daemon.socket()).expect("the socket");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket option");
    write!(stream, "{head}\r\n{body}").expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("headers end with an empty line");
    let status = head[9..12].parse().expect("a status");
    (status, head.to_owned(), serde_json::from_str(body).unwrap_or(Value::Null))
}

/// A call of a tool on the unix socket, as a legacy client makes it.
pub(crate) fn call(daemon: &Daemon, tool: &str, arguments: &Value) -> Value {
    let (status, _, answer) =
        local(daemon, &[("mcp-protocol-version", LEGACY)], &tool_call(1, tool, arguments));
    assert_eq!(status, 200, "{answer}");
    answer
}

/// What a tool gave, which is the same as its text.
pub(crate) fn given(answer: &Value) -> &Value {
    assert_eq!(answer["result"]["isError"], false, "{answer}");
    let structured = &answer["result"]["structuredContent"];
    assert_eq!(serde_json::from_str::<Value>(text(answer)).expect("JSON"), *structured);
    structured
}

/// Why a tool gave nothing.
pub(crate) fn refused(answer: &Value) -> &str {
    assert_eq!(answer["result"]["isError"], true, "{answer}");
    text(answer)
}

fn names(answer: &Value, list: &str, name: &str) -> Vec<String> {
    let all = answer["result"][list].as_array().unwrap_or_else(|| panic!("no {list}: {answer}"));
    all.iter().map(|one| one[name].as_str().expect("a name").to_owned()).collect()
}

#[test]
fn at_the_socket_a_legacy_client_does_what_the_api_does() {
    let daemon = daemon();
    let (status, head, answer) = local(&daemon, &[], &initialize());
    assert_eq!((status, &answer["result"]["protocolVersion"]), (200, &json!(LEGACY)));
    assert!(head.to_lowercase().contains("\r\nmcp-session-id: "), "{head}");
    assert_eq!(local(&daemon, &[], &json!({"jsonrpc": "2.0", "method": "notifications/initialized"})).0, 202);
    assert_eq!(local(&daemon, &[], &request(1, "ping", &json!({}))).2["result"], json!({}));
    let tools = local(&daemon, &[], &request(1, "tools/list", &json!({}))).2;
    assert_eq!(names(&tools, "tools", "name").len(), 14, "{tools}");

    let spawned = call(
        &daemon,
        "spawn_process",
        &json!({"name": "nap", "command": ["sh", "-c", "echo hi; exec sleep 1000"]}),
    );
    let pid = given(&spawned)["instance"]["pid"].as_u64().expect("it runs");
    let listed = call(&daemon, "list_processes", &json!({"kind": "process"}));
    assert_eq!(given(&listed)["processes"][0]["pid"], pid);
    wait_until("it said so", || {
        let logs = call(&daemon, "get_process_logs", &json!({"name": "nap", "lines": 5}));
        given(&logs)["lines"].as_array().expect("lines").iter().any(|line| line["text"] == "hi")
    });
    let read =
        local(&daemon, &[], &request(1, "resources/read", &json!({"uri": "ostler://processes/nap/logs"}))).2;
    assert!(
        read["result"]["contents"][0]["text"].as_str().is_some_and(|text| text.contains("\"hi\"")),
        "{read}"
    );
    let stopped = call(&daemon, "stop_process", &json!({"name": "nap"}));
    assert_eq!(given(&stopped)["processes"][0]["state"], "stopped");
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "nothing of it is left");

    let pools = call(&daemon, "get_pool_stats", &json!({}));
    assert_eq!(given(&pools)["pools"][0]["pool"]["max"], 3, "{pools}");
    let session = call(&daemon, "create_session", &json!({"name": "mine"}));
    let id = given(&session)["id"].clone();
    assert_eq!(given(&call(&daemon, "get_session_stats", &json!({})))["sessions"][0]["id"], id);
    call(&daemon, "cleanup_session", &json!({"session_id": id}));
    assert_eq!(given(&call(&daemon, "get_session_stats", &json!({})))["count"], 0);
}

#[test]
fn what_is_wrong_is_said_with_what_to_do() {
    let daemon = daemon();
    assert!(
        refused(&call(&daemon, "stop_process", &json!({"name": "fkae"}))).contains("did you mean `fake`")
    );
    assert!(refused(&call(&daemon, "stop_process", &json!({"nmae": "x"}))).contains("unknown field `nmae`"));
    assert!(refused(&call(&daemon, "spawn_process", &json!({"command": []}))).contains("command"));
    assert!(
        refused(&call(&daemon, "get_process_logs", &json!({"name": "fake", "lines": 0})))
            .contains("1 to 1000")
    );
    assert!(
        refused(&call(&daemon, "cleanup_session", &json!({"session_id": format!("ses_{:032x}", 7)})))
            .contains("no such session")
    );
    assert_eq!(code(&call(&daemon, "no_such_tool", &json!({}))), -32602);
    let legacy = |method: &str, params: Value| local(&daemon, &[], &request(1, method, &params));
    assert_eq!(code(&legacy("resources/read", json!({"uri": "ostler://nothing"})).2), -32002);
    assert_eq!(code(&legacy("tools/list", json!({"cursor": "x"})).2), -32602);
    assert_eq!(code(&legacy("prompts/list", json!({})).2), -32601);
    let lacking =
        request(1, "tools/list", &json!({"_meta": {"io.modelcontextprotocol/protocolVersion": MODERN}}));
    let (status, _, answer) = local(&daemon, &[], &lacking);
    assert_eq!((status, code(&answer)), (400, -32602), "{answer}");
}

/// Over the network nothing is managed: only what a client may do anyway is there.
#[tokio::test]
async fn over_the_network_a_client_has_its_own_sessions_only() {
    let daemon = daemon();
    let http = Http::new(daemon.address());
    let found =
        post_modern(&http, "ostler", &modern(request(1, "server/discover", &json!({})))).await.answer().await;
    assert_eq!(found["result"]["supportedVersions"], json!([MODERN]));
    assert_eq!(found["result"]["capabilities"], json!({"tools": {}}));
    let tools =
        post_modern(&http, "ostler", &modern(request(1, "tools/list", &json!({})))).await.answer().await;
    assert_eq!(
        names(&tools, "tools", "name"),
        ["create_session", "get_session_stats", "cleanup_session", "run_many"]
    );
    let resources = post_modern(&http, "ostler", &modern(request(1, "resources/list", &json!({})))).await;
    assert_eq!(resources.status, 404);
    let call = async |tool: &str, arguments: Value| {
        let call = modern(tool_call(1, tool, &arguments));
        let answer = post_modern(&http, "ostler", &call).await.answer().await;
        assert_eq!(answer["result"]["resultType"], "complete", "{answer}");
        answer
    };
    for (tool, arguments) in [
        ("spawn_process", json!({"command": ["sleep", "1000"]})),
        ("stop_process", json!({"name": "fake"})),
        ("list_processes", json!({})),
        ("get_session_stats", json!({})),
    ] {
        assert!(refused(&call(tool, arguments).await).contains("not served over the network"), "{tool}");
    }
    assert_eq!(daemon.ps().len(), 1, "nothing of it was done");

    let opened = call("create_session", json!({})).await;
    let (key, id) = (given(&opened)["session_id"].clone(), given(&opened)["id"].clone());
    let run = json!({"calls": [{"server": "fake", "tool": "state"}], "session_id": key});
    assert_eq!(given(&call("run_many", run).await)["ok"], 1);
    let shown = call("get_session_stats", json!({"session_id": key})).await;
    assert_eq!(given(&shown)["sessions"][0]["instances"].as_array().map(Vec::len), Some(1), "{shown}");
    // What listings call it is no key.
    assert!(refused(&call("cleanup_session", json!({"session_id": id})).await).contains("by its key only"));
    given(&call("cleanup_session", json!({"session_id": key})).await);
    wait_until("its process is gone with it", || daemon.ps().iter().all(|row| row["pid"].is_null()));
    let again = call("get_session_stats", json!({"session_id": key})).await;
    assert!(refused(&again).starts_with("no such session"), "{again}");

    assert_eq!(
        http.send(Method::GET, "/mcp/ostler", &[("accept", "text/event-stream")], "").await.status,
        405
    );
    let foreign = [&JSON[..], &[("origin", "https://evil.example")]].concat();
    let reply = http.send(Method::POST, "/mcp/ostler", &foreign, initialize().to_string()).await;
    assert_eq!(reply.status, 403);
}

#[test]
fn a_stdio_client_reaches_it_by_its_name() {
    let daemon = daemon();
    let mut shim = daemon.ostler();
    shim.args(["connect", "ostler"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut shim = shim.spawn().expect("it starts");
    let mut input = shim.stdin.take().expect("its input");
    let messages = [
        initialize(),
        json!({"jsonrpc": "2.0", "method": "notifications/initialized"}),
        tool_call(7, "list_processes", &json!({})),
    ];
    for message in messages {
        writeln!(input, "{message}").expect("it reads");
    }
    drop(input);
    let output = shim.wait_with_output().expect("it ends");
    let answers: Vec<Value> = String::from_utf8(output.stdout)
        .expect("text")
        .lines()
        .map(|line| serde_json::from_str(line).expect("a message"))
        .collect();
    let of_call = answers.iter().find(|answer| answer["id"] == 7).unwrap_or_else(|| panic!("{answers:?}"));
    assert_eq!(given(of_call)["processes"][0]["server"], "fake");
}
