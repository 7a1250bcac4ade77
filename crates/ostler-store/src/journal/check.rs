//! The checker: reads a journal and proves from it that the promises about tasks were kept.
//!
//! It trusts nothing but the rows themselves, each of which must have its hash, and looks at them in the order of their
//! change numbers:
//! - each task is where its record says it can be: a succeeded one has exactly one result, and it is the one that was
//!   committed; a dead or cancelled one has a reason; only a running one has an attempt without an end;
//! - the attempts of a task are numbered without gaps, and none begins before the one before it ended;
//! - no attempt begins while its project's limit, as it was then, is used up.
//!
//! A start of the journal ends what was running: the daemon's death takes its workers with it. What retention has removed
//! cannot be looked at. Everything is read into memory, some 100 bytes for an attempt.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use rusqlite::{Connection, OptionalExtension};

use super::apply::SELECT_TASK;
use super::error::JournalError;
use super::files::ResultFiles;
use super::open::{connect, is_damage, look_through};
use super::record::{AttemptRecord, Evidence, TaskRecord, TaskState};
use super::row::{self, LimitRecord, Meta, Read, Row, Seed, StartRecord};
use super::tally::Counts;
use super::{JOURNAL_NAME, Journal, RESULTS_NAME, schema};

/// Problems that are told one by one; the others are counted.
pub const PROBLEMS_MAX: usize = 1000;

/// What the checker has to say.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Verdict {
    /// The tasks by state, in the order of [`TaskState::ALL`].
    pub tasks: Counts,
    /// Attempts looked at.
    pub attempts: u64,
    /// Late results that are kept as evidence.
    pub late: u64,
    /// The most that ran at once of each project.
    pub peaks: BTreeMap<String, u64>,
    /// What is wrong, [`PROBLEMS_MAX`] at most.
    pub problems: Vec<Problem>,
    /// Problems beyond those.
    pub more_problems: u64,
}

impl Verdict {
    /// Tasks that have not ended.
    pub fn unended(&self) -> u64 {
        TaskState::ALL
            .iter()
            .zip(self.tasks)
            .filter(|(state, _)| !state.has_ended())
            .map(|(_, count)| count)
            .sum()
    }

    /// Whether all promises were kept, and each task has ended.
    pub fn is_proof(&self) -> bool {
        self.problems.is_empty() && self.unended() == 0
    }

    fn say(&mut self, problem: Problem) {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(problem);
        } else {
            self.more_problems += 1;
        }
    }
}

/// Something that must not be.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Problem {
    /// The journal is damaged.
    #[error("the journal: {0}")]
    Journal(String),
    /// A row has not its hash.
    #[error("a row of `{table}` with the key {key} is not as it was written")]
    Row {
        /// The table.
        table: &'static str,
        /// Its key.
        key: u64,
    },
    /// A task's record contradicts itself.
    #[error("task {seq} is {state}, and {what}")]
    Task {
        /// The task.
        seq: u64,
        /// Where it is said to be.
        state: TaskState,
        /// What contradicts that.
        what: &'static str,
    },
    /// A result is there for a task that has none.
    #[error("there is a result for number {0}, which has not succeeded with one")]
    StrayResult(u64),
    /// The attempts of a task are not numbered one after the other.
    #[error("task {seq}: attempt {found} follows attempt {before}")]
    Gap {
        /// The task.
        seq: u64,
        /// The one before.
        before: u32,
        /// The one that follows.
        found: u32,
    },
    /// An attempt began before the one before it had ended.
    #[error("task {seq}: attempt {attempt} begins at {begun}, before the one before it ends at {ended}")]
    Overlap {
        /// The task.
        seq: u64,
        /// The later attempt.
        attempt: u32,
        /// Where it begins.
        begun: u64,
        /// Where the earlier ends.
        ended: u64,
    },
    /// An attempt ended before it began.
    #[error("task {seq}: attempt {attempt} ends before it begins")]
    Backwards {
        /// The task.
        seq: u64,
        /// The attempt.
        attempt: u32,
    },
    /// Two things are said to have been the same change.
    #[error("change number {0} is there twice")]
    Twice(u64),
    /// An attempt began although its project's limit was used up.
    #[error(
        "task {seq}: attempt {attempt} begins at {begun} while {running} of project `{project}` run, whose limit is {limit}"
    )]
    Limit {
        /// The task.
        seq: u64,
        /// The attempt.
        attempt: u32,
        /// Where it begins.
        begun: u64,
        /// The project.
        project: String,
        /// What ran already.
        running: u64,
        /// What might.
        limit: u64,
    },
}

