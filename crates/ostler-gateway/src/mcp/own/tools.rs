//! The tools: what they are called, what they take and give, and at which door.

use std::sync::LazyLock;

use ostler_api::types::tasks::WAIT_MAX_MS;
use serde_json::{Value, json};

use super::desk::MAX_LINES;
use super::schemas::{object, of_type};
use super::tasks;
use crate::serve::Door;

/// What a tool does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Does {
    CreateSession,
    SessionStats,
    CleanUpSession,
    RunMany,
    ListProcesses,
    Spawn,
    Stop,
    Status,
    Logs,
    PoolStats,
    SubmitTask,
    GetTask,
    CancelTask,
    RunTasks,
}

/// What comes of calling a tool, for clients that ask a person first.
#[derive(Clone, Copy)]
enum Effect {
    /// Nothing.
    None,
    /// Something is there that was not.
    Adds,
    /// Something is gone that was there.
    Ends,
    /// Whatever the called tools do.
    Any,
}

/// One tool.
pub(super) struct Tool {
    pub(super) name: &'static str,
    pub(super) does: Does,
    title: &'static str,
    about: &'static str,
    effect: Effect,
    /// Whether it does what the management API does, which is on the unix socket only.
    manages: bool,
    input: fn() -> Value,
    output: fn() -> Value,
}

impl Tool {
    /// Whether it is served at this door.
    pub(super) fn is_served_at(&self, door: Door) -> bool {
        door == Door::Unix || !self.manages
    }

    fn described(&self) -> Value {
        let (reads, ends) = match self.effect {
            Effect::None => (true, false),
            Effect::Adds => (false, false),
            Effect::Ends | Effect::Any => (false, true),
        };
        json!({
            "name": self.name,
            "title": self.title,
            "description": self.about,
            "inputSchema": (self.input)(),
            "outputSchema": (self.output)(),
            "annotations": {
                "title": self.title,
                "readOnlyHint": reads,
                "destructiveHint": ends,
                "idempotentHint": matches!(self.effect, Effect::None | Effect::Ends),
                "openWorldHint": matches!(self.effect, Effect::Any),
            },
        })
    }
}

/// The tool of this name.
pub(super) fn find(name: &str) -> Option<&'static Tool> {
    TOOLS.iter().find(|tool| tool.name == name)
}

/// What `tools/list` says at this door.
pub(super) fn listed(door: Door) -> &'static Value {
    static ALL: LazyLock<Value> = LazyLock::new(|| described(Door::Unix));
    static NETWORK: LazyLock<Value> = LazyLock::new(|| described(Door::Tcp));
    match door {
        Door::Unix => &ALL,
        Door::Tcp => &NETWORK,
    }
}

fn described(door: Door) -> Value {
    TOOLS.iter().filter(|tool| tool.is_served_at(door)).map(Tool::described).collect()
}

