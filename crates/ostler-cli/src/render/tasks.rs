//! Tasks, batches, projects and the pool of workers, as people read them.

use std::fmt::Write as _;
use std::time::Duration;

use ostler_api::{
    BatchView, LaneView, ProjectView, TaskCounts, TaskLogLine, TaskPoolView, TaskProgressView, TaskView,
};

use super::{NONE, sheet, table};
use crate::text::{duration, moment, size, visible};

/// Most characters of a reason in a table; `ostler task show` has all of it.
const WHY: usize = 80;

/// `ostler task ls`. `now` is in milliseconds since 1970.
pub(crate) fn tasks(rows: &[TaskView], now: u64) -> String {
    if rows.is_empty() {
        return "no tasks\n".to_owned();
    }
    let header = ["ID", "TYPE", "PROJECT", "STATE", "PRIO", "TRY", "AGE", "TOOK", "WHY"];
    let row = |task: &TaskView| {
        vec![
            task.id.clone(),
            task.kind.clone(),
            task.project.clone(),
            state(task, now),
            task.priority.to_string(),
            format!("{}/{}", task.attempt, task.attempts_max),
            duration(now.saturating_sub(task.submitted_unix_ms)),
            took(task, now),
            task.why.as_deref().map_or_else(|| NONE.to_owned(), brief),
        ]
    };
    table(&header, &[4, 5, 6, 7], rows.iter().map(row))
}

/// The state, and when the next try is.
fn state(task: &TaskView, now: u64) -> String {
    match task.ready_unix_ms.checked_sub(now) {
        Some(wait) if wait > 0 && task.state == "queued" => format!("queued ({})", duration(wait)),
        _ => task.state.clone(),
    }
}

/// How long the last attempt took, or takes.
fn took(task: &TaskView, now: u64) -> String {
    match (task.begun_unix_ms, task.ended_unix_ms) {
        (Some(begun), ended) => duration(ended.unwrap_or(now).saturating_sub(begun)),
        (None, _) => NONE.to_owned(),
    }
}

