//! Reload: what changed is taken in, and nothing else is touched.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::cli::{done, err, json_of, over_socket};
use crate::client::{Http, Session, request, text, tool_call, why, with_token};
use crate::support::{Daemon, wait_until};

/// Reloads happen when they are asked for, and not by themselves.
const BY_HAND: &str = "[reload]\nwatch = false\n";

/// Servers of the fake program, by name, each with further lines.
fn servers(servers: &[(&str, &str)]) -> String {
    let fake = ostler_testkit::fake::path();
    servers.iter().fold(String::new(), |mut text, (name, lines)| {
        let _ =
            writeln!(text, "[servers.{name}]\ncommand = \"{}\"\nscope = \"shared\"\n{lines}", fake.display());
        text
    })
}

/// The same with a file in which reloads happen only when they are asked for.
fn config(table: &[(&str, &str)]) -> String {
    format!("{BY_HAND}{}", servers(table))
}

fn daemon(table: &[(&str, &str)]) -> Daemon {
    let daemon = Daemon::start(&config(table), &[("OSTLER_LOG", "info")]);
    ready(&daemon, table.len());
    daemon
}

fn ready(daemon: &Daemon, count: usize) {
    wait_until("all are ready", || daemon.ps().iter().filter(|row| row["state"] == "ready").count() == count);
}

/// Instance and process of each server.
fn running(daemon: &Daemon) -> HashMap<String, (String, u64)> {
    let text = |row: &Value, name: &str| row[name].as_str().expect("text").to_owned();
    let rows = daemon.ps();
    let rows = rows.iter().filter_map(|row| Some((row, row["pid"].as_u64()?)));
    rows.map(|(row, pid)| (text(row, "server"), (text(row, "id"), pid))).collect()
}

fn events<'a>(events: &'a [Value], kind: &str) -> Vec<(&'a str, &'a str)> {
    let of_kind = events.iter().filter(|event| event["kind"] == kind);
    of_kind.filter_map(|event| Some((event["subject"].as_str()?, event["message"].as_str()?))).collect()
}

