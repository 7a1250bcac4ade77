//! Events: filters, the stream, and where it is resumed.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use serde_json::Value;

use crate::cli::{done, err, json_of, over_socket};
use crate::support::{Daemon, PATIENCE, wait_until};

fn daemon() -> Daemon {
    let daemon = Daemon::start("", &[]);
    done(&daemon, &["spawn", "--name", "job", "sleep", "1000"]);
    daemon
}

/// Lines as they come.
fn lines(source: impl std::io::Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(source).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

/// A stream of `/api/v1/events`, as any client of server-sent events reads it.
fn stream(daemon: &Daemon, query: &str, header: &str) -> Receiver<String> {
    let mut socket = UnixStream::connect(daemon.socket()).expect("the socket");
    socket.set_read_timeout(Some(PATIENCE)).expect("a socket option");
    write!(
        socket,
        "GET /api/v1/events{query} HTTP/1.1\r\nHost: ostler\r\nAccept: text/event-stream\r\n{header}\r\n"
    )
    .expect("sent");
    lines(socket)
}

/// The next event: its id and its data.
fn next(stream: &Receiver<String>) -> (u64, Value) {
    // One for all lines: the comments of a silent stream are lines, too.
    let deadline = Instant::now() + PATIENCE;
    let mut id = None;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let line = stream.recv_timeout(left).expect("an event in time");
        if let Some(text) = line.strip_prefix("id: ") {
            id = Some(text.parse().expect("a number"));
        }
        if let Some(data) = line.strip_prefix("data: ") {
            return (id.expect("an id before the data"), serde_json::from_str(data).expect("an object"));
        }
    }
}

/// `ostler ARGS` that goes on until it is killed, and its output.
fn running(daemon: &Daemon, args: &[&str]) -> (Child, Receiver<String>) {
    let mut command = daemon.ostler();
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("ostler runs");
    let output = lines(child.stdout.take().expect("piped"));
    (child, output)
}

#[test]
fn a_stream_begins_where_it_is_told_and_goes_on_live() {
    let daemon = daemon();
    let kept = daemon.events();
    let latest = kept.last().expect("it started")["seq"].as_u64().expect("a number");
    let all = stream(&daemon, "?since=0", "");
    for event in &kept {
        assert_eq!(next(&all), (event["seq"].as_u64().expect("a number"), event.clone()));
    }
    // A header of the reconnecting browser wins over the address it began with.
    let resumed = stream(&daemon, "?since=0", &format!("Last-Event-ID: {}\r\n", latest - 1));
    assert_eq!(next(&resumed).0, latest);
    let newest = stream(&daemon, "?n=0", "");
    // The first piece is a comment: it has come, so the stream knows where it begins.
    wait_until("the stream is there", || newest.recv_timeout(PATIENCE).expect("a line").starts_with(':'));
    done(&daemon, &["stop", "job"]);
    let kinds = |stream: &Receiver<String>| {
        let mut kinds = Vec::new();
        while kinds.last().is_none_or(|kind| kind != "stopped") {
            let (id, event) = next(stream);
            assert_eq!(event["seq"], id);
            kinds.push(event["kind"].as_str().expect("a kind").to_owned());
        }
        kinds
    };
    let live = kinds(&newest);
    assert!(live.contains(&"stop-step".to_owned()), "{live:?}");
    assert_eq!(kinds(&all), live, "the one that had read all before goes on likewise");
    assert_eq!(kinds(&resumed), live);
    let (status, body) = over_socket(&daemon, "GET", "/api/v1/events?since=0", "");
    assert!(status == 200 && body.starts_with('['), "without the header it is an array: {body}");
}

#[test]
fn a_number_of_another_daemon_is_told_as_a_gap() {
    let daemon = daemon();
    let ahead = stream(&daemon, "", "Last-Event-ID: 100000\r\n");
    let (id, gap) = next(&ahead);
    assert_eq!((id, &gap["kind"]), (0, &Value::from("gap")));
    assert!(gap["message"].as_str().is_some_and(|message| message.contains("not of this daemon")), "{gap}");
    assert_eq!(next(&ahead).0, 1);
    let wrong = stream(&daemon, "", "Last-Event-ID: soon\r\n");
    assert!(wrong.recv_timeout(PATIENCE).expect("an answer").contains("400"));
}

