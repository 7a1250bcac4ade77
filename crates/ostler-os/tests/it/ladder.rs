//! Stopping every kind of evil child, step by step: close standard input, SIGTERM, SIGKILL, verified empty.

use ostler_os::{Exit, GuardEvent};
use ostler_testkit::mark::{Mark as TestMark, Marked};

use super::{STEP, assert_nothing_left, drain, handshake, is_orphan, see, spawn_evil, started, until_empty};

/// The step that has to be enough, and before which no other is.
#[derive(Clone, Copy, PartialEq, PartialOrd, Debug)]
enum By {
    Eof,
    Term,
    Kill,
}

/// Starts it, waits until it is at its worst, climbs the ladder, and counts at the moment it is said to be empty.
async fn check(words: &[&str], by: By, at_its_worst: impl Fn(&[Marked]) -> bool) {
    let mark = TestMark::new();
    let mut tree = spawn_evil(&mark, words).await;
    let guard = (tree.guard_pid, tree.guard_start);
    started(&mut tree.events).await;
    if words.contains(&"sigstop") {
        handshake(&mut tree).await;
    }
    see(&mark, "the worst", at_its_worst).await;
    if !words.contains(&"unread") {
        drain(tree.stdout);
        drain(tree.stderr);
    }
    drop(tree.stdin);
    if by > By::Eof {
        outlives_a_step(&mut tree.events, &mark).await;
        tree.control.terminate();
    }
    if by > By::Term {
        outlives_a_step(&mut tree.events, &mark).await;
        tree.control.kill();
    }
    until_empty(&mut tree.events).await;
    assert_nothing_left(&mark, guard);
    assert_eq!(tree.events.recv().await, None, "the last event");
}

/// It is known to ignore this step: however slow the machine is, it lives on.
async fn outlives_a_step(events: &mut super::Events, mark: &TestMark) {
    let early = tokio::time::timeout(STEP, until_empty(events)).await;
    assert!(early.is_err(), "empty too early: {early:?}");
    assert_ne!(mark.count(), 0, "not said to be empty, but it is");
}

fn any(_: &[Marked]) -> bool {
    true
}

fn orphaned(marked: &[Marked]) -> bool {
    marked.iter().any(is_orphan)
}

fn stopped(marked: &[Marked]) -> bool {
    marked.iter().any(|marked| marked.state.starts_with('T'))
}

/// The trap is set once the shell that set it has become the server.
fn armed(marked: &[Marked]) -> bool {
    marked.iter().any(|marked| marked.command.ends_with("armed") && !marked.command.starts_with("sh "))
}

macro_rules! ladder {
    ($($name:ident: $words:expr, $by:expr, $worst:expr;)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            check(&$words, $by, $worst).await;
        }
    )*};
}

ladder! {
    a_good_child_ends_with_its_input: [], By::Eof, any;
    ignores_eof: ["ignore-eof"], By::Term, any;
    ignores_term: ["ignore-term"], By::Eof, armed;
    ignores_all_it_can: ["ignore-eof", "ignore-term"], By::Kill, armed;
    leaves_an_orphan_that_ignores_signals: ["double-fork"], By::Eof, orphaned;
    keeps_an_orphan_that_ignores_signals: ["double-fork", "ignore-eof"], By::Kill, orphaned;
    leaves_an_orphan_without_environment: ["clean-env-fork"], By::Eof, orphaned;
    keeps_an_orphan_without_environment: ["clean-env-fork", "ignore-eof"], By::Kill, orphaned;
    stops_itself: ["sigstop"], By::Term, stopped;
    stops_itself_and_ignores_signals: ["sigstop", "ignore-eof", "ignore-term"], By::Kill, stopped;
    never_answers: ["never-answer"], By::Eof, any;
    floods_stdout: ["flood-stdout"], By::Eof, any;
    floods_stdout_unread: ["flood-stdout", "unread"], By::Eof, any;
    floods_stderr: ["flood-stderr"], By::Eof, any;
    floods_stderr_unread_and_ignores_all: ["flood-stderr", "ignore-eof", "ignore-term", "unread"], By::Kill, armed;
    closes_its_stdio: ["close-stdio"], By::Term, |marked| marked.iter().any(has_let_go);
    a_wrapper: ["wrapper"], By::Eof, |marked| marked.len() == 2;
    a_wrapper_that_ignores_eof: ["wrapper", "ignore-eof"], By::Term, |marked| marked.len() == 2;
    like_npx: ["npx-like"], By::Eof, |marked| marked.len() == 3;
    like_npx_ignoring_all: ["npx-like", "ignore-eof", "ignore-term"], By::Kill, armed;
    forks_many: ["fork-many", "40"], By::Eof, |marked| marked.len() >= 41;
    forks_many_and_ignores_all: ["fork-many", "40", "ignore-eof", "ignore-term"], By::Kill,
        |marked| marked.len() >= 41;
}

