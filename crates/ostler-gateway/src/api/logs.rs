//! Logs as newline-delimited JSON, once or for as long as the client stays.

use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use http::header::{CONTENT_TYPE, HeaderValue};
use ostler_api::LogLine;
use ostler_supervisor::InstanceHandle;
use tokio::sync::mpsc;

use super::views;

/// Lines sent when the caller does not say how many.
pub(crate) const DEFAULT_LINES: usize = 200;
/// Batches of lines that may wait for a slow reader; the log itself drops what it cannot keep meanwhile.
const BATCHES: usize = 16;

/// The last `most` lines of these instances, by time.
pub(crate) fn newest(handles: &[Arc<InstanceHandle>], most: usize) -> Vec<LogLine> {
    let mut lines: Vec<_> = handles
        .iter()
        .flat_map(|handle| {
            let id = handle.id.to_string();
            handle.log.after(0, most).into_iter().map(move |line| views::line(&id, &line)).collect::<Vec<_>>()
        })
        .collect();
    lines.sort_by_key(|line| (line.unix_ms, line.seq));
    lines.split_off(lines.len().saturating_sub(most))
}

/// The last `most` lines of these instances by time, then, with `follow`, every further one.
pub(super) fn reply(handles: Vec<Arc<InstanceHandle>>, most: usize, follow: bool) -> Response {
    let lines = newest(&handles, most);
    let text: String = lines.iter().map(ndjson).collect();
    let body = if follow {
        let (sender, receiver) = mpsc::channel(BATCHES);
        for handle in handles {
            let from =
                lines.iter().filter(|line| line.instance == handle.id.to_string()).map(|line| line.seq).max();
            tokio::spawn(follow_one(handle, from.unwrap_or(0), sender.clone()));
        }
        let rest = stream::unfold(receiver, |mut receiver: mpsc::Receiver<Bytes>| async move {
            receiver.recv().await.map(|batch| (Ok::<_, std::io::Error>(batch), receiver))
        });
        let first = stream::once(async move { Ok::<_, std::io::Error>(Bytes::from(text)) });
        Body::from_stream(futures_util::StreamExt::chain(first, rest))
    } else {
        Body::from(text)
    };
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    response
}

fn ndjson(line: &LogLine) -> String {
    // Plain data: it always has a JSON form.
    serde_json::to_string(line).unwrap_or_default() + "\n"
}

/// Sends what an instance's log gets after line `seq`, until the reader or the instance is gone.
async fn follow_one(handle: Arc<InstanceHandle>, mut seq: u64, out: mpsc::Sender<Bytes>) {
    let id = handle.id.to_string();
    let log = Arc::clone(&handle.log);
    let mut latest = log.watch();
    let mut state = handle.watch();
    drop(handle);
    loop {
        let lines = log.after(seq, usize::MAX);
        if let Some(last) = lines.last() {
            seq = last.seq;
            let text: String = lines.iter().map(|line| ndjson(&views::line(&id, line))).collect();
            if out.send(text.into()).await.is_err() {
                return;
            }
        }
        if state.borrow().removed && log.after(seq, 1).is_empty() {
            return;
        }
        tokio::select! {
            changed = latest.changed() => if changed.is_err() { return },
            _ = state.changed() => {}
            () = out.closed() => return,
        }
    }
}
