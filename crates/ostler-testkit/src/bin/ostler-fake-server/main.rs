//! A fake MCP server, over stdio or at a port, made to show who owns what: whatever it says about a call carries that call's
//! `tag`. For tests of what stands between it and its clients.
//!
//! `ostler-fake-server [WORD...]`:
//!
//! | word            | what it does                                                                   |
//! |-----------------|--------------------------------------------------------------------------------|
//! | `legacy`        | knows only `initialize`                                                        |
//! | `modern`        | knows only revision 2026-07-28                                                 |
//! | `listen PORT`   | is no MCP server: says its process id to whoever connects there; 98 if it cannot |
//! | `http PORT`, `sse PORT`, `ws PORT` | serves there, and not over stdio; 98 if it cannot            |
//! | `json`          | with `http`: answers with JSON and not with streams                            |
//! | `slow`          | with `http`: each message comes in small pieces                                |
//! | `no-stream`     | with `http`: offers no stream for what belongs to no call                      |
//! | `secret WORD`   | with `http`: answers only requests with `Authorization: WORD`                  |
//! | `silent-cancel` | does not answer a cancelled call, as the TypeScript SDK does; without it the   |
//! |                 | call gets an error, as from the Python SDK                                     |
//! | `sessions`      | has a `create_session` of its own, and `arguments` a `session_id` of its own   |
//!
//! Asked for its tools with a progress token, it sends progress ahead of them. Each call runs on a thread of its own, so answers come in any order. Its tools:
//!
//! | tool                      | what it does                                                                  |
//! |---------------------------|-------------------------------------------------------------------------------|
//! | `echo{text}`              | says `text`                                                                   |
//! | `progress{steps, gap_ms, tag}` | sends progress that says `tag`, `steps` times                            |
//! | `sleep{ms, tag}`          | sends progress once it sleeps; ends early when cancelled                      |
//! | `ask{kind, tag, progress}`| asks the client (`sampling`, `elicitation`, `roots`), and gives back what it said |
//! | `log{tag}`, `changed{tag}`| sends a log line, a change of the tools' list (legacy)                        |
//! | `touch{uri}`              | tells whoever subscribed that the resource changed                            |
//! | `say{text}`               | writes `text` on standard error                                               |
//! | `crash{code}`, `crash{signal}` | ends at once                                                             |
//! | `big{bytes}`              | a result of that size                                                         |
//! | `cut{tag}`                | loses its connection after progress; the answer is for who comes back (`http`)|
//! | `cut-stream{times}`       | loses the stream of what belongs to no call, and refuses it so often (`http`) |
//! | `forget`                  | knows its session no more (`http`)                                            |
//! | `meta`, `arguments`       | says what the call's `_meta` is, what its arguments are                       |
//! | `state`                   | what it has seen; see [`Seen`]                                                |

mod http;
mod websocket;
mod wire;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{self, BufRead as _, Write as _};
use std::net::TcpListener;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

const SUBSCRIPTION: &str = "io.modelcontextprotocol/subscriptionId";

/// How long a client may take to answer what it is asked.
const ANSWER_PATIENCE: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let [listen, port] = words.as_slice()
        && listen == "listen"
    {
        return serve_pid(port.parse().expect("a port"));
    }
    let server = Arc::new(Fake { words, ..Fake::default() });
    for (word, sse) in [("http", false), ("sse", true)] {
        if let Some(port) = server.after(word) {
            return http::serve(Arc::clone(&server), port.parse().expect("a port"), sse);
        }
    }
    if let Some(port) = server.after("ws") {
        return websocket::serve(&server, port.parse().expect("a port"));
    }
    for line in io::stdin().lock().lines() {
        let Ok(line) = line else { break };
        match serde_json::from_str::<Value>(&line) {
            Ok(message) => server.hear(message),
            Err(error) => eprintln!("not JSON: {error}"),
        }
    }
    ExitCode::SUCCESS
}

