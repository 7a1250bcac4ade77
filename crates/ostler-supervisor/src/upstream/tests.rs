//! Couriers against a server that the test plays, request by request.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::*;

/// Long enough for whatever comes at all.
const SOON: Duration = Duration::from_secs(20);
const ACCEPTED: &str = "HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
const STREAM: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n";

/// A request that the server got. Whoever has it answers it; the connection is closed when it is dropped.
struct Asked {
    /// `POST /mcp`, then the other lines of the head in lower case.
    head: String,
    body: Value,
    say: mpsc::UnboundedSender<String>,
    /// Resolves when the client hangs up.
    hung_up: oneshot::Receiver<()>,
}

impl Asked {
    fn says(&self, text: impl Into<String>) {
        let _ = self.say.send(text.into());
    }

    /// Answers with this status and no more.
    fn refuse(self, status: &str) {
        self.says(format!("HTTP/1.1 {status}\r\nContent-Length: 5\r\nConnection: close\r\n\r\nnope\n"));
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

/// A courier, the connection's side of it, and the server's.
struct Scene {
    link: Link,
    asked: mpsc::UnboundedReceiver<Asked>,
    events: Arc<Events>,
    news: mpsc::Receiver<News>,
}

impl Scene {
    async fn new(transport: Transport) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (to_test, asked) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, to_test.clone()));
            }
        });
        let scheme = if transport == Transport::WebSocket { "ws" } else { "http" };
        let uri: Uri = format!("{scheme}://127.0.0.1:{port}/mcp").parse().unwrap();
        let (to_server, messages) = mpsc::channel(LINK);
        let (frames, from_server) = mpsc::channel(LINK);
        let (news_sender, news) = mpsc::channel(5);
        let events = Arc::new(Events::default());
        let context = Context {
            instance: InstanceId { server: "test".parse().unwrap(), number: 1 },
            max_message: 1 << 20,
            budget: Budget::new(1 << 20),
            log: Arc::new(Log::new(10)),
            events: Arc::clone(&events),
            news: news_sender,
            frames,
            shared: Arc::default(),
        };
        tokio::spawn(carry(Target { transport, uri, headers: HeaderMap::new() }, messages, context));
        Self { link: Link { to_server, from_server }, asked, events, news }
    }

    async fn send(&self, message: Value) {
        self.link.to_server.send(Message::from(message.to_string())).await.unwrap();
    }

    async fn asked(&mut self) -> Asked {
        timeout(SOON, self.asked.recv()).await.expect("a request in time").expect("a request")
    }

    /// What the connection is given next.
    async fn given(&mut self) -> Frame {
        timeout(SOON, self.link.from_server.recv()).await.expect("a frame in time").expect("a frame")
    }

    /// The message that the connection is given next, or the answer that stands for one.
    async fn told(&mut self) -> Value {
        match self.given().await {
            Frame::Message { text, .. } | Frame::Broken(text) => serde_json::from_slice(&text).unwrap(),
            Frame::Closed(why) => panic!("closed: {why}"),
        }
    }

    /// A legacy session over HTTP up to the request for its stream, which is returned.
    async fn shaken_hands(&mut self) -> Asked {
        self.send(request(1, "initialize")).await;
        let asked = self.asked().await;
        let body =
            json!({"jsonrpc": "2.0", "id": 1, "result": {"protocolVersion": "2025-06-18"}}).to_string();
        asked.says(format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nMcp-Session-Id: s\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n{body}",
            body.len()
        ));
        assert_eq!(self.told().await["id"], 1);
        self.send(notification("notifications/initialized")).await;
        self.asked().await.says(ACCEPTED);
        let listen = self.asked().await;
        assert!(listen.head.starts_with("GET "), "{}", listen.head);
        listen
    }
}

/// Reads one request, and says what the test says until it says no more.
async fn serve(mut stream: TcpStream, to_test: mpsc::UnboundedSender<Asked>) {
    let mut bytes = Vec::new();
    let (head, body) = loop {
        if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
            return;
        }
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let (first, rest) = head.split_once("\r\n").unwrap();
        let head = format!("{}\n{}", first, rest.to_ascii_lowercase().replace("\r\n", "\n"));
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
        if body.len() >= length.unwrap_or(0) {
            break (head, serde_json::from_str(body).unwrap_or_default());
        }
    };
    let ((say, mut said), (gone, hung_up)) = (mpsc::unbounded_channel::<String>(), oneshot::channel());
    let _ = to_test.send(Asked { head, body, say, hung_up });
    loop {
        tokio::select! {
            text = said.recv() => match text {
                Some(text) => drop(stream.write_all(text.as_bytes()).await),
                None => return,
            },
            _ = stream.read_u8() => {
                let _ = gone.send(());
                return;
            }
        }
    }
}

