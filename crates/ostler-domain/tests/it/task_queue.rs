//! The queue of tasks: scenes by hand, and what things are called.

use std::time::Duration;

use ostler_domain::Now;
use ostler_domain::task::queue::{
    Effect, Event, Figures, Full, How, Limit, Place, ProjectLimits, Queue, QueueSpec, Queued, STEP,
};
use ostler_domain::task::retry::RetrySpec;
use ostler_domain::task::{BatchId, Lane, Priority, ProjectName, TaskId, WorkerId};

use crate::support::{at, secs};

pub(crate) fn project(name: &str) -> ProjectName {
    name.parse().expect("a name")
}

pub(crate) fn lane() -> Lane {
    Lane::CODE.parse().expect("a name")
}

pub(crate) fn task(seq: u64, name: &str, priority: u8, ready: u64) -> Queued {
    Queued {
        seq,
        lane: lane(),
        project: project(name),
        priority: Priority::try_from(priority).expect("up to 10"),
        ready: at(ready),
        deadline: None,
        attempt: 1,
    }
}

pub(crate) fn free(worker: u64) -> Event {
    Event::WorkerFree { lane: lane(), worker: WorkerId(worker) }
}

pub(crate) fn limits(name: &str, running: Option<usize>, weight: u32) -> Event {
    let limits = ProjectLimits { running, queued: None, weight };
    Event::ProjectLimits { project: project(name), limits: Some(limits) }
}

fn assign(seq: u64, attempt: u32, worker: u64) -> Effect {
    Effect::Assign { seq, attempt, worker: WorkerId(worker) }
}

fn over(seq: u64, attempt: u32) -> Event {
    Event::Ended { seq, attempt, how: How::Over }
}

fn retry(seq: u64, attempt: u32, ready: u64) -> Event {
    Event::Ended { seq, attempt, how: How::Retry { ready: at(ready) } }
}

fn queue() -> Queue {
    Queue::new(QueueSpec::default())
}

/// Submits as a driver does.
fn submit(queue: &mut Queue, tasks: Vec<Queued>, now: u64) -> Vec<Effect> {
    for task in &tasks {
        queue.reserve(&task.project, 1).expect("there is room");
    }
    queue.decide(Event::Submitted(tasks), at(now))
}

#[test]
fn the_most_urgent_is_first_then_who_was_ready_first_then_the_lower_number() {
    let mut queue = queue();
    let tasks = [task(1, "a", 3, 5), task(2, "a", 7, 9), task(3, "a", 7, 6), task(4, "a", 7, 6)];
    submit(&mut queue, tasks.to_vec(), 10);
    let begun: Vec<Effect> = (1..=4).flat_map(|worker| queue.decide(free(worker), at(10))).collect();
    assert_eq!(begun, [assign(3, 1, 1), assign(4, 1, 2), assign(2, 1, 3), assign(1, 1, 4)]);
}

#[test]
fn a_task_rises_one_priority_for_each_step_that_it_waits() {
    for (waited, first) in [(59, 2), (60, 1)] {
        let mut queue = queue();
        // Of two projects: side by side on one level, the one that was there first is first.
        submit(&mut queue, vec![task(1, "b", 3, 0)], 0);
        submit(&mut queue, vec![task(2, "a", 5, waited)], waited);
        assert_eq!(queue.decide(free(1), at(waited)), [assign(first, 1, 1)], "after {waited} s");
    }
}

#[test]
fn what_is_not_ready_waits_and_the_clock_is_set_for_it() {
    let mut queue = queue();
    assert_eq!(submit(&mut queue, vec![task(1, "a", 10, 50)], 0), [Effect::Wake(at(50))]);
    assert_eq!(queue.decide(free(1), at(0)), []);
    assert_eq!(queue.place(1), Some(Place::Delayed));
    assert_eq!(queue.decide(Event::Tick, at(49)), [Effect::Wake(at(50))]);
    assert_eq!(queue.decide(Event::Tick, at(50)), [assign(1, 1, 1)]);
    assert_eq!(queue.place(1), Some(Place::Running { attempt: 1, worker: WorkerId(1) }));
}

