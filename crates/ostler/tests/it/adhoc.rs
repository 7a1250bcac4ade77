//! Processes started by hand, over the command line and over the API.

use serde_json::{Value, json};

use crate::cli::{alive, done, err, json_of, out, over_socket};
use crate::support::{Daemon, wait_until};

/// A daemon with one server, which no test needs to run, and this in its configuration besides.
fn daemon(limits: &str) -> Daemon {
    let fake = ostler_testkit::fake::path();
    let config = format!(
        "{limits}[servers.fake]\ncommand = \"{}\"\nargs = [\"legacy\"]\nstart = \"on-demand\"\n",
        fake.display()
    );
    Daemon::start(&config, &[("OSTLER_TEST_SECRET", "s3cret"), ("OSTLER_TEST_WANTED", "wanted")])
}

/// What a process has written on standard output, once `enough` of it is there.
fn output(daemon: &Daemon, name: &str, enough: impl Fn(&[String]) -> bool) -> Vec<String> {
    let mut lines = Vec::new();
    wait_until("the process has written enough", || {
        let text = done(daemon, &["logs", name, "--json"]);
        let all = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("an object"));
        let written = all.filter(|line| line["stream"] == "stdout");
        lines = written.map(|line| line["text"].as_str().expect("text").to_owned()).collect();
        enough(&lines)
    });
    lines
}

fn events_of<'a>(events: &'a [Value], subject: &str) -> Vec<&'a str> {
    let of_it = events.iter().filter(|event| event["subject"] == subject);
    of_it.filter_map(|event| event["kind"].as_str()).collect()
}

fn processes(daemon: &Daemon) -> Vec<String> {
    let (status, body) = over_socket(daemon, "GET", "/api/v1/processes", "");
    assert_eq!(status, 200, "{body}");
    let views: Vec<Value> = serde_json::from_str(&body).expect("an array");
    views.iter().map(|view| view["name"].as_str().expect("a name").to_owned()).collect()
}

/// Started, listed, stopped, started again, restarted and removed by the words that servers are.
#[test]
fn a_process_lives_as_a_server_does() {
    let daemon = daemon("");
    assert_eq!(done(&daemon, &["spawn", "--", "sleep", "1000"]), "sleep\n");
    assert_eq!(done(&daemon, &["spawn", "sleep", "1000"]), "sleep-2\n");
    let row = daemon.wait_row("sleep", "it runs", |row| row["state"] == "ready");
    assert_eq!((&row["kind"], &row["id"]), (&json!("process"), &json!("sleep.1")));
    let first = row["pid"].clone();
    assert!(alive(&first));
    assert!(done(&daemon, &["ps"]).contains("sleep-2.1"));
    assert!(done(&daemon, &["status", "sleep"]).contains("sleep 1000"));
    done(&daemon, &["stop", "sleep"]);
    assert!(!alive(&first));
    assert_eq!(processes(&daemon), ["sleep", "sleep-2"], "a stopped one stays listed");
    done(&daemon, &["start", "sleep"]);
    let second = daemon.wait_row("sleep", "it is back", |row| row["state"] == "ready")["pid"].clone();
    done(&daemon, &["restart", "sleep"]);
    let third = daemon.wait_row("sleep", "it is back", |row| row["state"] == "ready")["pid"].clone();
    assert!(!alive(&second) && alive(&third) && second != third);
    assert!(done(&daemon, &["rm", "sleep"]).contains("no process of it is left"));
    assert!(!alive(&third));
    assert_eq!(processes(&daemon), ["sleep-2"]);
    assert_eq!(daemon.cli(&["status", "sleep.1"]).status.code(), Some(1), "its instance is gone, too");
    // What is free is given again.
    assert_eq!(done(&daemon, &["spawn", "sleep", "1000"]), "sleep\n");
    let typo = daemon.cli(&["rm", "slepe-2"]);
    assert_eq!(typo.status.code(), Some(1));
    assert!(err(&typo).contains("did you mean `sleep-2`?"), "{}", err(&typo));
    let server = daemon.cli(&["rm", "fake"]);
    assert!(!server.status.success() && err(&server).contains("configuration"), "{}", err(&server));
}

