//! The tables and sheets that people read. Pure: views in, text out.

mod tasks;

use std::fmt::Write as _;

use comfy_table::{CellAlignment, Table, presets};
use ostler_api::types::KIND_PROCESS;
use ostler_api::{
    AlertView, CleanupView, DaemonStatus, DrainingView, EndView, EventView, GaugeView, HeldView,
    InstanceView, LimitView, LogLine, PoolView, RunReport, RunResult, ServerView, SessionView,
};

#[cfg(test)]
pub(crate) use tasks::samples as task_samples;
pub(crate) use tasks::{
    bar, batch, batches, far, far_and_left, left, limited, pool, progress, projects, task, task_log_line,
    tasks,
};

use crate::text::{duration, moment, size, visible};

/// What stands where there is nothing to show.
const NONE: &str = "-";

/// A table without borders; `right` names the columns that hold figures.
fn table(header: &[&str], right: &[usize], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header.iter().copied());
    for row in rows {
        table.add_row(row.iter().map(|cell| visible(cell)));
    }
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if right.contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let mut text = table.trim_fmt();
    text.push('\n');
    text
}

/// `ostler run-many`.
pub(crate) fn report(report: &RunReport) -> String {
    let header = ["CALL", "TOOL", "TOOK", "", "ANSWER"];
    let row = |result: &RunResult| {
        let how = if result.ok { "ok" } else { "failed" };
        vec![
            result.index.to_string(),
            format!("{}/{}", result.server, result.tool),
            if result.begun { format!("{} ms", result.took_ms) } else { NONE.to_owned() },
            how.to_owned(),
            said(result),
        ]
    };
    table(&header, &[0, 2], report.results.iter().map(row))
}

/// What a tool answered, in a line: its text where it has one, else all of it.
fn said(result: &RunResult) -> String {
    const MOST: usize = 100;
    let text = match (&result.error, &result.result) {
        (Some(error), _) => error.message.clone(),
        (None, Some(raw)) => {
            let value: serde_json::Value = serde_json::from_str(raw.get()).unwrap_or_default();
            value["content"][0]["text"].as_str().map_or_else(|| raw.get().to_owned(), str::to_owned)
        }
        (None, None) => NONE.to_owned(),
    };
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

/// `ostler ps`.
pub(crate) fn instances(rows: &[InstanceView]) -> String {
    if rows.is_empty() {
        return "no servers are configured\n".to_owned();
    }
    let header = [
        "ID", "STATE", "SCOPE", "OWNER", "PID", "PROCS", "SESSIONS", "RESTARTS", "RSS", "CPU", "UPTIME",
        "PORTS",
    ];
    let row = |i: &InstanceView| {
        let running = i.pid.is_some();
        let figure = |text: String| if running { text } else { NONE.to_owned() };
        vec![
            i.id.clone(),
            state(i),
            scope(i),
            if i.kind == KIND_PROCESS { NONE.to_owned() } else { i.owner.clone() },
            i.pid.map_or_else(|| NONE.to_owned(), |pid| pid.to_string()),
            i.processes.to_string(),
            i.sessions.to_string(),
            i.restarts.to_string(),
            figure(size(i.rss_bytes)),
            figure(format!("{:.1}%", i.cpu_percent)),
            figure(duration(i.uptime_ms)),
            ports(i),
        ]
    };
    table(&header, &[4, 5, 6, 7, 8, 9, 10], rows.iter().map(row))
}

/// Who shares it; a process started by hand offers nothing to share.
fn scope(instance: &InstanceView) -> String {
    if instance.kind == KIND_PROCESS { KIND_PROCESS.to_owned() } else { instance.scope.clone() }
}

/// How and when a process ended.
fn ended(end: &EndView) -> String {
    format!("{}, {} ago", end.text, duration(end.ago_ms))
}

/// The state, and when the next try is.
fn state(instance: &InstanceView) -> String {
    match instance.next_try_ms {
        Some(ms) => format!("{} ({})", instance.state, duration(ms)),
        None => instance.state.clone(),
    }
}

fn ports(instance: &InstanceView) -> String {
    let ports: Vec<String> = instance.ports.iter().map(|(name, port)| format!("{name}={port}")).collect();
    if ports.is_empty() { NONE.to_owned() } else { ports.join(" ") }
}

/// `ostler sessions`.
pub(crate) fn sessions(rows: &[SessionView]) -> String {
    if rows.is_empty() {
        return "no sessions\n".to_owned();
    }
    let header = [
        "ID",
        "SERVER",
        "CLIENT",
        "PRINCIPAL",
        "STATE",
        "INSTANCES",
        "AGE",
        "IDLE",
        "CALLS",
        "TOTAL",
        "TASKS",
    ];
    let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| NONE.to_owned());
    let row = |s: &SessionView| {
        vec![
            s.id.clone(),
            or_none(&s.server),
            or_none(&s.client),
            s.principal.clone(),
            s.state.clone(),
            held(s),
            duration(s.age_ms),
            duration(s.idle_ms),
            s.calls.to_string(),
            s.calls_begun.to_string(),
            s.tasks.len().to_string(),
        ]
    };
    table(&header, &[6, 7, 8, 9, 10], rows.iter().map(row))
}