fn request(id: u64, method: &str) -> Value {
    json!({"jsonrpc": "2.0", "id": id, "method": method, "params": {}})
}

fn notification(method: &str) -> Value {
    json!({"jsonrpc": "2.0", "method": method})
}

fn cancelled(id: u64) -> Value {
    json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": id}})
}

fn probe(id: u64) -> Value {
    let message = ostler_mcp::version::modern_request(id, "server/discover", "");
    serde_json::from_slice(&message.to_bytes()).unwrap()
}

#[tokio::test]
async fn a_probe_that_is_refused_in_plain_words_says_that_the_server_is_legacy() {
    for (status, code) in [
        ("400 Bad Request", rpc::PROBE_REFUSED),
        ("404 Not Found", rpc::PROBE_REFUSED),
        ("405 Method Not Allowed", rpc::PROBE_REFUSED),
        ("406 Not Acceptable", rpc::PROBE_REFUSED),
        ("415 Unsupported Media Type", rpc::PROBE_REFUSED),
        ("422 Unprocessable Content", rpc::PROBE_REFUSED),
        ("401 Unauthorized", rpc::INSTANCE_LOST),
        ("403 Forbidden", rpc::INSTANCE_LOST),
        ("429 Too Many Requests", rpc::INSTANCE_LOST),
        ("500 Internal Server Error", rpc::INSTANCE_LOST),
    ] {
        let mut scene = Scene::new(Transport::Http).await;
        scene.send(probe(7)).await;
        scene.asked().await.refuse(status);
        let told = scene.told().await;
        assert_eq!((&told["id"], &told["error"]["code"]), (&json!(7), &json!(code)), "{status}: {told}");
        assert!(told.to_string().contains(&status[..3]), "{told}");
    }
    // No other request is.
    let mut scene = Scene::new(Transport::Http).await;
    scene.send(request(8, "tools/list")).await;
    scene.asked().await.refuse("405 Method Not Allowed");
    assert_eq!(scene.told().await["error"]["code"], rpc::INSTANCE_LOST);
}

#[tokio::test]
async fn over_sse_a_request_may_be_accepted_only_with_its_answer() {
    let mut scene = Scene::new(Transport::Sse).await;
    scene.send(request(1, "tools/call")).await;
    let stream = scene.asked().await;
    stream.says(format!("{STREAM}event: endpoint\ndata: /m\n\n"));
    let mut post = scene.asked().await;
    assert_eq!(post.body["id"], 1);
    // Far longer than a server may take to accept what no answer is due for.
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(300)).await;
    tokio::time::resume();
    assert!(post.hung_up.try_recv().is_err(), "it still waits");
    let answer = json!({"jsonrpc": "2.0", "id": 1, "result": {}});
    stream.says(format!("event: message\ndata: {answer}\n\n"));
    assert_eq!(scene.told().await, answer);
    timeout(SOON, post.hung_up).await.expect("nothing is waited for any more").unwrap();
}

#[tokio::test]
async fn a_message_whose_post_hangs_does_not_hold_up_the_others() {
    let mut scene = Scene::new(Transport::Http).await;
    let _listen = scene.shaken_hands().await;
    scene.send(notification("notifications/one")).await;
    let _hangs = scene.asked().await;
    scene.send(notification("notifications/two")).await;
    assert_eq!(scene.asked().await.body["method"], "notifications/two");
}

#[tokio::test]
async fn nothing_goes_on_once_the_connection_is_gone_but_the_farewell() {
    let mut scene = Scene::new(Transport::Http).await;
    let listen = scene.shaken_hands().await;
    scene.send(request(2, "tools/call")).await;
    let call = scene.asked().await;
    // The way there stays open: what is over is seen from what comes back.
    let Scene { link, mut asked, .. } = scene;
    drop(link.from_server);
    let farewell = timeout(SOON, asked.recv()).await.unwrap().unwrap();
    assert!(farewell.head.starts_with("DELETE "), "{}", farewell.head);
    assert_eq!(farewell.header("mcp-session-id"), Some("s"));
    farewell.says(ACCEPTED);
    for hung_up in [listen.hung_up, call.hung_up] {
        timeout(SOON, hung_up).await.expect("it is let go").unwrap();
    }
    drop(link.to_server);
}

#[tokio::test]
async fn a_websocket_that_never_opens_is_let_go_with_its_connection() {
    let mut scene = Scene::new(Transport::WebSocket).await;
    scene.send(request(1, "initialize")).await;
    let upgrade = scene.asked().await;
    let Scene { link, .. } = scene;
    drop(link.from_server);
    timeout(SOON, upgrade.hung_up).await.expect("it is let go").unwrap();
    drop(link.to_server);
}

