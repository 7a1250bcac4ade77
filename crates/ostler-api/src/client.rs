//! A typed client of the management API over its unix socket. One connection per request: the socket is
//! local, a connection costs tens of microseconds, and nothing has to be kept alive or repaired.

mod tasks;

use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use crate::error::ClientError;
use crate::events::{EventQuery, EventStream, RunStream};
use crate::routes::{self, Route};
use crate::run::{RunMany, RunReport};
use crate::types::{
    AlertView, ApiError, AuditView, DaemonStatus, DrainingView, EventView, InstanceView, LogLine, NewProcess,
    NewSession, OpenedSession, OwnInstanceView, ProcessView, ReloadView, ServerView, SessionView,
};

/// Longest wait for the socket to take a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Longest wait for an answer that is only looked up.
const LOOKUP_LIMIT: Duration = Duration::from_secs(30);
/// Longest wait for a start, stop or restart. The default deadlines of an instance add up to 87 s; a
/// configuration may ask for more.
const ACTION_LIMIT: Duration = Duration::from_secs(600);
/// Largest answer that is taken, in bytes; a listing of 1,000 sessions is about 0.5 MiB.
const MAX_ANSWER: usize = 64 << 20;
/// Longest line of a log stream, in bytes; the daemon cuts log lines far below this.
const MAX_LINE: usize = 4 << 20;

/// The forms of an answer that a request takes.
const ACCEPT: &str = "application/json, application/x-ndjson";
/// The form of an answer that is a stream of events.
const ACCEPT_EVENTS: &str = "text/event-stream";

/// What to do with a server or an instance.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verb {
    /// Start it.
    Start,
    /// Stop it, to the last process.
    Stop,
    /// Stop and start it.
    Restart,
}

impl Verb {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Restart => "restart",
        }
    }
}

/// Which log lines are wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LogQuery {
    /// At most this many of the newest kept lines; all of them when absent.
    pub n: Option<u64>,
    /// Whether new lines are wanted as they come.
    pub follow: bool,
}

/// The process that owns the other end of the socket, as the kernel says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PeerProcess {
    /// Its process id; absent when it lives in a process namespace this one cannot see.
    pub pid: Option<i32>,
    /// Its user.
    pub uid: u32,
}

/// A client of the management API.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
    action_limit: Duration,
}

