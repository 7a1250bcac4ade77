//! What people read.

use std::time::Duration;

use ostler_domain::text::human;
use ostler_domain::{Cause, Exit, Happening, Severity, StopStep};

#[test]
fn durations_read_like_speech() {
    let cases = [
        (0, "0 ms"),
        (999, "999 ms"),
        (1_000, "1 s"),
        (1_540, "1.5 s"),
        (10_900, "10 s"),
        (60_000, "60 s"),
        (120_000, "2 min"),
        (150_000, "2 min 30 s"),
        (7_200_000, "2 h"),
        (7_500_000, "2 h 5 min"),
    ];
    for (ms, text) in cases {
        assert_eq!(human(Duration::from_millis(ms)), text);
    }
}

#[test]
fn happenings_say_what_and_why() {
    let cause = Cause::Exited(Exit::Signal(11));
    let cases = [
        (
            Happening::RestartScheduled {
                in_: Duration::from_millis(1200),
                attempt: 3,
                cause: cause.clone(),
            },
            Severity::Warning,
            "restarting in 1.2 s (failure 3 in a row): the server was ended by SIGSEGV",
        ),
        (
            Happening::GaveUp {
                next_try_in: Duration::from_secs(300),
                max: 5,
                window: Duration::from_secs(600),
                on_trial: false,
                cause: cause.clone(),
            },
            Severity::Error,
            "broken: more than 5 restarts within 10 min; next try in 5 min, or restart it by hand: the server was \
             ended by SIGSEGV",
        ),
        (
            Happening::StopStep { step: StopStep::Kill, kills: 3, reason: "daemon shuts down".into() },
            Severity::Error,
            "stopping: SIGKILL to all its processes, attempt 3 (daemon shuts down)",
        ),
        (
            Happening::StartFailed { cause: Cause::HandshakeTimeout { after: Duration::from_secs(60) } },
            Severity::Warning,
            "did not start: the server did not answer the handshake within 60 s",
        ),
        (
            Happening::Exited { exit: Exit::Signal(15), asked: true },
            Severity::Info,
            "the server was ended by SIGTERM",
        ),
        (
            Happening::Exited { exit: Exit::Code(0), asked: false },
            Severity::Info,
            "the server exited with status 0",
        ),
        (
            Happening::Exited { exit: Exit::Signal(64), asked: false },
            Severity::Warning,
            "the server was ended by signal 64",
        ),
        (
            Happening::Stuck { pids: vec![4, 17], kills: 2 },
            Severity::Error,
            "processes 4, 17 survived SIGKILL (sent 2 times), so the kernel holds them (a dead network mount, a \
             driver); they are tried again until they are gone",
        ),
    ];
    for (happening, severity, text) in cases {
        assert_eq!(happening.to_string(), text);
        assert_eq!(happening.severity(), severity, "{text}");
    }
}

#[test]
fn an_address_that_is_told_has_no_secrets() {
    for (given, told) in [
        ("https://host/mcp/?api_key=KEY", "https://host/mcp/"),
        ("https://me:KEY@host:1/mcp#KEY", "https://host:1/mcp"),
        ("/mcp/?key=KEY", "/mcp/"),
    ] {
        assert_eq!(ostler_domain::text::without_secrets(given), told);
    }
}
