//! Tasks, batches, projects and the pool of workers.

use std::time::Duration;

use hyper::body::Bytes;
use serde::de::DeserializeOwned;

use super::{ACCEPT_EVENTS, Ask, Client, LOOKUP_LIMIT, decode, within, written};
use crate::error::ClientError;
use crate::events::TaskStream;
use crate::query;
use crate::routes::{self, Route};
use crate::types::process_pool::{ProcessPoolLimit, ProcessPoolLimitSet, ProcessPoolStats, ProcessPoolUsage};
use crate::types::tasks::{
    BatchPage, BatchView, NewBatch, NewTask, ProjectLimit, ProjectView, SubmittedBatch, SubmittedTask,
    TaskLogLine, TaskPage, TaskPoolView, TaskQuery, TaskView, WAIT_MAX_MS,
};

impl Client {
    /// Submits a task; returns when it is in the journal.
    ///
    /// # Errors
    ///
    /// Any [`ClientError`]; status 429 where there is no room. So for every method below.
    pub async fn submit_task(&self, task: &NewTask) -> Result<SubmittedTask, ClientError> {
        decode(&self.ask(&routes::TASK_SUBMIT, &[], "", written(task)?, LOOKUP_LIMIT).await?)
    }

    /// Submits many tasks, all or none; returns when they are in the journal.
    ///
    /// # Errors
    ///
    /// Any [`ClientError`].
    pub async fn submit_batch(&self, batch: &NewBatch) -> Result<SubmittedBatch, ClientError> {
        decode(&self.ask(&routes::BATCH_SUBMIT, &[], "", written(batch)?, self.action_limit).await?)
    }

    /// The tasks that `query` asks for, newest first.
    ///
    /// # Errors
    ///
    /// Any [`ClientError`].
    pub async fn tasks(&self, query: &TaskQuery) -> Result<TaskPage, ClientError> {
        self.look_up(&routes::TASKS, &[], &query.to_string()).await
    }

    /// One task with its attempts.
    ///
    /// # Errors
    ///
    /// Any [`ClientError`].
    pub async fn task(&self, id: &str) -> Result<TaskView, ClientError> {
        self.look_up(&routes::TASK, &[id], "").await
    }

    /// One task, once it has ended or so much time has passed; see [`TaskView::has_ended`]. The daemon waits a minute
    /// at most ([`WAIT_MAX_MS`]): whoever wants to wait longer asks again.
    ///
    /// # Errors
    ///
    /// Any [`ClientError`].
    pub async fn wait_task(&self, id: &str, longest: Duration) -> Result<TaskView, ClientError> {
        self.wait(&routes::TASK, id, longest).await
    }

    /// The result of a task, exactly as it was committed: JSON.
    ///
    /// # Errors
    ///
    /// Any [`ClientError`]; status 409 where it has none.
    pub async fn task_result(&self, id: &str) -> Result<Bytes, ClientError> {
        self.raw(&routes::TASK_RESULT, &[id], "").await
    }

    /// What the attempts of a task wrote: the newest `n` lines, or all that are kept.
    ///
    /// # Errors
    ///
    /// Any [`ClientError`].
    pub async fn task_logs(&self, id: &str, n: Option<u64>) -> Result<Vec<TaskLogLine>, ClientError> {
        let query = query::written(n.map(|n| ("n", n.to_string())).into_iter());
        self.look_up(&routes::TASK_LOGS, &[id], &query).await
    }

    /// A task's news, as it comes, until it has ended.
    ///
    /// # Errors
    ///
    /// Any [`ClientError`].
    pub async fn follow_task(&self, id: &str) -> Result<TaskStream, ClientError> {
        let ask = Ask { route: &routes::TASK_EVENTS, values: &[id], query: "", accept: ACCEPT_EVENTS };
        let (response, connection) = within(ask.route, LOOKUP_LIMIT, self.send(ask, Bytes::new())).await?;
        Ok(TaskStream::new(response.into_body(), connection))
    }

    /// Cancels a task; returns when nothing of it runs.
    ///
    /// # Errors
    ///
    /// Any [`ClientError`]; status 409 where it has ended.
    pub async fn cancel_task(&self, id: &str, why: Option<&str>) -> Result<TaskView, ClientError> {
        self.cancel(&routes::TASK_CANCEL, id, why).await
    }

