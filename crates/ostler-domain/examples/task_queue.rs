//! What the queue of tasks costs: memory for each waiting task, and time to submit and to dispatch, by how many wait
//! and of how many projects. `cargo run --release -p ostler-domain --example task_queue`

use std::time::{Duration, Instant};

use ostler_domain::Now;
use ostler_domain::task::queue::{Effect, Event, How, Queue, QueueSpec, Queued};
use ostler_domain::task::{Lane, Priority, ProjectName, WorkerId};

/// Tasks submitted and dispatched in each of the rounds that are timed.
const ROUND: u64 = 100;
const ROUNDS: u64 = 2_000;

struct Load {
    queue: Queue,
    projects: Vec<ProjectName>,
    lane: Lane,
    next: u64,
    now: Now,
    with_deadline: bool,
}

impl Load {
    fn new(projects: u64, with_deadline: bool) -> Self {
        let spec = QueueSpec { queued: 2_000_000, project_queued: 2_000_000, ..QueueSpec::default() };
        Self {
            queue: Queue::new(spec),
            projects: (0..projects).map(|n| format!("project-{n}").parse().expect("a name")).collect(),
            lane: Lane::CODE.parse().expect("a name"),
            next: 0,
            now: Now(Duration::from_secs(1_800_000_000)),
            with_deadline,
        }
    }

    /// The next task: projects and priorities vary as if by chance.
    fn task(&mut self) -> Queued {
        self.next += 1;
        self.now = self.now.after(Duration::from_micros(50));
        let mixed = self.next.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
        let priority = Priority::try_from(u8::try_from(mixed % 11).expect("small")).expect("up to 10");
        let project =
            self.projects[usize::try_from(mixed).expect("32 bits") / 11 % self.projects.len()].clone();
        let deadline = self.with_deadline.then(|| self.now.after(Duration::from_secs(86_400 + mixed % 3600)));
        Queued {
            seq: self.next,
            lane: self.lane.clone(),
            project,
            priority,
            ready: self.now,
            deadline,
            attempt: 1,
        }
    }

    fn submit(&mut self) {
        let task = self.task();
        self.queue.reserve(&task.project, 1).expect("there is room");
        let now = self.now;
        self.queue.decide(Event::Submitted(vec![task]), now);
    }

    /// A worker that becomes free and gets a task, which then ends.
    fn dispatch(&mut self) {
        let free = Event::WorkerFree { lane: self.lane.clone(), worker: WorkerId(1) };
        let effects = self.queue.decide(free, self.now);
        let begun = effects.iter().find_map(|effect| match effect {
            Effect::Assign { seq, attempt, .. } => Some((*seq, *attempt)),
            _ => None,
        });
        let (seq, attempt) = begun.expect("something waits");
        self.queue.decide(Event::Ended { seq, attempt, how: How::Over }, self.now);
    }
}

/// The memory of this process that is in use, in bytes.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or_default() * 4096
}

fn measure(waiting: u64, projects: u64, with_deadline: bool) {
    let before = resident();
    let mut load = Load::new(projects, with_deadline);
    let began = Instant::now();
    while load.next < waiting {
        let tasks: Vec<Queued> = (0..1000.min(waiting)).map(|_| load.task()).collect();
        let now = load.now;
        load.queue.decide(Event::Restored(tasks), now);
    }
    let filled = began.elapsed();
    let bytes = resident().saturating_sub(before) / waiting;
    let (mut submit, mut dispatch) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let began = Instant::now();
        (0..ROUND).for_each(|_| load.submit());
        submit.push(began.elapsed().as_nanos() / u128::from(ROUND));
        let began = Instant::now();
        (0..ROUND).for_each(|_| load.dispatch());
        dispatch.push(began.elapsed().as_nanos() / u128::from(ROUND));
    }
    submit.sort_unstable();
    dispatch.sort_unstable();
    let of = |times: &[u128], percent: usize| times[times.len() * percent / 100];
    println!(
        "{waiting:>9} waiting, {projects:>5} projects{}: filled in {:>4} ms, {bytes:>4} B each; ns for one, p50/p99: submit \
         {}/{}, dispatch and end {}/{}",
        if with_deadline { ", deadlines" } else { "" },
        filled.as_millis(),
        of(&submit, 50),
        of(&submit, 99),
        of(&dispatch, 50),
        of(&dispatch, 99),
    );
}

fn main() {
    let arguments: Vec<u64> = std::env::args().skip(1).filter_map(|text| text.parse().ok()).collect();
    if let [waiting, projects, deadlines] = arguments[..] {
        return measure(waiting, projects, deadlines == 1);
    }
    // Each in a process of its own: memory that one gave back would be the next one's.
    for arguments in ["1000 20", "1000000 20", "1000 1000", "1000000 1000", "1000 5000", "1000000 5000"] {
        for deadlines in ["0", "1"] {
            let program = std::env::current_exe().expect("this program");
            let arguments = arguments.split(' ').chain([deadlines]);
            let ended = std::process::Command::new(program).args(arguments).status().expect("it starts");
            assert!(ended.success());
        }
    }
}
