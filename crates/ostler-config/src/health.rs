//! A server's `health` table: the probe it describes, and whether what the probe needs was given.

use std::path::Path;

use ostler_domain::{HealthSpec, Heartbeat, Probe};

use crate::diagnostic::{Diagnostic, nearest};
use crate::server::{Builder, Stop, clean, show};
use crate::source::Place;
use crate::upstream::transport_of;

/// The keys that say where a probe goes, and which probes use them.
const TARGETS: &[(&str, &[&str])] = &[
    ("health.address", &["tcp"]),
    ("health.url", &["http"]),
    ("health.command", &["exec"]),
    ("health.file", &["heartbeat"]),
    ("health.port", &["tcp", "http"]),
];

/// Builds the table. `cwd` is the server's working directory.
pub(crate) fn build(builder: &mut Builder<'_>, cwd: Option<&Path>) -> Result<HealthSpec, Stop> {
    let is_mcp = transport_of(builder).is_mcp();
    let word = builder.values.optional_word("health.probe").unwrap_or(if is_mcp { "mcp" } else { "none" });
    let probe = probe(builder, word, is_mcp, cwd)?;
    let values = &builder.values;
    let spec = HealthSpec {
        probe,
        interval: values.duration("health.interval"),
        timeout: values.duration("health.timeout"),
        failures: u32::try_from(values.count("health.failures")).unwrap_or(u32::MAX),
        successes: u32::try_from(values.count("health.successes")).unwrap_or(u32::MAX),
        unhealthy_after: values.duration("health.unhealthy_after"),
    };
    unused(builder, word);
    check_times(builder, &spec)?;
    Ok(spec)
}

fn probe(builder: &mut Builder<'_>, word: &str, is_mcp: bool, cwd: Option<&Path>) -> Result<Probe, Stop> {
    match word {
        "mcp" if !is_mcp => {
            let message = format!("server `{}` does not speak MCP with Ostler", builder.raw.name);
            let error = Diagnostic::at(builder.values.place("health.probe"), message);
            builder.out.error(
                error.help("the probe `mcp` is for servers that Ostler speaks MCP with; take another"),
            );
            Err(Stop::Wrong)
        }
        "mcp" => Ok(Probe::Mcp),
        "tcp" => Ok(Probe::Tcp { address: tcp_address(builder)? }),
        "http" => Ok(Probe::Http { url: http_url(builder)? }),
        "exec" => {
            let items = builder.values.list("health.command").to_vec();
            if items.first().is_none_or(|(program, _)| program.trim().is_empty()) {
                return Err(missing(builder, word, "`command`: the program and its arguments"));
            }
            let parts: Vec<_> = items.iter().map(|(text, place)| builder.expand_ports(text, place)).collect();
            Ok(Probe::Exec { command: parts.into_iter().collect::<Result<_, _>>()? })
        }
        "heartbeat" => match text(builder, "health.file") {
            None => Ok(Probe::Heartbeat(Heartbeat::Line)),
            Some((file, place)) => {
                let file = builder.expand(&file, &place)?;
                let base = cwd.unwrap_or(&builder.raw.folder);
                Ok(Probe::Heartbeat(Heartbeat::File(clean(&base.join(file)))))
            }
        },
        _ => Ok(Probe::None),
    }
}

fn text(builder: &Builder<'_>, path: &str) -> Option<(String, Place)> {
    builder.values.text(path).map(|(text, place)| (text.to_owned(), place.clone()))
}

fn tcp_address(builder: &mut Builder<'_>) -> Result<String, Stop> {
    if let Some((address, place)) = text(builder, "health.address") {
        let found = builder.expand_ports(&address, &place)?;
        let is_port = |port: &str| port.starts_with("{port.") || port.parse::<u16>().is_ok_and(|p| p != 0);
        return match found.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && is_port(port) => Ok(found),
            _ => {
                let error = Diagnostic::at(place, "`address` is not a host and port");
                builder.out.error(error.expected("such as `127.0.0.1:5432` or `127.0.0.1:{port.db}`"));
                Err(Stop::Wrong)
            }
        };
    }
    Ok(format!("127.0.0.1:{}", named_port(builder, "tcp", "`address` or `port`")?))
}

