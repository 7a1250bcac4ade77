//! The life of sessions in virtual time.

use std::sync::Arc;
use std::time::Duration;

use ostler_domain::session::SessionState;
use ostler_store::SessionRecord;

use super::*;
use crate::clock::unix_ms;
use crate::events::Events;
use crate::ledger::Ledger;

const LIFE: Life =
    Life { idle: Duration::from_secs(10), stale: Duration::from_secs(30), max_age: Duration::from_secs(100) };
const GRACE: Duration = Duration::from_secs(5);
const CALLS: usize = 4;

struct World {
    sessions: Arc<Sessions>,
    events: Arc<Events>,
    me: Arc<str>,
}

impl World {
    /// A table whose sessions end as their time comes.
    fn new(limit: usize) -> Self {
        let keep = Keep { events: 4, bytes: 1024 };
        let sessions = Arc::new(Sessions::new(limit, LIFE, keep, Arc::default()));
        let events = Arc::new(Events::default());
        tokio::spawn({
            let (sessions, events) = (Arc::clone(&sessions), Arc::clone(&events));
            async move { sessions.follow(&events).await }
        });
        Self { sessions, events, me: "me".into() }
    }

    fn open(&self, key: &str) -> Arc<Session> {
        self.sessions.find_or_open(&self.me, key, true).expect("room").0
    }

    async fn drain(&self, session: &Arc<Session>) -> SessionState {
        self.sessions.drain(session, "a person ended it", GRACE, &self.events).await
    }

    fn told(&self) -> Vec<String> {
        self.events.after(0, usize::MAX).into_iter().map(|event| event.message).collect()
    }
}

/// Lets time pass, and what is due happen.
async fn after(time: Duration) {
    tokio::time::sleep(time + Duration::from_millis(2)).await;
}

#[tokio::test(start_paused = true)]
async fn a_session_ends_when_it_was_silent_for_its_time_after_the_last_word() {
    let world = World::new(9);
    let session = world.open("one");
    after(LIFE.idle / 2).await;
    drop(session.busy());
    after(LIFE.idle / 2).await;
    assert!(!session.ended(), "it was heard of meanwhile");
    after(LIFE.idle / 2).await;
    assert!(session.ended());
    assert_eq!(world.told(), ["session ended: silent for 10 s (sessions.idle)"]);
    assert!(!Arc::ptr_eq(&session, &world.open("one")), "its name is free");
}

#[tokio::test(start_paused = true)]
async fn who_listens_is_there_and_who_has_an_instance_is_to_use_it() {
    let world = World::new(9);
    let (plain, owner) = (world.open("plain"), world.open("owner"));
    let _streams = [plain.listen(), owner.listen()];
    after(LIFE.idle).await;
    assert_eq!(world.sessions.common.agenda.len(), 0, "nothing will be due by itself");
    owner.note_own();
    after(LIFE.idle).await;
    drop(owner.begin_call(CALLS));
    after(LIFE.stale - Duration::from_secs(1)).await;
    assert!(!owner.ended());
    after(Duration::from_secs(1)).await;
    assert!(owner.ended() && !plain.ended());
    assert!(world.told()[0].contains("called nothing for 30 s"), "{:?}", world.told());
}

/// A stream that ends is the last word: from there on the session is silent.
#[tokio::test(start_paused = true)]
async fn an_end_that_comes_sooner_is_not_missed() {
    let world = World::new(9);
    let session = world.open("one");
    let stream = session.listen();
    session.note_own();
    after(LIFE.stale / 2).await;
    drop(stream);
    after(LIFE.idle).await;
    assert!(session.ended(), "before it is stale");
    assert!(world.told()[0].contains("sessions.idle"), "{:?}", world.told());
}