    /// Puts a task that is dead or cancelled into the queue again.
    ///
    /// # Errors
    ///
    /// Any [`ClientError`]; status 409 where it is neither.
    pub async fn retry_task(&self, id: &str) -> Result<TaskView, ClientError> {
        self.look_up(&routes::TASK_RETRY, &[id], "").await
    }

    /// Batches, newest first: those with numbers below `below`, `limit` at most.
    ///
    /// # Errors
    ///
    /// Any [`ClientError`].
    pub async fn batches(&self, below: Option<u64>, limit: Option<usize>) -> Result<BatchPage, ClientError> {
        let pairs = [("below", below.map(|n| n.to_string())), ("limit", limit.map(|n| n.to_string()))];
        let pairs = pairs.into_iter().filter_map(|(name, value)| Some((name, value?)));
        self.look_up(&routes::BATCHES, &[], &query::written(pairs)).await
    }

    /// One batch.
    ///
    /// # Errors
    ///
    /// Any [`ClientError`].
    pub async fn batch(&self, id: &str) -> Result<BatchView, ClientError> {
        self.look_up(&routes::BATCH, &[id], "").await
    }

    /// One batch, once all its tasks have ended or so much time has passed, as [`Client::wait_task`].
    ///
    /// # Errors
    ///
    /// Any [`ClientError`].
    pub async fn wait_batch(&self, id: &str, longest: Duration) -> Result<BatchView, ClientError> {
        self.wait(&routes::BATCH, id, longest).await
    }

    /// Cancels the tasks of a batch that have not ended.
    ///
    /// # Errors
    ///
    /// Any [`ClientError`].
    pub async fn cancel_batch(&self, id: &str, why: Option<&str>) -> Result<BatchView, ClientError> {
        self.cancel(&routes::BATCH_CANCEL, id, why).await
    }

    /// The projects that have tasks or limits of their own.
    ///
    /// # Errors
    ///
    /// Any [`ClientError`].
    pub async fn projects(&self) -> Result<Vec<ProjectView>, ClientError> {
        self.look_up(&routes::PROJECTS, &[], "").await
    }

    /// Sets how many tasks of a project may run; `None`: as the configuration says.
    ///
    /// # Errors
    ///
    /// Any [`ClientError`].
    pub async fn limit_project(&self, name: &str, running: Option<u64>) -> Result<ProjectView, ClientError> {
        let limit = written(&ProjectLimit { running })?;
        decode(&self.ask(&routes::PROJECT_LIMIT, &[name], "", limit, LOOKUP_LIMIT).await?)
    }

    /// The pool of workers, and what it has done.
    ///
    /// # Errors
    ///
    /// Any [`ClientError`].
    pub async fn pool(&self) -> Result<TaskPoolView, ClientError> {
        self.look_up(&routes::POOL, &[], "").await
    }

    /// The pool of workers, as clients of an earlier system read it.
    ///
    /// # Errors
    ///
    /// Any [`ClientError`].
    pub async fn process_pool_stats(&self) -> Result<ProcessPoolStats, ClientError> {
        self.look_up(&routes::PROCESS_POOL_STATS, &[], "").await
    }

    /// Sets how many tasks of a project may run, as clients of an earlier system do.
    ///
    /// # Errors
    ///
    /// Any [`ClientError`].
    pub async fn process_pool_limit(
        &self,
        limit: &ProcessPoolLimit,
    ) -> Result<ProcessPoolLimitSet, ClientError> {
        let limit = written(limit)?;
        decode(&self.ask(&routes::PROCESS_POOL_LIMIT, &[], "", limit, LOOKUP_LIMIT).await?)
    }

    /// The running count and the limit of each project, as clients of an earlier system read them.
    ///
    /// # Errors
    ///
    /// Any [`ClientError`].
    pub async fn process_pool_usage(&self) -> Result<ProcessPoolUsage, ClientError> {
        self.look_up(&routes::PROCESS_POOL_USAGE, &[], "").await
    }

