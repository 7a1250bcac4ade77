//! A server's table, and what of it `[defaults]` takes.

use super::{Choice, DURATION, DURATION_OR_ZERO, GIB, Groups, KIB, Key, Kind, MIB, bare, choice, key, later};

/// A server's table.
pub(crate) const SERVER: Groups = &[OWN, SHARED, LATER_SHARED];

/// What `[defaults]` takes.
pub(crate) const DEFAULTS: Groups = &[SHARED, LATER_SHARED];

const OWN: &[Key] = &[
    bare(
        "command",
        Kind::Text,
        "The program: a path, or a name looked up in the `PATH` the server gets. Required, but with `url`. No shell is involved. May hold `${...}`.",
    ),
    key("args", Kind::TextList, "[]", "Its arguments, one text each. May hold `${...}`."),
    key(
        "env",
        Kind::TextMap,
        "{}",
        "Variables set for it, beyond the few it inherits. Values may hold `${...}`.",
    ),
    bare(
        "cwd",
        Kind::Text,
        "Working directory; a relative one starts from the file's folder. Absent: the daemon's own, except that a project's JSON file means the project's folder. May hold `${...}`.",
    ),
    key(
        "transport",
        Kind::Choice(TRANSPORTS),
        r#""stdio""#,
        "How clients reach it. With `url` and without this: what the address says.",
    ),
    bare(
        "endpoint",
        Kind::Table(ENDPOINT),
        "Where its own process is reached, with the transports `http`, `sse` and `websocket`.",
    ),
    bare(
        "url",
        Kind::Text,
        "The address of a server that runs elsewhere, with the same transports; Ostler starts no process. May hold `${...}`.",
    ),
    key(
        "headers",
        Kind::HeaderMap,
        "{}",
        "Headers sent with every request, with the same transports. Values may hold `${...}`.",
    ),
    bare(
        "type",
        Kind::Text,
        "What it is an example of, for `limits.per_type`: a word like a server's name. Absent: its name.",
    ),
    key(
        "depends_on",
        Kind::TextList,
        "[]",
        "Servers that are started before it and must be ready first, by name.",
    ),
    key(
        "wants",
        Kind::TextList,
        "[]",
        "Servers that are started before it if they can be; without one of them it runs, degraded.",
    ),
    key(
        "ports",
        Kind::Ports,
        "{}",
        "Its ports by name: `\"auto\"` for a free one of `[ports]`, or a number. `{port.NAME}` stands for the number in `args`, `env` and `health`, and the variable `PORT_NAME` gives it.",
    ),
    key("enabled", Kind::Bool, "true", "Whether the server is used at all; `false` skips it."),
    key("required", Kind::Bool, "false", "Whether the daemon counts as ready only once this server is."),
];