impl Client {
    /// A client of the daemon whose socket is `socket`. Nothing is contacted yet.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into(), action_limit: ACTION_LIMIT }
    }

    /// The same client with another longest wait for starts, stops and restarts.
    #[must_use]
    pub fn with_action_limit(mut self, limit: Duration) -> Self {
        self.action_limit = limit;
        self
    }

    /// The socket it talks to.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Who owns the other end of the socket.
    ///
    /// # Errors
    ///
    /// [`ClientError::NoDaemon`], [`ClientError::Connect`] or [`ClientError::Timeout`].
    pub async fn peer(&self) -> Result<PeerProcess, ClientError> {
        let stream = self.dial().await?;
        let credentials = stream.peer_cred().map_err(|source| self.connect_error(source))?;
        Ok(PeerProcess { pid: credentials.pid().filter(|pid| *pid > 0), uid: credentials.uid() })
    }

    /// The daemon as a whole.
    ///
    /// # Errors
    ///
    /// Any [`ClientError`]; so for every method below.
    pub async fn status(&self) -> Result<DaemonStatus, ClientError> {
        self.look_up(&routes::STATUS, &[], "").await
    }

    /// All servers.
    ///
    /// # Errors
    ///
    /// Any [`ClientError`].
    pub async fn servers(&self) -> Result<Vec<ServerView>, ClientError> {
        self.look_up(&routes::SERVERS, &[], "").await
    }

    /// One server.
    ///
    /// # Errors
    ///
    /// Any [`ClientError`].
    pub async fn server(&self, name: &str) -> Result<ServerView, ClientError> {
        self.look_up(&routes::SERVER, &[name], "").await
    }

    /// Starts, stops or restarts a server, and waits until that is done.
    ///
    /// # Errors
    ///
    /// Any [`ClientError`].
    pub async fn server_action(&self, name: &str, verb: Verb) -> Result<ServerView, ClientError> {
        let route = match verb {
            Verb::Start => routes::SERVER_START,
            Verb::Stop => routes::SERVER_STOP,
            Verb::Restart => routes::SERVER_RESTART,
        };
        decode(&self.fetch(&route, &[name], "", self.action_limit).await?)
    }

    /// All instances, and one row for each server without one.
    ///
    /// # Errors
    ///
    /// Any [`ClientError`].
    pub async fn instances(&self) -> Result<Vec<InstanceView>, ClientError> {
        self.look_up(&routes::INSTANCES, &[], "").await
    }

    /// One instance.
    ///
    /// # Errors
    ///
    /// Any [`ClientError`].
    pub async fn instance(&self, id: &str) -> Result<InstanceView, ClientError> {
        self.look_up(&routes::INSTANCE, &[id], "").await
    }

    /// Starts, stops or restarts an instance, and waits until that is done.
    ///
    /// # Errors
    ///
    /// Any [`ClientError`].
    pub async fn instance_action(&self, id: &str, verb: Verb) -> Result<InstanceView, ClientError> {
        let route = match verb {
            Verb::Start => routes::INSTANCE_START,
            Verb::Stop => routes::INSTANCE_STOP,
            Verb::Restart => routes::INSTANCE_RESTART,
        };
        decode(&self.fetch(&route, &[id], "", self.action_limit).await?)
    }

    /// The instance to whose tree this process belongs, if it belongs to one.
    ///
    /// # Errors
    ///
    /// Any [`ClientError`].
    pub async fn instance_of(&self, pid: u32) -> Result<Option<InstanceView>, ClientError> {
        let found: Vec<InstanceView> = self.look_up(&routes::INSTANCES, &[], &format!("pid={pid}")).await?;
        Ok(found.into_iter().next())
    }

    /// Log lines of all instances of a server.
    ///
    /// # Errors
    ///
    /// Any [`ClientError`].
    pub async fn server_logs(&self, name: &str, query: LogQuery) -> Result<LogStream, ClientError> {
        self.lines(&routes::SERVER_LOGS, name, query).await
    }

    /// Log lines of one instance.
    ///
    /// # Errors
    ///
    /// Any [`ClientError`].
    pub async fn instance_logs(&self, id: &str, query: LogQuery) -> Result<LogStream, ClientError> {
        self.lines(&routes::INSTANCE_LOGS, id, query).await
    }

    /// All client sessions.
    ///
    /// # Errors
    ///
    /// Any [`ClientError`].
    pub async fn sessions(&self) -> Result<Vec<SessionView>, ClientError> {
        self.look_up(&routes::SESSIONS, &[], "").await
    }

    /// Ends a client session. `None` when it has ended; else what of it still runs.
    ///
    /// # Errors
    ///
    /// Any [`ClientError`].
    pub async fn remove_session(&self, id: &str) -> Result<Option<DrainingView>, ClientError> {
        let answer = self.fetch(&routes::SESSION_REMOVE, &[id], "", self.action_limit).await?;
        if answer.is_empty() { Ok(None) } else { decode(&answer).map(Some) }
    }

    /// The session of this name, or a new one with a handle.
    ///
    /// # Errors
    ///
    /// Any [`ClientError`].
    pub async fn open_session(&self, wanted: &NewSession) -> Result<OpenedSession, ClientError> {
        decode(&self.ask(&routes::SESSION_OPEN, &[], "", written(wanted)?, self.action_limit).await?)
    }

    /// The instance of a server that a session has for itself; waits until it serves.
    ///
    /// # Errors
    ///
    /// Any [`ClientError`].
    pub async fn session_instance(&self, id: &str, server: &str) -> Result<OwnInstanceView, ClientError> {
        decode(&self.fetch(&routes::SESSION_INSTANCE, &[id, server], "", self.action_limit).await?)
    }

    /// The processes started by hand, those that have ended included.
    ///
    /// # Errors
    ///
    /// Any [`ClientError`].
    pub async fn processes(&self) -> Result<Vec<ProcessView>, ClientError> {
        self.look_up(&routes::PROCESSES, &[], "").await
    }

    /// One process started by hand.
    ///
    /// # Errors
    ///
    /// Any [`ClientError`].
    pub async fn process(&self, name: &str) -> Result<ProcessView, ClientError> {
        self.look_up(&routes::PROCESS, &[name], "").await
    }

    /// Starts a process by hand; returns when it runs or has failed to.
    ///
    /// # Errors
    ///
    /// Any [`ClientError`].
    pub async fn spawn(&self, process: &NewProcess) -> Result<ProcessView, ClientError> {
        decode(&self.ask(&routes::PROCESS_SPAWN, &[], "", written(process)?, self.action_limit).await?)
    }

    /// Stops a process started by hand; it stays listed.
    ///
    /// # Errors
    ///
    /// Any [`ClientError`].
    pub async fn stop_process(&self, name: &str) -> Result<ProcessView, ClientError> {
        decode(&self.fetch(&routes::PROCESS_STOP, &[name], "", self.action_limit).await?)
    }

    /// Stops a process started by hand and forgets it.
    ///
    /// # Errors
    ///
    /// Any [`ClientError`].
    pub async fn remove_process(&self, name: &str) -> Result<(), ClientError> {
        self.fetch(&routes::PROCESS_REMOVE, &[name], "", self.action_limit).await.map(drop)
    }

    /// Log lines of a process started by hand.
    ///
    /// # Errors
    ///
    /// Any [`ClientError`].
    pub async fn process_logs(&self, name: &str, query: LogQuery) -> Result<LogStream, ClientError> {
        self.lines(&routes::PROCESS_LOGS, name, query).await
    }

    /// Calls many tools; returns when all calls are over. Dropping the future cancels what is left.
    ///
    /// # Errors
    ///
    /// Any [`ClientError`]; a call that failed is none, but says so in the report.
    pub async fn run_many(&self, wanted: &RunMany) -> Result<RunReport, ClientError> {
        decode(&self.ask(&routes::RUN, &[], "", written(wanted)?, self.action_limit).await?)
    }

    /// The same, told as it goes on, without a bound on how long it takes.
    ///
    /// # Errors
    ///
    /// Any [`ClientError`].
    pub async fn follow_run(&self, wanted: &RunMany) -> Result<RunStream, ClientError> {
        let ask = Ask { route: &routes::RUN, values: &[], query: "", accept: ACCEPT_EVENTS };
        let (response, connection) =
            within(ask.route, LOOKUP_LIMIT, self.send(ask, written(wanted)?)).await?;
        Ok(RunStream::new(response.into_body(), connection))
    }

    /// The events that `query` asks for, oldest first.
    ///
    /// # Errors
    ///
    /// Any [`ClientError`].
    pub async fn events(&self, query: &EventQuery) -> Result<Vec<EventView>, ClientError> {
        self.look_up(&routes::EVENTS_LIST, &[], &query.to_string()).await
    }

    /// The events that `query` asks for, and then every further one as it happens.
    ///
    /// # Errors
    ///
    /// Any [`ClientError`].
    pub async fn follow_events(&self, query: &EventQuery) -> Result<EventStream, ClientError> {
        let query = query.to_string();
        let ask = Ask { route: &routes::EVENTS_LIST, values: &[], query: &query, accept: ACCEPT_EVENTS };
        let (response, connection) = within(ask.route, LOOKUP_LIMIT, self.send(ask, Bytes::new())).await?;
        Ok(EventStream::new(response.into_body(), connection))
    }

    /// Compares the registry with the kernel.
    ///
    /// # Errors
    ///
    /// Any [`ClientError`].
    pub async fn audit(&self) -> Result<AuditView, ClientError> {
        self.look_up(&routes::AUDIT, &[], "").await
    }

    /// The alerts that are active now, the worst first.
    ///
    /// # Errors
    ///
    /// Any [`ClientError`].
    pub async fn alerts(&self) -> Result<Vec<AlertView>, ClientError> {
        self.look_up(&routes::ALERTS, &[], "").await
    }

    /// Has the daemon read its configuration again and take it in; with `dry_run` only say what that would do.
    ///
    /// # Errors
    ///
    /// Any [`ClientError`]; status 422 when the configuration cannot be used.
    pub async fn reload(&self, dry_run: bool) -> Result<ReloadView, ClientError> {
        let query = if dry_run { "dry_run=true" } else { "" };
        decode(&self.fetch(&routes::RELOAD, &[], query, self.action_limit).await?)
    }

    /// Begins to drain and stop the daemon; returns when that has begun, not when it is done.
    ///
    /// # Errors
    ///
    /// Any [`ClientError`].
    pub async fn shutdown(&self) -> Result<(), ClientError> {
        self.fetch(&routes::SHUTDOWN, &[], "", LOOKUP_LIMIT).await.map(drop)
    }

    /// What a looked-up route answers, byte for byte, for a caller that hands it on. `query` is the query
    /// string without its `?`.
    ///
    /// # Errors
    ///
    /// Any [`ClientError`].
    ///
    /// # Panics
    ///
    /// As [`Route::path`].
    pub async fn raw(&self, route: &Route, values: &[&str], query: &str) -> Result<Bytes, ClientError> {
        self.fetch(route, values, query, LOOKUP_LIMIT).await
    }

    async fn look_up<T: DeserializeOwned>(
        &self,
        route: &Route,
        values: &[&str],
        query: &str,
    ) -> Result<T, ClientError> {
        decode(&self.fetch(route, values, query, LOOKUP_LIMIT).await?)
    }

    async fn fetch(
        &self,
        route: &Route,
        values: &[&str],
        query: &str,
        limit: Duration,
    ) -> Result<Bytes, ClientError> {
        self.ask(route, values, query, Bytes::new(), limit).await
    }

    async fn ask(
        &self,
        route: &Route,
        values: &[&str],
        query: &str,
        body: Bytes,
        limit: Duration,
    ) -> Result<Bytes, ClientError> {
        let whole = async {
            let (response, _connection) =
                self.send(Ask { route, values, query, accept: ACCEPT }, body).await?;
            collect(response.into_body()).await
        };
        within(route, limit, whole).await
    }

    async fn lines(&self, route: &Route, id: &str, query: LogQuery) -> Result<LogStream, ClientError> {
        let n = query.n.map(|n| format!("n={n}"));
        let follow = query.follow.then(|| "follow=true".to_owned());
        let text: Vec<String> = n.into_iter().chain(follow).collect();
        let ask = Ask { route, values: &[id], query: &text.join("&"), accept: ACCEPT };
        let (response, connection) = within(route, LOOKUP_LIMIT, self.send(ask, Bytes::new())).await?;
        Ok(LogStream {
            body: response.into_body(),
            buffer: Vec::new(),
            follow: query.follow,
            ended: false,
            _connection: connection,
        })
    }

    /// Sends a request and returns the answer if it is a success.
    async fn send(
        &self,
        Ask { route, values, query, accept }: Ask<'_>,
        body: Bytes,
    ) -> Result<(Response<Incoming>, ConnectionGuard), ClientError> {
        let mut target = route.path(values);
        if !query.is_empty() {
            target.push('?');
            target.push_str(query);
        }
        let mut request = Request::builder()
            .method(route.method.clone())
            .uri(target)
            .header("host", "ostler")
            .header("accept", accept);
        if route.body.is_some() {
            request = request.header("content-type", "application/json");
        }
        let request = request
            .body(Full::new(body))
            .map_err(|e| ClientError::Protocol(format!("the request cannot be built: {e}")))?;
        let stream = self.dial().await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| ClientError::Protocol(e.to_string()))?;
        let guard = ConnectionGuard(tokio::spawn(connection).abort_handle());
        let response = sender.send_request(request).await.map_err(|e| cut_off(&e))?;
        if response.status().is_success() {
            return Ok((response, guard));
        }
        let status = response.status();
        let body = collect(response.into_body()).await?;
        Err(refusal(&route.method, status, &body))
    }

    async fn dial(&self) -> Result<UnixStream, ClientError> {
        match timeout(CONNECT_LIMIT, UnixStream::connect(&self.socket)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(source)) => Err(self.connect_error(source)),
            Err(_) => Err(ClientError::Timeout { action: "connect", after: CONNECT_LIMIT }),
        }
    }

    fn connect_error(&self, source: std::io::Error) -> ClientError {
        use std::io::ErrorKind::{ConnectionRefused, NotFound};
        let socket = self.socket.clone();
        match source.kind() {
            NotFound | ConnectionRefused => ClientError::NoDaemon { socket },
            _ => ClientError::Connect { socket, source },
        }
    }
}