    async fn wait<T: DeserializeOwned>(
        &self,
        route: &Route,
        id: &str,
        longest: Duration,
    ) -> Result<T, ClientError> {
        let ms = u64::try_from(longest.as_millis()).unwrap_or(u64::MAX).min(WAIT_MAX_MS);
        let limit = Duration::from_millis(ms) + LOOKUP_LIMIT;
        decode(&self.fetch(route, &[id], &format!("wait_ms={ms}"), limit).await?)
    }

    async fn cancel<T: DeserializeOwned>(
        &self,
        route: &Route,
        id: &str,
        why: Option<&str>,
    ) -> Result<T, ClientError> {
        let query = query::written(why.map(|why| ("why", why.to_owned())).into_iter());
        decode(&self.fetch(route, &[id], &query, self.action_limit).await?)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::path::Path;

    use http_body_util::{BodyExt as _, Full};
    use hyper::body::Incoming;
    use hyper::service::service_fn;
    use hyper::{Request, Response};
    use hyper_util::rt::TokioIo;
    use serde_json::json;
    use tokio::net::UnixListener;

    use super::*;
    use crate::types::tasks::TaskNews;

    const NEWS: &str = "{\"log\":{\"seq\":1,\"unix_ms\":2,\"attempt\":1,\"level\":\"info\",\"text\":\"x\"}}";

    fn view(state: &str) -> serde_json::Value {
        json!({"id": "t1-00000000", "type": "x", "state": state, "project": "p", "lane": "x", "priority": 5,
            "principal": "local", "session": null, "key": null, "batch": null, "submitted_unix_ms": 1,
            "ready_unix_ms": 1, "deadline_unix_ms": null, "begun_unix_ms": null, "ended_unix_ms": null, "attempt": 0,
            "attempts_max": 3, "worker": null, "why": null, "progress": null, "payload_bytes": 2,
            "result_bytes": null, "added_later": true})
    }

    fn project(running_max: u64) -> String {
        json!({"name": "a b", "running": 0, "running_max": running_max, "running_max_from": "set", "queued": 0,
            "queued_max": 9, "weight": 1, "begun": 0})
        .to_string()
    }

    /// A daemon that knows a few targets, and says of others which they were.
    async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
        let target = format!("{} {}", request.method(), request.uri());
        let accepts = request.headers()["accept"].clone();
        let body = request.into_body().collect().await.expect("a body").to_bytes();
        let (status, answer) = match (target.as_str(), &body[..]) {
            ("POST /api/v1/tasks", br#"{"type":"x"}"#) => {
                (202, r#"{"id":"t1-00000000","state":"queued","earlier":false}"#.to_owned())
            }
            ("POST /api/v1/tasks", _) => (429, r#"{"error":"the queue is full (tasks.queued)"}"#.to_owned()),
            ("GET /api/v1/tasks/t1-00000000?wait_ms=1500", b"") => (200, view("running").to_string()),
            ("GET /api/v1/tasks/t1-00000000?wait_ms=60000", b"") => (200, view("dead").to_string()),
            ("GET /api/v1/tasks/t1-00000000/result", b"") => (200, "{\"n\": 1e400}".to_owned()),
            ("GET /api/v1/tasks/t1-00000000/events", b"") => {
                assert_eq!(accepts, "text/event-stream");
                let state = json!({"state": view("succeeded")});
                (200, format!(":\n\ndata: {NEWS}\n\ndata: {state}\n\n"))
            }
            ("POST /api/v1/tasks/t1-00000000/cancel?why=too%20late", b"") => {
                (200, view("cancelled").to_string())
            }
            ("PUT /api/v1/projects/a%20b/limit", br#"{"running":5}"#) => (200, project(5)),
            ("PUT /api/v1/projects/a%20b/limit", br#"{"running":null}"#) => (200, project(16)),
            ("POST /api/process-pool/project-limit", br#"{"projectId":"p","limit":5}"#) => {
                (200, r#"{"message":"done","projectId":"p","limit":5}"#.to_owned())
            }
            _ => (404, json!({"error": target}).to_string()),
        };
        Ok(Response::builder().status(status).body(Full::new(answer.into())).expect("a response"))
    }

    fn daemon(socket: &Path) {
        let listener = UnixListener::bind(socket).expect("bound");
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let http = hyper::server::conn::http1::Builder::new();
                tokio::spawn(http.serve_connection(TokioIo::new(stream), service_fn(answer)));
            }
        });
    }

    #[tokio::test]
    async fn tasks_are_submitted_waited_for_followed_and_ended() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let socket = dir.path().join("api.sock");
        daemon(&socket);
        let client = Client::new(&socket);
        let mut task = NewTask { kind: "x".to_owned(), ..NewTask::default() };
        let submitted = client.submit_task(&task).await.expect("accepted");
        assert_eq!((submitted.id.as_str(), submitted.earlier), ("t1-00000000", false));
        task.priority = Some(1);
        let full = client.submit_task(&task).await;
        assert!(matches!(full, Err(ClientError::Api { status: 429, .. })), "{full:?}");

        let wait = async |ms| {
            let task = client.wait_task(&submitted.id, Duration::from_millis(ms)).await.expect("a task");
            (task.state.clone(), task.has_ended())
        };
        assert_eq!(wait(1_500).await, ("running".to_owned(), false));
        assert_eq!(wait(u64::MAX).await, ("dead".to_owned(), true), "the daemon waits a minute at most");
        let result = client.task_result(&submitted.id).await.expect("a result");
        assert_eq!(result, "{\"n\": 1e400}", "byte for byte");

        let mut news = client.follow_task(&submitted.id).await.expect("a stream");
        let log = news.next().await.expect("news").expect("a line");
        assert_eq!(serde_json::to_string(&log).expect("JSON"), NEWS);
        let last = news.next().await.expect("news").expect("a state");
        assert!(matches!(last, TaskNews::State(task) if task.state == "succeeded"));
        assert_eq!(news.next().await.expect("the end"), None);

        let cancelled = client.cancel_task(&submitted.id, Some("too late")).await.expect("cancelled");
        assert_eq!(cancelled.state, "cancelled");
        assert_eq!(client.limit_project("a b", Some(5)).await.expect("set").running_max, 5);
        assert_eq!(client.limit_project("a b", None).await.expect("unset").running_max, 16);
        let limit = ProcessPoolLimit { project_id: "p".to_owned(), limit: 5 };
        assert_eq!(client.process_pool_limit(&limit).await.expect("set").limit, 5);
    }

    #[tokio::test]
    async fn each_method_asks_at_its_place() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let socket = dir.path().join("api.sock");
        daemon(&socket);
        let client = Client::new(&socket);
        let asked = |result: Result<(), ClientError>| match result {
            Err(ClientError::Api { status: 404, error, .. }) => error,
            other => panic!("{other:?}"),
        };
        let query = TaskQuery { state: Some("dead".to_owned()), limit: Some(2), ..TaskQuery::default() };
        for (place, was) in [
            ("GET /api/v1/tasks?state=dead&limit=2", asked(client.tasks(&query).await.map(drop))),
            ("GET /api/v1/tasks/..%2Fx", asked(client.task("../x").await.map(drop))),
            ("GET /api/v1/tasks/t/logs?n=3", asked(client.task_logs("t", Some(3)).await.map(drop))),
            ("GET /api/v1/tasks/t/logs", asked(client.task_logs("t", None).await.map(drop))),
            ("POST /api/v1/tasks/t/cancel", asked(client.cancel_task("t", None).await.map(drop))),
            ("POST /api/v1/tasks/t/retry", asked(client.retry_task("t").await.map(drop))),
            ("POST /api/v1/batches", asked(client.submit_batch(&NewBatch::default()).await.map(drop))),
            ("GET /api/v1/batches?below=7", asked(client.batches(Some(7), None).await.map(drop))),
            ("GET /api/v1/batches/b", asked(client.batch("b").await.map(drop))),
            (
                "GET /api/v1/batches/b?wait_ms=0",
                asked(client.wait_batch("b", Duration::ZERO).await.map(drop)),
            ),
            (
                "POST /api/v1/batches/b/cancel?why=x",
                asked(client.cancel_batch("b", Some("x")).await.map(drop)),
            ),
            ("GET /api/v1/projects", asked(client.projects().await.map(drop))),
            ("GET /api/v1/pool", asked(client.pool().await.map(drop))),
            ("GET /api/process-pool/stats", asked(client.process_pool_stats().await.map(drop))),
            ("GET /api/process-pool/project-usage", asked(client.process_pool_usage().await.map(drop))),
        ] {
            assert_eq!(was, place);
        }
    }
}