/// Serves its process id until it is ended. 98, `EADDRINUSE`, when the port is another's.
fn serve_pid(port: u16) -> ExitCode {
    let Ok(listener) = TcpListener::bind(("127.0.0.1", port)) else { return ExitCode::from(98) };
    for stream in listener.incoming() {
        // A client that is gone already is no reason to end.
        let _ = stream.and_then(|mut stream| write!(stream, "{}", std::process::id()));
    }
    ExitCode::SUCCESS
}

/// What the server has seen, and what it should never see.
#[derive(Default)]
struct Seen {
    /// Calls of tools.
    calls: u64,
    /// Most calls that ran at the same time.
    most_at_once: usize,
    /// Requests whose id belonged to a running one.
    duplicate_ids: u64,
    /// Answers to nothing that was asked.
    stray_answers: u64,
    /// Progress on nothing that was asked.
    stray_progress: u64,
    /// Cancellations of nothing that runs.
    stray_cancels: u64,
    /// The tags of the calls that were cancelled.
    cancelled: Vec<String>,
}

/// A question to the client that waits.
enum Heard {
    Progress(Value),
    Answer(Value),
}

#[derive(Default)]
struct Fake {
    words: Vec<String>,
    seen: Mutex<Seen>,
    /// Calls that run, by their ids; a message tells them that they are cancelled.
    running: Mutex<HashMap<String, Sender<()>>>,
    /// What was asked, by its id.
    asked: Mutex<HashMap<u64, Sender<Heard>>>,
    next_ask: AtomicU64,
    /// Modern subscriptions by their ids: the addresses each watches.
    listening: Mutex<BTreeMap<String, (Value, HashSet<String>)>>,
    /// Legacy subscriptions.
    watched: Mutex<HashSet<String>>,
    /// How often the stream of what belongs to no call is still refused.
    refusals: AtomicU64,
    /// Whether it knows its session no more.
    forgot: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn answer(id: &Value, result: &Result<Value, (i64, String)>) {
    let message = match result {
        Ok(result) => json!({"jsonrpc": "2.0", "id": id, "result": result}),
        Err((code, message)) => {
            json!({"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": message}})
        }
    };
    wire::send_for(Some(&id.to_string()), &message);
}

fn notify(method: &str, params: &Value) {
    wire::send(&notification(method, params));
}

fn notification(method: &str, params: &Value) -> Value {
    json!({"jsonrpc": "2.0", "method": method, "params": params})
}

impl Fake {
    fn is(&self, word: &str) -> bool {
        self.words.iter().any(|given| given == word)
    }

    /// The word that follows this one.
    fn after(&self, word: &str) -> Option<&str> {
        let at = self.words.iter().position(|given| given == word)?;
        self.words.get(at + 1).map(String::as_str)
    }

    fn secret(&self) -> Option<&str> {
        self.after("secret")
    }

    fn forgets(&self) -> bool {
        self.forgot.load(Ordering::Relaxed)
    }

    fn refuses_stream(&self) -> bool {
        let less = |left: u64| left.checked_sub(1);
        self.refusals.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
    }

    fn hear(self: &Arc<Self>, message: Value) {
        match (message["method"].as_str(), message.get("id")) {
            (Some(method), Some(id)) => self.request(method, id, &message["params"]),
            (Some("notifications/cancelled"), None) => self.cancelled(&message["params"]["requestId"]),
            (Some("notifications/progress"), None) => self.progressed(&message["params"]),
            (Some(_), None) => {}
            (None, _) => self.answered(message),
        }
    }

    fn request(self: &Arc<Self>, method: &str, id: &Value, params: &Value) {
        let result = match method {
            "initialize" if !self.is("modern") => Ok(initialize(params)),
            "server/discover" if !self.is("legacy") => Ok(discover()),
            "ping" | "logging/setLevel" => Ok(json!({})),
            "tools/list" => {
                notify_progress(params, 1, 1, "tools");
                Ok(self.tools())
            }
            "resources/subscribe" => {
                lock(&self.watched).insert(text(params, "uri"));
                Ok(json!({}))
            }
            "resources/unsubscribe" => {
                lock(&self.watched).remove(&text(params, "uri"));
                Ok(json!({}))
            }
            "subscriptions/listen" if !self.is("legacy") => return self.listen(id, params),
            "tools/call" => return self.call(id, params),
            _ => Err((-32601, format!("no method `{method}`"))),
        };
        answer(id, &result);
    }