/// What one request asks for.
struct Ask<'a> {
    route: &'a Route,
    values: &'a [&'a str],
    /// The query string, without its `?`.
    query: &'a str,
    accept: &'static str,
}

async fn within<T>(
    route: &Route,
    limit: Duration,
    answer: impl Future<Output = Result<T, ClientError>>,
) -> Result<T, ClientError> {
    timeout(limit, answer)
        .await
        .map_err(|_| ClientError::Timeout { action: route.operation_id, after: limit })?
}

/// Ends the connection's task when the answer is no longer wanted.
#[derive(Debug)]
pub(crate) struct ConnectionGuard(AbortHandle);

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A stream of log lines. Dropping it ends the request.
#[derive(Debug)]
pub struct LogStream {
    body: Incoming,
    buffer: Vec<u8>,
    follow: bool,
    ended: bool,
    _connection: ConnectionGuard,
}

impl LogStream {
    /// The next line, or `None` when there are no more. Without `follow`, a silence of 30 s is an error; with
    /// it, the wait has no bound.
    ///
    /// # Errors
    ///
    /// [`ClientError::Protocol`] or [`ClientError::Timeout`].
    pub async fn next(&mut self) -> Result<Option<LogLine>, ClientError> {
        match self.next_raw().await? {
            Some(line) => decode(&line).map(Some),
            None => Ok(None),
        }
    }