/// A call that goes on until the end of its server has to wait for it; returns its stream once it runs.
async fn long_call(session: &Session, ms: u64) -> crate::client::Reply {
    let call = tool_call(7, "sleep", &json!({"ms": ms, "tag": "through"}));
    let mut reply = session.send(&with_token(call, &json!("t"))).await;
    assert!(reply.next().await.is_some(), "it says that it runs");
    reply
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_changed_is_replaced_and_nothing_else_is_touched() {
    let before = [
        ("keeps", "args = [\"legacy\", \"a\"]"),
        ("soft", "args = [\"legacy\", \"b\"]\nidle = \"1h\""),
        ("tool", "args = [\"legacy\", \"c\"]"),
        ("goes", "args = [\"legacy\", \"d\"]"),
    ];
    let daemon = Arc::new(daemon(&before));
    done(&daemon, &["spawn", "--name", "mine", "--", "sleep", "1000"]);
    let http = Http::new(daemon.address());
    let (keeps, tool, goes) = (
        Session::open(&http, "keeps").await,
        Session::open(&http, "tool").await,
        Session::open(&http, "goes").await,
    );
    let old = running(&daemon);
    daemon.rewrite(&config(&[
        ("comes", "args = [\"legacy\", \"e\"]"),
        ("tool", "args = [\"legacy\", \"new\"]\nidle = \"2h\""),
        ("soft", "args = [\"legacy\", \"b\"]\nidle = \"3h\""),
        ("keeps", "args = [\"legacy\", \"a\"]"),
    ]));

    let said = done(&daemon, &["reload", "--dry-run"]);
    assert!(said.contains("server tool: replaced: args, idle 300s -> 7200s\n"), "{said}");
    assert!(said.contains("1 server unchanged (nothing was done)"), "{said}");
    assert_eq!(running(&daemon), old, "a dry run");

    let call = long_call(&tool, 700).await;
    let reload = tokio::task::spawn_blocking({
        let daemon = Arc::clone(&daemon);
        move || done(&daemon, &["reload"])
    });
    assert_eq!(text(&call.answer().await), "through", "a call that runs may end first");
    let said = reload.await.expect("it does not panic");
    for line in [
        "server comes: added\n",
        "server tool: replaced: args, idle 300s -> 7200s\n",
        "server soft: changed while it runs: idle 3600s -> 10800s\n",
        "server goes: removed\n",
        "1 server unchanged\n",
    ] {
        assert!(said.contains(line), "{line} is not in {said}");
    }
    ready(&daemon, 5);
    let new = running(&daemon);
    for name in ["keeps", "soft", "mine"] {
        assert_eq!(new[name], old[name], "{name} was not to be touched");
    }
    assert_eq!(new["tool"].0, "tool.2", "ids are not used again");
    assert!(new.contains_key("comes") && !new.contains_key("goes"), "{new:?}");
    assert!(!std::path::Path::new(&format!("/proc/{}", old["goes"].1)).exists(), "its process is gone");

    assert_eq!(text(&keeps.call(1, "echo", &json!({"text": "here"})).await), "here");
    for (session, reason) in [
        (&tool, "`tool` was changed in the configuration (args changed, idle"),
        (&goes, "`goes` was removed"),
    ] {
        let reply = session.send(&request(1, "ping", &json!({}))).await;
        assert_eq!(reply.status, 404, "a client begins anew");
        let answer = reply.answer().await;
        assert!(why(&answer).contains(reason), "{answer}");
    }
    let again = Session::open(&http, "tool").await;
    assert_eq!(text(&again.call(1, "echo", &json!({"text": "new"})).await), "new");
    let told = daemon.events();
    for (kind, name) in [
        ("server-added", "comes"),
        ("server-removed", "goes"),
        ("server-replaced", "tool"),
        ("server-changed", "soft"),
    ] {
        let subjects: Vec<&str> = events(&told, kind).into_iter().map(|(subject, _)| subject).collect();
        assert_eq!(subjects, [name], "{kind}");
    }
    assert!(done(&daemon, &["reload"]).contains("4 servers unchanged"), "nothing is left to do");
}

#[test]
fn a_bad_file_changes_nothing_and_says_all_that_is_wrong() {
    let daemon = daemon(&[("keeps", "args = [\"a\"]")]);
    let old = running(&daemon);
    daemon.rewrite(&format!("{}[servers.new]\ncomand = \"x\"\nscope = \"everyone\"\n", config(&[])));
    for args in [["reload"].as_slice(), &["reload", "--dry-run"]] {
        let output = daemon.cli(args);
        let said = err(&output);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("did you mean `command`") && said.contains("everyone"), "all of it: {said}");
    }
    assert_eq!(over_socket(&daemon, "POST", "/api/v1/reload", "").0, 422);
    assert_eq!(running(&daemon), old);
    let told = daemon.events();
    let failed = events(&told, "reload-failed");
    assert_eq!(failed.len(), 2, "a dry run is no event: {failed:?}");
    assert!(failed[0].1.contains("comand"), "{failed:?}");
}

/// What depends on a replaced server stops before it and starts after it, where it is replaced too; where it is not,
/// it goes on, degraded meanwhile.
#[test]
fn servers_are_replaced_in_the_order_of_their_dependencies() {
    let table = |mark: &'static str| {
        let (db, web) =
            (format!("args = [\"{mark}\"]"), format!("args = [\"{mark}\"]\ndepends_on = [\"db\"]"));
        config(&[("db", &db), ("web", &web), ("page", "args = [\"p\"]\ndepends_on = [\"db\"]")])
    };
    let daemon = Daemon::start(&table("one"), &[]);
    ready(&daemon, 3);
    let (old, since) = (running(&daemon), daemon.events().len());
    daemon.rewrite(&table("two"));
    done(&daemon, &["reload"]);
    ready(&daemon, 3);
    let new = running(&daemon);
    assert_eq!(new["page"], old["page"]);
    let told = daemon.events();
    let at = |subject: &str, kind: &str| {
        let found =
            told[since..].iter().position(|event| event["subject"] == subject && event["kind"] == kind);
        found.unwrap_or_else(|| panic!("no `{kind}` of {subject}: {told:#?}"))
    };
    assert!(at("web.1", "stopped") < at("db.1", "stop-step"), "it depends on it: {told:#?}");
    assert!(at("db.2", "ready") < at("web.2", "starting"), "it needs it: {told:#?}");
    assert!(at("page.1", "degraded") < at("page.1", "recovered"), "{told:#?}");
    // It follows the new one from now on.
    done(&daemon, &["stop", "db"]);
    daemon.wait_row("page", "it is degraded", |row| row["state"] == "degraded");
}