/// The instances of a session: those that it has for itself with pid and ports.
fn held(session: &SessionView) -> String {
    let one = |held: &HeldView| {
        let pid = held.pid.filter(|_| held.own).map(|pid| format!("pid {pid}"));
        let ports = held.ports.iter().filter(|_| held.own).map(|(name, port)| format!("{name}={port}"));
        let facts: Vec<String> = pid.into_iter().chain(ports).collect();
        if facts.is_empty() { held.id.clone() } else { format!("{} ({})", held.id, facts.join(", ")) }
    };
    let all: Vec<String> = session.instances.iter().map(one).collect();
    if all.is_empty() { NONE.to_owned() } else { all.join(" ") }
}

/// `ostler sessions rm`.
pub(crate) fn removed_session(id: &str, draining: Option<&DrainingView>) -> String {
    let Some(draining) = draining else { return format!("session {id} ended\n") };
    let cut = match draining.cut_in_ms {
        Some(left) => format!(", or in {} (sessions.grace)", duration(left)),
        None => String::new(),
    };
    format!(
        "session {id} is ending: it takes no new calls, and is over when {} calls and {} tasks of it are done{cut}\n",
        draining.calls,
        draining.tasks.len()
    )
}

/// `name  value` lines, the values in one column.
fn sheet(pairs: &[(&str, String)]) -> String {
    let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for (name, value) in pairs {
        let _ = writeln!(text, "{name:width$}  {}", visible(value));
    }
    text
}

/// `ostler status`.
pub(crate) fn daemon(status: &DaemonStatus) -> String {
    let mut text = sheet(&[
        ("version", status.version.clone()),
        ("pid", status.pid.to_string()),
        ("uptime", duration(status.uptime_ms)),
        ("ready", if status.ready { "yes" } else { "no" }.to_owned()),
        ("http", status.http.clone()),
        ("sessions", format!("{} of {}", status.sessions, status.max_sessions)),
        ("memory", format!("{}, {} of it messages", size(status.rss_bytes), size(status.body_bytes))),
        ("killing", status.rung.clone()),
        ("servers", used(status)),
    ]);
    for gauge in &status.gauges {
        let _ = writeln!(text, "{:8}  {}: {}", gauge.level, visible(&gauge.name), self::gauge(gauge));
    }
    if status.alerts > 0 {
        let _ = writeln!(text, "alerts    {}: see `ostler alerts`", status.alerts);
    }
    for cleanup in &status.cleanups {
        let _ = writeln!(text, "cleanup   {}", visible(&cleaning(cleanup)));
    }
    let hit: Vec<String> =
        status.counters.iter().filter(|(_, n)| **n > 0).map(|(name, n)| format!("{name}={n}")).collect();
    if !hit.is_empty() {
        let _ = writeln!(text, "refused   {}", visible(&hit.join(" ")));
    }
    text
}

