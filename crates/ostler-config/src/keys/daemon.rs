//! The tables of the whole daemon.

use super::{DURATION, DURATION_OR_ZERO, GIB, Groups, KIB, Kind, MIB, bare, key};

pub(crate) const GATEWAY: Groups = &[&[
    key(
        "listen",
        Kind::Address,
        r#""127.0.0.1:7320""#,
        "Address and port clients connect to; port 0 takes a free one. An address that is not loopback needs `allow_remote`.",
    ),
    key("allow_remote", Kind::Bool, "false", "Whether `listen` may be an address that other machines reach."),
    key(
        "allowed_hosts",
        Kind::TextList,
        "[]",
        "Values of the `Host` header that are accepted besides the loopback names and the address listened on: a name, or a name and port.",
    ),
    key(
        "allowed_origins",
        Kind::TextList,
        "[]",
        "Values of the `Origin` header that are accepted besides loopback origins: scheme, host and port of a web page that may call.",
    ),
    key(
        "max_body",
        Kind::Size { min: KIB, max: 4 * GIB },
        r#""64MiB""#,
        "Largest body of one request; a larger one is refused with 413.",
    ),
    key(
        "body_memory",
        Kind::Size { min: KIB, max: 64 * GIB },
        r#""256MiB""#,
        "Memory for all request bodies held at once; at least `max_body`. Beyond it a request waits to be read.",
    ),
    key("header_timeout", DURATION, r#""10s""#, "Longest a client may take to send a request's headers."),
    key(
        "body_timeout",
        DURATION,
        r#""30s""#,
        "Longest silence while a request's body arrives; one that comes at less than 1 KiB a second for twice as \
         long is refused, too.",
    ),
    key(
        "write_timeout",
        DURATION,
        r#""30s""#,
        "Longest a client may leave an answer unread before its connection is closed.",
    ),
    key(
        "sse_after",
        DURATION_OR_ZERO,
        r#""30ms""#,
        "A legacy answer that takes longer than this becomes a resumable event stream; `0s` makes every answer one.",
    ),
    key(
        "stream_hold",
        DURATION_OR_ZERO,
        r#""0s""#,
        "Longest a legacy call's event stream is kept open before it is closed and the client resumes it; `0s` means for as long as the call runs.",
    ),
    key(
        "replay_events",
        Kind::Count { min: 1, max: 65_536 },
        "256",
        "Events kept per stream for a client that resumes.",
    ),
    key(
        "replay_bytes",
        Kind::Size { min: KIB, max: GIB },
        r#""1MiB""#,
        "Bytes of events kept per stream for a client that resumes.",
    ),
    key(
        "keepalive",
        DURATION,
        r#""15s""#,
        "Pause after which a silent event stream gets a comment, so that nothing between takes it for dead.",
    ),
    key(
        "max_connections",
        Kind::Count { min: 1, max: 1_000_000 },
        "4096",
        "Connections open at once; a further one waits to be accepted.",
    ),
]];

pub(crate) const LIMITS: Groups = &[&[
    key(
        "sessions",
        Kind::Count { min: 1, max: 1_000_000 },
        "1000",
        "Sessions at once; a further one is refused with 503.",
    ),
    key(
        "session_calls",
        Kind::Count { min: 1, max: 65_536 },
        "64",
        "Calls of one session in flight at once. Tasks that belong to it are counted apart.",
    ),
    key(
        "session_instances",
        Kind::Count { min: 1, max: 65_536 },
        "10",
        "Instances of one server that sessions have for themselves at once; a further one is refused with 503. A server \
         with a `pool` is bounded by `pool.max` alone.",
    ),
    key(
        "instance_calls",
        Kind::Count { min: 1, max: 1_000_000 },
        "1024",
        "Calls of one instance in flight or waiting at once.",
    ),
    key("processes", Kind::Count { min: 1, max: 65_536 }, "15", "Instances of all servers at once."),
    key(
        "per_type",
        Kind::Count { min: 1, max: 65_536 },
        "3",
        "Instances of one `type` at once; one that a session has for itself is not counted here.",
    ),
    key(
        "memory",
        Kind::Size { min: MIB, max: 1 << 50 },
        r#""4GiB""#,
        "Memory of all servers' processes together.",
    ),
    key("adhoc", Kind::Count { min: 0, max: 65_536 }, "100", "Processes of `ostler spawn` at once."),
    key("warning", Kind::Fraction, "0.75", "The part of a limit from which a warning is raised."),
    key(
        "critical",
        Kind::Fraction,
        "0.9",
        "The part of a limit from which room is made: new processes are refused, then spare and idle ones stopped.",
    ),
    key(
        "emergency",
        Kind::Bool,
        "false",
        "Whether an instance with running calls may be stopped when nothing else makes room.",
    ),
    key("startup", DURATION, r#""60s""#, "Longest for all that starts with the daemon to be ready."),
    key(
        "shutdown",
        DURATION,
        r#""30s""#,
        "Longest for a graceful end of everything; what is left then is killed.",
    ),
    key("cleanups", Kind::Count { min: 1, max: 1000 }, "5", "Trees of processes cleaned up at once."),
    key("cleanup_time", DURATION, r#""10s""#, "Longest for one try at cleaning up a tree."),
    key(
        "cleanup_tries",
        Kind::Count { min: 1, max: 1000 },
        "3",
        "Tries at cleaning up a tree before that is an alert; it is tried on, slowly.",
    ),
]];

pub(crate) const SESSIONS: Groups = &[&[
    key(
        "idle",
        DURATION,
        r#""10m""#,
        "A session without a call, a stream or a message for this long is ended.",
    ),
    key(
        "stale",
        DURATION,
        r#""30m""#,
        "A session that has an instance for itself and asks for nothing for this long is ended, though its client listens.",
    ),
    key(
        "max_age",
        DURATION,
        r#""24h""#,
        "A session that has an instance for itself takes no new calls at this age, and is ended once nothing of it runs.",
    ),
    key(
        "grace",
        DURATION_OR_ZERO,
        r#""30s""#,
        "How long the calls and tasks of a session may go on when a person or a tool ends it; what runs then is cut.",
    ),
]];

pub(crate) const PORTS: Groups = &[&[
    key("range", Kind::PortRange, r#""8001-9000""#, "The ports that are given to servers."),
    bare(
        "expand",
        Kind::PortRange,
        "Further ports, for when those of `range` are all taken. Absent: there are none.",
    ),
]];

pub(crate) const METRICS: Groups =
    &[&[key("interval", DURATION, r#""5s""#, "Pause between two measurements of all processes.")]];

pub(crate) const ALERTS: Groups = &[&[
    bare(
        "webhook",
        Kind::Text,
        "An `http://` or `https://` address that each alert is posted to. Absent: none.",
    ),
    key("command", Kind::TextList, "[]", "Program and arguments, run for each alert. Empty: none."),
    key("repeat", DURATION, r#""5m""#, "An alert that stays is told again after this, and none more often."),
    key(
        "retries",
        Kind::Count { min: 0, max: 100 },
        "3",
        "Further tries at telling an alert when the first fails.",
    ),
]];

pub(crate) const REGISTRY: Groups = &[&[key(
    "check",
    DURATION,
    r#""30s""#,
    "Pause between two comparisons of what Ostler believes to run with what the kernel says.",
)]];

pub(crate) const RELOAD: Groups =
    &[&[key("watch", Kind::Bool, "true", "Whether a change of a configuration file is taken in by itself.")]];