#[test]
fn keys_of_the_daemon_change_at_once_or_are_said_to_need_a_restart() {
    let daemon =
        Daemon::start(&format!("{BY_HAND}[limits]\nadhoc = 1\n[gateway]\nmax_connections = 100\n"), &[]);
    done(&daemon, &["spawn", "--", "sleep", "1000"]);
    assert_eq!(daemon.cli(&["spawn", "--", "sleep", "1000"]).status.code(), Some(1), "one is the limit");
    daemon.rewrite(&format!("{BY_HAND}[limits]\nadhoc = 2\n[gateway]\nmax_connections = 50\n"));
    for _ in 0..2 {
        let view = json_of(&daemon, &["reload", "--json"]);
        let later =
            view["daemon"].as_array().expect("keys").iter().find(|key| key["apply"] == "daemon-restart");
        assert_eq!(later.expect("told each time")["key"], "gateway.max_connections", "{view}");
    }
    done(&daemon, &["spawn", "--", "sleep", "1000"]);
    assert_eq!(daemon.cli(&["spawn", "--", "sleep", "1000"]).status.code(), Some(1), "two is the limit");
}

/// SIGHUP is a reload too, and of many at once each comes to its end, one after the other.
#[test]
fn reloads_come_one_after_the_other_whoever_asks() {
    let daemon = daemon(&[("keeps", "args = [\"a\"]"), ("tool", "args = [\"b\"]")]);
    let old = running(&daemon);
    daemon.rewrite(&config(&[("keeps", "args = [\"a\"]"), ("tool", "args = [\"c\"]")]));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| done(&daemon, &["reload"]));
        }
    });
    ready(&daemon, 2);
    let told = daemon.events();
    assert_eq!(events(&told, "server-replaced").len(), 1, "one of them found it to do: {told:#?}");
    daemon.rewrite(&config(&[("keeps", "args = [\"a\"]"), ("tool", "args = [\"d\"]")]));
    daemon.signal(Signal::HUP);
    daemon.wait_row("tool", "it is replaced", |row| row["id"] == "tool.3" && row["state"] == "ready");
    assert_eq!(running(&daemon)["keeps"], old["keeps"]);
}