    fn tools(&self) -> Value {
        let names = [
            "echo",
            "progress",
            "sleep",
            "ask",
            "log",
            "changed",
            "touch",
            "say",
            "crash",
            "big",
            "cut",
            "meta",
            "arguments",
            "state",
        ];
        let tool = |name: &str| json!({"name": name, "inputSchema": {"type": "object"}});
        let mut tools: Vec<Value> = names.iter().copied().map(tool).collect();
        if self.is("sessions") {
            let own = json!({"session_id": {"type": "integer"}});
            tools.retain(|tool| tool["name"] != "arguments");
            tools.push(json!({"name": "arguments", "inputSchema": {"type": "object", "properties": own}}));
            tools.push(tool("create_session"));
        }
        json!({"resultType": "complete", "ttlMs": 0, "cacheScope": "private", "tools": tools})
    }

    /// Answered only when it ends.
    fn listen(&self, id: &Value, params: &Value) {
        let filter = &params["notifications"];
        let addresses = filter["resourceSubscriptions"].as_array().into_iter().flatten();
        let addresses = addresses.filter_map(|uri| uri.as_str().map(str::to_owned)).collect();
        // Held until it is acknowledged: nothing may be told on a subscription before.
        let mut listening = lock(&self.listening);
        let replaced = listening.insert(id.to_string(), (id.clone(), addresses));
        lock(&self.seen).duplicate_ids += u64::from(replaced.is_some());
        let params = json!({"_meta": {SUBSCRIPTION: id}, "notifications": filter});
        let acknowledged = notification("notifications/subscriptions/acknowledged", &params);
        wire::send_for(Some(&id.to_string()), &acknowledged);
    }

    fn call(self: &Arc<Self>, id: &Value, params: &Value) {
        let (stop, stopped) = channel();
        {
            let mut running = lock(&self.running);
            let replaced = running.insert(id.to_string(), stop);
            let mut seen = lock(&self.seen);
            seen.calls += 1;
            seen.duplicate_ids += u64::from(replaced.is_some());
            seen.most_at_once = seen.most_at_once.max(running.len());
        }
        let call = Call { fake: Arc::clone(self), id: id.clone(), params: params.clone(), stopped };
        std::thread::spawn(move || call.run());
    }

    fn cancelled(&self, id: &Value) {
        let known = lock(&self.running).get(&id.to_string()).is_some_and(|stop| stop.send(()).is_ok());
        let listened = lock(&self.listening).remove(&id.to_string()).is_some();
        if !known && !listened {
            lock(&self.seen).stray_cancels += 1;
        }
    }

    fn progressed(&self, params: &Value) {
        let told = params["progressToken"].as_u64().is_some_and(|token| {
            let asked = lock(&self.asked);
            asked.get(&token).is_some_and(|asker| asker.send(Heard::Progress(params.clone())).is_ok())
        });
        if !told {
            lock(&self.seen).stray_progress += 1;
        }
    }

    fn answered(&self, message: Value) {
        let asker = message["id"].as_u64().and_then(|id| lock(&self.asked).remove(&id));
        if asker.is_none_or(|asker| asker.send(Heard::Answer(message)).is_err()) {
            lock(&self.seen).stray_answers += 1;
        }
    }
}

/// One running call.
struct Call {
    fake: Arc<Fake>,
    id: Value,
    params: Value,
    stopped: Receiver<()>,
}