#[test]
fn a_retried_task_has_the_next_number_and_waits_for_its_pause() {
    let mut queue = queue();
    queue.decide(free(1), at(0));
    assert_eq!(submit(&mut queue, vec![task(1, "a", 5, 0)], 0), [assign(1, 1, 1)]);
    queue.decide(free(1), at(1));
    assert_eq!(queue.decide(retry(1, 1, 4), at(2)), [Effect::Wake(at(4))]);
    // The first attempt is over; what else is said of it changes nothing.
    assert_eq!(queue.decide(over(1, 1), at(3)), []);
    assert_eq!(queue.decide(Event::Tick, at(4)), [assign(1, 2, 1)]);
    assert_eq!(queue.decide(retry(1, 1, 4), at(5)), []);
    assert_eq!(queue.decide(over(1, 2), at(6)), []);
    assert_eq!(queue.place(1), None);
}

#[test]
fn a_task_that_has_not_begun_by_its_deadline_expires_at_it() {
    let mut queue = queue();
    let mut late = task(1, "a", 5, 0);
    late.deadline = Some(at(10));
    assert_eq!(submit(&mut queue, vec![late.clone()], 0), [Effect::Wake(at(10))]);
    assert_eq!(queue.decide(free(1), at(10)), [Effect::Expire { seq: 1 }]);
    // One that runs is the driver's; when it is tried again too late, that is known at once.
    late = Queued { seq: 2, deadline: Some(at(30)), ..late };
    assert_eq!(submit(&mut queue, vec![late], 11), [assign(2, 1, 1)]);
    assert_eq!(queue.decide(retry(2, 1, 30), at(12)), [Effect::Expire { seq: 2 }]);
    assert_eq!(queue.figures().queued, 0);
}

#[test]
fn a_cancelled_task_is_dropped_or_stopped_once_and_not_tried_again() {
    let mut queue = queue();
    queue.decide(free(1), at(0));
    submit(&mut queue, vec![task(1, "a", 5, 0), task(2, "a", 5, 0), task(3, "a", 5, 90)], 0);
    assert_eq!(queue.decide(Event::Cancelled(2), at(1)), [Effect::Dropped { seq: 2 }]);
    assert_eq!(queue.decide(Event::Cancelled(3), at(1)), [Effect::Dropped { seq: 3 }]);
    let stop = Effect::Stop { seq: 1, attempt: 1, worker: WorkerId(1) };
    assert_eq!(queue.decide(Event::Cancelled(1), at(1)), [stop]);
    assert_eq!(queue.decide(Event::Cancelled(1), at(1)), []);
    queue.decide(free(1), at(2));
    assert_eq!(queue.decide(retry(1, 1, 2), at(2)), [Effect::Dropped { seq: 1 }]);
    assert_eq!(queue.decide(Event::Cancelled(1), at(3)), []);
    assert_eq!(queue.figures().cancelled, 3);
}

#[test]
fn a_project_at_its_limit_lets_others_pass_and_a_raised_limit_counts_at_once() {
    let mut queue = queue();
    queue.decide(limits("a", Some(1), 1), at(0));
    submit(&mut queue, vec![task(1, "a", 9, 0), task(2, "a", 9, 0), task(3, "b", 0, 0)], 0);
    assert_eq!(queue.decide(free(1), at(0)), [assign(1, 1, 1)]);
    assert_eq!(queue.startable(&lane(), 9), 1);
    assert_eq!(queue.decide(free(2), at(0)), [assign(3, 1, 2)]);
    assert_eq!(queue.decide(free(3), at(0)), []);
    assert_eq!(queue.startable(&lane(), 9), 0);
    assert_eq!(queue.decide(limits("a", Some(2), 1), at(1)), [assign(2, 1, 3)]);
    // Lowered below what runs, nothing of it begins before enough of it has ended.
    submit(&mut queue, vec![task(4, "a", 9, 0)], 2);
    queue.decide(limits("a", Some(1), 1), at(2));
    queue.decide(free(4), at(2));
    assert_eq!(queue.decide(over(1, 1), at(3)), []);
    assert_eq!(queue.decide(over(2, 1), at(3)), [assign(4, 1, 4)]);
}

