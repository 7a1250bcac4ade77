//! `ostler doctor`: what this machine offers for ending whole process trees and for limiting them, and whether a running
//! daemon's account of its processes is true.

use std::fmt::Write as _;

use ostler_api::{AuditView, Client, ClientError, RuntimeDir, StateDir};
use ostler_cli::{DoctorArgs, Exit, Global};
use ostler_supervisor::sandbox::Sandboxes;
use serde_json::{Value, json};

use crate::config::{complain, say};
use crate::lock::{self, LockError};

/// What became of looking for something.
type Outcome<T> = Result<T, String>;

/// Prints the rungs of the ladder and what each guarantees here, what a running daemon finds, and what was reaped.
pub(crate) fn run(global: &Global, args: &DoctorArgs) -> Exit {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format!("error: {error}\n"));
            return Exit::Failed;
        }
    };
    let machine = Machine::look();
    let daemon = runtime.block_on(audit(global));
    let reaped = args.reap.then(|| runtime.block_on(reap()));
    if args.json {
        say(&format!("{}\n", as_json(&machine, &daemon, reaped.as_ref())));
    } else {
        say(&as_text(&machine, &daemon, reaped.as_ref()));
    }
    let consistent = !matches!(&daemon, Ok(Some(audit)) if !audit.findings.is_empty());
    let clean =
        !matches!(&reaped, Some(Err(_))) && !matches!(&reaped, Some(Ok((_, left))) if !left.is_empty());
    if machine.ok && daemon.is_ok() && consistent && clean { Exit::Done } else { Exit::Failed }
}

struct Machine {
    sandbox: Outcome<String>,
    subreaper: String,
    boot_id: String,
    rungs: ostler_os::Rungs,
    ok: bool,
}

impl Machine {
    fn look() -> Self {
        let subreaper = ostler_os::become_subreaper();
        let boot_id = ostler_os::boot::boot_id();
        let ok = subreaper.is_ok() && boot_id.is_ok();
        let say_result = |result: Result<String, std::io::Error>| match result {
            Ok(text) => text,
            Err(error) => format!("no: {error}"),
        };
        Self {
            sandbox: sandbox(),
            subreaper: say_result(subreaper.map(|()| "yes".to_owned())),
            boot_id: say_result(boot_id),
            // What a daemon that is started from here would find: the rungs depend on the cgroup it is in.
            rungs: ostler_os::limits::rungs(),
            ok,
        }
    }
}

/// Where bubblewrap is, if it can build the sandboxes of workers here.
fn sandbox() -> Outcome<String> {
    let exe = std::env::current_exe().map_err(|error| error.to_string())?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = Sandboxes::new(path, exe).try_here();
    found.map(|bwrap| bwrap.display().to_string()).map_err(|error| error.to_string())
}

/// What the running daemon finds; `None` where none runs.
async fn audit(global: &Global) -> Outcome<Option<AuditView>> {
    let dir = RuntimeDir::resolve(global.runtime_dir.as_deref()).map_err(|error| error.to_string())?;
    match Client::new(dir.socket()).audit().await {
        Ok(audit) => Ok(Some(audit)),
        Err(ClientError::NoDaemon { .. }) => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

/// Ends what a killed daemon left: the processes ended, and those that could not be. A running daemon has done that at
/// its start.
async fn reap() -> Outcome<(Vec<u32>, Vec<u32>)> {
    let state = StateDir::resolve().map_err(|error| error.to_string())?;
    if !state.root().exists() {
        return Ok((Vec::new(), Vec::new()));
    }
    let _lock = match lock::take(state.root(), &state.root().join("lock")) {
        Ok(lock) => lock,
        Err(LockError::Held { .. }) => return Ok((Vec::new(), Vec::new())),
        Err(error) => return Err(error.to_string()),
    };
    ostler_supervisor::reap_left(state.root()).await.map_err(|error| error.to_string())
}

fn as_json(
    machine: &Machine,
    daemon: &Outcome<Option<AuditView>>,
    reaped: Option<&Outcome<(Vec<u32>, Vec<u32>)>>,
) -> Value {
    let mut json = json!({
        "subreaper": machine.subreaper,
        "boot_id": machine.boot_id,
        "limits": machine.rungs,
        "sandbox": match &machine.sandbox {
            Ok(bwrap) => json!({ "bwrap": bwrap }),
            Err(error) => json!({ "error": error }),
        },
        "ok": machine.ok,
    });
    json["daemon"] = match daemon {
        Ok(audit) => json!(audit),
        Err(error) => json!({ "error": error }),
    };
    match reaped {
        Some(Ok((ended, left))) => json["reaped"] = json!({ "ended": ended, "left": left }),
        Some(Err(error)) => json["reaped"] = json!({ "error": error }),
        None => {}
    }
    json
}

fn as_text(
    machine: &Machine,
    daemon: &Outcome<Option<AuditView>>,
    reaped: Option<&Outcome<(Vec<u32>, Vec<u32>)>>,
) -> String {
    let Machine { sandbox, subreaper, boot_id, rungs, .. } = machine;
    let mut text = format!(
        "guard      each server runs below a guard, which ends its whole tree when server or daemon end\n\
         subreaper  {subreaper}: double forks come back to the guard, and to the daemon when a guard is killed\n\
         ledger     boot {boot_id}: what daemon and guard left, killed together, is ended at the next start, or by \
         `ostler doctor --reap`\n"
    );
    let _ = match sandbox {
        Ok(bwrap) => writeln!(text, "sandbox    {bwrap} builds those of workers here (docs/sandbox.md)"),
        Err(error) => writeln!(text, "sandbox    none: {error}"),
    };
    let _ = match daemon {
        Ok(None) => writeln!(text, "daemon     none runs"),
        Ok(Some(audit)) if audit.findings.is_empty() => writeln!(
            text,
            "daemon     its account of {} instances and {} ports agrees with the kernel",
            audit.instances, audit.ports
        ),
        Ok(Some(audit)) => audit
            .findings
            .iter()
            .try_for_each(|finding| writeln!(text, "daemon     {}: {}", finding.kind, finding.message)),
        Err(error) => writeln!(text, "daemon     {error}"),
    };
    let _ = match reaped {
        Some(Ok((ended, left))) if ended.is_empty() && left.is_empty() => {
            writeln!(text, "reaped     nothing was left")
        }
        Some(Ok((ended, left))) => {
            writeln!(
                text,
                "reaped     {} processes ended, {} could not be: {left:?}",
                ended.len(),
                left.len()
            )
        }
        Some(Err(error)) => writeln!(text, "reaped     nothing: {error}"),
        None => Ok(()),
    };
    let _ = writeln!(text, "\nlimits of a daemon started from here (docs/limits.md)\n{rungs}");
    text
}