#[tokio::test]
async fn a_session_that_is_lost_is_noticed_wherever_that_is_said() {
    // By a message that no answer is due for.
    let mut scene = Scene::new(Transport::Http).await;
    let _listen = scene.shaken_hands().await;
    scene.send(notification("notifications/one")).await;
    scene.asked().await.refuse("404 Not Found");
    assert!(matches!(scene.given().await, Frame::Closed(why) if why.contains("session")));

    // By the attempt to take up the stream of a call.
    let mut scene = Scene::new(Transport::Http).await;
    let _listen = scene.shaken_hands().await;
    scene.send(request(2, "tools/call")).await;
    scene.asked().await.says(format!("{STREAM}id: e1\ndata:\n\n"));
    let again = scene.asked().await;
    assert_eq!(again.header("last-event-id"), Some("e1"));
    again.refuse("404 Not Found");
    assert!(matches!(scene.given().await, Frame::Broken(_)));
    assert!(matches!(scene.given().await, Frame::Closed(why) if why.contains("session")));
}

#[tokio::test]
async fn an_attempt_that_brought_something_is_not_fruitless() {
    let mut scene = Scene::new(Transport::Http).await;
    let _listen = scene.shaken_hands().await;
    scene.send(request(2, "tools/call")).await;
    scene.asked().await.says(format!("{STREAM}id: e1\ndata:\n\n"));
    // More often than attempts may be fruitless; only the first event had an id.
    for step in 0..7 {
        let again = scene.asked().await;
        assert_eq!(again.header("last-event-id"), Some("e1"));
        again.says(format!("{STREAM}data: {}\n\n", json!({"jsonrpc": "2.0", "method": "m", "params": step})));
        drop(again);
        assert_eq!(scene.told().await["params"], step);
    }
    scene
        .asked()
        .await
        .says(format!("{STREAM}data: {}\n\n", json!({"jsonrpc": "2.0", "id": 2, "result": 1})));
    assert_eq!(scene.told().await["result"], 1);
}

#[tokio::test]
async fn a_stream_that_cannot_be_taken_up_where_it_broke_off_is_begun_anew() {
    let mut scene = Scene::new(Transport::Http).await;
    scene.shaken_hands().await.says(format!("{STREAM}id: old\ndata:\n\n"));
    let stale = scene.asked().await;
    assert_eq!(stale.header("last-event-id"), Some("old"));
    stale.refuse("400 Bad Request");
    let anew = scene.asked().await;
    assert_eq!((anew.header("last-event-id"), anew.header("mcp-session-id")), (None, Some("s")));
    assert_eq!(scene.events.counters().get("upstream.stream_gap"), Some(&1));
}

#[tokio::test]
async fn only_a_server_that_says_so_has_no_stream() {
    for status in ["408 Request Timeout", "429 Too Many Requests", "503 Service Unavailable"] {
        let mut scene = Scene::new(Transport::Http).await;
        scene.shaken_hands().await.refuse(status);
        assert_eq!(timeout(SOON, scene.news.recv()).await.unwrap(), Some(News::StreamLost), "{status}");
        scene.asked().await.says(STREAM);
        assert_eq!(timeout(SOON, scene.news.recv()).await.unwrap(), Some(News::StreamBack), "{status}");
    }
    // What neither gives one nor says that there is none is asked a few times.
    let mut scene = Scene::new(Transport::Http).await;
    scene.shaken_hands().await.refuse("400 Bad Request");
    for _ in 1..5 {
        scene.asked().await.refuse("400 Bad Request");
    }
    // Nothing was lost, as there was nothing.
    assert!(scene.news.try_recv().is_err());
}

#[tokio::test]
async fn of_many_cancelled_calls_the_oldest_are_let_go() {
    let mut scene = Scene::new(Transport::Http).await;
    let _listen = scene.shaken_hands().await;
    let mut waiting = Vec::new();
    for id in 2..67 {
        scene.send(request(id, "tools/call")).await;
        waiting.push(scene.asked().await);
    }
    let ids: BTreeSet<u64> = waiting.iter().filter_map(|asked| asked.body["id"].as_u64()).collect();
    assert_eq!(ids.len(), 65);
    for id in 2..67 {
        scene.send(cancelled(id)).await;
        scene.asked().await.says(ACCEPTED);
    }
    timeout(SOON, waiting.remove(0).hung_up).await.expect("the first is let go").unwrap();
    assert!(waiting.iter_mut().all(|asked| asked.hung_up.try_recv().is_err()), "the others are not");
}