const TOOLS: [Tool; 14] = [
    Tool {
        name: "create_session",
        does: Does::CreateSession,
        title: "Create a session",
        about: "Makes a session: a conversation with processes of its own, which no other session uses. Pass its \
                `session_id` to tools that take one, or show it in the header `Ostler-Session`. End it with \
                `cleanup_session` when it is not needed any more.",
        effect: Effect::Adds,
        manages: false,
        input: || {
            let name = text(
                "A name to know it by, instead of an id that cannot be guessed: 1 to 128 visible ASCII \
                             characters. Where there is a session of that name already, it is that one.",
            );
            let isolated = json!({
                "type": "boolean",
                "description": "Whether it has processes for itself, which is the default. If not, it shares those of all \
                                sessions that have none.",
            });
            object(json!({"name": name, "isolated": isolated}), &[])
        },
        output: || {
            let properties = json!({
                "session_id": text("What to pass to other tools."),
                "id": text("Names it in listings."),
            });
            object(properties, &["session_id", "id"])
        },
    },
    Tool {
        name: "get_session_stats",
        does: Does::SessionStats,
        title: "Show sessions",
        about: "Shows one session, or all: whose it is, how old and how long silent, its running calls, and the \
                instances that it holds.",
        effect: Effect::None,
        manages: false,
        input: || object(json!({"session_id": session_id("Which one; all of them without it.")}), &[]),
        output: || {
            let properties = json!({
                "sessions": list("SessionView"),
                "count": count("Sessions there are now."),
                "limit": count("Sessions there may be (`limits.sessions`)."),
            });
            object(properties, &["sessions", "count", "limit"])
        },
    },
    Tool {
        name: "cleanup_session",
        does: Does::CleanUpSession,
        title: "End a session",
        about: "Ends a session, and every process that runs for it alone; when its calls are done, where some run.",
        effect: Effect::Ends,
        manages: false,
        input: || object(json!({"session_id": session_id("Which one.")}), &["session_id"]),
        output: || {
            let properties = json!({
                "session_id": text("As it was asked for."),
                "id": text("What listings called it."),
                "state": text("`ended`, or `draining` while calls of it run."),
            });
            object(properties, &["session_id", "id", "state"])
        },
    },
    Tool {
        name: "run_many",
        does: Does::RunMany,
        title: "Call many tools",
        about: "Calls many tools of servers in one go, one after another or, with `concurrent`, several at the same \
                time. One that fails does not stop the others; the results stand in the order of the calls. Tells \
                how far it is where the request has a progress token.",
        effect: Effect::Any,
        manages: false,
        input: || of_type("RunMany"),
        output: || of_type("RunReport"),
    },
    Tool {
        name: "list_processes",
        does: Does::ListProcesses,
        title: "List processes",
        about: "Lists the instances of all servers, those of processes started by hand included, with their state and \
                what they use. A server without an instance has one row, too.",
        effect: Effect::None,
        manages: true,
        input: || {
            let kind = json!({"type": "string", "enum": ["server", "process"],
                "description": "Only servers of the configuration, or only processes started by hand."});
            object(json!({"kind": kind}), &[])
        },
        output: processes,
    },
    Tool {
        name: "spawn_process",
        does: Does::Spawn,
        title: "Start a process",
        about: "Starts a process, supervised as a server is: with its whole tree, its log, its restarts and its \
                limits. Answers when it runs or has failed to. It ends with the daemon.",
        effect: Effect::Any,
        manages: true,
        input: || of_type("NewProcess"),
        output: || of_type("ProcessView"),
    },
    Tool {
        name: "stop_process",
        does: Does::Stop,
        title: "Stop a process",
        about: "Stops a server, a process started by hand, or one instance; answers when nothing of its tree is left.",
        effect: Effect::Ends,
        manages: true,
        input: || object(json!({"name": name()}), &["name"]),
        output: processes,
    },
    Tool {
        name: "get_process_status",
        does: Does::Status,
        title: "Show a process",
        about: "Shows how a server, a process started by hand, or one instance is.",
        effect: Effect::None,
        manages: true,
        input: || object(json!({"name": name()}), &["name"]),
        output: processes,
    },
    Tool {
        name: "get_process_logs",
        does: Does::Logs,
        title: "Read a log",
        about: "The newest lines that a server, a process started by hand, or one instance wrote.",
        effect: Effect::None,
        manages: true,
        input: || {
            let lines = json!({"type": "integer", "minimum": 1, "maximum": MAX_LINES, "default": 200,
                "description": "How many at most."});
            object(json!({"name": name(), "lines": lines}), &["name"])
        },
        output: || object(json!({"lines": list("LogLine")}), &["lines"]),
    },
    Tool {
        name: "get_pool_stats",
        does: Does::PoolStats,
        title: "Show pools",
        about: "Shows the pools of servers that have one: instances started ahead, held, being made ready, and the \
                sessions in line.",
        effect: Effect::None,
        manages: true,
        input: || object(json!({"server": text("Only this one's.")}), &[]),
        output: || {
            let one = json!({
                "type": "object",
                "properties": {"server": text("The server."), "pool": component("PoolView")},
                "required": ["server", "pool"],
            });
            object(json!({"pools": {"type": "array", "items": one}}), &["pools"])
        },
    },
    Tool {
        name: "submit_task",
        does: Does::SubmitTask,
        title: "Submit a task",
        about: "Has a task done by a worker: code, a function, a module, a command, an HTTP request, a call of a tool, or a \
                type of the configuration. Answers with its `id` as soon as it is accepted; `get_task` waits for it. It is \
                tried again if it fails, and survives the end of this connection; with `session_id` it ends with that \
                session.",
        effect: Effect::Any,
        manages: true,
        input: || of_type("NewTask"),
        output: || of_type("SubmittedTask"),
    },
    Tool {
        name: "get_task",
        does: Does::GetTask,
        title: "Show a task",
        about: "Shows how a task is, with its attempts, and its result where it has one. With `wait_ms` it answers when the \
                task has ended, or after that time.",
        effect: Effect::None,
        manages: true,
        input: || {
            let wait = json!({"type": "integer", "minimum": 0, "maximum": WAIT_MAX_MS,
                "description": "How long to wait for its end, in milliseconds; without it not at all."});
            object(json!({"id": task_id(), "wait_ms": wait}), &["id"])
        },
        output: || object(json!(tasks::seen(component)), &["task"]),
    },
    Tool {
        name: "cancel_task",
        does: Does::CancelTask,
        title: "Cancel a task",
        about: "Cancels a task that waits or runs; what runs of it is ended.",
        effect: Effect::Ends,
        manages: true,
        input: || object(json!({"id": task_id(), "why": text("The reason that is written down.")}), &["id"]),
        output: || object(json!(tasks::seen(component)), &["task"]),
    },
    Tool {
        name: "run_tasks",
        does: Does::RunTasks,
        title: "Run tasks",
        about: "Submits many tasks, 100 at most, and answers when all of them have ended, with the result of each in the \
                order in which they were given. One that fails does not stop the others. Tells how far it is where the \
                request has a progress token. Whoever hangs up cancels what is left.",
        effect: Effect::Any,
        manages: true,
        input: || of_type("NewBatch"),
        output: || {
            let one = json!({"type": "object", "properties": tasks::seen(component), "required": ["task"]});
            let properties =
                json!({"batch": component("BatchView"), "tasks": {"type": "array", "items": one}});
            object(properties, &["batch", "tasks"])
        },
    },
];