/// How far a tree in the clean-up queue is.
fn cleaning(cleanup: &CleanupView) -> String {
    let pids: Vec<String> = cleanup.stuck.iter().map(u32::to_string).collect();
    let held = if pids.is_empty() { String::new() } else { format!(", processes {} left", pids.join(", ")) };
    let CleanupView { instance, progress, tries, age_ms, .. } = cleanup;
    format!("{instance}: {progress}{held}, {tries} tries in {}", duration(*age_ms))
}

/// `ostler alerts`.
pub(crate) fn alerts(rows: &[AlertView]) -> String {
    if rows.is_empty() {
        return "no alerts\n".to_owned();
    }
    let row = |alert: &AlertView| {
        vec![
            alert.severity.clone(),
            alert.kind.clone(),
            alert.subject.clone(),
            duration(alert.age_ms),
            alert.count.to_string(),
            alert.message.clone(),
        ]
    };
    table(&["SEVERITY", "KIND", "SUBJECT", "AGE", "COUNT", "MESSAGE"], &[3, 4], rows.iter().map(row))
}

/// What all instances use.
fn used(status: &DaemonStatus) -> String {
    let usage = &status.usage;
    let mut text = format!(
        "{} with {} processes: {}, {:.1}% cpu",
        usage.instances,
        usage.processes,
        size(usage.memory_bytes),
        usage.cpu_percent
    );
    if let (Some(all), Some(free)) = (usage.machine_bytes, usage.machine_available_bytes) {
        let _ = write!(text, "; {} of the machine's {} are free", size(free), size(all));
    }
    text
}

/// How near a limit is.
fn gauge(gauge: &GaugeView) -> String {
    match gauge.unit.as_str() {
        "bytes" if gauge.name.starts_with("disk ") => {
            format!("{} of its last {} taken", size(gauge.used), size(gauge.limit))
        }
        "bytes" => format!("{} of {}", size(gauge.used), size(gauge.limit)),
        "per mille" => format!("{} % of the last 10 s", gauge.used / 10),
        unit => format!("{} of {} {}", gauge.used, gauge.limit, visible(unit)),
    }
}

/// What it may use, what it does, and what holds it to that.
fn limit(limit: &LimitView) -> String {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a number of bytes")]
    let amount = |value: f64| match limit.unit.as_str() {
        "bytes" => size(value as u64),
        "cores" => format!("{value:.2}"),
        _ => format!("{value:.0}"),
    };
    let used = limit.used.map_or_else(String::new, |used| format!("{} of ", amount(used)));
    let unit = match limit.unit.as_str() {
        "" | "bytes" => String::new(),
        unit => format!(" {unit}"),
    };
    format!("{used}{}{unit} ({})", amount(limit.limit), limit.rung)
}

/// `ostler status SERVER`.
pub(crate) fn server(server: &ServerView) -> String {
    let known = |what: Option<bool>| match what {
        Some(true) => "yes",
        Some(false) => "no",
        None => "not known yet",
    };
    let by_hand = server.kind == KIND_PROCESS;
    let mut pairs = vec![
        (if by_hand { "process" } else { "server" }, server.name.clone()),
        ("state", server.state.clone()),
        ("command", command(&server.command)),
    ];
    if !by_hand {
        pairs.push(("scope", server.scope.clone()));
        pairs.push(("required", if server.required { "yes" } else { "no" }.to_owned()));
    }
    if let Some(endpoint) = &server.endpoint {
        let asks_back = if server.asks_back { "yes: one call at a time" } else { "not seen to" };
        pairs.insert(2, ("endpoint", endpoint.clone()));
        pairs.push(("legacy", known(server.legacy).to_owned()));
        pairs.push(("modern", known(server.modern).to_owned()));
        pairs.push(("asks back", asks_back.to_owned()));
    }
    if let Some(pool) = &server.pool {
        pairs.push(("pool", pooled(pool)));
    }
    let mut text = sheet(&pairs);
    if !server.instances.is_empty() {
        text.push('\n');
        text.push_str(&instances(&server.instances));
    }
    for instance in &server.instances {
        if let Some(reason) = &instance.reason {
            let _ = writeln!(text, "{}: {}", visible(&instance.id), visible(reason));
        } else if let Some(end) = instance.ended.as_ref().filter(|_| instance.pid.is_none()) {
            let _ = writeln!(text, "{}: it {}", visible(&instance.id), visible(&ended(end)));
        }
    }
    text
}