#[tokio::test(start_paused = true)]
async fn what_runs_is_never_cut_for_want_of_a_word_or_for_its_age() {
    let world = World::new(9);
    let session = world.open("one");
    session.note_own();
    let call = session.begin_call(CALLS).expect("room");
    let task = session.begin_task("run_many");
    after(LIFE.max_age - Duration::from_secs(1)).await;
    assert_eq!(session.state(), SessionState::Active);
    after(Duration::from_secs(1)).await;
    assert_eq!(session.state(), SessionState::Draining);
    assert!(matches!(session.begin_call(CALLS), Err(CallRefused::Draining(_))));
    drop(call);
    after(LIFE.max_age).await;
    assert_eq!((session.state(), session.tasks()), (SessionState::Draining, vec!["run_many".to_owned()]));
    assert_eq!(session.cut_in_ms(), None, "nothing is cut");
    drop(task);
    after(Duration::ZERO).await;
    assert!(session.ended());
    let told = world.told();
    assert!(
        told[0].contains("takes no new calls while 1 call and 1 task of it run: it is 100 s old"),
        "{told:?}"
    );
    assert_eq!(told[1], "session ended: it is 100 s old, and has an instance for itself (sessions.max_age)");
}

#[tokio::test(start_paused = true)]
async fn one_that_is_ended_while_something_runs_drains_first() {
    let world = World::new(9);
    let session = world.open("one");
    let call = session.begin_call(CALLS).expect("room");
    assert_eq!(world.drain(&session).await, SessionState::Draining);
    let refused = session.begin_call(CALLS).expect_err("it is ending");
    assert_eq!(refused.to_string(), "this session is ending and takes no new calls: a person ended it");
    after(GRACE / 2).await;
    assert_eq!(world.drain(&session).await, SessionState::Draining, "asked once more, it is no longer");
    drop(call);
    after(Duration::ZERO).await;
    assert!(session.ended());
    assert_eq!(
        world.told(),
        [
            "session is ending, and takes no new calls while 1 call of it runs: a person ended it",
            "session ended: a person ended it"
        ]
    );
    assert_eq!(world.drain(&world.open("idle")).await, SessionState::Ended, "nothing runs");
}

#[tokio::test(start_paused = true)]
async fn what_still_runs_after_the_grace_is_cut() {
    let world = World::new(9);
    let session = world.open("one");
    let _task = session.begin_task("for ever");
    assert_eq!(world.drain(&session).await, SessionState::Draining);
    after(GRACE - Duration::from_secs(1)).await;
    assert!(!session.ended());
    after(Duration::from_secs(1)).await;
    assert!(session.ended());
    let last = world.told().pop().expect("an event");
    assert!(
        last.ends_with("a person ended it; 1 task of it runs still, and the grace was over (sessions.grace)"),
        "{last}"
    );
    assert_eq!(world.events.counters()["sessions.grace"], 1);
}

#[tokio::test]
async fn calls_are_bounded_and_tasks_counted_apart() {
    let world = World::new(9);
    let session = world.open("one");
    let calls = [session.begin_call(2).expect("room"), session.begin_call(2).expect("room")];
    assert_eq!(session.begin_call(2).expect_err("full"), CallRefused::Calls(2));
    let task = session.begin_task("t1-00000000");
    assert_eq!((session.tasks(), session.running()), (vec!["t1-00000000".to_owned()], 3));
    drop((task, calls));
    assert_eq!((session.running(), session.calls_begun()), (0, 2));
}

#[tokio::test(start_paused = true)]
async fn that_it_is_to_end_is_heard_once_there_is_a_time_for_it() {
    let world = World::new(9);
    let session = world.open("one");
    session.note_own();
    let _call = session.begin_call(CALLS).expect("room");
    let watched = Arc::clone(&session);
    let heard = tokio::spawn(async move { watched.until_to_end().await });
    after(LIFE.max_age).await;
    assert!(!heard.is_finished() && session.state() == SessionState::Draining, "whenever its call is over");
    assert_eq!(world.drain(&session).await, SessionState::Draining);
    heard.await.expect("it hears of it");
    assert!(!session.ended());
}

