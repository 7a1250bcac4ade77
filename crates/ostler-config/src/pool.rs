//! A server's `pool` table.

use ostler_domain::Scope;
use ostler_domain::pool::{OnReturn, PoolSpec};

use crate::diagnostic::Diagnostic;
use crate::server::{Builder, Stop, scope};

/// Builds the table, where there is one.
pub(crate) fn build(builder: &mut Builder<'_>) -> Result<Option<PoolSpec>, Stop> {
    let Some(said) = builder.values.table_said("pool") else { return Ok(None) };
    let (name, place) = (builder.raw.name.clone(), said.place.clone());
    let is_remote = builder.values.is_said("url");
    let why = match scope(builder.values.word("scope")) {
        Scope::Session if is_remote => {
            Some(("runs elsewhere: there is nothing to start ahead", "leave the `pool` out"))
        }
        Scope::Session => None,
        _ => Some((
            "has no instances that sessions have for themselves",
            "a `pool` goes with `scope = \"session\"`: say that, or leave the pool out",
        )),
    };
    if let Some((what, help)) = why {
        if !said.by_itself {
            // What `[defaults]` says is for those it fits.
            return Ok(None);
        }
        builder.out.error(Diagnostic::at(place, format!("server `{name}` {what}")).help(help));
        return Err(Stop::Wrong);
    }
    let on_return = on_return(builder)?;
    let values = &builder.values;
    let spec = PoolSpec {
        spare: values.count("pool.spare"),
        max: values.count("pool.max"),
        wait: values.duration("pool.wait"),
        waiting: values.count("pool.waiting"),
        on_return,
        max_uses: values.optional_count("pool.max_uses").map(|n| u32::try_from(n).unwrap_or(u32::MAX)),
        max_age: values.optional_duration("pool.max_age"),
        max_rss: values.optional_count("pool.max_rss"),
        jitter: values.fraction("pool.jitter"),
        idle: values.duration("idle"),
    };
    if spec.spare > spec.max {
        let message = format!("the pool of `{name}` keeps {} spare of at most {}", spec.spare, spec.max);
        let path = if values.is_said("pool.spare") { "pool.spare" } else { "pool.max" };
        let error = Diagnostic::at(values.place(path), message);
        builder.out.error(error.help("give `spare` no more than `max`"));
        return Err(Stop::Wrong);
    }
    Ok(Some(spec))
}

fn on_return(builder: &mut Builder<'_>) -> Result<OnReturn, Stop> {
    let reset = builder.values.list("pool.reset").to_vec();
    let word = builder.values.word("pool.on_return");
    let name = &builder.raw.name;
    match word {
        "command" if reset.first().is_none_or(|(program, _)| program.trim().is_empty()) => {
            let message = format!("the pool of `{name}` has no command that makes an instance clean");
            let error = Diagnostic::at(builder.values.place("pool.on_return"), message);
            builder.out.error(error.expected("`reset`: the program and its arguments"));
            Err(Stop::Wrong)
        }
        "command" => {
            let parts: Vec<_> = reset.iter().map(|(text, place)| builder.expand_ports(text, place)).collect();
            let command = parts.into_iter().collect::<Result<_, _>>()?;
            Ok(OnReturn::Command(command, builder.values.duration("pool.reset_time")))
        }
        _ => {
            if let Some((_, place)) = reset.first() {
                let warning = Diagnostic::at(place.clone(), format!("the `reset` of `{name}` is never run"));
                let help = format!("it goes with `on_return = \"command\"`, and this pool has \"{word}\"");
                builder.out.warning(warning.help(help));
            }
            Ok(if word == "reuse" { OnReturn::Reuse } else { OnReturn::Restart })
        }
    }
}