/// Checks the journal in this state directory, which nobody else may have open. Changes nothing.
///
/// # Errors
/// When it cannot be read at all.
pub fn check(state_dir: &Path) -> Result<Verdict, JournalError> {
    let path = state_dir.join(JOURNAL_NAME);
    let conn = connect(&path).map_err(JournalError::sqlite(&path, "opening"))?;
    if schema::look(&conn, &path)? == schema::Found::Fresh {
        return Ok(Verdict::default());
    }
    let files = ResultFiles::at(state_dir.join(RESULTS_NAME));
    run(&conn, Some(&files)).map_err(JournalError::sqlite(&path, "checking"))
}

impl Journal {
    /// Checks the open journal; see [`check`].
    ///
    /// # Errors
    /// What SQLite may say.
    pub fn check(&self) -> Result<Verdict, JournalError> {
        run(&self.conn, self.files.as_ref()).map_err(self.failed("checking"))
    }
}

/// An attempt, wherever it was written down.
struct Try {
    seq: u64,
    attempt: u32,
    project: u32,
    begun: u64,
    /// None while it runs.
    ended: Option<u64>,
}

struct Checker<'a> {
    conn: &'a Connection,
    seed: Seed,
    files: Option<&'a ResultFiles>,
    verdict: Verdict,
    projects: Vec<String>,
    numbers: HashMap<String, u32>,
    tries: Vec<Try>,
}

fn run(conn: &Connection, files: Option<&ResultFiles>) -> rusqlite::Result<Verdict> {
    match look(conn, files) {
        Err(error) if is_damage(&error) => {
            Ok(Verdict { problems: vec![Problem::Journal(error.to_string())], ..Verdict::default() })
        }
        other => other,
    }
}

fn look(conn: &Connection, files: Option<&ResultFiles>) -> rusqlite::Result<Verdict> {
    let mut findings = super::open::Findings::default();
    let sound = look_through(conn, &mut findings)?;
    let mut verdict = Verdict::default();
    for words in findings.words {
        verdict.say(Problem::Journal(words));
    }
    let Some(sound) = sound else { return Ok(verdict) };
    let mut checker = Checker {
        conn,
        seed: sound.meta.journal,
        files,
        verdict,
        projects: Vec::new(),
        numbers: HashMap::new(),
        tries: Vec::new(),
    };
    checker.tasks()?;
    checker.stray_results()?;
    let starts = checker.starts()?;
    checker.order(&starts);
    let limits = checker.limits()?;
    checker.running(&limits, &sound.meta);
    Ok(checker.verdict)
}