/// No shell, no secret, the caller's directory; what is asked for is given.
#[test]
fn arguments_stay_arguments_and_the_environment_is_clean() {
    let daemon = daemon("");
    done(&daemon, &["spawn", "--name", "args", "--", "printf", "%s\\n", "$HOME; `id`", "a b", "-n"]);
    assert_eq!(output(&daemon, "args", |lines| lines.len() == 3), ["$HOME; `id`", "a b", "-n"]);

    done(
        &daemon,
        &["spawn", "--name", "env", "--env", "MINE=1=2", "--inherit-env", "OSTLER_TEST_WANTED", "env"],
    );
    let env = output(&daemon, "env", |lines| lines.iter().any(|line| line.starts_with("OSTLER_INSTANCE=")));
    for wanted in ["MINE=1=2", "OSTLER_TEST_WANTED=wanted"] {
        assert!(env.iter().any(|line| line == wanted), "{wanted}: {env:?}");
    }
    assert!(!env.iter().any(|line| line.contains("s3cret")), "a secret was inherited: {env:?}");

    let dir = tempfile::tempdir().expect("a temporary directory");
    let dir = dir.path().canonicalize().expect("it is there");
    let path = dir.to_str().expect("plain");
    done(&daemon, &["spawn", "--name", "cwd", "--cwd", path, "pwd"]);
    assert_eq!(output(&daemon, "cwd", |lines| !lines.is_empty()), [path]);
    let mut here = daemon.ostler();
    let spawned = here.args(["spawn", "--name", "here", "pwd"]).current_dir(&dir).output().expect("it runs");
    assert!(spawned.status.success(), "{}", err(&spawned));
    assert_eq!(output(&daemon, "here", |lines| !lines.is_empty()), [path]);

    done(&daemon, &["spawn", "--name", "shell", "--shell", "for i in 1 2; do echo $i; done"]);
    assert_eq!(output(&daemon, "shell", |lines| lines.len() == 2), ["1", "2"]);
}

