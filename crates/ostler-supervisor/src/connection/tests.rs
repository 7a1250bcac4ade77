//! The task of a connection between two sessions and a process that the test plays. Time is virtual.

use ostler_domain::Concurrency;
use ostler_mcp::Kind;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::unix::pipe;
use tokio::time::Instant;

use super::*;
use crate::stream::{Keep, Presence};

const MINUTE: Duration = Duration::from_secs(60);

/// A connection in serial mode, and the other ends of its pipes.
struct Process {
    connection: Arc<Connection>,
    input: Lines<BufReader<pipe::Receiver>>,
    output: Option<pipe::Sender>,
    news: mpsc::Receiver<News>,
    events: Arc<Events>,
}

/// What a connection in serial mode is made of.
fn parts(news: mpsc::Sender<News>) -> Parts {
    let settings = Settings {
        era: Era::Legacy,
        exclusive: false,
        concurrency: Concurrency::Serial,
        asks_back: true,
        streams_per_call: false,
        max_calls: 10,
        call_idle_ms: 3_600_000,
        call_max_ms: 3_600_000,
        reverse_base: 1 << 32,
    };
    Parts {
        instance: InstanceId { server: "test".parse().unwrap(), number: 1 },
        generation: Generation(1),
        settings,
        max_message: 1 << 20,
        budget: Budget::new(1 << 20),
        log: Arc::new(Log::new(10)),
        events: Arc::new(Events::default()),
        news,
    }
}

impl Process {
    fn new() -> Self {
        let (stdin, input) = pipe::pipe().unwrap();
        let (output, stdout) = pipe::pipe().unwrap();
        let (news_sender, news) = mpsc::channel(3);
        let parts = parts(news_sender);
        let events = Arc::clone(&parts.events);
        let connection = Connection::open(stdin.into(), stdout.into(), parts);
        Self { connection, input: BufReader::new(input).lines(), output: Some(output), news, events }
    }

    /// A session whose client reads nothing yet.
    async fn attach(&self, session: SessionKey) -> Arc<ReplayStream> {
        let stream = Arc::new(ReplayStream::of(Keep { events: 10, bytes: 1000 }, Arc::<Presence>::default()));
        self.connection.attach(session, Arc::clone(&stream)).await.unwrap();
        stream
    }

    async fn call(&self, session: SessionKey) -> oneshot::Receiver<First> {
        call(&self.connection, session).await
    }

    /// The messages of events of this kind.
    fn told(&self, kind: &str) -> Vec<String> {
        let events = self.events.after(0, usize::MAX).into_iter();
        events.filter(|event| event.kind == kind).map(|event| event.message).collect()
    }

    /// The next message that the process is sent.
    async fn hears(&mut self) -> Value {
        let line = self.input.next_line().await.unwrap().expect("a line");
        serde_json::from_str(&line).unwrap()
    }

    async fn says(&mut self, message: Value) {
        let output = self.output.as_mut().unwrap();
        output.write_all(format!("{message}\n").as_bytes()).await.unwrap();
    }
}

/// Calls something; the session is attached.
async fn call(connection: &Connection, session: SessionKey) -> oneshot::Receiver<First> {
    let (sink, first) = CallSink::new();
    let ticket = connection.ticket();
    let request = Request {
        ticket,
        session: Some(session),
        client_id: Bytes::from(ticket.to_string()),
        client_token: None,
        kind: CallKind::Call,
        special: None,
        wants_log: false,
        wire: Message::from(json!({"jsonrpc": "2.0", "id": ticket, "method": "x"}).to_string()),
        sink,
    };
    connection.call(request, MINUTE).await.unwrap();
    first
}

async fn answer(first: oneshot::Receiver<First>) -> Answer {
    match first.await.unwrap() {
        First::Answer(answer) => answer,
        First::Stream(stream) => stream.answer.await.unwrap(),
    }
}