/// What the instances of a pool are doing, and how many sessions wait.
fn pooled(pool: &PoolView) -> String {
    let doing = [
        (pool.starting, "starting"),
        (pool.spare, "spare"),
        (pool.leased, "leased"),
        (pool.resetting, "being reset"),
        (pool.leaving, "ending"),
    ];
    let doing: Vec<String> =
        doing.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
    let doing = if doing.is_empty() { "none".to_owned() } else { doing.join(", ") };
    format!("{doing}; at most {}; {} in line", pool.max, pool.waiting)
}

/// Program and arguments as a shell would take them: a word with anything unusual in it is quoted.
fn command(words: &[String]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "@%_-+=:,./".contains(c);
    let quote = |word: &String| {
        if !word.is_empty() && word.chars().all(plain) {
            word.clone()
        } else {
            format!("'{}'", word.replace('\'', r"'\''"))
        }
    };
    words.iter().map(quote).collect::<Vec<_>>().join(" ")
}

/// `ostler status INSTANCE`.
pub(crate) fn instance(i: &InstanceView) -> String {
    let mut pairs = vec![
        ("instance", i.id.clone()),
        ("server", i.server.clone()),
        ("state", state(i)),
        ("generation", i.generation.to_string()),
        ("scope", format!("{}, owned by {}", i.scope, i.owner)),
        ("era", i.era.clone().unwrap_or_else(|| "not known yet".to_owned())),
        ("pid", i.pid.map_or_else(|| NONE.to_owned(), |pid| pid.to_string())),
        ("processes", i.processes.to_string()),
        ("sessions", i.sessions.to_string()),
        ("calls", i.calls.to_string()),
        ("restarts", i.restarts.to_string()),
        ("memory", memory(i)),
        ("cpu", format!("{:.1}%, {} in all", i.cpu_percent, duration(i.cpu_ms))),
        ("threads", i.threads.to_string()),
        ("files", files(i)),
        ("uptime", duration(i.uptime_ms)),
        ("ports", ports(i)),
    ];
    let limits: Vec<(String, String)> =
        i.limits.iter().map(|one| (format!("limit {}", one.resource), limit(one))).collect();
    pairs.extend(limits.iter().map(|(name, value)| (name.as_str(), value.clone())));
    if let Some(reason) = &i.reason {
        pairs.insert(3, ("reason", reason.clone()));
    }
    if let Some(end) = &i.ended {
        pairs.push(("last end", ended(end)));
    }
    sheet(&pairs)
}

/// Resident memory, and the same with what is shared counted once, where that is known.
fn memory(i: &InstanceView) -> String {
    match i.pss_bytes {
        Some(pss) => format!("{}; {} with what is shared counted once", size(i.rss_bytes), size(pss)),
        None => size(i.rss_bytes),
    }
}

/// Open files.
fn files(i: &InstanceView) -> String {
    match (i.fds, i.fds_of_one) {
        (Some(all), Some(one)) if i.processes > 1 => format!("{all} open, {one} of them in one process"),
        (Some(all), _) => format!("{all} open"),
        _ => NONE.to_owned(),
    }
}

/// One line of `ostler logs`; with the instance where lines of several are mixed.
pub(crate) fn log_line(line: &LogLine, with_instance: bool) -> String {
    let instance = if with_instance { format!("{} ", visible(&line.instance)) } else { String::new() };
    format!("{} {instance}{:6} {}\n", moment(line.unix_ms), visible(&line.stream), visible(&line.text))
}

