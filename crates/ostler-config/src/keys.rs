//! The table of keys. It alone says which keys there are, what they take, what they default to and what they
//! mean: the checks, the JSON schema, the environment variables and the reference in the documentation all
//! come from it.

/// One key of a table.
pub(crate) struct Key {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    /// The default as TOML; `None` where absence means something of its own, which `doc` then says.
    pub(crate) default: Option<&'static str>,
    /// What it means, in one or two sentences.
    pub(crate) doc: &'static str,
}

/// Keys of one table, in the groups they are shared by.
pub(crate) type Groups = &'static [&'static [Key]];

/// What a key takes.
pub(crate) enum Kind {
    Text,
    TextList,
    TextMap,
    Bool,
    Count {
        min: u64,
        max: u64,
    },
    /// A number from 0 to 1.
    Fraction,
    Duration {
        zero: bool,
    },
    Size {
        min: u64,
        max: u64,
    },
    /// IP address and port.
    Address,
    Choice(&'static [Choice]),
    Table(Groups),
    /// A table of tables, by name.
    Named(Groups),
    /// Defined by the design, not available in this version.
    Later,
}

/// One word of a choice.
pub(crate) struct Choice {
    pub(crate) word: &'static str,
    pub(crate) doc: &'static str,
    /// Whether this version has it.
    pub(crate) available: bool,
}

const fn key(name: &'static str, kind: Kind, default: &'static str, doc: &'static str) -> Key {
    Key { name, kind, default: Some(default), doc }
}

const fn bare(name: &'static str, kind: Kind, doc: &'static str) -> Key {
    Key { name, kind, default: None, doc }
}

const fn later(name: &'static str) -> Key {
    Key { name, kind: Kind::Later, default: None, doc: "Not available in this version yet." }
}

const fn choice(word: &'static str, doc: &'static str) -> Choice {
    Choice { word, doc, available: true }
}

const fn later_choice(word: &'static str) -> Choice {
    Choice { word, doc: "not available in this version yet", available: false }
}

const DURATION: Kind = Kind::Duration { zero: false };
const DURATION_OR_ZERO: Kind = Kind::Duration { zero: true };
const KIB: u64 = 1 << 10;
const GIB: u64 = 1 << 30;

/// The whole file.
pub(crate) const ROOT: Groups = &[&[
    bare("gateway", Kind::Table(GATEWAY), "The HTTP side: where clients connect."),
    bare("limits", Kind::Table(LIMITS), "Bounds of the whole daemon."),
    bare("sessions", Kind::Table(SESSIONS), "Clients' conversations."),
    bare("defaults", Kind::Table(DEFAULTS), "What a server gets that does not say otherwise."),
    bare("servers", Kind::Named(SERVER), "The MCP servers, by name."),
    later("ports"),
]];

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
        "Calls of one session in flight at once.",
    ),
    key(
        "instance_calls",
        Kind::Count { min: 1, max: 1_000_000 },
        "1024",
        "Calls of one instance in flight or waiting at once.",
    ),
    key("processes", Kind::Count { min: 1, max: 65_536 }, "15", "Instances of all servers at once."),
    later("per_type"),
    later("memory"),
]];

pub(crate) const SESSIONS: Groups = &[&[key(
    "idle",
    DURATION,
    r#""10m""#,
    "A session without a call, a stream or a message for this long is ended.",
)]];

/// A server's table.
pub(crate) const SERVER: Groups = &[OWN, SHARED, LATER_OWN, LATER_SHARED];

/// What `[defaults]` takes.
pub(crate) const DEFAULTS: Groups = &[SHARED, LATER_SHARED];

const OWN: &[Key] = &[
    bare(
        "command",
        Kind::Text,
        "The program: a path, or a name looked up in the `PATH` the server gets. Required. No shell is involved. May hold `${...}`.",
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
    key("transport", Kind::Choice(TRANSPORTS), r#""stdio""#, "How Ostler talks to it."),
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
];

const LATER_OWN: &[Key] =
    &[later("type"), later("depends_on"), later("ports"), later("url"), later("headers")];

const LATER_SHARED: &[Key] = &[later("health"), later("limits"), later("pool"), later("sandbox")];

const TRANSPORTS: &[Choice] = &[
    choice("stdio", "over its standard input and output"),
    later_choice("http"),
    later_choice("sse"),
    later_choice("socket"),
    later_choice("none"),
];

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
    key("min", DURATION, r#""100ms""#, "The first delay."),
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
        "From closing the server's standard input to SIGKILL. SIGTERM comes after the first fifth of it.",
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

/// All keys of a table.
pub(crate) fn all(groups: Groups) -> impl Iterator<Item = &'static Key> {
    groups.iter().flat_map(|group| group.iter())
}

/// The keys of a table that this version has.
pub(crate) fn available(groups: Groups) -> impl Iterator<Item = &'static Key> {
    all(groups).filter(|k| !matches!(k.kind, Kind::Later))
}

/// One key of a table.
pub(crate) fn find(groups: Groups, name: &str) -> Option<&'static Key> {
    all(groups).find(|k| k.name == name)
}

/// Every key below a table that takes a value, with its path: `restart.backoff.min`. Tables of named tables
/// are left out, as their paths depend on the names.
pub(crate) fn leaves(groups: Groups) -> Vec<(String, &'static Key)> {
    let mut found = Vec::new();
    for key in all(groups) {
        match key.kind {
            Kind::Table(inner) => {
                found.extend(leaves(inner).into_iter().map(|(path, k)| (format!("{}.{path}", key.name), k)));
            }
            Kind::Named(_) => {}
            _ => found.push((key.name.to_owned(), key)),
        }
    }
    found
}