    /// The next line as the daemon sent it, without its line end.
    ///
    /// # Errors
    ///
    /// As [`LogStream::next`].
    pub async fn next_raw(&mut self) -> Result<Option<Bytes>, ClientError> {
        loop {
            if let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                let line = line.trim_ascii();
                if line.is_empty() {
                    continue;
                }
                return Ok(Some(Bytes::copy_from_slice(line)));
            }
            if self.ended {
                let rest = std::mem::take(&mut self.buffer);
                let rest = rest.trim_ascii();
                return Ok((!rest.is_empty()).then(|| Bytes::copy_from_slice(rest)));
            }
            if self.buffer.len() > MAX_LINE {
                return Err(ClientError::Protocol(format!("a log line is longer than {MAX_LINE} bytes")));
            }
            self.read_more().await?;
        }
    }

    async fn read_more(&mut self) -> Result<(), ClientError> {
        let frame = if self.follow {
            self.body.frame().await
        } else {
            timeout(LOOKUP_LIMIT, self.body.frame())
                .await
                .map_err(|_| ClientError::Timeout { action: "logs", after: LOOKUP_LIMIT })?
        };
        match frame {
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    self.buffer.extend_from_slice(&data);
                }
                Ok(())
            }
            Some(Err(e)) => Err(cut_off(&e)),
            None => {
                self.ended = true;
                Ok(())
            }
        }
    }
}

