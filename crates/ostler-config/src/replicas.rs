//! A server's `replicas` table.

use ostler_domain::Scope;
use ostler_domain::replicas::ReplicasSpec;

use crate::diagnostic::Diagnostic;
use crate::server::{Builder, Stop, scope};
use crate::upstream::transport_of;

/// Builds the table, where there is one.
pub(crate) fn build(builder: &mut Builder<'_>) -> Result<Option<ReplicasSpec>, Stop> {
    let Some(said) = builder.values.table_said("replicas") else { return Ok(None) };
    let (name, place) = (builder.raw.name.clone(), said.place.clone());
    let why = if builder.values.is_said("url") {
        Some(("runs elsewhere: there is nothing to start", "leave the `replicas` out"))
    } else if !transport_of(builder).is_mcp() {
        Some(("offers no MCP, so that no calls are shared out", "leave the `replicas` out"))
    } else if scope(builder.values.word("scope")) != Scope::Shared {
        let help = "`replicas` go with `scope = \"shared\"`: say that, or leave them out";
        Some(("has no instance that all share", help))
    } else {
        None
    };
    if let Some((what, help)) = why {
        if !said.by_itself {
            // What `[defaults]` says is for those it fits.
            return Ok(None);
        }
        builder.out.error(Diagnostic::at(place, format!("server `{name}` {what}")).help(help));
        return Err(Stop::Wrong);
    }
    let values = &builder.values;
    let spec = ReplicasSpec {
        min: values.count("replicas.min"),
        max: values.count("replicas.max"),
        calls: values.count("replicas.calls"),
        up: values.fraction("replicas.up"),
        down: values.fraction("replicas.down"),
        interval: values.duration("replicas.interval"),
    };
    let wrong = if spec.min > spec.max {
        let what = format!("at least {} replicas of at most {}", spec.min, spec.max);
        Some((["replicas.min", "replicas.max"], what, "give `min` no more than `max`"))
    } else if spec.down >= spec.up {
        let what = format!("one replica less from {} of the load, and one more from {}", spec.down, spec.up);
        Some((["replicas.down", "replicas.up"], what, "give `down` less than `up`"))
    } else {
        None
    };
    let Some(([first, second], what, help)) = wrong else { return Ok(Some(spec)) };
    let path = if values.is_said(first) { first } else { second };
    let error = Diagnostic::at(values.place(path), format!("server `{name}` is to have {what}"));
    builder.out.error(error.help(help));
    Err(Stop::Wrong)
}