#[test]
fn a_limit_counts_over_all_lanes_of_a_project() {
    let mut queue = queue();
    queue.decide(limits("a", Some(1), 1), at(0));
    let python = Queued { lane: Lane::PYTHON.parse().expect("a name"), ..task(2, "a", 5, 0) };
    queue.decide(free(1), at(0));
    queue.decide(Event::WorkerFree { lane: python.lane.clone(), worker: WorkerId(2) }, at(0));
    assert_eq!(submit(&mut queue, vec![task(1, "a", 5, 0), python], 0), [assign(1, 1, 1)]);
    assert_eq!(queue.decide(over(1, 1), at(1)), [assign(2, 1, 2)]);
}

#[test]
fn what_is_full_says_which_limit_and_keeps_no_place() {
    let spec = QueueSpec { queued: 5, project_queued: 3, projects: 2, ..QueueSpec::default() };
    let mut queue = Queue::new(spec);
    let (a, b, c) = (project("a"), project("b"), project("c"));
    let full = |limit, name: &ProjectName, there, wanted, max| {
        Err(Full::Limit { limit, project: name.clone(), there, wanted, max })
    };
    assert_eq!(queue.reserve(&a, 4), full(Limit::ProjectQueued, &a, 0, 4, 3));
    assert_eq!(queue.reserve(&a, 2), Ok(()));
    queue.decide(Event::Submitted(vec![task(1, "a", 5, 0), task(2, "a", 5, 99)]), at(0));
    assert_eq!(queue.reserve(&a, 1), Ok(()));
    assert_eq!(queue.reserve(&a, 1), full(Limit::ProjectQueued, &a, 3, 1, 3));
    assert_eq!(queue.reserve(&b, 3), full(Limit::Queued, &b, 3, 3, 5));
    assert_eq!(queue.reserve(&b, 2), Ok(()));
    queue.release(&b, 1);
    assert_eq!(queue.reserve(&c, 1), full(Limit::Projects, &c, 2, 1, 2));
    // A project that has nothing any more makes room.
    queue.release(&b, 1);
    assert_eq!(queue.reserve(&c, 1), Ok(()));
    let figures = queue.figures();
    assert_eq!((figures.queued, figures.reserved, figures.projects), (2, 2, 2));
    assert_eq!((figures.refused_by_queue, figures.refused_by_project), (3, 6));
    queue.decide(Event::Closed, at(1));
    assert_eq!(queue.reserve(&a, 0), Err(Full::Closed));
}

#[test]
fn what_is_full_reads_like_speech() {
    let full = |limit, wanted| Full::Limit { limit, project: project("a"), there: 9, wanted, max: 10 };
    let said = [
        (
            full(Limit::Queued, 2),
            "the queue is full: 9 tasks wait of at most 10 (tasks.queued); try again later",
        ),
        (
            full(Limit::ProjectQueued, 2),
            "project `a` has 9 tasks waiting of at most 10 (projects.a.queued, or tasks",
        ),
        (full(Limit::ProjectQueued, 11), "11 at once never fit: submit fewer, or raise the limit"),
        (
            full(Limit::Projects, 11),
            "9 projects have tasks or limits already, of at most 10 (tasks.projects); try",
        ),
        (Full::Closed, "the daemon is ending and takes no more tasks"),
    ];
    for (full, part) in said {
        assert!(full.to_string().contains(part), "{full}");
    }
}

