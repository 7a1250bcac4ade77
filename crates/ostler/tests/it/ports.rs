//! Ports: given once, shown to be the instance's own, and given back.

use std::collections::HashSet;
use std::io::Read as _;
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;

use crate::support::{Daemon, PATIENCE, wait_until};

/// A range that the machine gives to nobody by itself, of this test process's own: tests run side by side.
fn range(length: u16) -> (u16, u16) {
    let first = 10_000 + u16::try_from(std::process::id() % 20).expect("small") * 1_000;
    (first, first + length - 1)
}

fn servers(count: usize, more: &str) -> String {
    let fake = ostler_testkit::fake::path();
    (0..count)
        .map(|number| {
            format!(
                "[servers.p{number}]\ncommand = \"{}\"\nargs = [\"listen\", \"{{port.main}}\"]\ntransport = \"none\"\n\
                 scope = \"shared\"\nports = {{ main = \"auto\" }}\nrestart = {{ backoff = {{ min = \"10ms\" }}, max = 1000 }}\n{more}",
                fake.display()
            )
        })
        .collect()
}

/// Who answers on a port: the fake server says its process id.
fn answers(port: u64) -> Option<u64> {
    let port = u16::try_from(port).expect("a port");
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket option");
    let mut said = String::new();
    stream.read_to_string(&mut said).ok()?;
    said.trim().parse().ok()
}

fn port_of(row: &Value) -> u64 {
    row["ports"]["main"].as_u64().expect("a port")
}

/// Two hundred instances start at once while somebody else binds ports of the range, here and there: each ends up
/// on a port of its own, at which it and nobody else answers.
#[test]
fn two_hundred_at_once_and_a_thief() {
    let (count, (first, last)) = (200, range(400));
    let config =
        format!("[limits]\nprocesses = 300\n[ports]\nrange = \"{first}-{last}\"\n{}", servers(count, ""));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| thief(first, last, &stop));
        let mut daemon = Daemon::start(&config, &[]);
        wait_until("all are ready", || {
            daemon.ps().iter().filter(|row| row["state"] == "ready").count() == count
        });
        let rows = daemon.ps();
        let ports: HashSet<u64> = rows.iter().map(port_of).collect();
        assert_eq!(ports.len(), count, "none shares");
        for row in &rows {
            assert_eq!(answers(port_of(row)), row["pid"].as_u64(), "it answers itself: {row}");
        }
        let taken = daemon.status()["ports_held"].as_u64();
        assert_eq!(taken, Some(count as u64));
        stop.store(true, Ordering::Relaxed);
        let names: Vec<String> = (0..count).map(|number| format!("p{number}")).collect();
        std::thread::scope(|scope| {
            for names in names.chunks(50) {
                scope.spawn(|| {
                    names.iter().for_each(|name| assert!(daemon.cli(&["stop", name]).status.success()))
                });
            }
        });
        wait_until("all ports are given back", || daemon.status()["ports_held"] == 0);
        assert!(daemon.cli(&["down"]).status.success());
        assert!(daemon.wait().success());
    });
}

/// Binds ports of the range, a few at a time, until told to stop.
fn thief(first: u16, last: u16, stop: &AtomicBool) {
    let mut held = std::collections::VecDeque::new();
    let mut next = u32::from(first);
    while !stop.load(Ordering::Relaxed) {
        // A step that shares no factor with the length: all ports are tried, in no order that the daemon uses.
        next = u32::from(first) + (next - u32::from(first) + 37) % (u32::from(last - first) + 1);
        let port = u16::try_from(next).expect("within the range");
        held.extend(TcpListener::bind(("127.0.0.1", port)));
        if held.len() > 40 {
            held.pop_front();
        }
        std::thread::park_timeout(std::time::Duration::from_millis(2));
    }
}

/// When no port is left that is said, with the figures; another is given once there is one.
#[test]
fn when_none_is_left_that_is_an_error_with_the_figures() {
    let (first, _) = range(1);
    let (first, last) = (first + 500, first + 501);
    let config = format!("[ports]\nrange = \"{first}-{last}\"\n{}", servers(3, ""));
    let daemon = Daemon::start(&config, &[]);
    wait_until("two are ready", || daemon.ps().iter().filter(|row| row["state"] == "ready").count() == 2);
    let is_out =
        |row: &Value| row["reason"].as_str().is_some_and(|reason| reason.contains("no port is free"));
    let mut out = Value::Null;
    wait_until("the third says why", || {
        out = daemon.ps().into_iter().find(is_out).unwrap_or_default();
        !out.is_null()
    });
    let reason = out["reason"].as_str().expect("a reason");
    assert!(reason.contains(&format!("{first}-{last}")) && reason.contains("2 are held"), "{reason}");
    let ready = daemon.ps().into_iter().find(|row| row["state"] == "ready").expect("two of them");
    assert!(daemon.cli(&["stop", ready["server"].as_str().expect("a name")]).status.success());
    daemon
        .wait_row(out["server"].as_str().expect("a name"), "it gets the port", |row| row["state"] == "ready");
}