#[test]
fn what_cannot_be_started_is_refused_with_the_reason() {
    let daemon = daemon("");
    for (args, why) in [
        (["spawn", "no-such-program-here"].as_slice(), "was not found in PATH="),
        (&["spawn", "/etc/passwd"], "chmod +x"),
        (&["spawn", "/etc"], "is a directory"),
        (&["spawn", "--cwd", "/nowhere", "true"], "`/nowhere`"),
        (&["spawn", "--cwd", "/etc/passwd", "true"], "is not a directory"),
        (&["spawn", "--name", "fake", "true"], "server of the configuration"),
        (&["spawn", "--name", "a/b", "true"], "is not a server name"),
        (&["spawn", "--env", "=x", "true"], "name of a variable"),
        (&["spawn", "--pids", "0", "true"], "1 to 4194304"),
        (&["spawn", "--shell", "echo", "x"], "quote it"),
    ] {
        let refused = daemon.cli(args);
        assert_eq!((refused.status.code(), out(&refused)), (Some(1), String::new()), "{args:?}");
        assert!(err(&refused).contains(why), "{args:?}: {}", err(&refused));
    }
    for (body, status, why) in [
        ("", 400, "EOF"),
        (r#"{"command":["true"],"nmae":"x"}"#, 400, "unknown field `nmae`"),
        (r#"{"command":[]}"#, 400, "no program"),
        (r#"{"command":["true"],"cwd":"relative"}"#, 400, "not absolute"),
        (r#"{"command":["true"],"name":"fake"}"#, 409, "configuration"),
    ] {
        let (got, said) = over_socket(&daemon, "POST", "/api/v1/processes", body);
        assert!(got == status && said.contains(why), "{body}: {got} {said}");
    }
    // Hardly more than it takes: all of it is read before the answer, so that writing it cannot fail.
    let large = format!(r#"{{"command":["true","{}"]}}"#, "x".repeat(2 << 20));
    let (status, said) = over_socket(&daemon, "POST", "/api/v1/processes", &large);
    assert!(status == 413 && said.contains("larger than"), "{status} {said}");
    assert_eq!(processes(&daemon), [""; 0], "nothing of it was started");
    assert!(daemon.events().iter().all(|event| event["kind"] != "starting"));
}

/// Status 0 is an end and no failure; any other is followed by restarts, unless they are not wanted.
#[test]
fn the_restart_policy_decides_what_follows_an_end() {
    let daemon = daemon("");
    let job = json_of(&daemon, &["spawn", "--wait", "--json", "true"]);
    let instance = &job["instance"];
    assert_eq!((&instance["state"], &instance["ended"]["code"]), (&json!("stopped"), &json!(0)), "{job}");
    assert_eq!(instance["restarts"], 0);
    assert!(done(&daemon, &["status", "true"]).contains("exited with status 0"));

    let failed = daemon.cli(&["spawn", "--wait", "--restart", "never", "--shell", "exit 7"]);
    assert_eq!(failed.status.code(), Some(1));
    assert!(err(&failed).contains("exited with status 7"), "{}", err(&failed));
    daemon.wait_row("sh", "it stays down", |row| row["state"] == "failed" && row["restarts"] == 0);

    done(&daemon, &["spawn", "--name", "again", "--max-restarts", "1", "--shell", "exit 3"]);
    let broken = daemon.wait_row("again", "it is broken after one restart", |row| row["state"] == "broken");
    assert_eq!((&broken["generation"], &broken["ended"]["code"]), (&json!(2), &json!(3)), "{broken}");
    assert!(broken["next_try_ms"].is_u64(), "it says when it is tried again: {broken}");
}

/// `limits.adhoc` bounds the running, and the table; an ended one makes room, the one that ended first.
#[test]
fn at_the_limit_the_oldest_ended_makes_room_and_a_running_one_does_not() {
    let daemon = daemon("[limits]\nadhoc = 3\n");
    done(&daemon, &["spawn", "--name", "runs", "sleep", "1000"]);
    for name in ["one", "two"] {
        done(&daemon, &["spawn", "--wait", "--name", name, "true"]);
    }
    done(&daemon, &["start", "one"]);
    daemon.wait_row("one", "it has ended a second time", |row| {
        row["generation"] == 2 && row["state"] == "stopped"
    });
    // Now `two` ended before `one` did, though it was started later.
    done(&daemon, &["spawn", "--name", "three", "sleep", "1000"]);
    assert_eq!(processes(&daemon), ["runs", "one", "three"]);
    let taken = daemon.cli(&["spawn", "--name", "one", "true"]);
    assert!(err(&taken).contains("`ostler rm one`"), "{}", err(&taken));
    assert_eq!(processes(&daemon), ["runs", "one", "three"], "a refusal costs nobody its place");
    done(&daemon, &["spawn", "--name", "four", "sleep", "1000"]);
    assert_eq!(processes(&daemon), ["runs", "three", "four"]);
    let body = r#"{"command":["true"],"name":"five"}"#;
    let (status, said) = over_socket(&daemon, "POST", "/api/v1/processes", body);
    assert!(status == 429 && said.contains("limits.adhoc"), "{status} {said}");
    assert_eq!(daemon.status()["counters"]["limits.adhoc"], 1);
    let events = daemon.events();
    assert!(events_of(&events, "two").contains(&"dropped") && events_of(&events, "one").contains(&"dropped"));
    assert!(
        events
            .iter()
            .any(|event| event["kind"] == "refused" && event["message"].to_string().contains("by hand"))
    );
    done(&daemon, &["stop", "runs"]);
    done(&daemon, &["spawn", "--name", "five", "sleep", "1000"]);
    assert_eq!(processes(&daemon), ["three", "four", "five"]);
}

/// They count by themselves, end with the daemon, and their whole tree does.
#[test]
fn processes_take_no_servers_place_and_end_with_the_daemon() {
    let mut daemon = daemon("[limits]\nprocesses = 1\n");
    done(&daemon, &["spawn", "--name", "tree", "--shell", "sleep 1000 & echo $!; wait"]);
    done(&daemon, &["spawn", "sleep", "1000"]);
    let child: Value = output(&daemon, "tree", |lines| lines.len() == 1)[0].parse().expect("a pid");
    done(&daemon, &["start", "fake"]);
    let row = daemon.wait_row("fake", "there is a place for it", |row| row["state"] == "ready");
    assert_eq!(row["kind"], "server");
    let pids = [child, daemon.wait_row("sleep", "it runs", |row| row["pid"].is_u64())["pid"].clone()];
    assert!(pids.iter().all(alive));
    done(&daemon, &["down"]);
    assert!(!pids.iter().any(alive));
    assert!(daemon.wait().success());
}

/// A limit reaches the process: its kernel says so.
#[test]
fn limits_are_given_to_the_process() {
    let daemon = daemon("");
    done(
        &daemon,
        &["spawn", "--name", "files", "--open-files", "77", "--nice", "5", "--shell", "ulimit -n; nice"],
    );
    assert_eq!(output(&daemon, "files", |lines| lines.len() == 2), ["77", "5"]);
    let (_, body) = over_socket(&daemon, "GET", "/api/v1/processes/files", "");
    let view: Value = serde_json::from_str(&body).expect("an object");
    assert_eq!((&view["limits"]["open_files"], &view["limits"]["nice"]), (&json!(77), &json!(5)));
}