/// Ten thousand come and go: nothing of them stays but the latest reasons.
#[tokio::test(start_paused = true)]
async fn nothing_is_left_of_sessions_that_have_ended() {
    let world = World::new(usize::MAX);
    for _ in 0..10_000 {
        let (session, _) = world.sessions.open_with_handle(&world.me, true).expect("room");
        world.sessions.end(&session.id, "it was enough").await;
    }
    let waiting: Vec<_> = (0..2_000).map(|n| world.open(&n.to_string())).collect();
    assert_eq!(world.sessions.common.agenda.len(), waiting.len(), "one look for each");
    after(LIFE.idle).await;
    assert!(waiting.iter().all(|session| session.ended()) && world.sessions.is_empty());
    assert_eq!(world.sessions.common.agenda.len(), 0);
    assert_eq!(world.sessions.farewells.lock().expect("whole").len(), FAREWELLS);
}

/// What of a session is written down, as an earlier daemon did.
fn record(number: u64, id: &str, silent: Duration) -> SessionRecord {
    let ago = |time: Duration| unix_ms() - u64::try_from(time.as_millis()).expect("small");
    SessionRecord {
        number,
        id: id.to_owned(),
        principal: "me".to_owned(),
        name: None,
        isolated: number.is_multiple_of(2),
        owned: true,
        restarts: 1,
        created_unix_ms: ago(silent + Duration::from_secs(7)),
        heard_unix_ms: ago(silent),
    }
}

#[tokio::test(start_paused = true)]
async fn a_handle_is_what_it_was_after_a_restart() {
    let handle = |n: u8| format!("ses_{n:032x}");
    let world = World::new(2);
    let records: Vec<_> =
        [(1, 2 * LIFE.idle), (4, LIFE.idle / 2), (5, LIFE.idle / 4), (6, LIFE.idle * 3 / 4)]
            .into_iter()
            .map(|(n, silent)| record(n.into(), &id_of("me", &handle(n)), silent))
            .collect();
    assert!(records.iter().all(|record| !record.id.contains(&handle(0)[4..20])), "{records:?}");
    assert_eq!(world.sessions.take_up(records), TakenUp { kept: 2, ended: 2 });
    let session = world.open(&handle(4));
    assert_eq!((&*session.handle, session.isolated, session.restarts), ("s4", true, 2));
    assert!(session.age_ms() >= 12_000, "{}", session.age_ms());
    assert!(!world.open(&handle(5)).isolated);
    let gone =
        |n| world.sessions.find_or_open(&world.me, &handle(n), true).expect_err("it has ended").to_string();
    assert!(gone(1).contains("silent for 10 s (sessions.idle), by the time the daemon was started again"));
    assert!(gone(6).contains("room for 2 (limits.sessions)"), "those are kept that were heard of last");
    assert!(session.note_own(), "what it had is lost");
    assert!(!session.note_own(), "told once");
    // Whole, from the restart on: its client may need time to come back.
    after(LIFE.idle / 2).await;
    assert!(!session.ended());
    after(LIFE.idle / 2).await;
    assert!(session.ended());
    assert_eq!(&*world.open("new").handle, "s7", "numbers are not given twice");
}

// In real time: while the store's thread writes, virtual time would run away.
#[tokio::test]
async fn what_is_written_down_is_what_there_is_at_the_end() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (ledger, _) = Ledger::open(dir.path(), "boot".to_owned()).expect("it opens");
    let world = World::new(usize::MAX);
    world.sessions.take_up(Vec::new());
    let (kept, gone) = (world.open("kept"), world.open("gone"));
    world.sessions.end(&gone.id, "it was enough").await;
    // A word that comes after its end does not bring it back.
    world.sessions.common.records.note(&gone);
    world.sessions.write_all(&ledger, &world.events).await;
    let written = ledger.sessions().await.expect("it reads");
    assert_eq!(
        written.iter().map(|one| (one.number, one.name.as_deref())).collect::<Vec<_>>(),
        [(kept.key, Some("kept"))]
    );
}