#[test]
fn a_closed_queue_lets_end_what_runs_and_begins_nothing() {
    let mut queue = queue();
    queue.decide(free(1), at(0));
    submit(&mut queue, vec![task(1, "a", 5, 0), task(2, "a", 5, 0)], 0);
    queue.decide(Event::Closed, at(1));
    assert_eq!(queue.decide(free(1), at(1)), []);
    assert_eq!(queue.decide(over(1, 1), at(1)), []);
    assert_eq!(queue.figures(), Figures { queued: 1, projects: 1, assigned: 1, ..Figures::default() });
}

#[test]
fn a_task_told_of_twice_is_there_once() {
    let mut queue = queue();
    queue.decide(free(1), at(0));
    submit(&mut queue, vec![task(1, "a", 5, 0), task(2, "a", 5, 0)], 0);
    queue.decide(Event::Restored(vec![task(1, "a", 5, 0), task(2, "a", 5, 0)]), at(0));
    assert_eq!(
        queue.figures(),
        Figures { queued: 1, running: 1, projects: 1, assigned: 1, ignored: 2, ..Figures::default() }
    );
}

#[test]
fn an_attempt_that_never_began_gives_its_number_to_the_next() {
    let mut queue = queue();
    queue.decide(free(1), at(0));
    submit(&mut queue, vec![task(1, "a", 5, 0)], 0);
    let not_begun =
        |attempt, ready| Event::Ended { seq: 1, attempt, how: How::NotBegun { ready: at(ready) } };
    assert_eq!(queue.decide(not_begun(1, 3), at(1)), [Effect::Wake(at(3))]);
    queue.decide(free(2), at(2));
    assert_eq!(queue.decide(Event::Tick, at(3)), [assign(1, 1, 2)]);
    queue.decide(Event::Cancelled(1), at(4));
    assert_eq!(queue.decide(not_begun(1, 4), at(4)), [Effect::Dropped { seq: 1 }]);
    assert_eq!((queue.figures().retried, queue.place(1)), (0, None));
}

#[test]
fn a_task_revived_while_its_last_attempt_is_being_ended_begins_after_that() {
    for how in [How::Over, How::Retry { ready: at(9) }] {
        let mut queue = queue();
        queue.decide(limits("a", Some(1), 1), at(0));
        queue.decide(free(1), at(0));
        submit(&mut queue, vec![task(1, "a", 5, 0)], 0);
        queue.decide(Event::Cancelled(1), at(1));
        let revived = Queued { attempt: 2, ..task(1, "a", 5, 1) };
        assert_eq!(queue.decide(Event::Restored(vec![revived.clone()]), at(1)), []);
        queue.decide(free(2), at(1));
        assert_eq!(queue.decide(Event::Ended { seq: 1, attempt: 1, how }, at(2)), [assign(1, 2, 2)]);
        // Cancelled before it could begin, it is forgotten.
        queue.decide(Event::Cancelled(1), at(3));
        queue.decide(Event::Restored(vec![Queued { attempt: 3, ..revived }]), at(3));
        assert_eq!(queue.decide(Event::Cancelled(1), at(3)), [Effect::Dropped { seq: 1 }]);
        assert_eq!(queue.decide(over(1, 2), at(4)), []);
        assert_eq!((queue.place(1), queue.figures().queued), (None, 0));
    }
}

#[test]
fn a_worker_that_is_gone_gets_nothing_and_the_lowest_number_is_first() {
    let mut queue = queue();
    for worker in [3, 1, 2] {
        queue.decide(free(worker), at(0));
    }
    queue.decide(Event::WorkerGone(WorkerId(1)), at(0));
    assert_eq!(submit(&mut queue, vec![task(1, "a", 5, 0)], 0), [assign(1, 1, 2)]);
    assert_eq!(queue.lane(&lane()).free, 1);
}

