//! `[tasks]`: what is accepted, how often it is tried, and how long it is kept.

use std::time::Duration;

use ostler_domain::task::queue::QueueSpec;
use ostler_domain::task::retry::RetrySpec;

use crate::check::Checked;
use crate::diagnostic::{Diagnostic, Findings};
use crate::keys;
use crate::sections::small;
use crate::server::show;
use crate::units::show_size;
use crate::values::{Values, defaults};

/// Most bytes of a task's payload, and of its result, that can be configured: each is part of one line of the worker
/// protocol, which has 16 MiB, and leaves the rest of the line 64 KiB.
pub const TASK_BYTES_MAX: u64 = (16 << 20) - (64 << 10);

/// `[tasks]`: what is accepted, how often it is tried, and how long it is kept.
#[derive(Clone, PartialEq, Debug)]
pub struct Tasks {
    /// Where accepted tasks are kept.
    pub journal: JournalMode,
    /// `queued`, `project_queued`, `project_running`, `projects` and `ageing`.
    pub queue: QueueSpec,
    /// `attempts` and `backoff`, for tasks that say nothing of them.
    pub retry: RetrySpec,
    /// Longest for one attempt of a task that says nothing of it.
    pub timeout: Duration,
    /// The most that a task may say there, where its project says nothing else.
    pub timeout_max: Duration,
    /// Largest payload, in bytes.
    pub payload_max: usize,
    /// Results up to so many bytes are kept in the journal itself; at most `result_max`.
    pub result_inline: usize,
    /// Largest result, in bytes.
    pub result_max: usize,
    /// How long an ended task is kept.
    pub keep: Duration,
    /// Bytes that ended tasks may take up; at least `result_max`.
    pub keep_size: u64,
    /// Tasks of one submission at most; at most `queue.queued`.
    pub batch: usize,
    /// Lines of log kept of a task that runs or has just ended.
    pub logs: usize,
    /// Tool calls as tasks at once.
    pub calls: usize,
}

/// Where accepted tasks are kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum JournalMode {
    /// On disk.
    Durable,
    /// In memory.
    Memory,
}

impl JournalMode {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Durable => "durable",
            Self::Memory => "memory",
        }
    }
}

impl Tasks {
    pub(crate) fn build(checked: &Checked, out: &mut Findings) -> Self {
        let base = defaults(keys::TASKS);
        let values = Values { layers: &[checked, &base] };
        // A default gives way to what is said; only two things that are said can be at odds.
        let within = |path, most: usize| match values.count(path) {
            count if values.is_said(path) => count,
            count => count.min(most),
        };
        let queued = values.count("queued");
        let result_max = values.count("result_max");
        let timeout_max = values.duration("timeout_max");
        let timeout = values.duration("timeout");
        let tasks = Self {
            journal: match values.word("journal") {
                "memory" => JournalMode::Memory,
                _ => JournalMode::Durable,
            },
            queue: QueueSpec {
                ageing: values.duration("ageing"),
                queued,
                project_running: values.count("project_running"),
                project_queued: within("project_queued", (queued / 2).max(1)),
                projects: values.count("projects"),
            },
            retry: RetrySpec {
                attempts: small(values.count("attempts")),
                min: values.duration("backoff.min"),
                max: values.duration("backoff.max"),
                jitter: values.fraction("backoff.jitter"),
            },
            timeout: if values.is_said("timeout") { timeout } else { timeout.min(timeout_max) },
            timeout_max,
            payload_max: values.count("payload_max"),
            result_inline: within("result_inline", result_max),
            result_max,
            keep: values.duration("keep"),
            keep_size: values.count("keep_size") as u64,
            batch: within("batch", queued),
            logs: values.count("logs"),
            calls: values.count("calls"),
        };
        tasks.check(&values, out);
        tasks
    }

    fn check(&self, values: &Values<'_>, out: &mut Findings) {
        let mut refuse = |keys: [&str; 2], message: String, help: &str| {
            out.error(Diagnostic::at(values.place_of_first_said(keys), message).help(help));
        };
        let QueueSpec { queued, project_queued, .. } = self.queue;
        if project_queued > queued {
            let message =
                format!("{project_queued} tasks of one project could never wait: at most {queued} do");
            refuse(["project_queued", "queued"], message, "give `project_queued` no more than `queued`");
        }
        if self.batch > queued {
            let message = format!("a batch of {} tasks could never wait: at most {queued} do", self.batch);
            refuse(["batch", "queued"], message, "give `batch` no more than `queued`");
        }
        if self.timeout > self.timeout_max {
            let (timeout, most) = (show(self.timeout), show(self.timeout_max));
            let message = format!("an attempt that may take {most} at most is given {timeout}");
            refuse(["timeout", "timeout_max"], message, "give `timeout` no more than `timeout_max`");
        }
        if self.retry.min > self.retry.max {
            let (min, max) = (show(self.retry.min), show(self.retry.max));
            let message = format!("the pause between attempts starts with {min} and is {max} at most");
            refuse(["backoff.min", "backoff.max"], message, "give `min` no more than `max`");
        }
        if self.result_inline > self.result_max {
            let most = show_size(self.result_max as u64);
            let message = format!("no result is as large as `result_inline`: the largest is {most}");
            refuse(
                ["result_inline", "result_max"],
                message,
                "give `result_inline` no more than `result_max`",
            );
        }
        if self.keep_size < self.result_max as u64 {
            let message = "the largest result would be forgotten as soon as it is there".to_owned();
            refuse(["keep_size", "result_max"], message, "give `keep_size` no less than `result_max`");
        }
    }
}

impl Default for Tasks {
    /// The documented defaults.
    fn default() -> Self {
        Self::build(&Checked::new(), &mut Findings::default())
    }
}