#[test]
fn filters_hold_for_lists_and_streams() {
    let daemon = daemon();
    done(&daemon, &["spawn", "--name", "job-2", "--restart", "never", "--wait", "true"]);
    let failed = daemon.cli(&["spawn", "--name", "bad", "--restart", "never", "--wait", "false"]);
    assert!(!failed.status.success());
    let listed = |args: &[&str]| {
        let args: Vec<&str> = ["events", "--json"].iter().chain(args).copied().collect();
        json_of(&daemon, &args).as_array().expect("an array").clone()
    };
    let texts = |events: &[Value], field: &str| -> Vec<String> {
        events.iter().map(|event| event[field].as_str().expect("text").to_owned()).collect()
    };
    assert!(texts(&listed(&["--subject", "job"]), "subject").iter().all(|subject| subject == "job.1"));
    assert_eq!(listed(&["--subject", "job.1"]), listed(&["--subject", "job"]));
    let exited = listed(&["--kind", "exited,failed"]);
    assert_eq!(texts(&exited, "kind"), ["exited", "exited", "failed"]);
    let bad = listed(&["--severity", "warning"]);
    assert_eq!(texts(&bad, "kind"), ["exited", "failed", "alert-raised"], "{bad:?}");
    assert!(texts(&bad, "subject").iter().all(|subject| subject == "bad.1"), "{bad:?}");
    assert_eq!(texts(&listed(&["--severity", "error"]), "kind"), ["failed", "alert-raised"]);
    assert_eq!(listed(&["--kind", "exited", "-n", "1"]), exited[1..2]);
    let since = exited[0]["seq"].to_string();
    assert_eq!(listed(&["--kind", "exited", "--since", &since]), exited[1..2]);
    let wrong = daemon.cli(&["events", "--severity", "awful"]);
    assert!(!wrong.status.success() && err(&wrong).contains("warning"), "{}", err(&wrong));

    let failures = stream(&daemon, "?kind=exited,failed&subject=bad&n=1", "");
    assert_eq!(next(&failures).1["kind"], "failed");
    done(&daemon, &["start", "job-2"]);
    let again = daemon.cli(&["start", "bad"]);
    let (_, event) = next(&failures);
    assert_eq!((&event["kind"], &event["subject"]), (&Value::from("exited"), &Value::from("bad.1")));
    drop(again);
}

#[test]
fn events_are_followed_until_the_daemon_ends() {
    let mut daemon = daemon();
    let (mut people, text) = running(&daemon, &["events", "-f", "-n", "1"]);
    let (mut programs, objects) = running(&daemon, &["events", "-f", "--json", "-n", "1"]);
    let first = text.recv_timeout(PATIENCE).expect("the newest");
    assert!(first.contains("job.1") && first.contains("[ready]"), "{first}");
    let object = |line: String| serde_json::from_str::<Value>(&line).expect("one object a line");
    assert_eq!(object(objects.recv_timeout(PATIENCE).expect("the newest"))["kind"], "ready");
    done(&daemon, &["stop", "job"]);
    wait_until("the end is told to people", || {
        text.recv_timeout(PATIENCE).expect("more").contains("stopped, nothing of it runs")
    });
    wait_until("the end is told to programs", || {
        object(objects.recv_timeout(PATIENCE).expect("more"))["kind"] == "stopped"
    });
    done(&daemon, &["down"]);
    assert!(daemon.wait().success());
    for follower in [&mut people, &mut programs] {
        let mut ended = None;
        wait_until("it ends with the daemon", || {
            ended = follower.try_wait().expect("it can be waited for");
            ended.is_some()
        });
        assert!(ended.is_some_and(|status| status.success()), "that is no failure");
    }
}
