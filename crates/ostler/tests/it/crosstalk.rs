//! No message reaches anybody but its owner: many sessions on one instance, all with the same ids and progress
//! tokens, doing everything at once.
//!
//! Whatever a session sends or is sent carries a tag, `[s7:...]` for session 7, so that a message in the wrong
//! hands shows at once, whatever message it is. What is done, and in which order, comes from a seed, which a
//! failure prints; `OSTLER_TEST_SEED` sets it.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ostler_testkit::dice::Dice;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::client::{
    Http, Reply, Session, code, modern, post_modern, request, text, tool_call, why, with_token,
};
use crate::support::{Daemon, PATIENCE, wait_until};

const SESSIONS: usize = 64;
/// Calls of one session that may overlap.
const LANES: usize = 3;

/// Ostler's own code for a cancelled call.
const CANCELLED: i64 = -31004;
const METHOD_NOT_FOUND: i64 = -32601;
const INVALID_REQUEST: i64 = -32600;
/// Longer than any test runs: who sleeps this long is woken by a cancellation.
const FOR_EVER_MS: u64 = 300_000;

fn seed() -> u64 {
    let given = std::env::var("OSTLER_TEST_SEED").ok().map(|seed| seed.parse().expect("a number"));
    let seed = given.unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
        now.as_secs() ^ u64::from(now.subsec_nanos())
    });
    println!("OSTLER_TEST_SEED={seed}");
    seed
}

/// What all sessions of a run have seen together.
#[derive(Default)]
struct Tally {
    calls: AtomicU64,
    /// Requests of the server that reached their owner and were answered.
    asked: AtomicU64,
    /// Requests of the server that were refused for want of a certain owner.
    refused: AtomicU64,
    progress: AtomicU64,
    /// Log lines and list changes that the server was made to send, and those that reached their owner.
    said: AtomicU64,
    heard: AtomicU64,
    /// Resource updates, likewise.
    touched: AtomicU64,
    updated: AtomicU64,
    /// Calls that were cancelled, and may not have reached the server before.
    unsent: AtomicU64,
    /// The largest id of a request of the server that anybody has seen: what a forger would guess around.
    reverse_id: AtomicU64,
    /// Calls that were cancelled while they certainly ran, and those that may have been.
    cancelled: Mutex<BTreeSet<String>>,
    perhaps_cancelled: Mutex<BTreeSet<String>>,
    /// Messages in the wrong hands.
    leaks: Mutex<Vec<String>>,
}