fn http_url(builder: &mut Builder<'_>) -> Result<String, Stop> {
    if let Some((url, place)) = text(builder, "health.url") {
        let found = builder.expand_ports(&url, &place)?;
        let host = found.strip_prefix("http://").unwrap_or_default();
        return if host.is_empty() || host.starts_with(['/', ':']) || host.contains(char::is_whitespace) {
            let error = Diagnostic::at(place, "`url` is not an address that can be probed");
            let error = error.expected("such as `http://127.0.0.1:{port.web}/health`");
            builder.out.error(match found.starts_with("https://") {
                true => error.help("a probe speaks plain HTTP; `exec` can run a client for anything else"),
                false => error,
            });
            Err(Stop::Wrong)
        } else {
            Ok(found)
        };
    }
    Ok(format!("http://127.0.0.1:{}/", named_port(builder, "http", "`url` or `port`")?))
}

/// The `{port.NAME}` of the port that `health.port` names.
fn named_port(builder: &mut Builder<'_>, probe: &str, needs: &str) -> Result<String, Stop> {
    let Some((name, place)) = text(builder, "health.port") else {
        return Err(missing(builder, probe, needs));
    };
    let known = builder.values.ports("ports");
    if known.iter().any(|(port, _, _)| *port == name) {
        return Ok(format!("{{port.{name}}}"));
    }
    let error = Diagnostic::at(place, format!("server `{}` has no port `{name}`", builder.raw.name));
    let near = nearest(&name, known.iter().map(|(port, _, _)| port.as_str()));
    builder.out.error(error.nearest(near).expected("the name of one of its `ports`"));
    Err(Stop::Wrong)
}

fn missing(builder: &mut Builder<'_>, probe: &str, needs: &str) -> Stop {
    let message = format!("the probe `{probe}` of server `{}` does not say where to go", builder.raw.name);
    let error = Diagnostic::at(builder.values.place("health.probe"), message);
    builder.out.error(error.expected(format!("{needs} in its `health`")));
    Stop::Wrong
}

/// Warns of what the server itself says for another probe than it has. What `[defaults]` says may be meant for
/// others.
fn unused(builder: &mut Builder<'_>, word: &str) {
    for (path, probes) in TARGETS {
        if let Some(found) = builder.raw.values.get(*path)
            && !probes.contains(&word)
        {
            let key = path.trim_start_matches("health.");
            let place = found.place.clone();
            let message = format!("`{key}` is not used: the probe of `{}` is `{word}`", builder.raw.name);
            let help = format!("`{key}` is for {}", probes.join(" and "));
            builder.out.warning(Diagnostic::at(place, message).help(help));
        }
    }
}

/// A server that is well must not count as unhealthy between two probes.
fn check_times(builder: &mut Builder<'_>, spec: &HealthSpec) -> Result<(), Stop> {
    let needed = spec.interval.saturating_add(spec.timeout);
    if spec.probe == Probe::None || spec.unhealthy_after >= needed {
        return Ok(());
    }
    let candidates = ["health.unhealthy_after", "health.interval", "health.timeout"];
    let path = candidates.iter().find(|path| builder.values.is_said(path)).unwrap_or(&candidates[0]);
    let message =
        format!("server `{}` would count as unhealthy before a probe could succeed", builder.raw.name);
    let error = Diagnostic::at(builder.values.place(path), message);
    let help = format!(
        "`unhealthy_after` is {}; `interval` and `timeout` together are {}",
        show(spec.unhealthy_after),
        show(needed)
    );
    builder.out.error(error.help(help));
    Err(Stop::Wrong)
}