/// What a person stopped stays stopped; and a name of a process that was started by hand is not taken from it.
#[test]
fn what_people_did_by_hand_stays_done() {
    let daemon = daemon(&[("tool", "args = [\"a\"]")]);
    done(&daemon, &["stop", "tool"]);
    daemon.rewrite(&config(&[("tool", "args = [\"b\"]")]));
    done(&daemon, &["reload"]);
    daemon.wait_row("tool", "it stays stopped", |row| row["state"] == "stopped");
    done(&daemon, &["start", "tool"]);
    daemon.wait_row("tool", "a person starts it", |row| row["state"] == "ready" && row["id"] == "tool.2");
    done(&daemon, &["spawn", "--name", "mine", "--", "sleep", "1000"]);
    let old = running(&daemon);
    daemon.rewrite(&config(&[("mine", "args = [\"c\"]")]));
    let refused = daemon.cli(&["reload"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(err(&refused).contains("ostler rm mine"), "{}", err(&refused));
    assert_eq!(running(&daemon), old, "nothing changed, also not what could have");
}

/// Two names for one thing are one process, while they are the same; each session goes on by the name it used.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_names_for_one_thing_share_its_process() {
    let daemon = daemon(&[("one", "args = [\"legacy\"]")]);
    let first = running(&daemon);
    daemon
        .rewrite(&config(&[("two", "args = [\"legacy\"]\nrequired = true"), ("one", "args = [\"legacy\"]")]));
    done(&daemon, &["reload"]);
    assert_eq!(running(&daemon), first, "the one that runs serves both names");
    let view = json_of(&daemon, &["status", "two", "--json"]);
    assert_eq!((&view["same_as"], &view["state"]), (&json!("one"), &json!("ready")), "{view}");
    let http = Http::new(daemon.address());
    let (one, two) = (Session::open(&http, "one").await, Session::open(&http, "two").await);
    let pid = async |session: &Session| {
        let state: Value =
            serde_json::from_str(text(&session.call(1, "state", &json!({})).await)).expect("JSON");
        state["pid"].as_u64()
    };
    assert_eq!((pid(&one).await, pid(&two).await), (Some(first["one"].1), Some(first["one"].1)));
    // They part: the process stays with the name it had.
    daemon.rewrite(&config(&[("two", "args = [\"legacy\", \"x\"]"), ("one", "args = [\"legacy\"]")]));
    done(&daemon, &["reload"]);
    ready(&daemon, 2);
    assert_eq!(running(&daemon)["one"], first["one"]);
    assert_eq!(pid(&one).await, Some(first["one"].1));
    assert_eq!(
        two.send(&request(2, "ping", &json!({}))).await.status,
        404,
        "its name means another thing now"
    );
    let two = Session::open(&http, "two").await;
    assert_eq!(pid(&two).await, Some(running(&daemon)["two"].1));
    // A name that goes takes its sessions along, and one whose leader goes gets a process of its own.
    daemon.rewrite(&config(&[("two", "args = [\"legacy\"]")]));
    done(&daemon, &["reload"]);
    ready(&daemon, 1);
    assert_eq!(running(&daemon).len(), 1);
    assert!(json_of(&daemon, &["status", "two", "--json"])["same_as"].is_null());
}

/// A file that is written over, or that another is put in the place of, is taken in by itself; a bad one is told and
/// changes nothing, and the good one after it counts again.
#[test]
fn a_changed_file_is_taken_in_by_itself() {
    let table = |word: &str| servers(&[("tool", &format!("args = [\"{word}\"]"))]);
    let daemon = Daemon::start(&table("a"), &[]);
    ready(&daemon, 1);
    daemon.rewrite(&table("b"));
    daemon.wait_row("tool", "it is replaced", |row| row["id"] == "tool.2" && row["state"] == "ready");
    daemon.rewrite("[servers.tool]\ncomand = \"x\"\n");
    wait_until("the bad file is told", || !events(&daemon.events(), "reload-failed").is_empty());
    assert_eq!(daemon.ps()[0]["id"], "tool.2");
    // As editors do it.
    let file = daemon.dir().join("ostler.toml");
    let good = format!("[gateway]\nlisten = \"127.0.0.1:0\"\n{}", table("c"));
    std::fs::write(daemon.dir().join(".new"), good).expect("written");
    std::fs::rename(daemon.dir().join(".new"), &file).expect("renamed");
    daemon.wait_row("tool", "it is replaced", |row| row["id"] == "tool.3" && row["state"] == "ready");
    // And it can be switched off, by the file itself.
    daemon.rewrite(&format!("{BY_HAND}{}", table("c")));
    wait_until("that is in force", || {
        events(&daemon.events(), "reloaded").iter().any(|(_, what)| what.contains("reload.watch"))
    });
    daemon.rewrite(&format!("{BY_HAND}{}", table("d")));
    assert!(done(&daemon, &["reload"]).contains("server tool: replaced: args"), "nobody did it before");
}