/// The beginning of a text, in one line.
fn brief(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(WHY) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

/// `ostler task show`. `result` is shown where it is given.
pub(crate) fn task(task: &TaskView, result: Option<&str>, now: u64) -> String {
    let mut pairs = vec![
        ("task", task.id.clone()),
        ("type", task.kind.clone()),
        ("state", state(task, now)),
        ("project", task.project.clone()),
        ("workers", task.lane.clone()),
        ("priority", task.priority.to_string()),
        ("submitted", format!("{} by {}", moment(task.submitted_unix_ms), task.principal)),
        ("attempt", format!("{} of at most {}", task.attempt, task.attempts_max)),
        ("took", took(task, now)),
        ("payload", size(task.payload_bytes)),
    ];
    if let Some(why) = &task.why {
        pairs.insert(3, ("why", why.clone()));
    }
    let optional = [
        ("worker", task.worker.clone()),
        ("session", task.session.clone()),
        ("key", task.key.clone()),
        ("batch", task.batch.clone()),
        ("deadline", task.deadline_unix_ms.map(moment)),
        ("ended", task.ended_unix_ms.map(moment)),
        ("progress", task.progress.as_ref().map(progress)),
        ("result", task.result_bytes.map(|bytes| result.map_or_else(|| size(bytes), str::to_owned))),
    ];
    pairs.extend(optional.into_iter().filter_map(|(name, value)| Some((name, value?))));
    let mut text = sheet(&pairs);
    for earlier in &task.attempts {
        let took = duration(earlier.ended_unix_ms.saturating_sub(earlier.begun_unix_ms));
        let _ = writeln!(
            text,
            "attempt {} on {}, {took}: {}",
            earlier.attempt,
            visible(&earlier.worker),
            visible(&earlier.why)
        );
    }
    for late in &task.late {
        let _ = writeln!(
            text,
            "late: attempt {} answered when the task was {}: {} that were not taken",
            late.attempt,
            visible(&late.state),
            size(late.bytes)
        );
    }
    text
}

/// How far an attempt is, in a line.
pub(crate) fn progress(progress: &TaskProgressView) -> String {
    let TaskProgressView { done, total, note, .. } = progress;
    let far = total.map_or_else(|| done.to_string(), |total| format!("{done} of {total}"));
    match note {
        Some(note) => format!("{far}: {note}"),
        None => far,
    }
}

/// One line of `ostler task logs`.
pub(crate) fn task_log_line(line: &TaskLogLine) -> String {
    format!("{} {} {:5} {}\n", moment(line.unix_ms), line.attempt, visible(&line.level), visible(&line.text))
}

/// `ostler task ls --batches`. `now` is in milliseconds since 1970.
pub(crate) fn batches(rows: &[BatchView], now: u64) -> String {
    if rows.is_empty() {
        return "no batches\n".to_owned();
    }
    let header =
        ["ID", "NAME", "PROJECT", "AGE", "TASKS", "QUEUED", "RUNNING", "SUCCEEDED", "DEAD", "CANCELLED"];
    let row = |batch: &BatchView| {
        let head = [
            batch.id.clone(),
            batch.name.clone().unwrap_or_else(|| NONE.to_owned()),
            batch.project.clone(),
            duration(now.saturating_sub(batch.created_unix_ms)),
            batch.tasks.total().to_string(),
        ];
        head.into_iter().chain(counted(&batch.tasks)).collect()
    };
    table(&header, &[3, 4, 5, 6, 7, 8, 9], rows.iter().map(row))
}

fn counted(counts: &TaskCounts) -> [String; 5] {
    let TaskCounts { queued, running, succeeded, dead, cancelled } = counts;
    [queued, running, succeeded, dead, cancelled].map(u64::to_string)
}

/// `ostler task show` and `wait` of a batch.
pub(crate) fn batch(batch: &BatchView) -> String {
    let mut pairs = vec![
        ("batch", batch.id.clone()),
        ("project", batch.project.clone()),
        ("submitted", format!("{} by {}", moment(batch.created_unix_ms), batch.principal)),
        ("tasks", far(&batch.tasks)),
    ];
    if let Some(name) = &batch.name {
        pairs.insert(1, ("name", name.clone()));
    }
    sheet(&pairs)
}

/// How far a batch is, in a line: `3 of 10 ended (2 succeeded, 1 dead), 4 running, 3 queued`.
pub(crate) fn far(counts: &TaskCounts) -> String {
    let listed = |of: &[(u64, &str)]| {
        let there = of.iter().filter(|(count, _)| *count > 0);
        there.map(|(count, what)| format!("{count} {what}")).collect::<Vec<_>>().join(", ")
    };
    let TaskCounts { queued, running, succeeded, dead, cancelled } = *counts;
    let how = listed(&[(succeeded, "succeeded"), (dead, "dead"), (cancelled, "cancelled")]);
    let left = listed(&[(running, "running"), (queued, "queued")]);
    let mut text = format!("{} of {} ended", counts.ended(), counts.total());
    if !how.is_empty() {
        let _ = write!(text, " ({how})");
    }
    if !left.is_empty() {
        let _ = write!(text, ", {left}");
    }
    text
}

/// Characters of a [`bar`].
const BAR: u64 = 20;

/// How far a batch is, at a glance: `[######..............]`.
pub(crate) fn bar(counts: &TaskCounts) -> String {
    let done = (counts.ended() * BAR).checked_div(counts.total()).unwrap_or(BAR);
    let bar: String = (0..BAR).map(|at| if at < done { '#' } else { '.' }).collect();
    format!("[{bar}]")
}

/// How long it takes until all have ended, if it goes on as it did in this time, since the counts were as at `first`.
pub(crate) fn left(first: &TaskCounts, counts: &TaskCounts, elapsed: Duration) -> Option<Duration> {
    let open = counts.total() - counts.ended();
    let ended = counts.ended().checked_sub(first.ended()).filter(|ended| *ended > 0)?;
    let ms = elapsed.as_millis().saturating_mul(u128::from(open)) / u128::from(ended);
    Some(Duration::from_millis(u64::try_from(ms).unwrap_or(u64::MAX)))
}

/// [`far`], with what [`left`] says where it is known: `...; about 12s left`.
pub(crate) fn far_and_left(counts: &TaskCounts, left: Option<Duration>) -> String {
    // A guess is not made better by fractions of seconds.
    let left =
        left.map(|left| u64::try_from(left.as_millis().div_ceil(1000)).unwrap_or(u64::MAX / 1000) * 1000);
    far(counts) + &left.map_or_else(String::new, |left| format!("; about {} left", duration(left)))
}

/// `ostler projects`.
pub(crate) fn projects(rows: &[ProjectView]) -> String {
    if rows.is_empty() {
        return "no project has tasks or limits of its own\n".to_owned();
    }
    let header = ["PROJECT", "RUNNING", "LIMIT", "FROM", "QUEUED", "QUOTA", "WEIGHT", "BEGUN"];
    let row = |project: &ProjectView| {
        vec![
            project.name.clone(),
            project.running.to_string(),
            project.running_max.to_string(),
            project.running_max_from.clone(),
            project.queued.to_string(),
            project.queued_max.to_string(),
            project.weight.to_string(),
            project.begun.to_string(),
        ]
    };
    table(&header, &[1, 2, 4, 5, 6, 7], rows.iter().map(row))
}

/// `ostler projects set`.
pub(crate) fn limited(project: &ProjectView) -> String {
    let from = match project.running_max_from.as_str() {
        "set" => "until the daemon ends",
        _ => "as the configuration says",
    };
    format!(
        "project {}: at most {} running, {from}; {} run, {} wait\n",
        visible(&project.name),
        project.running_max,
        project.running,
        project.queued
    )
}

/// `ostler pool`.
pub(crate) fn pool(pool: &TaskPoolView) -> String {
    let done = &pool.done;
    let mut text = sheet(&[
        ("journal", pool.journal.clone()),
        ("uptime", duration(pool.uptime_ms)),
        ("load", percent(pool.load)),
        ("queued", format!("{} of {}, {} of them delayed", pool.queued, pool.queued_max, pool.delayed)),
        ("kept", far(&pool.tasks)),
        (
            "begun",
            format!(
                "{} attempts, {} of them repeats; {} on average",
                done.begun,
                done.retried,
                duration(done.mean_ms)
            ),
        ),
        (
            "not done",
            format!("{} refused, {} expired, {} cancelled", done.refused, done.expired, done.cancelled),
        ),
    ]);
    if pool.lanes.is_empty() {
        return text;
    }
    text.push('\n');
    text.push_str(&lanes(&pool.lanes));
    for lane in &pool.lanes {
        if let Some(trouble) = &lane.trouble {
            let _ = writeln!(text, "{}: {}", visible(&lane.name), visible(trouble));
        }
    }
    text
}

fn percent(share: f64) -> String {
    format!("{:.0}%", share * 100.0)
}

fn lanes(rows: &[LaneView]) -> String {
    let header =
        ["WORKERS", "QUEUED", "RUNNING", "FREE", "BUSY", "STARTING", "LEAVING", "TARGET", "MOST", "LOAD"];
    let row = |lane: &LaneView| {
        let figures = [
            lane.queued,
            lane.running,
            lane.free,
            lane.busy,
            lane.starting,
            lane.leaving,
            lane.target,
            lane.max,
        ];
        let figures = figures.into_iter().map(|figure| figure.to_string());
        std::iter::once(lane.name.clone()).chain(figures).chain([percent(lane.load)]).collect()
    };
    table(&header, &[1, 2, 3, 4, 5, 6, 7, 8, 9], rows.iter().map(row))
}

/// Sample data for the tests of this crate.
#[cfg(test)]
pub(crate) mod samples {
    use ostler_api::{AttemptView, LateResultView, TaskFigures};

    use super::*;

    pub(crate) const NOW: u64 = 1_785_231_000_125;

    pub(crate) fn task(id: &str, state: &str) -> TaskView {
        TaskView {
            id: id.to_owned(),
            kind: "shell-command".to_owned(),
            state: state.to_owned(),
            project: "default".to_owned(),
            lane: "shell".to_owned(),
            priority: 5,
            principal: "local".to_owned(),
            session: None,
            key: None,
            batch: None,
            submitted_unix_ms: NOW - 184_000,
            ready_unix_ms: NOW - 184_000,
            deadline_unix_ms: None,
            begun_unix_ms: Some(NOW - 1_500),
            ended_unix_ms: None,
            attempt: 1,
            attempts_max: 3,
            worker: Some("shell.1".to_owned()),
            why: None,
            progress: None,
            payload_bytes: 31,
            result_bytes: None,
            attempts: Vec::new(),
            late: Vec::new(),
        }
    }

    pub(crate) fn tasks() -> Vec<TaskView> {
        let waits = TaskView {
            begun_unix_ms: None,
            worker: None,
            ready_unix_ms: NOW + 4_300,
            why: Some("the worker was killed:\nit wanted 600 MiB and may have 512 MiB (workers.memory), which is a long text".to_owned()),
            ..task("t13-0badcafe", "queued")
        };
        let done = TaskView {
            ended_unix_ms: Some(NOW - 1_080),
            result_bytes: Some(31),
            project: "evil\u{1b}[2J".to_owned(),
            ..task("t14-00000001", "succeeded")
        };
        vec![dead(), waits, done]
    }

    pub(crate) fn dead() -> TaskView {
        TaskView {
            attempt: 3,
            ended_unix_ms: Some(NOW - 80),
            why: Some("failed: exited with status 1".to_owned()),
            key: Some("nightly".to_owned()),
            batch: Some("b2-00000002".to_owned()),
            progress: Some(progress()),
            attempts: vec![AttemptView {
                attempt: 1,
                worker: "shell.1".to_owned(),
                begun_unix_ms: NOW - 9_000,
                ended_unix_ms: NOW - 8_000,
                why: "timeout: 1 s were over".to_owned(),
            }],
            late: vec![LateResultView {
                attempt: 1,
                unix_ms: NOW - 5_000,
                state: "running".to_owned(),
                bytes: 2_048,
                text: "{}".to_owned(),
            }],
            ..task("t12-9f3a77c2", "dead")
        }
    }

    pub(crate) fn progress() -> TaskProgressView {
        TaskProgressView { attempt: 3, done: 2.0, total: Some(3.0), note: Some("reading".to_owned()) }
    }

    pub(crate) fn batch() -> BatchView {
        BatchView {
            id: "b2-00000002".to_owned(),
            name: Some("nightly".to_owned()),
            project: "p".to_owned(),
            key: None,
            principal: "local".to_owned(),
            created_unix_ms: NOW - 184_000,
            tasks: TaskCounts { queued: 3, running: 4, succeeded: 2, dead: 1, cancelled: 0 },
            ended: false,
        }
    }

    pub(crate) fn project(name: &str) -> ProjectView {
        ProjectView {
            name: name.to_owned(),
            running: 4,
            running_max: 5,
            running_max_from: "set".to_owned(),
            queued: 3,
            queued_max: 50_000,
            weight: 1,
            begun: 17,
        }
    }

    pub(crate) fn pool() -> TaskPoolView {
        let lane = LaneView {
            name: "shell".to_owned(),
            queued: 3,
            running: 1,
            target: 2,
            min: 1,
            max: 2,
            starting: 1,
            free: 0,
            busy: 1,
            leaving: 0,
            load: 0.914,
            trouble: Some("a worker did not start: no `python3`; tried again in 4 s".to_owned()),
        };
        let call = LaneView { name: "call".to_owned(), max: 16, trouble: None, ..lane.clone() };
        TaskPoolView {
            journal: "durable".to_owned(),
            uptime_ms: 7_500_000,
            load: 0.457,
            tasks: batch().tasks,
            queued: 3,
            delayed: 1,
            queued_max: 100_000,
            done: TaskFigures { begun: 11, retried: 4, expired: 1, cancelled: 0, refused: 2, mean_ms: 420 },
            lanes: vec![lane, call],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_of_tasks_and_batches() {
        let now = samples::NOW;
        let rows = [tasks(&samples::tasks(), now), batches(&[samples::batch()], now)];
        insta::assert_snapshot!(rows.join("----\n"));
        assert_eq!((tasks(&[], now).as_str(), batches(&[], now).as_str()), ("no tasks\n", "no batches\n"));
    }

    #[test]
    fn sheets_of_a_task_and_a_batch() {
        let now = samples::NOW;
        let done = &samples::tasks()[2];
        let sheets = [
            task(&samples::dead(), None, now),
            task(done, Some("{\"stdout\":\"hi\\u001b\u{1b}\"}"), now),
            batch(&samples::batch()),
        ];
        insta::assert_snapshot!(sheets.join("----\n"));
    }

    #[test]
    fn projects_and_the_pool() {
        let mut other = samples::project("q");
        other.running_max_from = "default".to_owned();
        let text = [
            projects(&[samples::project("p"), other.clone()]),
            limited(&samples::project("p")),
            limited(&other),
            pool(&samples::pool()),
        ];
        insta::assert_snapshot!(text.join("----\n"));
        assert_eq!(projects(&[]), "no project has tasks or limits of its own\n");
    }

    #[test]
    fn how_far_something_is() {
        assert_eq!(far(&TaskCounts::default()), "0 of 0 ended");
        assert_eq!(far(&TaskCounts { queued: 2, ..TaskCounts::default() }), "0 of 2 ended, 2 queued");
        assert_eq!(far(&TaskCounts { succeeded: 2, ..TaskCounts::default() }), "2 of 2 ended (2 succeeded)");
        let half = TaskCounts { queued: 3, running: 2, succeeded: 4, dead: 1, cancelled: 0 };
        assert_eq!(bar(&half), "[##########..........]");
        assert_eq!(bar(&TaskCounts::default()), "[####################]");
        let first = TaskCounts { queued: 8, succeeded: 2, ..TaskCounts::default() };
        let left = |first, counts| left(first, counts, Duration::from_secs(6));
        assert_eq!(left(&first, &half), Some(Duration::from_secs(10)), "5 are open, and 3 took 6 s");
        assert_eq!((left(&half, &half), left(&half, &first)), (None, None), "nothing is known yet");
        assert_eq!(
            far_and_left(&half, left(&first, &half)),
            "5 of 10 ended (4 succeeded, 1 dead), 2 running, 3 queued; about 10s left"
        );
        assert_eq!(progress(&samples::progress()), "2 of 3: reading");
        let open = TaskProgressView { attempt: 1, done: 0.5, total: None, note: None };
        assert_eq!(progress(&open), "0.5");
    }
}