impl Checker<'_> {
    /// Reads the sound rows of a table and tells the others.
    fn rows<R: Row>(
        &mut self,
        table: &'static str,
        mut each: impl FnMut(&mut Self, R) -> rusqlite::Result<()>,
    ) -> rusqlite::Result<()> {
        let conn = self.conn;
        let mut select = conn.prepare(R::SELECT)?;
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            match row::read::<R>(self.seed, row)? {
                Read::Sound(record, _) => each(self, record)?,
                Read::Damaged(key) => self.verdict.say(Problem::Row { table, key }),
            }
        }
        Ok(())
    }

    fn project(&mut self, name: &str) -> u32 {
        if let Some(number) = self.numbers.get(name) {
            return *number;
        }
        let number = u32::try_from(self.projects.len()).expect("fewer than the tasks in memory");
        self.projects.push(name.to_owned());
        self.numbers.insert(name.to_owned(), number);
        number
    }

    fn tasks(&mut self) -> rusqlite::Result<()> {
        self.rows::<TaskRecord>("tasks", |this, task| {
            this.verdict.tasks[task.state as usize] += 1;
            let (seq, state) = (task.id.seq, task.state);
            for what in contradictions(&task) {
                this.verdict.say(Problem::Task { seq, state, what });
            }
            if state == TaskState::Succeeded && !this.has_result(&task)? {
                this.verdict.say(Problem::Task {
                    seq,
                    state,
                    what: "the result that was committed is not there",
                });
            }
            this.attempts(&task)
        })
    }

    /// The attempts of a task, which must be 1, 2, 3, ... up to the one in its record.
    fn attempts(&mut self, task: &TaskRecord) -> rusqlite::Result<()> {
        let project = self.project(&task.project);
        let seq = task.id.seq;
        let mut before = 0;
        if task.attempt > 0 {
            let range = [row::attempt_key(seq, 0), row::attempt_key(seq + 1, 0) - 1].map(u64::cast_signed);
            let conn = self.conn;
            let mut select =
                conn.prepare_cached("SELECT * FROM attempts WHERE id BETWEEN ?1 AND ?2 ORDER BY id")?;
            let mut rows = select.query(range)?;
            while let Some(row) = rows.next()? {
                match row::read::<AttemptRecord>(self.seed, row)? {
                    Read::Sound(AttemptRecord { attempt, begun, ended, .. }, _) => {
                        self.follow(seq, &mut before, attempt);
                        let (begun, ended) = (begun.no, Some(ended.no));
                        self.tries.push(Try { seq, attempt, project, begun, ended });
                    }
                    Read::Damaged(key) => self.verdict.say(Problem::Row { table: "attempts", key }),
                }
            }
        }
        if let Some(begun) = task.begun {
            self.follow(seq, &mut before, task.attempt);
            let ended = task.ended.map(|ended| ended.no);
            self.tries.push(Try { seq, attempt: task.attempt, project, begun: begun.no, ended });
        } else if before != task.attempt {
            self.verdict.say(Problem::Gap { seq, before, found: task.attempt });
        }
        Ok(())
    }

    fn follow(&mut self, seq: u64, before: &mut u32, found: u32) {
        if found != *before + 1 {
            self.verdict.say(Problem::Gap { seq, before: *before, found });
        }
        *before = found;
    }

    fn has_result(&self, task: &TaskRecord) -> rusqlite::Result<bool> {
        let Some(result) = task.result else { return Ok(false) };
        let seq = task.id.seq;
        let body = if result.in_file {
            self.files.and_then(|files| files.read(&ResultFiles::name(seq, task.attempt)).ok())
        } else {
            let mut select = self.conn.prepare_cached("SELECT body FROM results WHERE seq = ?1")?;
            let read = |row: &rusqlite::Row<'_>| Ok(row.get_ref(0)?.as_blob().ok().map(<[u8]>::to_vec));
            select.query_row([seq.cast_signed()], read).optional()?.flatten()
        };
        Ok(body.is_some_and(|body| self.seed.body(seq, &body) == result.sum))
    }

    fn stray_results(&mut self) -> rusqlite::Result<()> {
        let conn = self.conn;
        let mut select = conn.prepare("SELECT seq FROM results ORDER BY seq")?;
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            let seq = row.get::<_, i64>(0)?.cast_unsigned();
            let task = row::get::<TaskRecord>(conn, self.seed, SELECT_TASK, seq)?;
            let has = matches!(task, Some(Read::Sound(task, _)) if task.result.is_some_and(|result| !result.in_file));
            if !has {
                self.verdict.say(Problem::StrayResult(seq));
            }
        }
        self.rows::<Evidence>("evidence", |this, _| {
            this.verdict.late += 1;
            Ok(())
        })
    }

    fn starts(&mut self) -> rusqlite::Result<Vec<u64>> {
        let mut starts = Vec::new();
        self.rows::<StartRecord>("starts", |_, start| {
            starts.push(start.0.no);
            Ok(())
        })?;
        starts.sort_unstable();
        Ok(starts)
    }

    /// Each attempt's end is after its beginning, and the next one's beginning after that.
    fn order(&mut self, starts: &[u64]) {
        let mut numbers = Vec::with_capacity(self.tries.len() * 2);
        let mut before: Option<(u64, u64)> = None;
        for at in 0..self.tries.len() {
            let Try { seq, attempt, begun, ended, .. } = self.tries[at];
            numbers.push(begun);
            numbers.extend(ended);
            if ended.is_some_and(|ended| ended <= begun) {
                self.verdict.say(Problem::Backwards { seq, attempt });
            }
            if let Some((_, ended)) = before.filter(|(of, ended)| *of == seq && *ended >= begun) {
                self.verdict.say(Problem::Overlap { seq, attempt, begun, ended });
            }
            before = Some((seq, ended.unwrap_or(u64::MAX)));
            // The next start of the daemon ended it, whenever that was written down.
            let next = starts.partition_point(|start| *start <= begun);
            if let Some(start) = starts.get(next) {
                self.tries[at].ended = Some(ended.map_or(*start, |ended| ended.min(*start)));
            }
        }
        numbers.sort_unstable();
        for pair in numbers.windows(2).filter(|pair| pair[0] == pair[1]) {
            self.verdict.say(Problem::Twice(pair[0]));
        }
        self.verdict.attempts = self.tries.len() as u64;
    }

    fn limits(&mut self) -> rusqlite::Result<Vec<(u64, u32, Option<u64>)>> {
        let mut limits = Vec::new();
        self.rows::<LimitRecord>("limits", |this, limit| {
            let project = this.project(&limit.project);
            limits.push((limit.at.no, project, limit.running));
            Ok(())
        })?;
        Ok(limits)
    }

    /// Goes through everything in its order, counting what runs.
    fn running(&mut self, limits: &[(u64, u32, Option<u64>)], meta: &Meta) {
        enum What {
            // What ends makes room for what begins at the same number, which is a start of the daemon.
            End(u32),
            Limit(u32, Option<u64>),
            Begin(usize),
        }
        let mut events: Vec<(u64, u8, What)> = Vec::with_capacity(self.tries.len() * 2 + limits.len());
        events.extend(limits.iter().map(|(no, project, limit)| (*no, 1, What::Limit(*project, *limit))));
        for (at, attempt) in self.tries.iter().enumerate() {
            events.push((attempt.begun, 2, What::Begin(at)));
            events.extend(attempt.ended.map(|no| (no, 0, What::End(attempt.project))));
        }
        events.sort_by_key(|(no, rank, _)| (*no, *rank));
        if let Some((no, ..)) = events.last().filter(|(no, ..)| *no > meta.no) {
            self.verdict.say(Problem::Journal(format!("change {no} is after the last one, {}", meta.no)));
        }
        let mut now = vec![(0_u64, None); self.projects.len()];
        let mut peaks = vec![0; self.projects.len()];
        for (begun, _, what) in events {
            match what {
                What::End(project) => now[project as usize].0 = now[project as usize].0.saturating_sub(1),
                What::Limit(project, limit) => now[project as usize].1 = limit,
                What::Begin(at) => {
                    let Try { seq, attempt, project, .. } = self.tries[at];
                    let project = project as usize;
                    let (running, limit) = now[project];
                    if let Some(limit) = limit.filter(|limit| running >= *limit) {
                        let project = self.projects[project].clone();
                        self.verdict.say(Problem::Limit { seq, attempt, begun, project, running, limit });
                    }
                    now[project].0 += 1;
                    peaks[project] = peaks[project].max(now[project].0);
                }
            }
        }
        self.verdict.peaks = self.projects.iter().cloned().zip(peaks).filter(|(_, peak)| *peak > 0).collect();
    }
}

/// What a record says that cannot be.
fn contradictions(task: &TaskRecord) -> impl Iterator<Item = &'static str> {
    use TaskState::{Cancelled, Dead, Queued, Running, Succeeded};
    let ended = task.state.has_ended();
    let reason = task.why.as_deref().unwrap_or_default();
    [
        (ended != task.ended.is_some(), "when it ended does not fit to that"),
        ((task.state == Succeeded) != task.result.is_some(), "its result does not fit to that"),
        (
            matches!(task.state, Running | Succeeded) && (task.begun.is_none() || task.attempt == 0),
            "no attempt began",
        ),
        (task.begun.is_some() && task.attempt == 0, "an attempt without a number began"),
        (task.state == Queued && task.begun.is_some(), "an attempt is running"),
        (matches!(task.state, Dead | Cancelled) && reason.is_empty(), "there is no reason"),
        (task.base > task.attempt, "it was revived after more attempts than it had"),
    ]
    .into_iter()
    .filter_map(|(wrong, what)| wrong.then_some(what))
}

#[cfg(test)]
mod tests;