impl Call {
    fn run(self) {
        wire::speak_for(&self.id);
        let arguments = &self.params["arguments"];
        let result = match self.params["name"].as_str().unwrap_or_default() {
            "echo" => Some(content(&text(arguments, "text"))),
            "progress" => self.progress(arguments),
            "sleep" => self.sleep(arguments),
            "ask" => Some(self.ask(arguments)),
            "log" => {
                let tag = text(arguments, "tag");
                notify("notifications/message", &json!({"level": "info", "data": tag}));
                Some(content(&tag))
            }
            "changed" => {
                let tag = text(arguments, "tag");
                notify("notifications/tools/list_changed", &json!({"_meta": {"tag": tag}}));
                Some(content(&tag))
            }
            "touch" => Some(self.touch(&text(arguments, "uri"))),
            "say" => {
                eprintln!("{}", text(arguments, "text"));
                Some(content("said"))
            }
            "crash" => crash(arguments),
            "big" => Some(content(&"x".repeat(number(arguments, "bytes")))),
            "cut" => Some(self.cut(&text(arguments, "tag"))),
            "cut-stream" => {
                self.fake.refusals.store(number(arguments, "times") as u64, Ordering::Relaxed);
                wire::cut_common();
                Some(content("cut"))
            }
            "forget" => {
                self.fake.forgot.store(true, Ordering::Relaxed);
                Some(content("forgot"))
            }
            "meta" => Some(content(&self.params["_meta"].to_string())),
            "arguments" => Some(content(&arguments.to_string())),
            "create_session" if self.fake.is("sessions") => Some(content("made by the server")),
            "state" => Some(self.state()),
            other => Some(Err((-32602, format!("no tool `{other}`")))),
        };
        // What comes for it from now on comes too late.
        lock(&self.fake.running).remove(&self.id.to_string());
        if let Some(result) = result {
            answer(&self.id, &result);
        }
    }

    fn notify_progress(&self, step: usize, total: usize, message: &str) {
        notify_progress(&self.params, step, total, message);
    }

    /// Waits; true when the call was cancelled meanwhile.
    fn pause(&self, ms: usize) -> bool {
        let cancelled = self.stopped.recv_timeout(Duration::from_millis(ms as u64));
        !matches!(cancelled, Err(RecvTimeoutError::Timeout))
    }

    /// The end of a cancelled call.
    fn give_up(&self, tag: String) -> Option<Result<Value, (i64, String)>> {
        lock(&self.fake.seen).cancelled.push(tag);
        (!self.fake.is("silent-cancel")).then(|| Err((0, "Request cancelled".to_owned())))
    }

    fn progress(&self, arguments: &Value) -> Option<Result<Value, (i64, String)>> {
        let (steps, gap, tag) =
            (number(arguments, "steps"), number(arguments, "gap_ms"), text(arguments, "tag"));
        for step in 1..=steps {
            if self.pause(gap) {
                return self.give_up(tag);
            }
            self.notify_progress(step, steps, &tag);
        }
        Some(content(&tag))
    }

    fn sleep(&self, arguments: &Value) -> Option<Result<Value, (i64, String)>> {
        let tag = text(arguments, "tag");
        self.notify_progress(1, 2, &tag);
        if self.pause(number(arguments, "ms")) {
            return self.give_up(tag);
        }
        Some(content(&tag))
    }

    fn cut(&self, tag: &str) -> Result<Value, (i64, String)> {
        self.notify_progress(1, 2, tag);
        let was_cut = wire::cut();
        self.notify_progress(2, 2, tag);
        content(if was_cut { tag } else { "there was nothing to cut" })
    }

