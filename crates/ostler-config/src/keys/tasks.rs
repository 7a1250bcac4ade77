//! Tasks, their workers and projects.

use ostler_domain::task::queue::WEIGHT_MAX;
use ostler_domain::task::retry::ATTEMPTS_MAX;

use super::{Choice, DURATION, DURATION_OR_ZERO, Groups, KIB, Key, Kind, MIB, bare, choice, key};
use crate::tasks::TASK_BYTES_MAX;

const JOURNALS: &[Choice] = &[
    choice("durable", "on disk before its id is given: it survives a crash of the daemon and of the machine"),
    choice("memory", "in the daemon's memory: it is lost with the daemon"),
];

pub(crate) const TASKS: Groups = &[&[
    key("journal", Kind::Choice(JOURNALS), r#""durable""#, "Where an accepted task is kept."),
    key(
        "queued",
        Kind::Count { min: 1, max: 10_000_000 },
        "100000",
        "Tasks that wait, of all projects; a further one is refused with 429.",
    ),
    key(
        "project_queued",
        Kind::Count { min: 1, max: 10_000_000 },
        "50000",
        "Tasks of one project that wait, where the project says nothing else. Not said: at most half of `queued`.",
    ),
    key(
        "project_running",
        Kind::Count { min: 1, max: 65_536 },
        "16",
        "Tasks of one project that run at once, where the project says nothing else.",
    ),
    key(
        "projects",
        Kind::Count { min: 1, max: 1_000_000 },
        "10000",
        "Projects known at once; a task of a further one is refused with 429.",
    ),
    key(
        "ageing",
        DURATION_OR_ZERO,
        r#""30s""#,
        "A task that waits rises by one priority each time that this has passed, up to 10; `0s`: it never does, and what is \
         less urgent may starve.",
    ),
    key(
        "timeout",
        DURATION,
        r#""5m""#,
        "Longest that one attempt may take, where the task says nothing else. Not said: at most `timeout_max`.",
    ),
    key(
        "timeout_max",
        DURATION,
        r#""24h""#,
        "The most that a task may say there; a project may say otherwise.",
    ),
    key(
        "attempts",
        Kind::Count { min: 1, max: ATTEMPTS_MAX as u64 },
        "3",
        "How often a task is tried before it is a dead letter, where it says nothing else.",
    ),
    bare(
        "backoff",
        Kind::Table(BACKOFF),
        "The pause before another attempt; it doubles from `min` to `max`.",
    ),
    key(
        "payload_max",
        Kind::Size { min: KIB, max: TASK_BYTES_MAX },
        r#""1MiB""#,
        "Largest payload of a task, as JSON; a larger one is refused.",
    ),
    key(
        "result_inline",
        Kind::Size { min: 0, max: TASK_BYTES_MAX },
        r#""64KiB""#,
        "Results up to this are kept in the journal itself, larger ones in files beside it. Not said: at most `result_max`.",
    ),
    key(
        "result_max",
        Kind::Size { min: KIB, max: TASK_BYTES_MAX },
        r#""15MiB""#,
        "Largest result of a task, as JSON; an attempt with a larger one has failed.",
    ),
    key("keep", DURATION, r#""7d""#, "How long a task is kept after it has ended, with its result."),
    key(
        "keep_size",
        Kind::Size { min: MIB, max: 1 << 50 },
        r#""1GiB""#,
        "What ended tasks and their results may take up; beyond it the oldest are forgotten first.",
    ),
    key(
        "batch",
        Kind::Count { min: 1, max: 100_000 },
        "10000",
        "Tasks of one submission; more are refused. Not said: at most `queued`.",
    ),
    key(
        "logs",
        Kind::Count { min: 1, max: 100_000 },
        "1000",
        "Lines kept of what a task that runs or has just ended has logged.",
    ),
    key(
        "calls",
        Kind::Count { min: 1, max: 65_536 },
        "16",
        "Tasks of type `mcp-tool` that run at once; these need no worker.",
    ),
]];

const BACKOFF: Groups = &[&[
    key("min", DURATION_OR_ZERO, r#""1s""#, "The pause after the first attempt."),
    key("max", DURATION, r#""60s""#, "The longest pause; at least `min`."),
    key(
        "jitter",
        Kind::Fraction,
        "0.2",
        "The part by which a pause is shorter or longer at most, by chance; never longer than `max`.",
    ),
]];

const SANDBOXES: &[Choice] = &[
    choice("auto", "on; where the machine cannot, code and commands of tasks are refused"),
    choice("off", "what a task runs may do what Ostler itself may"),
];

/// `[workers]`.
pub(crate) const WORKERS: Groups = &[ALL, SETTINGS];

/// `[workers.NAME]`.
pub(crate) const WORKER: Groups = &[CUSTOM, SETTINGS];

const ALL: &[Key] = &[key(
    "parts",
    Kind::Count { min: 1, max: 4096 },
    "64",
    "Parts of `shell`, `python`, `node` and custom kinds, one for each project, that have workers at once. Tasks of a further project \
     wait until one that has nothing to do, or has been there for long, has given its place up.",
)];

const SETTINGS: &[Key] = &[
    key(
        "min",
        Kind::Count { min: 0, max: 1024 },
        "1",
        "Workers of one kind at the least, from its first task on. `0`: all end when they have nothing to do.",
    ),
    bare(
        "max",
        Kind::Count { min: 1, max: 1024 },
        "Workers of one kind at most. Absent: as many as the machine has processors, and at least `min`.",
    ),
    key(
        "up",
        Kind::Fraction,
        "0.8",
        "Share of their time spent on tasks from which there are more, from 0 to 1.",
    ),
    key("down", Kind::Fraction, "0.2", "Share up to which there is one less; less than `up`."),
    key("interval", DURATION, r#""10s""#, "From one look at the load to the next."),
    key(
        "max_tasks",
        Kind::Count { min: 0, max: 1_000_000_000 },
        "100",
        "Tasks after which a worker is replaced; `0`: no bound. The replacement comes first.",
    ),
    bare("max_age", DURATION, "Age at which a worker is replaced, once it is free. Absent: no bound."),
    bare(
        "max_rss",
        Kind::Size { min: MIB, max: 1 << 50 },
        "Memory at which a worker is replaced, once it is free; less than `memory`. Absent: no bound.",
    ),
    key(
        "jitter",
        Kind::Fraction,
        "0.1",
        "The part by which `max_tasks` and `max_age` are less by chance at most, so that workers are not replaced all at once.",
    ),
    key(
        "idle",
        DURATION,
        r#""60s""#,
        "A worker beyond `min` that had nothing to do for this long may be ended; those of a project that has nothing to do for \
         this long all are.",
    ),
    key(
        "heartbeat",
        DURATION,
        r#""10s""#,
        "A worker that is silent for this long while it has a task hangs: it is killed with all that it started, and the \
         task is tried again. At least `2s`.",
    ),
    key("ready", DURATION, r#""10s""#, "From the start of a worker to its saying that it is there."),
    key(
        "memory",
        Kind::Size { min: 16 * MIB, max: 1 << 50 },
        r#""512MiB""#,
        "Memory of a worker and all that it starts. What a task may say for itself is within this.",
    ),
    bare(
        "cpu",
        Kind::Number { min: 0.01, max: 4096.0 },
        "CPU time they may use, in cores: `1.5` is one and a half. Absent: no bound.",
    ),
    key("pids", Kind::Count { min: 1, max: 4_194_304 }, "64", "Their processes and threads at once."),
    key("open_files", Kind::Count { min: 16, max: 1_048_576 }, "256", "Files each of them may have open."),
    bare(
        "nice",
        Kind::Integer { min: -20, max: 19 },
        "Their nice value, as `limits.nice` of a server. Absent: 10, or Ostler's own where that is more, so that it is answered \
         while they are busy.",
    ),
    key(
        "sandbox",
        Kind::Choice(SANDBOXES),
        r#""auto""#,
        "Whether what a task runs is kept to a private folder, without the network and without Ostler's secrets, unless \
         its project allows more.",
    ),
];

const CUSTOM: &[Key] = &[
    bare(
        "command",
        Kind::Text,
        "The program that does these tasks, speaking the worker protocol: a path, or a name looked up in `PATH`. Required; \
         of `python` and `node`: the interpreter, in place of the one in `PATH`. No shell is involved. May hold `${...}`.",
    ),
    key("args", Kind::TextList, "[]", "Its arguments, one text each. May hold `${...}`."),
    key(
        "env",
        Kind::TextMap,
        "{}",
        "Variables set for it, beyond the few it inherits. Values may hold `${...}`. Also of `python` and `node`.",
    ),
    key(
        "inherit_env",
        Kind::TextList,
        "[]",
        "Further variables of the daemon's environment that it inherits, by name. Also of `python` and `node`.",
    ),
    bare(
        "cwd",
        Kind::Text,
        "Working directory; a relative one starts from the file's folder. Absent: a private one. May hold `${...}`.",
    ),
    bare("types", Kind::TextList, "The types of tasks that it does. Absent: one, called as it is."),
    key("network", Kind::Bool, "false", "Whether its workers may use the network."),
    key(
        "see",
        Kind::TextList,
        "[]",
        "Files and folders that its workers see in their sandbox besides the system's, `cwd` and the program: read-only. A relative one \
         starts from the file's folder. May hold `${...}`. Also of `python` and `node`.",
    ),
];

/// `[projects.NAME]`.
pub(crate) const PROJECT: Groups = &[&[
    bare(
        "running",
        Kind::Count { min: 0, max: 65_536 },
        "Its tasks that run at once; `0`: none begins. Absent: `tasks.project_running`.",
    ),
    bare(
        "queued",
        Kind::Count { min: 1, max: 10_000_000 },
        "Its tasks that wait; a further one is refused with 429. Absent: `tasks.project_queued`.",
    ),
    key(
        "weight",
        Kind::Count { min: 1, max: WEIGHT_MAX as u64 },
        "1",
        "Its share beside others whose tasks are as urgent: with `2` it begins two where one with `1` begins one.",
    ),
    key(
        "network",
        Kind::Bool,
        "false",
        "Whether what its tasks run may use the network. Those of type `http-request` always do.",
    ),
    key(
        "private",
        Kind::Bool,
        "false",
        "Whether its tasks of type `http-request` may reach this machine and private networks.",
    ),
    key(
        "folders",
        Kind::TextList,
        "[]",
        "Folders that its tasks may read and write beside their own; a relative one starts from the file's folder. May hold \
         `${...}`.",
    ),
    bare(
        "memory",
        Kind::Size { min: MIB, max: 1 << 50 },
        "Memory that one of its tasks may use, within what its worker may (`workers.memory`). Absent: just that.",
    ),
    bare(
        "timeout_max",
        DURATION,
        "Longest that one attempt of its tasks may take, in place of `tasks.timeout_max`.",
    ),
]];
