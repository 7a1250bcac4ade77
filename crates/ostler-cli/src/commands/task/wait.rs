//! `task wait`: until tasks and batches have ended. How far they are goes to standard error, what came of them to
//! standard output.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use ostler_api::{BatchView, Client, TaskCounts, TaskNews, TaskView, routes};
use tokio::time::{Instant, timeout_at};

use super::is_batch;
use crate::args::TaskWaitArgs;
use crate::commands::{print, print_json};
use crate::exit::Failure;
use crate::render;
use crate::text::visible;

/// How often it is told how far a batch is, at most.
const STEP: Duration = Duration::from_secs(1);
/// So long from now is for ever: what [`Instant`] can hold whatever the clock says.
const FOR_EVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

pub(super) async fn wait(client: &Client, args: &TaskWaitArgs) -> Result<(), Failure> {
    let until = args.longest.map(|longest| Instant::now() + longest.min(FOR_EVER));
    let mut failed = Vec::new();
    for id in &args.ids {
        let failure = if is_batch(id) {
            batch(client, id, until, args.json).await?
        } else {
            task(client, id, until, args.json).await?
        };
        failed.extend(failure);
    }
    match <[Failed; 1]>::try_from(failed) {
        Ok([Failed { error, hint }]) => Err(Failure::Outcome { error, hint: Some(hint) }),
        Err(failed) if failed.is_empty() => Ok(()),
        Err(failed) => {
            failed.iter().for_each(|Failed { error, .. }| tell(error));
            let (count, all) = (failed.len(), args.ids.len());
            Err(Failure::Outcome { error: format!("{count} of {all} did not succeed"), hint: None })
        }
    }
}

/// Something that was waited for and has ended, but not well.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Failed {
    error: String,
    hint: String,
}

/// Tells whoever watches; nobody may be there.
pub(super) fn tell(text: &str) {
    drop(writeln!(std::io::stderr(), "{}", visible(text)));
}

async fn before<T>(
    until: Option<Instant>,
    what: impl Future<Output = T>,
    late: impl FnOnce() -> Failure,
) -> Result<T, Failure> {
    match until {
        Some(until) => timeout_at(until, what).await.map_err(|_| late()),
        None => Ok(what.await),
    }
}

fn too_late(id: &str) -> Failure {
    Failure::Outcome {
        error: format!("{id} has not ended in that time, and goes on"),
        hint: Some(format!("see how far it is with `ostler task show {id}`")),
    }
}

/// Waits for a task, and prints what came of it; why it did not succeed, where that is so.
async fn task(
    client: &Client,
    id: &str,
    until: Option<Instant>,
    json: bool,
) -> Result<Option<Failed>, Failure> {
    let task = ended(client, id, until).await?;
    if json {
        print_json(&client.raw(&routes::TASK, &[id], "").await?)?;
    } else if task.result_bytes.is_some() {
        print_json(&client.task_result(id).await?)?;
    }
    Ok(verdict(&task))
}

fn verdict(task: &TaskView) -> Option<Failed> {
    let TaskView { id, state, why, .. } = task;
    let because = why.as_ref().map_or_else(String::new, |why| format!(": {why}"));
    let hint = format!("see `ostler task logs {id}`; `ostler task retry {id}` tries it again");
    (state != "succeeded").then(|| Failed { error: format!("{id} is {state}{because}"), hint })
}

/// A task that has ended.
async fn ended(client: &Client, id: &str, until: Option<Instant>) -> Result<TaskView, Failure> {
    let mut news = client.follow_task(id).await?;
    loop {
        match before(until, news.next(), || too_late(id)).await?? {
            Some(TaskNews::State(task)) if task.has_ended() => return Ok(*task),
            Some(TaskNews::Progress(further)) => tell(&format!("{id}: {}", render::progress(&further))),
            Some(TaskNews::State(_) | TaskNews::Log(_) | TaskNews::Gap(_)) => {}
            None => {
                return Err(Failure::Outcome {
                    error: format!("the daemon stopped telling of {id} before it had ended"),
                    hint: Some(format!(
                        "if the daemon was stopped, {id} goes on when it is back (unless `tasks.journal` is `memory`): \
                         `ostler task wait {id}`"
                    )),
                });
            }
        }
    }
}