fn text(about: &str) -> Value {
    json!({"type": "string", "description": about})
}

fn count(about: &str) -> Value {
    json!({"type": "integer", "minimum": 0, "description": about})
}

fn component(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

fn list(name: &str) -> Value {
    json!({"type": "array", "items": component(name)})
}

fn session_id(about: &str) -> Value {
    text(&format!("{about} What `create_session` gave, or the name that a client chose."))
}

fn name() -> Value {
    text(
        "The name of a server or of a process started by hand, or the id of an instance (`<server>.<number>`).",
    )
}

fn task_id() -> Value {
    text("The task's id, as `submit_task` gave it: `t<number>-<8 hexadecimal digits>`.")
}

fn processes() -> Value {
    object(json!({"processes": list("InstanceView")}), &["processes"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_manages_is_not_listed_for_the_network() {
        let names = |door: Door| -> Vec<&str> {
            listed(door).as_array().expect("a list").iter().filter_map(|tool| tool["name"].as_str()).collect()
        };
        assert_eq!(names(Door::Tcp), ["create_session", "get_session_stats", "cleanup_session", "run_many"]);
        assert_eq!(names(Door::Unix).len(), TOOLS.len());
        assert!(TOOLS.iter().all(|tool| find(tool.name).is_some_and(|found| found.does == tool.does)));
    }
}
