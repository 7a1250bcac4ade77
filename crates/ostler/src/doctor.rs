//! `ostler doctor`: what this machine offers for ending whole process trees and for limiting them.

use ostler_cli::{DoctorArgs, Exit};

use crate::config::say;

/// Prints the rungs of the ladder and what each guarantees here.
pub(crate) fn run(args: &DoctorArgs) -> Exit {
    let subreaper = ostler_os::become_subreaper();
    let boot_id = ostler_os::boot::boot_id();
    let ok = subreaper.is_ok() && boot_id.is_ok();
    let say_result = |result: Result<String, std::io::Error>| match result {
        Ok(text) => text,
        Err(error) => format!("no: {error}"),
    };
    let subreaper = say_result(subreaper.map(|()| "yes".to_owned()));
    let boot_id = say_result(boot_id);
    // What a daemon that is started from here would find: the rungs depend on the cgroup it is in.
    let rungs = ostler_os::limits::rungs();
    if args.json {
        let json =
            serde_json::json!({ "subreaper": subreaper, "boot_id": boot_id, "limits": rungs, "ok": ok });
        say(&format!("{json}\n"));
    } else {
        say(&format!(
            "guard      each server runs below a guard, which ends its whole tree when server or daemon end\n\
             subreaper  {subreaper}: double forks come back to the guard, and to the daemon when a guard is killed\n\
             ledger     boot {boot_id}: what daemon and guard left, killed together, is ended at the next start\n\
             \n\
             limits of a daemon started from here (docs/limits.md)\n\
             {rungs}\n"
        ));
    }
    if ok { Exit::Done } else { Exit::Failed }
}
