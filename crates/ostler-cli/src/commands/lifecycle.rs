//! `start`, `stop`, `restart`: the daemon answers when it is done; say how it came out.

use ostler_api::types::KIND_PROCESS;
use ostler_api::{Client, InstanceView, Verb};

use super::print;
use crate::exit::Failure;
use crate::target::Target;

/// How a plain process has come to the end it was to come to, if it has.
pub(super) fn ended_well(instance: &InstanceView) -> Option<&str> {
    let plain = instance.kind == KIND_PROCESS && instance.state == "stopped";
    instance.ended.as_ref().filter(|ended| plain && ended.code == Some(0)).map(|ended| ended.text.as_str())
}

pub(super) async fn act(client: &Client, id: &str, verb: Verb) -> Result<(), Failure> {
    let instances = match Target::find(client, id).await? {
        Target::Server(name) => client.server_action(&name, verb).await?.instances,
        Target::Instance(id) => vec![client.instance_action(&id, verb).await?],
    };
    let said = match verb {
        Verb::Stop => stopped(id, &instances)?,
        Verb::Start | Verb::Restart => started(id, &instances)?,
    };
    print(said.as_bytes())
}

/// Says that nothing of `id` is left, or fails naming what is.
fn stopped(id: &str, instances: &[InstanceView]) -> Result<String, Failure> {
    match instances.iter().find(|i| i.processes > 0) {
        None => Ok(format!("{id} stopped: no process of it is left\n")),
        Some(left) => Err(Failure::Outcome {
            error: format!(
                "{} is {} with {} processes left{}",
                left.id,
                left.state,
                left.processes,
                because(left)
            ),
            hint: Some(format!("they stay owned and are tried again; see `ostler status {}`", left.id)),
        }),
    }
}

/// Says that `id` is up, or fails naming the first instance that is not.
fn started(id: &str, instances: &[InstanceView]) -> Result<String, Failure> {
    if let [one] = instances
        && let Some(how) = ended_well(one)
    {
        return Ok(format!("{id} has ended: it {how}\n"));
    }
    if let Some(bad) = instances.iter().find(|i| !matches!(i.state.as_str(), "ready" | "degraded" | "idle")) {
        return Err(Failure::Outcome {
            error: format!("{} is {}{}", bad.id, bad.state, because(bad)),
            hint: Some(format!("see what it said with `ostler logs {}`", bad.id)),
        });
    }
    let up: Vec<&InstanceView> = instances.iter().filter(|i| i.pid.is_some()).collect();
    Ok(match up.as_slice() {
        [] => format!("{id} starts when a client needs it\n"),
        [one] if one.id == id => format!("{id} {}\n", one.state),
        several => {
            let names: Vec<&str> = several.iter().map(|i| i.id.as_str()).collect();
            format!("{id} ready: {}\n", names.join(", "))
        }
    })
}

pub(super) fn because(instance: &InstanceView) -> String {
    instance.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::samples;

    #[test]
    fn what_start_and_stop_say() {
        let rows = samples::rows();
        let empty = InstanceView { processes: 0, ..samples::instance("github.1", "stopped") };
        let said = |outcome: Result<String, Failure>| match outcome {
            Ok(text) => text,
            Err(failure) => failure.report(),
        };
        let job = samples::job();
        let text = [
            said(started("sleep-2", std::slice::from_ref(&job))),
            said(started("github", &rows[..1])),
            said(started("github.1", &rows[..1])),
            said(started("everything", &rows[2..])),
            said(started("memory", &rows[1..2])),
            said(stopped("github", &[empty])),
            said(stopped("github", &[samples::instance("github.1", "stopping")])),
        ];
        insta::assert_snapshot!(text.concat());
    }
}