/// One line of `ostler events`.
pub(crate) fn event(event: &EventView) -> String {
    format!(
        "{} {:7} {}: {} [{}]\n",
        moment(event.unix_ms),
        visible(&event.severity),
        visible(&event.subject),
        visible(&event.message),
        visible(&event.kind)
    )
}

/// Sample data for the tests of this crate.
#[cfg(test)]
pub(crate) mod samples {
    use std::collections::BTreeMap;

    use ostler_api::UsageView;
    use ostler_api::types::KIND_SERVER;

    use super::*;

    pub(crate) fn instance(id: &str, state: &str) -> InstanceView {
        let server = id.split('.').next().expect("first part").to_owned();
        InstanceView {
            id: id.to_owned(),
            server,
            kind: KIND_SERVER.to_owned(),
            generation: 3,
            state: state.to_owned(),
            reason: None,
            scope: "principal".to_owned(),
            owner: "local:1000".to_owned(),
            era: Some("legacy".to_owned()),
            pid: Some(41_207),
            processes: 3,
            sessions: 2,
            calls: 1,
            restarts: 2,
            rss_bytes: 125_829_120,
            pss_bytes: Some(98_566_144),
            cpu_percent: 1.25,
            cpu_ms: 184_000,
            threads: 23,
            fds: Some(61),
            fds_of_one: Some(40),
            measured_ago_ms: Some(120),
            limits: limits(),
            uptime_ms: 7_500_000,
            ports: BTreeMap::new(),
            next_try_ms: None,
            ended: None,
        }
    }

    fn limits() -> Vec<LimitView> {
        let view = |resource: &str, limit: f64, used: Option<f64>, unit: &str, rung: &str| LimitView {
            resource: resource.to_owned(),
            limit,
            used,
            unit: unit.to_owned(),
            rung: rung.to_owned(),
        };
        vec![
            view("memory", 524_288_000.0, Some(98_566_144.0), "bytes", "cgroup-v1"),
            view("cpu", 0.5, Some(0.0125), "cores", "sampled"),
            view("pids", 64.0, Some(23.0), "processes and threads", "cgroup-v1"),
            view("nice", 5.0, None, "", "priority"),
        ]
    }

    /// A process started by hand that has done its work.
    pub(crate) fn job() -> InstanceView {
        let ended =
            EndView { code: Some(0), signal: None, text: "exited with status 0".to_owned(), ago_ms: 184_000 };
        InstanceView {
            kind: KIND_PROCESS.to_owned(),
            scope: "shared".to_owned(),
            owner: "all".to_owned(),
            ended: Some(ended),
            restarts: 0,
            ..without_process("sleep-2.1", "stopped")
        }
    }

    fn without_process(id: &str, state: &str) -> InstanceView {
        InstanceView {
            pid: None,
            processes: 0,
            sessions: 0,
            calls: 0,
            rss_bytes: 0,
            pss_bytes: None,
            cpu_percent: 0.0,
            cpu_ms: 0,
            threads: 0,
            fds: None,
            fds_of_one: None,
            measured_ago_ms: None,
            limits: limits().into_iter().map(|limit| LimitView { used: None, ..limit }).collect(),
            uptime_ms: 0,
            ..instance(id, state)
        }
    }

    pub(crate) fn rows() -> Vec<InstanceView> {
        vec![
            InstanceView {
                ports: BTreeMap::from([("viewer".to_owned(), 8001), ("vnc".to_owned(), 8002)]),
                ..instance("github.1", "ready")
            },
            InstanceView {
                next_try_ms: Some(4_300),
                ended: Some(EndView {
                    code: Some(1),
                    signal: None,
                    text: "exited with status 1".to_owned(),
                    ago_ms: 900,
                }),
                reason: Some("exited with status 1 during the handshake".to_owned()),
                restarts: 5,
                ..without_process("memory.1", "backoff")
            },
            InstanceView { generation: 0, restarts: 0, era: None, ..without_process("everything", "idle") },
        ]
    }