fn has_let_go(marked: &Marked) -> bool {
    std::fs::read_link(format!("/proc/{}/fd/2", marked.pid)).is_ok_and(|path| path.ends_with("dev/null"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_exits_early_is_reported_with_its_status() {
    let mark = TestMark::new();
    let mut tree = spawn_evil(&mark, &["exit-early"]).await;
    started(&mut tree.events).await;
    assert_eq!(until_empty(&mut tree.events).await, [GuardEvent::LeaderExited(Exit::Code(3))]);
    assert_nothing_left(&mark, (tree.guard_pid, tree.guard_start));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn letting_go_of_the_control_ends_the_tree() {
    let mark = TestMark::new();
    let mut tree = spawn_evil(&mark, &["double-fork", "ignore-eof", "ignore-term"]).await;
    started(&mut tree.events).await;
    see(&mark, "an orphan", orphaned).await;
    let clone = tree.control.clone();
    drop(tree.control);
    outlives_a_step(&mut tree.events, &mark).await;
    drop(clone);
    until_empty(&mut tree.events).await;
    assert_nothing_left(&mark, (tree.guard_pid, tree.guard_start));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_is_possible_at_any_time_from_the_start() {
    // The order is in the queue before, while or after the guard starts the server.
    for round in 0..20 {
        let mark = TestMark::new();
        let mut tree = spawn_evil(&mark, &["double-fork", "ignore-eof", "ignore-term"]).await;
        if round % 2 == 1 {
            started(&mut tree.events).await;
        }
        tree.control.kill();
        until_empty(&mut tree.events).await;
        assert_nothing_left(&mark, (tree.guard_pid, tree.guard_start));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn asking_without_end_leaves_room_for_the_kill() {
    let mark = TestMark::new();
    let mut tree = spawn_evil(&mark, &["ignore-eof", "ignore-term"]).await;
    started(&mut tree.events).await;
    see(&mark, "the trap", armed).await;
    (0..10_000).for_each(|_| tree.control.terminate());
    tree.control.kill();
    until_empty(&mut tree.events).await;
    assert_nothing_left(&mark, (tree.guard_pid, tree.guard_start));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_whose_first_thread_ended_is_not_taken_for_dead() {
    let mark = TestMark::new();
    // Below a shell and in its own session, where only a look at the tree finds it.
    let program = super::testbed().to_str().expect("text").to_owned();
    let script = r#""$0" zombie-leader & wait"#;
    let mut tree = super::spawn(&mark, "sh", &["-c", script, &program]);
    let (leader, _) = started(&mut tree.events).await;
    let find = || {
        let scan = ostler_os::tree::Scan::take().expect("/proc");
        scan.children(leader).find(|child| child.state == b'Z' && child.session == child.pid).copied()
    };
    see(&mark, "the first thread's end", |_| find().is_some()).await;
    let half_dead = find().expect("just seen");
    assert_eq!(half_dead.threads, 2);
    tree.control.kill();
    until_empty(&mut tree.events).await;
    assert!(
        ostler_os::tree::read(half_dead.pid).expect("/proc").is_none_or(|now| now.id() != half_dead.id())
    );
    assert!(!super::is_alive((tree.guard_pid, tree.guard_start)));
}