/// However many are due, one decision has an end, and nothing that has expired is begun meanwhile.
#[test]
fn a_million_deadlines_that_pass_together_do_not_hold_up_one_decision() {
    let mut queue = queue();
    let count = 3 * STEP as u64 + 1;
    let doomed = |seq| Queued { deadline: Some(at(10)), ..task(seq, "a", 5, 0) };
    queue.decide(Event::Restored((1..=count).map(doomed).collect()), at(0));
    submit(&mut queue, vec![task(count + 1, "a", 0, 20)], 0);
    let mut effects = queue.decide(free(1), at(20));
    let mut ticks = 0;
    while effects.last() == Some(&Effect::Wake(at(20))) {
        assert_eq!(effects.iter().filter(|effect| matches!(effect, Effect::Expire { .. })).count(), STEP);
        effects = queue.decide(Event::Tick, at(20));
        ticks += 1;
    }
    assert_eq!(ticks, 3);
    assert_eq!(effects, [Effect::Expire { seq: count }, assign(count + 1, 1, 1)]);
}

#[test]
fn what_becomes_ready_together_comes_in_steps_and_in_order() {
    let mut queue = queue();
    let count = 2 * STEP as u64;
    queue.decide(Event::Restored((1..=count).map(|seq| task(seq, "a", 5, 10)).collect()), at(0));
    assert_eq!(queue.decide(Event::Tick, at(20)), [Effect::Wake(at(20))]);
    assert_eq!(queue.figures().delayed, STEP);
    // This one is ready before those that are left over, and is not put behind them.
    submit(&mut queue, vec![task(count + 1, "a", 5, 9)], 20);
    assert_eq!(queue.figures().delayed, 0);
    assert_eq!(queue.decide(free(1), at(20)), [assign(count + 1, 1, 1)]);
    assert_eq!(queue.decide(free(2), at(20)), [assign(1, 1, 2)]);
}

#[test]
fn ids_are_written_in_one_way_and_read_in_no_other() {
    let task = TaskId { seq: 17, nonce: 0xBAD_CAFE };
    assert_eq!(task.to_string(), "t17-0badcafe");
    assert_eq!("t17-0badcafe".parse(), Ok(task));
    let batch = BatchId { seq: u64::MAX, nonce: 0 };
    assert_eq!(batch.to_string().parse(), Ok(batch));
    for wrong in [
        "",
        "t",
        "t17",
        "b17-0badcafe",
        "t17-0BADCAFE",
        "t017-0badcafe",
        "t-0badcafe",
        "t17-badcafe",
        "t+1-0badcafe",
        "t17-+badcafe",
        "t18446744073709551616-0badcafe",
        "t17-0badcafe ",
    ] {
        let error = wrong.parse::<TaskId>().expect_err("no id");
        assert!(
            error.to_string().contains("is not the id of a task: it looks like `t17-0badcafe`"),
            "{error}"
        );
    }
    assert!("t17-0badcafe".parse::<BatchId>().is_err());
}

#[test]
fn names_and_priorities_are_checked() {
    assert_eq!("10".parse(), Ok(Priority::MAX));
    assert_eq!(Priority::default().get(), 5);
    for wrong in ["11", "-1", "", "1.5", "256", "high"] {
        assert!(wrong.parse::<Priority>().is_err(), "{wrong}");
    }
    for right in ["a", "@org/app", "x:y", &"a".repeat(64)] {
        assert_eq!(project(right).as_str(), right);
    }
    for wrong in ["", "a b", "ä", "a\n", &"a".repeat(65)] {
        assert!(wrong.parse::<ProjectName>().is_err(), "{wrong}");
    }
    assert!("a/b".parse::<Lane>().is_err());
    assert!("gpu-2".parse::<Lane>().is_ok());
    let error = "ä".repeat(500).parse::<ProjectName>().expect_err("too long");
    assert!(error.to_string().len() < 200, "{error}");
}