fn cut_off(error: &hyper::Error) -> ClientError {
    ClientError::Protocol(format!("the connection ended before the answer did ({error})"))
}

async fn collect(body: Incoming) -> Result<Bytes, ClientError> {
    match Limited::new(body, MAX_ANSWER).collect().await {
        Ok(whole) => Ok(whole.to_bytes()),
        Err(e) => {
            Err(ClientError::Protocol(format!("the body ended early or exceeds {MAX_ANSWER} bytes ({e})")))
        }
    }
}

/// A body of JSON.
fn written<T: serde::Serialize>(body: &T) -> Result<Bytes, ClientError> {
    let written = serde_json::to_vec(body);
    Ok(written.map_err(|e| ClientError::Protocol(format!("the request cannot be written: {e}")))?.into())
}

pub(crate) fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, ClientError> {
    serde_json::from_slice(body).map_err(|e| ClientError::Protocol(e.to_string()))
}

/// The error for an answer that is not a success.
fn refusal(method: &Method, status: StatusCode, body: &[u8]) -> ClientError {
    match serde_json::from_slice::<ApiError>(body) {
        Ok(ApiError { error, hint }) => ClientError::Api { status: status.as_u16(), error, hint },
        Err(_) => ClientError::Protocol(format!("a {method} was answered with {status} and no explanation")),
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body_util::Full;
    use hyper::service::service_fn;
    use tokio::net::UnixListener;

    use super::*;

    const SESSION: &str = r#"{"id":"s1","server":"a","client":null,"principal":"p","state":"active","isolated":true,
        "instances":[],"shares":[],"age_ms":1,"idle_ms":2,"calls":0,"calls_begun":3,"tasks":[],"restarts":0,
        "added_later":true}"#;
    const DRAINING: &str = r#"{"id":"s2","state":"draining","calls":1,"tasks":["t"],"cut_in_ms":5}"#;
    const LINE: &str = r#"{"seq":1,"unix_ms":2,"instance":"a.1","stream":"stderr","text":"x"}"#;

    /// A daemon that knows a few targets and refuses the others.
    async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
        assert_eq!(request.headers()["host"], "ostler");
        let target = format!("{} {}", request.method(), request.uri());
        let (status, body) = match target.as_str() {
            "GET /api/v1/sessions" => (200, format!("[{SESSION}]")),
            "DELETE /api/v1/sessions/s1" => (204, String::new()),
            "DELETE /api/v1/sessions/s2" => (202, DRAINING.to_owned()),
            "POST /api/v1/shutdown" => (202, "{}".to_owned()),
            "GET /api/v1/events?since=3&n=5&kind=ready%2Cexited&subject=a%26b" => (200, "[]".to_owned()),
            "POST /api/v1/processes" => {
                assert_eq!(request.headers()["content-type"], "application/json");
                let body = request.into_body().collect().await.expect("a body").to_bytes();
                let body = String::from_utf8(body.to_vec()).expect("text");
                (400, serde_json::json!({ "error": body, "hint": null }).to_string())
            }
            "GET /api/v1/servers/a/logs?n=2&follow=true" => (200, format!("{LINE}\n\n{LINE}")),
            "GET /api/v1/status" => (200, "not JSON".to_owned()),
            "GET /api/v1/instances" => (500, "<html>".to_owned()),
            _ => (404, format!(r#"{{"error":"no {target}","hint":"look elsewhere"}}"#)),
        };
        Ok(Response::builder().status(status).body(Full::new(body.into())).expect("a response"))
    }

    fn daemon(socket: &Path) -> tokio::task::JoinHandle<()> {
        let listener = UnixListener::bind(socket).expect("bound");
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.expect("accepts");
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service_fn(answer)),
                );
            }
        })
    }

    #[tokio::test]
    async fn answers_refusals_and_rubbish() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let socket = dir.path().join("api.sock");
        let _daemon = daemon(&socket);
        let client = Client::new(&socket);

        let peer = client.peer().await.expect("a peer");
        assert_eq!(peer.pid, i32::try_from(std::process::id()).ok());
        let sessions = client.sessions().await.expect("fields of a newer daemon are ignored");
        assert_eq!(sessions[0].id, "s1");
        let raw = client.raw(&routes::SESSIONS, &[], "").await.expect("raw");
        assert_eq!(raw, format!("[{SESSION}]"), "byte for byte");
        assert_eq!(client.remove_session("s1").await.expect("removed"), None);
        let draining = client.remove_session("s2").await.expect("begun").expect("something runs");
        assert_eq!((draining.calls, draining.tasks, draining.cut_in_ms), (1, vec!["t".to_owned()], Some(5)));
        client.shutdown().await.expect("begun");
        let query = EventQuery {
            since: Some(3),
            n: Some(5),
            kind: Some("ready,exited".to_owned()),
            subject: Some("a&b".to_owned()),
            severity: None,
        };
        assert!(client.events(&query).await.expect("events").is_empty());
        let process = NewProcess { command: vec!["sleep".to_owned()], ..NewProcess::default() };
        match client.spawn(&process).await {
            Err(ClientError::Api { status: 400, error, .. }) => {
                assert_eq!(serde_json::from_str::<NewProcess>(&error).expect("what was sent"), process);
            }
            other => panic!("{other:?}"),
        }

        let query = LogQuery { n: Some(2), follow: true };
        let mut lines = client.server_logs("a", query).await.expect("a stream");
        assert_eq!(lines.next().await.expect("line").expect("first").text, "x");
        assert_eq!(lines.next_raw().await.expect("line").expect("a last line without its end"), LINE);
        assert!(lines.next().await.expect("the end").is_none());

        match client.server("b/c").await {
            Err(ClientError::Api { status: 404, error, hint }) => {
                assert_eq!(error, "no GET /api/v1/servers/b%2Fc");
                assert_eq!(hint.as_deref(), Some("look elsewhere"));
            }
            other => panic!("{other:?}"),
        }
        assert!(matches!(client.status().await, Err(ClientError::Protocol(_))));
        assert!(matches!(client.instances().await, Err(ClientError::Protocol(_))));
    }

    #[tokio::test]
    async fn no_daemon_and_a_silent_one() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let socket = dir.path().join("api.sock");
        let client = Client::new(&socket).with_action_limit(Duration::from_millis(20));
        assert!(matches!(client.status().await, Err(ClientError::NoDaemon { .. })));
        let listener = UnixListener::bind(&socket).expect("bound");
        let silent = client.server_action("a", Verb::Stop).await;
        assert!(matches!(silent, Err(ClientError::Timeout { .. })), "{silent:?}");
        drop(listener);
        assert!(
            matches!(client.status().await, Err(ClientError::NoDaemon { .. })),
            "its socket was left behind"
        );
    }
}