/// Waits for a batch, and prints what came of it; why not all of it succeeded, where that is so.
async fn batch(
    client: &Client,
    id: &str,
    until: Option<Instant>,
    json: bool,
) -> Result<Option<Failed>, Failure> {
    let mut meter = Meter::new(id);
    let batch = loop {
        let step = until.map_or(STEP, |until| until.saturating_duration_since(Instant::now()).min(STEP));
        let batch = client.wait_batch(id, step).await?;
        if batch.ended {
            break batch;
        }
        meter.tell(&batch.tasks);
        if until.is_some_and(|until| until <= Instant::now()) {
            return Err(too_late(id));
        }
    };
    drop(meter);
    if json {
        print_json(&client.raw(&routes::BATCH, &[id], "").await?)?;
    } else {
        print(render::batch(&batch).as_bytes())?;
    }
    Ok(batch_verdict(&batch))
}

/// Tells how far a batch is: in a terminal on one line that changes, elsewhere on a new one when something has changed.
struct Meter<'a> {
    id: &'a str,
    in_place: bool,
    began: Instant,
    first: Option<TaskCounts>,
    told: TaskCounts,
}

impl<'a> Meter<'a> {
    fn new(id: &'a str) -> Self {
        let in_place = std::io::stderr().is_terminal();
        Self { id, in_place, began: Instant::now(), first: None, told: TaskCounts::default() }
    }

    fn tell(&mut self, counts: &TaskCounts) {
        let first = *self.first.get_or_insert(*counts);
        let left = render::left(&first, counts, self.began.elapsed());
        if self.in_place {
            let line = format!("{} {}", render::bar(counts), render::far_and_left(counts, left));
            // From the line's beginning, over what was there, and never on to a second line.
            drop(write!(std::io::stderr(), "\r\x1b[?7l{line}\x1b[K\x1b[?7h"));
        } else if *counts != self.told {
            tell(&format!("{}: {}", self.id, render::far_and_left(counts, left)));
        }
        self.told = *counts;
    }
}

impl Drop for Meter<'_> {
    fn drop(&mut self) {
        if self.in_place && self.first.is_some() {
            // What comes next says how it ended.
            drop(write!(std::io::stderr(), "\r\x1b[K"));
        }
    }
}

fn batch_verdict(batch: &BatchView) -> Option<Failed> {
    let BatchView { id, tasks, .. } = batch;
    let failed = tasks.dead + tasks.cancelled;
    let hint = format!(
        "`ostler task ls --batch {id} --state dead` says why; `ostler task retry $(ostler task ls -q --batch {id} \
         --state dead)` tries them again"
    );
    (failed > 0).then(|| Failed {
        error: format!("{failed} of {} tasks of {id} did not succeed", tasks.total()),
        hint,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::task_samples;

    #[test]
    fn only_what_succeeded_is_a_success() {
        assert_eq!(verdict(&task_samples::tasks()[2]), None);
        let failed = verdict(&task_samples::dead()).expect("it is dead");
        assert_eq!(failed.error, "t12-9f3a77c2 is dead: failed: exited with status 1");
        assert!(failed.hint.contains("ostler task retry t12-9f3a77c2"), "{}", failed.hint);
        let mut batch = task_samples::batch();
        let failed = batch_verdict(&batch).expect("one is dead");
        assert_eq!(failed.error, "1 of 10 tasks of b2-00000002 did not succeed");
        batch.tasks.dead = 0;
        assert_eq!(batch_verdict(&batch), None);
    }

    #[tokio::test]
    async fn a_wait_that_is_over_says_how_to_go_on() {
        let late =
            before(Some(Instant::now()), std::future::pending::<()>(), || too_late("t1-00000000")).await;
        let report = late.expect_err("too late").report();
        assert!(report.contains("ostler task show t1-00000000"), "{report}");
        assert_eq!(before(None, async { 7 }, || too_late("x")).await.expect("done"), 7);
    }
}