#[test]
fn pauses_double_spread_and_end() {
    let plain = RetrySpec { jitter: 0.0, attempts: 9, ..RetrySpec::default() };
    let pauses: Vec<u64> = (1..9).filter_map(|n| plain.pause(7, n)).map(|pause| pause.as_secs()).collect();
    assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
    let usual = RetrySpec::default();
    assert_eq!((usual.pause(7, 3), RetrySpec { attempts: 0, ..usual }.pause(7, 1)), (None, None));
    let firsts: Vec<Duration> = (1..100).filter_map(|seq| usual.pause(seq, 1)).collect();
    assert!(firsts.iter().all(|pause| (800..=1200).contains(&pause.as_millis())), "{firsts:?}");
    assert!(
        firsts.iter().max() > firsts.iter().min().map(|least| *least + Duration::from_millis(300)).as_ref()
    );
    assert_eq!(usual.pause(7, 2), usual.pause(7, 2));
    assert!(usual.pause(7, 2) > Some(secs(1)));
}

#[test]
fn time_that_runs_back_stands_still() {
    let mut queue = queue();
    submit(&mut queue, vec![task(1, "a", 5, 50)], 60);
    assert_eq!(queue.decide(free(1), Now::default()), [assign(1, 1, 1)]);
}

#[test]
fn a_part_of_a_lane_is_named_after_both_and_is_no_other() {
    let (shell, other): (Lane, Lane) = ("shell".parse().expect("a name"), "shell.p".parse().expect("a name"));
    let part = shell.part(&project("p@q"));
    assert_eq!((part.as_str(), part.base(), part.project()), ("shell@p@q", "shell", Some("p@q")));
    assert_eq!((shell.base(), shell.project()), ("shell", None));
    assert_ne!(other.part(&project("q")), shell.part(&project("p.q")));
    // Nobody can register one.
    assert!(part.as_str().parse::<Lane>().is_err());
}

#[test]
fn a_lane_in_which_something_could_begin_is_told_once() {
    let mut queue = queue();
    queue.decide(limits("a", Some(1), 1), at(0));
    submit(&mut queue, vec![task(1, "a", 5, 10), task(2, "a", 5, 10)], 0);
    assert!(queue.take_wanting().is_empty() && !queue.wants(&lane()), "it is delayed");
    queue.decide(Event::Tick, at(10));
    assert_eq!(queue.take_wanting(), [lane()]);
    assert!(queue.take_wanting().is_empty() && queue.wants(&lane()));
    assert_eq!(queue.decide(free(1), at(10)), [assign(1, 1, 1)]);
    // Its project is at its limit.
    assert!(!queue.wants(&lane()));
    queue.decide(over(1, 1), at(11));
    assert_eq!(queue.take_wanting(), [lane()]);
    // What begins at once needs nobody more.
    queue.decide(free(1), at(12));
    queue.decide(over(2, 1), at(13));
    submit(&mut queue, vec![task(3, "a", 5, 14)], 14);
    queue.decide(free(1), at(14));
    assert!(queue.take_wanting().is_empty());
}

#[test]
fn lanes_that_nothing_is_in_any_more_are_forgotten() {
    let mut queue = queue();
    let shell: Lane = "shell".parse().expect("a name");
    let in_part = |seq: u64, name: &str| Queued { lane: shell.part(&project(name)), ..task(seq, name, 5, 0) };
    submit(&mut queue, vec![in_part(1, "kept")], 0);
    let kept = shell.part(&project("kept"));
    for seq in 2..=5_000 {
        let name = format!("p{seq}");
        submit(&mut queue, vec![in_part(seq, &name)], 0);
        let worker = WorkerId(seq);
        let begun = queue.decide(Event::WorkerFree { lane: shell.part(&project(&name)), worker }, at(0));
        assert_eq!(begun, [assign(seq, 1, seq)]);
        queue.decide(over(seq, 1), at(0));
    }
    assert!(queue.lanes().count() < 2_000, "{}", queue.lanes().count());
    assert!(queue.wants(&kept));
    let begun = queue.decide(Event::WorkerFree { lane: kept, worker: WorkerId(1) }, at(0));
    assert_eq!(begun, [assign(1, 1, 1)]);
}