    pub(crate) fn servers() -> Vec<ServerView> {
        rows()
            .into_iter()
            .map(|row| ServerView {
                name: row.server.clone(),
                kind: row.kind.clone(),
                same_as: None,
                pool: None,
                endpoint: (row.kind == KIND_SERVER)
                    .then(|| format!("http://127.0.0.1:7320/mcp/{}", row.server)),
                scope: row.scope.clone(),
                command: ["npx", "-y", "@modelcontextprotocol/server-x", "it's a path"]
                    .map(String::from)
                    .to_vec(),
                required: row.server == "github",
                legacy: Some(true),
                modern: None,
                asks_back: row.server == "memory",
                state: if row.generation == 0 { "on-demand".to_owned() } else { row.state.clone() },
                instances: if row.generation == 0 { Vec::new() } else { vec![row] },
            })
            .collect()
    }

    pub(crate) fn status() -> DaemonStatus {
        DaemonStatus {
            version: "0.1.0".to_owned(),
            pid: 41_000,
            uptime_ms: 273_600_000,
            http: "http://127.0.0.1:7320".to_owned(),
            rung: "guard: exact trees by subreaper; nothing outlives the daemon".to_owned(),
            ready: true,
            sessions: 12,
            max_sessions: 1000,
            rss_bytes: 12_582_912,
            ports_held: 0,
            body_bytes: 2048,
            alerts: 2,
            cleanups: vec![CleanupView {
                instance: "mount.1".to_owned(),
                progress: "stuck".to_owned(),
                stuck: vec![41_311, 41_312],
                tries: 4,
                age_ms: 65_000,
            }],
            counters: BTreeMap::from([("sessions".to_owned(), 3), ("bodies".to_owned(), 0)]),
            usage: UsageView {
                measured_ago_ms: Some(12),
                instances: 4,
                processes: 9,
                threads: 87,
                memory_bytes: 3_435_973_836,
                cpu_percent: 12.5,
                machine_bytes: Some(25_275_293_696),
                machine_available_bytes: Some(20_401_094_656),
                stall_percent: Some(0.4),
            },
            gauges: vec![
                gauge("limits.memory", 3_435_973_836, 4_294_967_296, "bytes", "warning"),
                gauge("limits.processes", 4, 15, "instances", "normal"),
                gauge("stall", 4, 1000, "per mille", "normal"),
                gauge("disk /var/lib/x", 0, 2_147_483_648, "bytes", "normal"),
            ],
        }
    }

    fn gauge(name: &str, used: u64, limit: u64, unit: &str, level: &str) -> GaugeView {
        let (name, unit, level) = (name.to_owned(), unit.to_owned(), level.to_owned());
        GaugeView { name, used, limit, unit, level }
    }

    pub(crate) fn alerts() -> Vec<AlertView> {
        vec![AlertView {
            kind: "process-failure".to_owned(),
            subject: "memory.1".to_owned(),
            severity: "error".to_owned(),
            message: "broken: more than 5 restarts within 10 min; next try in 5 min".to_owned(),
            age_ms: 184_000,
            count: 2,
        }]
    }

    pub(crate) fn sessions() -> Vec<SessionView> {
        let session = SessionView {
            id: "s7f3a".to_owned(),
            server: Some("github".to_owned()),
            client: Some("claude-code 2.1.0".to_owned()),
            principal: "local:1000".to_owned(),
            state: "draining".to_owned(),
            isolated: true,
            instances: vec![HeldView {
                id: "github.1".to_owned(),
                server: "github".to_owned(),
                own: true,
                state: "ready".to_owned(),
                generation: 1,
                pid: Some(4711),
                ports: BTreeMap::from([("viewer".to_owned(), 8001)]),
            }],
            shares: Vec::new(),
            age_ms: 184_000,
            idle_ms: 420,
            calls: 1,
            calls_begun: 1204,
            tasks: vec!["run_many".to_owned()],
            restarts: 0,
        };
        let rude = SessionView {
            id: "s0001".to_owned(),
            client: Some("evil\u{1b}]0;title\u{7}".to_owned()),
            instances: Vec::new(),
            ..session.clone()
        };
        vec![session, rude]
    }