impl Tally {
    fn count(&self, counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn leak(&self, what: String) {
        self.leaks.lock().unwrap_or_else(PoisonError::into_inner).push(what);
    }

    /// Notes a leak when `message`, which reached session `me`, speaks of another.
    fn inspect(&self, me: usize, message: &Value) {
        let mine = format!("[s{me}:");
        let text = message.to_string();
        if text.match_indices("[s").any(|(at, _)| !text[at..].starts_with(&mine)) {
            self.leak(format!("session {me} got {text}"));
        }
    }

    /// Waits until every resource update has reached its owner, and every other notification where `all` do.
    async fn settled(&self, all: bool) {
        let deadline = Instant::now() + PATIENCE;
        let reached = |heard: &AtomicU64, sent: &AtomicU64| {
            heard.load(Ordering::Relaxed) >= sent.load(Ordering::Relaxed)
        };
        while !reached(&self.updated, &self.touched) || (all && !reached(&self.heard, &self.said)) {
            assert!(Instant::now() < deadline, "notifications did not reach their owners");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn check(&self) {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        assert_eq!(count(&self.updated), count(&self.touched), "each update goes to the one who subscribed");
        assert!(count(&self.heard) <= count(&self.said), "more was heard than said");
        let leaks = self.leaks.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(
            leaks.is_empty(),
            "{} messages in the wrong hands, the first: {:?}",
            leaks.len(),
            leaks.first()
        );
    }
}

fn insert(set: &Mutex<BTreeSet<String>>, tag: &str) {
    set.lock().unwrap_or_else(PoisonError::into_inner).insert(tag.to_owned());
}

/// Ids that all sessions use alike; every form of them.
fn id_of(lane: usize, turn: usize) -> Value {
    let number = lane * 100_000 + turn;
    match turn % 4 {
        0 => json!(format!("{number}")),
        1 => json!(number as f64 + 0.5),
        _ => json!(number),
    }
}

/// One session under test.
#[derive(Clone)]
struct Member {
    me: usize,
    session: Arc<Session>,
    tally: Arc<Tally>,
    /// Whether a request of the server must reach its owner.
    asks_succeed: bool,
    /// Calls of all sessions that may overlap.
    width: Arc<Semaphore>,
}

impl Member {
    fn tag(&self, what: &str) -> String {
        format!("[s{}:{what}]", self.me)
    }

    fn uri(who: usize) -> String {
        format!("test://[s{who}:uri]")
    }

    /// Looks at a message that came ahead of an answer, or on the session's own stream, and answers what asks.
    async fn handle(&self, message: &Value, token: Option<&Value>) {
        self.tally.inspect(self.me, message);
        match message["method"].as_str() {
            Some("notifications/progress") => {
                self.tally.count(&self.tally.progress);
                if Some(&message["params"]["progressToken"]) != token {
                    self.tally.leak(format!("session {}, token {token:?}, got {message}", self.me));
                }
            }
            Some(_) if message.get("id").is_some() => self.answer(message).await,
            Some("notifications/resources/updated") => self.tally.count(&self.tally.updated),
            Some(_) => self.tally.count(&self.tally.heard),
            None => self.tally.leak(format!("session {} got an answer nobody waits for: {message}", self.me)),
        }
    }

    async fn answer(&self, asked: &Value) {
        self.tally.count(&self.tally.asked);
        let id = asked["id"].as_u64().expect("ids of Ostler are numbers");
        self.tally.reverse_id.fetch_max(id, Ordering::Relaxed);
        if let Some(token) = asked["params"]["_meta"].get("progressToken") {
            let params = json!({"progressToken": token, "progress": 1, "message": self.tag("progress")});
            self.session
                .tell(&json!({"jsonrpc": "2.0", "method": "notifications/progress", "params": params}))
                .await;
        }
        self.session.tell(&json!({"jsonrpc": "2.0", "id": id, "result": {"by": self.tag("answer")}})).await;
    }

    /// Reads a call's messages up to its answer; also how often progress was reported.
    async fn finish(&self, mut reply: Reply, id: &Value) -> (Value, u64) {
        let mut progress = 0;
        while let Some(message) = reply.next().await {
            if message.get("method").is_none() {
                assert_eq!(&message["id"], id, "session {} got another id's answer: {message}", self.me);
                assert!(reply.next().await.is_none(), "nothing comes after the answer");
                return (message, progress);
            }
            progress += u64::from(message["method"] == "notifications/progress");
            self.handle(&message, Some(id)).await;
        }
        panic!("session {}: the answer to {id} did not come", self.me)
    }

    /// Calls a tool with the id as progress token too.
    async fn counted_call(&self, id: &Value, tool: &str, arguments: &Value) -> (Value, u64) {
        self.tally.count(&self.tally.calls);
        let reply = self.session.send(&with_token(tool_call(id.clone(), tool, arguments), id)).await;
        self.finish(reply, id).await
    }

    async fn call(&self, id: &Value, tool: &str, arguments: &Value) -> Value {
        self.counted_call(id, tool, arguments).await.0
    }

    async fn lane(self, lane: usize, turns: usize, mut random: Dice) {
        for turn in 0..turns {
            let id = id_of(lane, turn);
            let tag = self.tag(&format!("{lane}.{turn}"));
            let _place = self.width.acquire().await.expect("not closed");
            match random.below(100) {
                0..40 => self.echo(&id, &tag).await,
                40..55 => self.progress(&id, &tag, 1 + random.below(4)).await,
                55..70 => self.ask(&id, &tag, &mut random).await,
                70..76 => self.cancel(&id, &tag, random.below(2) == 0).await,
                76..80 => self.cancel_soon(&id, &tag, random.below(4)).await,
                80..86 => self.say(&id, &tag, "log").await,
                86..90 => self.say(&id, &tag, "changed").await,
                90..95 => self.touch(&id, random.below(SESSIONS as u64)).await,
                _ => self.forge(&id, &tag, random.below(8)).await,
            }
        }
    }

    async fn echo(&self, id: &Value, tag: &str) {
        let answer = self.call(id, "echo", &json!({"text": tag})).await;
        assert_eq!(text(&answer), tag);
    }

    async fn progress(&self, id: &Value, tag: &str, steps: u64) {
        let arguments = json!({"steps": steps, "gap_ms": steps % 3, "tag": tag});
        let (answer, told) = self.counted_call(id, "progress", &arguments).await;
        assert_eq!((text(&answer), told), (tag, steps));
    }

    /// Has the server ask this session for something.
    async fn ask(&self, id: &Value, tag: &str, random: &mut Dice) {
        let kind = ["sampling", "elicitation", "roots"][random.below(3) as usize];
        let progress = random.below(2) == 0;
        let answer = self.call(id, "ask", &json!({"kind": kind, "tag": tag, "progress": progress})).await;
        let said: Value = serde_json::from_str(text(&answer)).expect("JSON");
        assert_eq!(said["tag"], tag);
        self.tally.inspect(self.me, &said);
        if said["error"]["code"] != METHOD_NOT_FOUND {
            // What another lane forges may hit a request to its own session, whose to answer it is.
            if said["result"]["by"] == self.tag("answer") {
                assert!(said["progress"].as_array().map(Vec::len) >= Some(usize::from(progress)), "{said}");
            } else {
                assert!(
                    [&said["result"]["by"], &said["error"]["message"]].contains(&&self.tag("forged").into()),
                    "{said}"
                );
            }
        } else {
            self.tally.count(&self.tally.refused);
            assert!(!self.asks_succeed, "a request with a certain owner was refused: {said}");
        }
    }

    /// Cancels a call that certainly runs; before that, perhaps, sends another with the same id.
    async fn cancel(&self, id: &Value, tag: &str, again: bool) {
        self.tally.count(&self.tally.calls);
        insert(&self.tally.cancelled, tag);
        let sleep = tool_call(id.clone(), "sleep", &json!({"ms": FOR_EVER_MS, "tag": tag}));
        let mut reply = self.session.send(&with_token(sleep, id)).await;
        loop {
            let message = reply.next().await.expect("progress says that it runs");
            self.handle(&message, Some(id)).await;
            if message["method"] == "notifications/progress" {
                break;
            }
        }
        if again {
            let second = self.session.call(id.clone(), "echo", &json!({"text": tag})).await;
            assert_eq!((code(&second), &second["id"]), (INVALID_REQUEST, id), "{second}");
            assert!(why(&second).contains("same id is still running"), "{second}");
        }
        self.send_cancel(id).await;
        let (answer, _) = self.finish(reply, id).await;
        assert_eq!(code(&answer), CANCELLED, "{answer}");
    }

    /// Cancels a call that may be over already, or not there yet.
    async fn cancel_soon(&self, id: &Value, tag: &str, ms: u64) {
        insert(&self.tally.perhaps_cancelled, tag);
        let arguments = json!({"ms": ms, "tag": tag});
        let (answer, ()) = tokio::join!(self.call(id, "sleep", &arguments), self.send_cancel(id));
        match code(&answer) {
            CANCELLED => self.tally.count(&self.tally.unsent),
            _ => assert_eq!(text(&answer), tag),
        }
    }

    async fn send_cancel(&self, id: &Value) {
        let params = json!({"requestId": id, "reason": self.tag("cancel")});
        self.session
            .tell(&json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params}))
            .await;
    }

    async fn say(&self, id: &Value, tag: &str, tool: &str) {
        self.tally.count(&self.tally.said);
        let answer = self.call(id, tool, &json!({"tag": tag})).await;
        assert_eq!(text(&answer), tag);
    }

    /// Makes the server tell another session something.
    async fn touch(&self, id: &Value, whom: u64) {
        self.tally.count(&self.tally.touched);
        let uri = Self::uri(whom as usize);
        let answer = self.call(id, "touch", &json!({"uri": uri})).await;
        assert_eq!(text(&answer), uri);
    }

    /// Answers, and reports progress on, what the server asked somebody else; cancels what others run. The
    /// owners check that nothing of it arrives.
    async fn forge(&self, id: &Value, tag: &str, offset: u64) {
        let guess = (self.tally.reverse_id.load(Ordering::Relaxed) + offset).saturating_sub(4);
        let by = self.tag("forged");
        let params = json!({"progressToken": guess, "progress": 1, "message": by});
        let forged = [
            json!({"jsonrpc": "2.0", "id": guess, "result": {"by": by}}),
            json!({"jsonrpc": "2.0", "id": offset, "result": {"by": by}}),
            json!({"jsonrpc": "2.0", "id": guess.to_string(), "error": {"code": 1, "message": by}}),
            json!({"jsonrpc": "2.0", "method": "notifications/progress", "params": params}),
            // Not an id that this session has in flight, but one that others have.
            json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": id}}),
        ];
        for message in &forged {
            self.session.tell(message).await;
        }
        self.echo(id, tag).await;
    }

    /// Reads the session's own stream for as long as it is open.
    async fn listen(self) {
        let mut stream = self.session.listen(None).await;
        assert_eq!(stream.status, 200);
        while let Some(message) = stream.next().await {
            self.handle(&message, None).await;
        }
    }
}

/// A daemon with one shared instance of the fake server, and a second one whose cancelled calls get no answer.
fn daemon(concurrency: &str) -> Daemon {
    daemon_over(concurrency, "", "")
}

/// The same with servers that are given further words, and have further keys.
fn daemon_over(concurrency: &str, first: &str, keys: &str) -> Daemon {
    let fake = ostler_testkit::fake::path();
    let server = |name: &str, words: &str| {
        format!(
            "[servers.{name}]\ncommand = \"{}\"\nargs = [{first}{words}]\nscope = \"shared\"\nconcurrency = \"{concurrency}\"\n{keys}",
            fake.display()
        )
    };
    let config = [
        server("fake", r#""legacy""#),
        server("silent", r#""legacy", "silent-cancel""#),
        server("modern", r#""modern""#),
    ];
    Daemon::start(&config.concat(), &[])
}

/// What the server itself saw, read by a session of its own.
async fn state(http: &Arc<Http>, server: &str) -> Value {
    let session = Session::open(http, server).await;
    let answer = session.call(1, "state", &json!({})).await;
    session.end().await;
    serde_json::from_str(text(&answer)).expect("JSON")
}

/// Opens the sessions of a run, each with its own stream and its own resource.
async fn open(http: &Arc<Http>, server: &str, asks_succeed: bool, width: usize) -> Vec<Member> {
    let tally = Arc::new(Tally::default());
    let width = Arc::new(Semaphore::new(width));
    let mut members = Vec::new();
    for me in 0..SESSIONS {
        let session = Arc::new(Session::open(http, server).await);
        let subscribe = request("subscribe", "resources/subscribe", &json!({"uri": Member::uri(me)}));
        let answer = session.send(&subscribe).await.answer().await;
        assert_eq!(answer["result"], json!({}));
        let (tally, width) = (Arc::clone(&tally), Arc::clone(&width));
        members.push(Member { me, session, tally, asks_succeed, width });
    }
    members
}

/// Has every session do `turns` things in each of its lanes, and checks that all came out right.
async fn run(http: &Arc<Http>, members: Vec<Member>, turns: usize, seed: u64) -> Arc<Tally> {
    let tally = Arc::clone(&members[0].tally);
    let server = members[0].session.server.clone();
    let mut streams: JoinSet<()> = members.iter().cloned().map(Member::listen).collect();
    let mut lanes = JoinSet::new();
    for member in &members {
        for lane in 0..LANES {
            let random =
                Dice::seeded(seed ^ ((member.me * LANES + lane) as u64).wrapping_mul(0x2545_F491_4F6C_DD1D));
            lanes.spawn(member.clone().lane(lane, turns, random));
        }
    }
    while let Some(done) = lanes.join_next().await {
        done.expect("every call came out right");
    }
    tally.settled(members[0].asks_succeed).await;
    let seen = state(http, &server).await;
    for member in &members {
        assert_eq!(member.session.end().await, 200);
    }
    while let Some(done) = streams.join_next().await {
        done.expect("every stream was right");
    }
    tally.check();
    check_server(&tally, &seen);
    tally
}

/// The server saw every call once, each under an id of its own, and nothing that was forged.
fn check_server(tally: &Tally, seen: &Value) {
    let sent = tally.calls.load(Ordering::Relaxed) + 1;
    let certain = sent - tally.unsent.load(Ordering::Relaxed);
    assert!(
        seen["calls"].as_u64().is_some_and(|calls| (certain..=sent).contains(&calls)),
        "{certain}..={sent}: {seen}"
    );
    for never in ["duplicate_ids", "stray_answers", "stray_progress", "asked"] {
        assert_eq!(seen[never], 0, "{never}: {seen}");
    }
    let lock = |set: &Mutex<BTreeSet<String>>| set.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let (certain, perhaps) = (lock(&tally.cancelled), lock(&tally.perhaps_cancelled));
    let cancelled: BTreeSet<String> = serde_json::from_value(seen["cancelled"].clone()).expect("tags");
    assert!(certain.is_subset(&cancelled), "cancelled, but not told: {:?}", certain.difference(&cancelled));
    let others: Vec<_> =
        cancelled.iter().filter(|tag| !certain.contains(*tag) && !perhaps.contains(*tag)).collect();
    assert!(others.is_empty(), "cancelled, but by nobody: {others:?}");
}

fn report(leg: &str, tally: &Tally) {
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    println!(
        "{leg}: {} calls, {} requests of the server answered, {} refused, {} progress, {} of {} log lines and list \
         changes, {} resource updates",
        count(&tally.calls),
        count(&tally.asked),
        count(&tally.refused),
        count(&tally.progress),
        count(&tally.heard),
        count(&tally.said),
        count(&tally.updated)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_that_share_an_instance_and_run_at_once() {
    let seed = seed();
    let daemon = daemon("concurrent");
    let http = Http::new(daemon.address());
    // All at once: what the server asks has no certain owner, and nobody may get it by chance.
    let wide = run(&http, open(&http, "silent", false, SESSIONS * LANES).await, 40, seed).await;
    report("all at once", &wide);
    // Two at a time: what it asks is certain now and then.
    let narrow = run(&http, open(&http, "fake", false, 2).await, 14, seed).await;
    report("two at a time", &narrow);
    let calls = wide.calls.load(Ordering::Relaxed) + narrow.calls.load(Ordering::Relaxed);
    assert!(calls >= 10_000, "{calls} calls prove too little");
    for both in [&narrow.asked, &narrow.refused, &wide.refused, &narrow.heard, &wide.updated] {
        assert!(both.load(Ordering::Relaxed) > 0, "the run did not cover what it is for");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_that_take_turns_are_asked_and_answer() {
    let seed = seed();
    let daemon = daemon("serial");
    let http = Http::new(daemon.address());
    let tally = run(&http, open(&http, "fake", true, SESSIONS * LANES).await, 8, seed).await;
    report("serial", &tally);
    assert!(tally.asked.load(Ordering::Relaxed) > 0);
    assert_eq!(state(&http, "fake").await["most_at_once"], 1, "one call at a time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_asks_back_is_served_one_call_at_a_time_from_then_on() {
    let seed = seed();
    let daemon = daemon("auto");
    let http = Http::new(daemon.address());
    let learns = || daemon.cli(&["status", "fake", "--json"]).stdout;
    let asks_back =
        |status: Vec<u8>| serde_json::from_slice::<Value>(&status).expect("JSON")["asks_back"].clone();
    assert_eq!(asks_back(learns()), false);
    let mut members = open(&http, "fake", false, SESSIONS * LANES).await;
    // It learns in the middle of calls that run at once; those may be refused what they ask.
    let mut first = JoinSet::new();
    for member in members.clone() {
        first.spawn(async move {
            let mut random = Dice::seeded(seed ^ member.me as u64);
            member.ask(&json!("first"), &member.tag("first"), &mut random).await;
        });
    }
    while let Some(done) = first.join_next().await {
        done.expect("refused or answered");
    }
    wait_until("the server is known to ask back", || asks_back(learns()) == true);
    members.iter_mut().for_each(|member| member.asks_succeed = true);
    let refused = members[0].tally.refused.load(Ordering::Relaxed);
    let tally = run(&http, members, 6, seed).await;
    report("auto", &tally);
    assert!(tally.asked.load(Ordering::Relaxed) > 0);
    assert_eq!(tally.refused.load(Ordering::Relaxed), refused, "what is asked has one owner now");
}

/// A modern client has no session; what it is in this test goes by its tag alone.
#[derive(Clone)]
struct Guest {
    me: usize,
    http: Arc<Http>,
    tally: Arc<Tally>,
}

impl Guest {
    fn tag(&self, what: &str) -> String {
        format!("[s{}:{what}]", self.me)
    }

    async fn send(&self, id: &Value, tool: &str, arguments: &Value) -> Reply {
        self.tally.count(&self.tally.calls);
        let request = modern(with_token(tool_call(id.clone(), tool, arguments), id));
        post_modern(&self.http, "modern", &request).await
    }

    /// Reads a call's messages, progress under this id, up to its answer.
    async fn finish(&self, mut reply: Reply, id: &Value) -> Value {
        loop {
            let message = reply.next().await.expect("an answer");
            if message.get("method").is_none() {
                assert_eq!(&message["id"], id, "{message}");
                return message;
            }
            self.progressed(&message, id);
        }
    }

    fn progressed(&self, message: &Value, id: &Value) {
        self.tally.inspect(self.me, message);
        self.tally.count(&self.tally.progress);
        if message["method"] != "notifications/progress" || &message["params"]["progressToken"] != id {
            self.tally.leak(format!("guest {}, token {id}, got {message}", self.me));
        }
    }

    async fn lane(self, lane: usize, turns: usize, mut random: Dice) {
        for turn in 0..turns {
            let id = id_of(lane, turn);
            let tag = self.tag(&format!("{lane}.{turn}"));
            match random.below(10) {
                0..4 => {
                    let answer = self.finish(self.send(&id, "echo", &json!({"text": tag})).await, &id).await;
                    assert_eq!(text(&answer), tag);
                }
                4..7 => {
                    let arguments = json!({"steps": 3, "gap_ms": random.below(3), "tag": tag});
                    let answer = self.finish(self.send(&id, "progress", &arguments).await, &id).await;
                    assert_eq!(text(&answer), tag);
                }
                7..9 => {
                    self.tally.count(&self.tally.touched);
                    let uri = Member::uri(random.below(SESSIONS as u64) as usize);
                    let answer = self.finish(self.send(&id, "touch", &json!({"uri": uri})).await, &id).await;
                    assert_eq!(text(&answer), uri);
                }
                // Hangs up on a call that runs: only that call is cancelled.
                _ => {
                    insert(&self.tally.cancelled, &tag);
                    let arguments = json!({"ms": FOR_EVER_MS, "tag": tag});
                    let mut reply = self.send(&id, "sleep", &arguments).await;
                    let message = reply.next().await.expect("progress says that it runs");
                    self.progressed(&message, &id);
                }
            }
        }
    }

    /// Subscribes to the guest's own resource, under the same id as everybody.
    async fn subscribe(&self) -> Reply {
        let params = json!({"notifications": {"resourceSubscriptions": [Member::uri(self.me)]}});
        let mut stream =
            post_modern(&self.http, "modern", &modern(request(0, "subscriptions/listen", &params))).await;
        let first = stream.next().await.expect("an acknowledgement");
        assert_eq!(first["method"], "notifications/subscriptions/acknowledged", "{first}");
        stream
    }

    async fn listen(self, mut stream: Reply) {
        while let Some(message) = stream.next().await {
            self.tally.inspect(self.me, &message);
            self.tally.count(&self.tally.updated);
            assert_eq!(message["method"], "notifications/resources/updated");
            assert_eq!(message["params"]["uri"], Member::uri(self.me));
            assert_eq!(message["params"]["_meta"]["io.modelcontextprotocol/subscriptionId"], 0);
        }
    }
}

/// Over Streamable HTTP each call has a stream of its own: all at once, and yet everything has an owner.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_that_share_an_instance_over_http() {
    let seed = seed();
    let daemon = daemon_over("auto", HTTP.0, HTTP.1);
    let http = Http::new(daemon.address());
    for server in ["fake", "silent"] {
        let tally = run(&http, open(&http, server, true, SESSIONS * LANES).await, 8, seed).await;
        report(server, &tally);
        assert!(tally.asked.load(Ordering::Relaxed) > 0 && tally.updated.load(Ordering::Relaxed) > 0);
        assert_eq!(tally.refused.load(Ordering::Relaxed), 0);
        let most = state(&http, server).await["most_at_once"].as_u64();
        assert!(most > Some(1), "calls overlap, although it asks back");
    }
}

/// Everything comes on one stream, as on a pipe.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_that_share_an_instance_over_one_stream() {
    let seed = seed();
    for wire in ["sse", "ws"] {
        let transport = if wire == "ws" { "websocket" } else { wire };
        let keys = format!("transport = \"{transport}\"\nports = {{ mcp = \"auto\" }}\n");
        let daemon = daemon_over("serial", &format!("\"{wire}\", \"{{port.mcp}}\", "), &keys);
        let http = Http::new(daemon.address());
        let tally = run(&http, open(&http, "fake", true, SESSIONS * LANES).await, 3, seed).await;
        report(wire, &tally);
        assert!(tally.asked.load(Ordering::Relaxed) > 0);
    }
}

/// The words and keys of a server over Streamable HTTP.
const HTTP: (&str, &str) =
    (r#""http", "{port.mcp}", "#, "transport = \"http\"\nports = { mcp = \"auto\" }\n");

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn modern_clients_that_share_an_instance() {
    modern_clients(&daemon("auto")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn modern_clients_that_share_an_instance_over_http() {
    modern_clients(&daemon_over("auto", HTTP.0, HTTP.1)).await;
}

async fn modern_clients(daemon: &Daemon) {
    let seed = seed();
    let http = Http::new(daemon.address());
    let tally = Arc::new(Tally::default());
    let (mut streams, mut lanes) = (JoinSet::new(), JoinSet::new());
    let guest = |me| Guest { me, http: Arc::clone(&http), tally: Arc::clone(&tally) };
    for guest in (0..SESSIONS).map(guest) {
        let stream = guest.subscribe().await;
        streams.spawn(guest.listen(stream));
    }
    for (me, guest) in (0..SESSIONS).map(guest).enumerate() {
        for lane in 1..=LANES {
            let random =
                Dice::seeded(seed ^ ((me * LANES + lane) as u64).wrapping_mul(0x2545_F491_4F6C_DD1D));
            lanes.spawn(guest.clone().lane(lane, 10, random));
        }
    }
    while let Some(done) = lanes.join_next().await {
        done.expect("every call came out right");
    }
    let cancelled = tally.cancelled.lock().unwrap_or_else(PoisonError::into_inner).len();
    let mut looks = 0;
    let seen = loop {
        let request = modern(tool_call("state", "state", &json!({})));
        let answer = post_modern(&http, "modern", &request).await.answer().await;
        let seen: Value = serde_json::from_str(text(&answer)).expect("JSON");
        looks += 1;
        // The last clients to hang up may not have been noticed yet.
        if seen["cancelled"].as_array().map(Vec::len) == Some(cancelled) || looks == 200 {
            break seen;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    tally.calls.fetch_add(looks - 1, Ordering::Relaxed);
    check_server(&tally, &seen);
    assert_eq!(seen["listening"], SESSIONS, "{seen}");
    tally.settled(true).await;
    tally.check();
    report("modern", &tally);
    assert!(tally.updated.load(Ordering::Relaxed) > 0);
    streams.abort_all();
    while let Some(stream) = streams.join_next().await {
        assert!(stream.is_err_and(|error| error.is_cancelled()), "a subscription failed");
    }
}