const SHARED: &[Key] = &[
    key("scope", Kind::Choice(SCOPES), r#""principal""#, "Who shares an instance."),
    key("start", Kind::Choice(STARTS), r#""eager""#, "When an instance is started."),
    key(
        "concurrency",
        Kind::Choice(CONCURRENCIES),
        r#""auto""#,
        "Whether calls of several sessions may overlap on one legacy instance.",
    ),
    key(
        "inherit_env",
        Kind::TextList,
        "[]",
        "Further variables of the daemon's environment that the server inherits, by name.",
    ),
    bare("restart", Kind::Table(RESTART), "What happens after an exit that nobody asked for."),
    bare("stop", Kind::Table(STOP), "How an instance is stopped."),
    bare("timeouts", Kind::Table(TIMEOUTS), "Deadlines of starting and of calls."),
    key(
        "idle",
        DURATION,
        r#""5m""#,
        "An instance that was started on demand and serves no session is stopped after this.",
    ),
    key(
        "log_lines",
        Kind::Count { min: 1, max: 1_000_000 },
        "1000",
        "Lines kept per output stream of the process.",
    ),
    key(
        "log_files",
        Kind::Count { min: 0, max: 1000 },
        "0",
        "Files its output is kept in besides, the one being written included, in `logs` of the state directory; `0` keeps \
         none.",
    ),
    key(
        "log_file_bytes",
        Kind::Size { min: 4 * KIB, max: 64 * GIB },
        r#""10MiB""#,
        "Size at which the next of these files is begun.",
    ),
    bare("health", Kind::Table(HEALTH), "How a running instance is asked whether it is well."),
    bare("limits", Kind::Table(RESOURCES), "What one instance may use, all its processes together."),
    key(
        "tell_session",
        Kind::Bool,
        "false",
        "Whether each request names its session, as `_meta.\"io.ostler/session\"`, and its processes get the path of the \
         daemon's socket as `OSTLER_SOCKET`: for servers that ask Ostler for what the session has for itself.",
    ),
    key(
        "fallback",
        Kind::Choice(FALLBACKS),
        r#""refuse""#,
        "With scope `session`: what a session gets when no instance of its own can be had, for a limit or because the pool \
         is full.",
    ),
    bare(
        "pool",
        Kind::Table(POOL),
        "With scope `session`: instances are started ahead, and sessions wait in line for them. Absent: each session's is \
         started when it is needed, and refused where there is no room.",
    ),
    bare(
        "replicas",
        Kind::Table(REPLICAS),
        "With scope `shared`: several instances serve side by side, more under load; each call or legacy session goes to \
         the one with the least to do. Absent: one instance serves all. For servers that keep no state between calls.",
    ),
];

const LATER_SHARED: &[Key] = &[later("sandbox")];

const TRANSPORTS: &[Choice] = &[
    choice("stdio", "through Ostler, which speaks MCP with it over its standard input and output"),
    choice("http", "through Ostler, over Streamable HTTP: at a port of its process, or at `url`"),
    choice("sse", "the same over HTTP with server-sent events, the transport of 2024-11-05"),
    choice("websocket", "the same over a WebSocket, a text frame for each message"),
    choice("socket", "directly: it listens by itself, and Ostler tells its address"),
    choice("none", "not at all: it is a plain process without MCP"),
];

const ENDPOINT: Groups = &[&[
    bare("port", Kind::Text, "One of its `ports`, by name. Absent: the only one it has."),
    bare(
        "path",
        Kind::Text,
        "The path at that port. Absent: `/mcp`, `/sse` or `/ws`, as the transport is. May hold `${...}`.",
    ),
]];

const SCOPES: &[Choice] = &[
    choice("shared", "everyone: one instance for all"),
    choice("principal", "all sessions of one principal"),
    choice("project", "all sessions of one project"),
    choice("session", "one session only; the instance ends with it"),
];

const STARTS: &[Choice] = &[
    choice("eager", "with the daemon, where the scope allows it"),
    choice("on-demand", "when the first client needs it"),
];

const CONCURRENCIES: &[Choice] = &[
    choice("auto", "many at once, until the server is seen to ask back; then one at a time"),
    choice("serial", "one at a time"),
    choice("concurrent", "many at once; ambiguous requests of the server are refused"),
];

const POLICIES: &[Choice] = &[
    choice("never", "no exit is followed by a restart"),
    choice("on-failure", "every exit but one with status 0"),
    choice("always", "every exit"),
];

const RESTART: Groups = &[&[
    key("policy", Kind::Choice(POLICIES), r#""on-failure""#, "Which exits are followed by a restart."),
    key(
        "max",
        Kind::Count { min: 0, max: 1000 },
        "5",
        "Restarts within `window` after which the server counts as broken and is retried slowly.",
    ),
    key(
        "window",
        DURATION,
        r#""10m""#,
        "The time in which restarts are counted; as long in health, and the back-off starts over.",
    ),
    bare("backoff", Kind::Table(BACKOFF), "The delay before a restart; it doubles from `min` to `max`."),
]];

const BACKOFF: Groups = &[&[
    key(
        "min",
        DURATION_OR_ZERO,
        r#""100ms""#,
        "The first delay; `0s` restarts at once, as often as `max` and `window` allow.",
    ),
    key(
        "max",
        DURATION,
        r#""30s""#,
        "The longest delay; at least `min`. A broken server is retried after ten times this.",
    ),
    key("jitter", Kind::Fraction, "0.2", "The part of the delay that is random, from 0 to 1."),
]];

const STOP: Groups = &[&[
    key(
        "grace",
        DURATION_OR_ZERO,
        r#""10s""#,
        "From closing the server's standard input to SIGKILL. SIGTERM comes after the first fifth of it, and at once to a plain process (transport `none`).",
    ),
    key(
        "drain",
        DURATION_OR_ZERO,
        r#""5s""#,
        "How long running calls may finish before standard input is closed.",
    ),
]];

const TIMEOUTS: Groups = &[&[
    key("spawn", DURATION, r#""10s""#, "From the start to the process running its program."),
    key(
        "handshake",
        DURATION,
        r#""60s""#,
        "From the process running its program to the protocol's handshake done. Generous, as a cold `npx` downloads first.",
    ),
    key("call_idle", DURATION, r#""5m""#, "Longest silence of a running call; progress restarts this clock."),
    key("call_max", DURATION, r#""1h""#, "Longest duration of a call, whatever progress it makes."),
]];

const PROBES: &[Choice] = &[
    choice("mcp", "a question over its live MCP connection, put off while it serves a call"),
    choice("tcp", "`address` or `port` accepts a connection"),
    choice("http", "a GET of `url`, or of `/` at `port`, is answered with a status from 200 to 399"),
    choice("exec", "`command` exits with status 0"),
    choice("heartbeat", "`file` is touched, or without it a line is written, at least once in `interval`"),
    choice("none", "no probe: only the end of its process counts"),
];

const HEALTH: Groups = &[&[
    bare(
        "probe",
        Kind::Choice(PROBES),
        "How it is asked. Absent: `mcp` where Ostler speaks MCP with it, else `none`.",
    ),
    key("interval", DURATION, r#""30s""#, "From one probe to the next."),
    key("timeout", DURATION, r#""5s""#, "A probe without an answer for this long has failed."),
    key(
        "failures",
        Kind::Count { min: 1, max: 1000 },
        "3",
        "Failures in a row after which it is unhealthy and restarted; the first degrades it.",
    ),
    key(
        "successes",
        Kind::Count { min: 1, max: 1000 },
        "1",
        "Successes in a row after which it is well again.",
    ),
    key(
        "unhealthy_after",
        DURATION,
        r#""3m""#,
        "Time without a success after which it is unhealthy, too; at least `interval` and `timeout` together.",
    ),
    bare(
        "address",
        Kind::Text,
        "Host and port that the `tcp` probe connects to. May hold `${...}` and `{port.NAME}`.",
    ),
    bare(
        "url",
        Kind::Text,
        "What the `http` probe gets: an `http://` address. May hold `${...}` and `{port.NAME}`.",
    ),
    key(
        "command",
        Kind::TextList,
        "[]",
        "Program and arguments of the `exec` probe; no shell is involved. May hold `${...}` and `{port.NAME}`.",
    ),
    bare(
        "file",
        Kind::Text,
        "The file of the `heartbeat` probe; a relative one starts from `cwd`. May hold `${...}`.",
    ),
    bare("port", Kind::Text, "One of its `ports` that the `tcp` or `http` probe asks on loopback, by name."),
]];

const FALLBACKS: &[Choice] = &[
    choice("refuse", "its call is refused"),
    choice("shared", "the instance that such sessions of its principal share, until the session ends"),
];

const ON_RETURN: &[Choice] = &[
    choice("restart", "it is ended, and the next session has a new one"),
    choice("reuse", "the next session has it as it is"),
    choice("command", "`reset` makes it clean for the next session; it is ended where that fails"),
];

const REPLICAS: Groups = &[&[
    key("min", Kind::Count { min: 1, max: 100 }, "1", "Replicas at the least, once it runs."),
    key("max", Kind::Count { min: 1, max: 100 }, "4", "Replicas at most; each counts in `limits`."),
    key(
        "calls",
        Kind::Count { min: 1, max: 10_000 },
        "4",
        "Calls at the same time that one replica is meant for.",
    ),
    key("up", Kind::Fraction, "0.8", "Share of these from which one more is started, from 0 to 1."),
    key(
        "down",
        Kind::Fraction,
        "0.2",
        "Share up to which, twice in a row, one that nobody uses is ended; less than `up`.",
    ),
    key("interval", DURATION, r#""10s""#, "From one look at the load to the next."),
]];

const POOL: Groups = &[&[
    key("spare", Kind::Count { min: 0, max: 65_536 }, "1", "Instances kept ready for sessions to come."),
    key("max", Kind::Count { min: 1, max: 65_536 }, "5", "Instances at once, whatever they are doing."),
    key("wait", DURATION, r#""30s""#, "How long a session waits in line for an instance."),
    key("waiting", Kind::Count { min: 1, max: 65_536 }, "100", "Sessions in line; a further one is refused."),
    key(
        "on_return",
        Kind::Choice(ON_RETURN),
        r#""restart""#,
        "What is done with an instance when its session is done with it.",
    ),
    key(
        "reset",
        Kind::TextList,
        "[]",
        "Program and arguments that make an instance clean, with `on_return = \"command\"`; it succeeds by exiting with 0. \
         Gets the variables of the instance, its ports, and `OSTLER_INSTANCE` and `OSTLER_PID`. No shell is involved. May hold `${...}` and `{port.NAME}`.",
    ),
    key("reset_time", DURATION, r#""30s""#, "Longest for `reset`; it is killed then, and has failed."),
    bare(
        "max_uses",
        Kind::Count { min: 1, max: 1_000_000_000 },
        "Sessions after which an instance is replaced. Absent: no bound.",
    ),
    bare("max_age", DURATION, "Age at which an instance is replaced once it is free. Absent: no bound."),
    bare(
        "max_rss",
        Kind::Size { min: MIB, max: 1 << 50 },
        "Memory at which an instance is replaced once it is free. Absent: no bound.",
    ),
    key(
        "jitter",
        Kind::Fraction,
        "0.1",
        "The part by which `max_uses` and `max_age` are less by chance at most, so that instances are not replaced all at once.",
    ),
]];

const RESOURCES: Groups = &[&[
    bare(
        "memory",
        Kind::Size { min: MIB, max: 1 << 50 },
        "Memory it may not exceed. Absent: only `limits.memory` of the daemon bounds it.",
    ),
    key(
        "memory_warning",
        Kind::Size { min: MIB, max: 1 << 50 },
        r#""500MiB""#,
        "Memory from which a warning is raised; less than `memory`. Where only `memory` is given: three quarters of that.",
    ),
    bare(
        "cpu",
        Kind::Number { min: 0.01, max: 4096.0 },
        "CPU time it may use, in cores: `1.5` is one and a half. Absent: no bound.",
    ),
    bare("pids", Kind::Count { min: 1, max: 4_194_304 }, "Processes and threads at once. Absent: no bound."),
    bare(
        "open_files",
        Kind::Count { min: 8, max: 1_048_576 },
        "Files each of its processes may have open. Absent: as many as Ostler's own.",
    ),
    bare(
        "nice",
        Kind::Integer { min: -20, max: 19 },
        "Its nice value: 19 yields to all others, below 0 needs privileges. Absent: Ostler's own.",
    ),
]];
