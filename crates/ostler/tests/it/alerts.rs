//! Alerts: listed, told to the sinks, told again when a sink was not there, and over when they are over.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};

use serde_json::Value;

use crate::cli::{done, json_of};
use crate::support::{Daemon, PATIENCE, wait_until};

/// Reads one request whole and answers it; its body.
fn answer(stream: &TcpStream, status: &str) -> Value {
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket option");
    let mut reader = BufReader::new(stream);
    let (mut length, mut line) = (0, String::new());
    loop {
        line.clear();
        reader.read_line(&mut line).expect("a line of the head");
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().expect("a number");
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).expect("the body");
    let mut stream = stream;
    write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").expect("answered");
    serde_json::from_slice(&body).expect("JSON")
}

/// A hook that answers its first request with 503 and the others with 204; what it was sent, with what it answered.
fn hook() -> (String, Receiver<(u16, Value)>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/hook", listener.local_addr().expect("an address"));
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for (number, stream) in listener.incoming().map_while(Result::ok).enumerate() {
            let (status, line) =
                if number == 0 { (503, "503 Service Unavailable") } else { (204, "204 No Content") };
            let body = answer(&stream, line);
            if sender.send((status, body)).is_err() {
                return;
            }
        }
    });
    (url, receiver)
}

/// What the command wrote: one line for each alert.
fn told(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

#[test]
fn a_failed_server_is_an_alert_in_every_sink_until_it_is_stopped() {
    let (url, posted) = hook();
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("told");
    let config = format!(
        "[alerts]\nwebhook = \"{url}\"\n\
         command = [\"sh\", \"-c\", \"echo \\\"$OSTLER_ALERT\\\" >> {}\"]\n\
         [servers.bad]\ncommand = \"false\"\ntransport = \"none\"\nscope = \"shared\"\n\
         restart = {{ policy = \"never\" }}\n",
        file.display()
    );
    let daemon = Daemon::start(&config, &[]);
    daemon.wait_row("bad", "it has failed", |row| row["state"] == "failed");

    let listed = json_of(&daemon, &["alerts", "--json"]);
    let [alert] = listed.as_array().expect("an array").as_slice() else { panic!("{listed}") };
    assert_eq!(alert["kind"], "process-failure");
    assert_eq!(alert["subject"], "bad.1");
    assert_eq!(alert["severity"], "error");
    let table = done(&daemon, &["alerts"]);
    assert!(table.contains("process-failure") && table.contains("exited with status 1"), "{table}");
    assert_eq!(daemon.status()["alerts"], 1);

    // The first try was refused for now, so that there was another.
    let first = posted.recv_timeout(PATIENCE).expect("posted");
    let second = posted.recv_timeout(PATIENCE).expect("posted again");
    assert_eq!((first.0, second.0), (503, 204));
    assert_eq!((&first.1["stage"], &first.1["subject"]), (&"raised".into(), &"bad.1".into()));
    assert!(first.1["since_unix_ms"].is_u64(), "{}", first.1);
    assert_eq!(second.1["message"], alert["message"]);
    wait_until("the command has run", || told(&file).len() == 1);
    assert_eq!(told(&file)[0]["kind"], "process-failure");

    done(&daemon, &["stop", "bad"]);
    let over = posted.recv_timeout(PATIENCE).expect("posted when it was over");
    assert_eq!((over.0, &over.1["stage"]), (204, &"resolved".into()));
    wait_until("the command was told, too", || told(&file).len() == 2);
    assert_eq!(told(&file)[1]["stage"], "resolved");
    assert_eq!(json_of(&daemon, &["alerts", "--json"]), Value::Array(Vec::new()));
    let kinds: Vec<String> = daemon
        .events()
        .iter()
        .filter(|event| event["kind"].as_str().is_some_and(|kind| kind.starts_with("alert-")))
        .map(|event| event["kind"].to_string())
        .collect();
    assert_eq!(kinds, ["\"alert-raised\"", "\"alert-resolved\""]);
}

#[test]
fn a_sink_that_takes_nothing_is_told_of_and_holds_nothing_up() {
    let config = "[alerts]\nretries = 0\nwebhook = \"http://127.0.0.1:1/hook\"\n\
         command = [\"sh\", \"-c\", \"echo no use >&2; exit 3\"]\n\
         [servers.bad]\ncommand = \"false\"\ntransport = \"none\"\nscope = \"shared\"\n\
         restart = { policy = \"never\" }\n";
    let daemon = Daemon::start(config, &[]);
    let lost = |way: &str, why: &str| {
        let said = |event: &Value| {
            event["kind"] == "dropped"
                && event["message"].as_str().is_some_and(|text| text.contains(way) && text.contains(why))
        };
        wait_until(&format!("that the {way} was not reached is told"), || daemon.events().iter().any(said));
    };
    lost("webhook", "refused");
    lost("command", "exited with status 3: no use");
    assert_eq!(daemon.status()["counters"]["alerts.retries"], 2);
    assert_eq!(json_of(&daemon, &["alerts", "--json"])[0]["subject"], "bad.1");
}