    pub(crate) fn event() -> EventView {
        EventView {
            seq: 17,
            unix_ms: 1_785_231_000_125,
            severity: "warning".to_owned(),
            kind: "instance-exited".to_owned(),
            subject: "memory.1".to_owned(),
            message: "exited with status 1; next try in 4.3 s".to_owned(),
        }
    }

    pub(crate) fn line() -> LogLine {
        LogLine {
            seq: 9,
            unix_ms: 1_785_231_000_125,
            instance: "github.1".to_owned(),
            stream: "stderr".to_owned(),
            text: "listening \u{1b}[31mred".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ps() {
        let rows: Vec<InstanceView> = samples::rows().into_iter().chain([samples::job()]).collect();
        insta::assert_snapshot!(instances(&rows));
        assert_eq!(instances(&[]), "no servers are configured\n");
    }

    #[test]
    fn status_of_the_daemon() {
        insta::assert_snapshot!(daemon(&samples::status()));
    }

    #[test]
    fn status_of_servers() {
        let mut servers = samples::servers();
        let job = samples::job();
        servers.push(ServerView {
            name: "sleep-2".to_owned(),
            kind: job.kind.clone(),
            endpoint: None,
            state: job.state.clone(),
            instances: vec![job],
            ..servers[0].clone()
        });
        let pool =
            PoolView { max: 5, starting: 1, spare: 2, leased: 1, resetting: 0, leaving: 0, waiting: 3 };
        servers.push(ServerView { pool: Some(pool), instances: Vec::new(), ..servers[0].clone() });
        let sheets: Vec<String> = servers.iter().map(server).collect();
        insta::assert_snapshot!(sheets.join("----\n"));
    }

    #[test]
    fn status_of_an_instance() {
        insta::assert_snapshot!([0, 1].map(|row| instance(&samples::rows()[row])).join("----\n"));
    }

    #[test]
    fn sessions_with_a_rude_client_name() {
        insta::assert_snapshot!(sessions(&samples::sessions()));
        assert_eq!(sessions(&[]), "no sessions\n");
        assert_eq!(removed_session("s1", None), "session s1 ended\n");
        let draining = DrainingView {
            id: "s1".to_owned(),
            state: "draining".to_owned(),
            calls: 2,
            tasks: Vec::new(),
            cut_in_ms: Some(30_000),
        };
        insta::assert_snapshot!("a_session_that_drains", removed_session("s1", Some(&draining)));
    }

    #[test]
    fn a_report_of_a_run_says_what_each_call_answered() {
        let text = r#"{"ok":1,"failed":2,"took_ms":9,"results":[
            {"index":0,"server":"a","tool":"t","ok":true,"begun":true,"took_ms":7,
             "result":{"content":[{"type":"text","text":"two\n  lines"}]}},
            {"index":1,"server":"a","tool":"t","ok":false,"begun":true,"took_ms":1,
             "error":{"code":-32602,"message":"no tool `t`"}},
            {"index":2,"server":"a","tool":"t","ok":false,"begun":false,"took_ms":0,
             "error":{"code":-31004,"message":"not begun: it ended"}}]}"#;
        let table = report(&serde_json::from_str(text).expect("a report"));
        let lines: Vec<Vec<&str>> = table
            .lines()
            .map(|line| line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect())
            .collect();
        assert_eq!(lines[1], ["0", "a/t", "7 ms", "ok", "two lines"]);
        assert_eq!(lines[2], ["1", "a/t", "1 ms", "failed", "no tool `t`"]);
        assert_eq!(lines[3], ["2", "a/t", "-", "failed", "not begun: it ended"]);
    }

    #[test]
    fn a_table_of_alerts() {
        insta::assert_snapshot!(alerts(&samples::alerts()));
        assert_eq!(alerts(&[]), "no alerts\n");
    }

    #[test]
    fn lines_of_logs_and_events() {
        let text =
            [log_line(&samples::line(), false), log_line(&samples::line(), true), event(&samples::event())];
        insta::assert_snapshot!(text.concat());
    }
}