    fn ask(&self, arguments: &Value) -> Result<Value, (i64, String)> {
        let tag = text(arguments, "tag");
        let (method, mut params) = match arguments["kind"].as_str().unwrap_or("sampling") {
            "sampling" => ("sampling/createMessage", sampling(&tag)),
            "elicitation" => ("elicitation/create", elicitation(&tag)),
            "roots" => ("roots/list", json!({})),
            other => return Err((-32602, format!("cannot ask for `{other}`"))),
        };
        // Small numbers, as clients use them too.
        let id = self.fake.next_ask.fetch_add(1, Ordering::Relaxed) + 1;
        params["_meta"] = json!({"tag": tag});
        if arguments["progress"] == true {
            params["_meta"]["progressToken"] = id.into();
        }
        let (asker, heard) = channel();
        lock(&self.fake.asked).insert(id, asker);
        wire::send(&json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}));
        let mut progress = Vec::new();
        loop {
            match heard.recv_timeout(ANSWER_PATIENCE) {
                Ok(Heard::Progress(params)) => progress.push(params),
                Ok(Heard::Answer(answer)) => {
                    let said = json!({"tag": tag, "progress": progress, "result": answer.get("result"),
                        "error": answer.get("error")});
                    return content(&said.to_string());
                }
                Err(_) => {
                    lock(&self.fake.asked).remove(&id);
                    return Err((-32000, "the client did not answer".to_owned()));
                }
            }
        }
    }

    fn touch(&self, uri: &str) -> Result<Value, (i64, String)> {
        for (id, addresses) in lock(&self.fake.listening).values() {
            if addresses.contains(uri) {
                let params = json!({"uri": uri, "_meta": {SUBSCRIPTION: id}});
                let updated = notification("notifications/resources/updated", &params);
                wire::send_for(Some(&id.to_string()), &updated);
            }
        }
        if lock(&self.fake.watched).contains(uri) {
            // Of no call, though it is one that touched it.
            wire::send_for(None, &notification("notifications/resources/updated", &json!({"uri": uri})));
        }
        content(uri)
    }

    fn state(&self) -> Result<Value, (i64, String)> {
        let seen = lock(&self.fake.seen);
        let state = json!({
            "pid": std::process::id(),
            "calls": seen.calls,
            "most_at_once": seen.most_at_once,
            "duplicate_ids": seen.duplicate_ids,
            "stray_answers": seen.stray_answers,
            "stray_progress": seen.stray_progress,
            "stray_cancels": seen.stray_cancels,
            "cancelled": seen.cancelled,
            "running": lock(&self.fake.running).len(),
            "asked": lock(&self.fake.asked).len(),
            "listening": lock(&self.fake.listening).len(),
        });
        content(&state.to_string())
    }
}

/// Where a request asked to be told.
fn notify_progress(params: &Value, step: usize, total: usize, message: &str) {
    let Some(token) = params["_meta"].get("progressToken") else { return };
    let params = json!({"progressToken": token, "progress": step, "total": total, "message": message});
    notify("notifications/progress", &params);
}

fn crash(arguments: &Value) -> ! {
    if let Some(signal) =
        arguments["signal"].as_i64().and_then(|number| Signal::from_named_raw(number as i32))
    {
        let _ = rustix::process::kill_process(rustix::process::getpid(), signal);
    }
    std::process::exit(arguments["code"].as_i64().unwrap_or(1) as i32)
}

fn text(arguments: &Value, name: &str) -> String {
    arguments[name].as_str().unwrap_or_default().to_owned()
}

fn number(arguments: &Value, name: &str) -> usize {
    arguments[name].as_u64().and_then(|number| usize::try_from(number).ok()).unwrap_or_default()
}

/// A tool's result; `resultType` does not disturb a legacy client.
fn content(text: &str) -> Result<Value, (i64, String)> {
    Ok(json!({"resultType": "complete", "content": [{"type": "text", "text": text}], "isError": false}))
}

fn info() -> Value {
    json!({"name": "ostler-fake-server", "version": env!("CARGO_PKG_VERSION")})
}

fn capabilities() -> Value {
    json!({"tools": {"listChanged": true}, "resources": {"subscribe": true}, "logging": {}})
}

fn initialize(params: &Value) -> Value {
    let asked = params["protocolVersion"].as_str().unwrap_or("2025-11-25");
    json!({"protocolVersion": asked, "capabilities": capabilities(), "serverInfo": info()})
}

/// `DiscoverResult` of revision 2026-07-28.
fn discover() -> Value {
    json!({
        "resultType": "complete",
        "supportedVersions": ["2026-07-28"],
        "capabilities": capabilities(),
        "ttlMs": 0,
        "cacheScope": "private",
        "_meta": {"io.modelcontextprotocol/serverInfo": info()},
    })
}

fn sampling(tag: &str) -> Value {
    json!({"messages": [{"role": "user", "content": {"type": "text", "text": tag}}], "maxTokens": 1})
}

fn elicitation(tag: &str) -> Value {
    json!({"message": tag, "requestedSchema": {"type": "object", "properties": {}}})
}