fn text(answer: &Answer) -> String {
    String::from_utf8(answer.message.to_bytes().to_vec()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_gone_does_not_hold_up_the_others() {
    let mut process = Process::new();
    let stream = process.attach(7).await;
    process.attach(8).await;
    let reader = stream.read();
    let asking = process.call(7).await;
    let ticket = process.hears().await["id"].clone();
    let next = process.call(8).await;
    process.says(json!({"jsonrpc": "2.0", "id": "q", "method": "roots/list"})).await;
    let First::Stream(mut messages) = asking.await.unwrap() else { panic!("a question was due") };
    assert!(text_of(&messages.messages.recv().await.unwrap()).contains("roots/list"));

    // A person may think for long, as long as the client is there.
    let waited = tokio::time::timeout(10 * MINUTE, process.hears()).await;
    assert!(waited.is_err(), "{waited:?}");
    drop(reader);
    let left = Instant::now();
    let refused = process.hears().await;
    assert_eq!((&refused["id"], &refused["error"]["code"]), (&json!("q"), &json!(-32601)));
    assert_eq!(refused["error"]["message"], "the client is gone");
    let after = left.elapsed();
    assert!((Duration::from_secs(15)..Duration::from_secs(16)).contains(&after), "{after:?}");

    process.says(json!({"jsonrpc": "2.0", "id": ticket, "result": {}})).await;
    let ticket = process.hears().await["id"].clone();
    process.says(json!({"jsonrpc": "2.0", "id": ticket, "result": {"for": 8}})).await;
    assert!(text(&answer(next).await).contains("\"for\":8"));
}

fn text_of(message: &Message) -> String {
    String::from_utf8(message.to_bytes().to_vec()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_client_that_comes_back_in_time_is_still_asked() {
    let mut process = Process::new();
    let stream = process.attach(7).await;
    process.attach(8).await;
    let reader = stream.read();
    let _asking = process.call(7).await;
    process.hears().await;
    process.says(json!({"jsonrpc": "2.0", "id": "q", "method": "roots/list"})).await;
    drop(reader);
    let soon = Duration::from_secs(14);
    for _ in 0..5 {
        let waited = tokio::time::timeout(soon, process.hears()).await;
        assert!(waited.is_err(), "{waited:?}");
        drop(stream.read());
    }
    let refused = process.hears().await;
    assert_eq!(refused["error"]["message"], "the client is gone");
}

#[tokio::test(start_paused = true)]
async fn calls_of_a_process_that_ends_hear_how_it_ended() {
    let mut process = Process::new();
    process.attach(7).await;
    let call = process.call(7).await;
    process.hears().await;
    process.output = None;
    assert_eq!(process.news.recv().await, Some(News::OutputClosed));
    process.connection.fail("the server was ended by SIGKILL".to_owned());
    let answer = answer(call).await;
    assert_eq!(answer.kind, Kind::Error(ostler_mcp::rpc::INSTANCE_LOST));
    assert!(text(&answer).contains("the server was ended by SIGKILL"), "{}", text(&answer));
}

#[tokio::test(start_paused = true)]
async fn the_first_reason_counts_and_outlives_the_connection() {
    let mut process = Process::new();
    process.attach(7).await;
    let call = process.call(7).await;
    process.hears().await;
    for reason in ["the server exited with status 7", "the instance ended"] {
        process.connection.fail(reason.to_owned());
    }
    // Nobody holds it any more, while its output is still open: something may be left to read.
    process.connection = Process::new().connection;
    let answer = answer(call).await;
    assert!(text(&answer).contains("the server exited with status 7"), "{}", text(&answer));
}

#[tokio::test(start_paused = true)]
async fn a_process_that_closes_its_output_and_lives_on_keeps_nobody_waiting() {
    let mut process = Process::new();
    process.attach(7).await;
    let call = process.call(7).await;
    process.hears().await;
    let closed = Instant::now();
    process.output = None;
    assert!(text(&answer(call).await).contains("the server closed its output"));
    assert!(closed.elapsed() < Duration::from_secs(1), "{:?}", closed.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_process_that_closes_its_input_is_reported() {
    let mut process = Process::new();
    process.attach(7).await;
    process.input = BufReader::new(pipe::pipe().unwrap().1).lines();
    let call = process.call(7).await;
    assert_eq!(process.news.recv().await, Some(News::InputClosed));
    assert!(text(&answer(call).await).contains("does not take requests"));
}

#[tokio::test(start_paused = true)]
async fn what_a_process_answered_before_it_ended_is_its_answer() {
    let mut process = Process::new();
    process.attach(7).await;
    let call = process.call(7).await;
    let ticket = process.hears().await["id"].clone();
    process.says(json!({"jsonrpc": "2.0", "id": ticket, "result": {"last": "words"}})).await;
    process.connection.fail("the server exited with status 0".to_owned());
    process.connection.fail("the instance ended".to_owned());
    assert!(text(&answer(call).await).contains("last"));
}

/// A connection to a server on the network, and the courier's ends of its queues.
struct Network {
    connection: Arc<Connection>,
    to_server: mpsc::Receiver<Message>,
    from_server: mpsc::Sender<Frame>,
    _news: mpsc::Receiver<News>,
}

impl Network {
    async fn new(session: SessionKey) -> Self {
        let (sender, to_server) = mpsc::channel(LINK);
        let (from_server, receiver) = mpsc::channel(LINK);
        let (news_sender, _news) = mpsc::channel(3);
        let (writer, reader) =
            (Writer::Queue(sender, VecDeque::new(), 0), Reader::Queue(receiver, Vec::new()));
        let settings = Settings {
            concurrency: Concurrency::Concurrent,
            max_calls: 10_000,
            ..parts(news_sender.clone()).settings
        };
        let parts = Parts { settings, ..parts(news_sender) };
        let connection = Connection::start(writer, reader, parts, Arc::default());
        let stream = ReplayStream::of(Keep { events: 10, bytes: 1000 }, Arc::<Presence>::default());
        connection.attach(session, Arc::new(stream)).await.unwrap();
        Self { connection, to_server, from_server, _news }
    }

    async fn hears(&mut self) -> u64 {
        let message = self.to_server.recv().await.unwrap();
        serde_json::from_slice::<Value>(&message.to_bytes()).unwrap()["id"].as_u64().unwrap()
    }

    async fn broken(&self, ticket: u64, why: &str) {
        let answer = ostler_mcp::rpc::error(Some(ticket.to_string().as_bytes()), -31001, why).to_bytes();
        self.from_server.send(Frame::Broken(answer)).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_came_to_nothing_fails_alone_and_a_better_reason_counts() {
    let mut network = Network::new(7).await;
    let (first, other) = (call(&network.connection, 7).await, call(&network.connection, 7).await);
    let (ticket, another) = (network.hears().await, network.hears().await);
    let began = Instant::now();
    network.broken(ticket, "connection refused").await;
    assert!(text(&answer(first).await).contains("connection refused"));
    assert!(
        began.elapsed() >= Duration::from_millis(500),
        "something better may be said: {:?}",
        began.elapsed()
    );
    let line = json!({"jsonrpc": "2.0", "id": another, "result": {}}).to_string().into();
    network.from_server.send(Frame::Message { text: line, of: Some(another) }).await.unwrap();
    assert_eq!(answer(other).await.kind, Kind::Result);

    let call = call(&network.connection, 7).await;
    let ticket = network.hears().await;
    network.broken(ticket, "connection reset").await;
    network.connection.fail("the server exited with status 7".to_owned());
    network.broken(ticket, "connection reset").await;
    assert!(text(&answer(call).await).contains("status 7"));
    assert!(network.to_server.recv().await.is_none(), "its courier has nothing left to do");
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_network_has_its_reason() {
    let mut network = Network::new(7).await;
    let call = call(&network.connection, 7).await;
    network.hears().await;
    network.from_server.send(Frame::Closed("the server ended its session".to_owned())).await.unwrap();
    assert!(text(&answer(call).await).contains("the server ended its session"));
}

#[tokio::test(start_paused = true)]
async fn calls_wait_in_order_for_a_courier_that_takes_nothing() {
    let mut network = Network::new(7).await;
    // Large ones, so that what waits comes to its bound.
    let (mut calls, filler) = (Vec::new(), "x".repeat(8 * 1024));
    for _ in 0..200 {
        let (sink, first) = CallSink::new();
        let ticket = network.connection.ticket();
        let request = Request {
            ticket,
            session: Some(7),
            client_id: Bytes::from(ticket.to_string()),
            client_token: None,
            kind: CallKind::Call,
            special: None,
            wants_log: false,
            wire: Message::from(json!({"jsonrpc": "2.0", "id": ticket, "method": filler}).to_string()),
            sink,
        };
        network.connection.call(request, MINUTE).await.unwrap();
        calls.push(first);
    }
    for ticket in 1..=200 {
        assert_eq!(network.hears().await, ticket);
    }
}

#[tokio::test(start_paused = true)]
async fn a_process_that_asks_and_reads_nothing_is_read_on_and_not_answered_without_end() {
    let mut process = Process::new();
    process.attach(7).await;
    let filler = "x".repeat(1024);
    // Written in full: a process that reads only when it has written does not stand still.
    for n in 0..4000 {
        process.says(json!({"jsonrpc": "2.0", "id": format!("{n} {filler}"), "method": "ping"})).await;
    }
    let call = process.call(7).await;
    let dropped = || process.events.counters()["answers to the server"];
    let (mut answered, mut bytes, mut ticket) = (0, 0, None);
    while ticket.is_none() || answered + dropped() < 4000 {
        let line =
            tokio::time::timeout(MINUTE, process.input.next_line()).await.expect("all are accounted for");
        let heard: Value = serde_json::from_str(&line.unwrap().expect("a line")).unwrap();
        if heard["method"] == "x" {
            ticket = Some(heard["id"].clone());
        } else {
            (answered, bytes) = (answered + 1, bytes + heard["id"].as_str().unwrap().len());
        }
    }
    // What the two pipes held when it began to read comes on top.
    let pipes = 2 * 64 * 1024;
    assert!(bytes <= replies::REPLIES_MAX + outgoing::HIGH_WATER + pipes, "{bytes}");
    assert_eq!(
        process.told("dropped").len(),
        4,
        "the first, the 10th, the 100th, the 1000th of {}",
        dropped()
    );
    process.says(json!({"jsonrpc": "2.0", "id": ticket, "result": {"well": "again"}})).await;
    assert!(text(&answer(call).await).contains("again"));
}

#[tokio::test(start_paused = true)]
async fn requests_that_are_refused_without_end_are_told_now_and_then() {
    let mut process = Process::new();
    for session in [7, 8] {
        process.attach(session).await;
    }
    for n in 0..150 {
        process.says(json!({"jsonrpc": "2.0", "id": n, "method": "roots/list"})).await;
        assert_eq!(process.hears().await["id"], n);
    }
    assert_eq!(process.events.counters()["request_refused"], 150);
    assert_eq!(process.told("reverse-request-refused").len(), 3);
}
