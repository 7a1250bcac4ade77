//! The daemon's side: its home below its own cgroup, found or made once, and what dead daemons left.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use rustix::fs::Access;
use serde::{Deserialize, Serialize};

use super::find::Own;
use super::{members, read, write};
use crate::mark::Mark;
use crate::{boot, tree};

/// How homes are called.
const PREFIX: &str = "ostler-";

/// Where the daemon itself lives, below its home.
const DAEMON: &str = "daemon";

/// The controllers of version 2 that are of use here.
const CONTROLLERS: [&str; 3] = ["memory", "pids", "cpu"];

/// How deep a server may nest cgroups below its leaf, if it makes any, for them to be removed with it.
const MAX_DEPTH: u32 = 8;

/// The kernel counts a process out of its cgroup a moment after it was reaped: how often removing is tried, and
/// the pause in between.
const REMOVE_TRIES: u32 = 100;
const REMOVE_PAUSE: Duration = Duration::from_millis(1);

/// Where a tree's leaves go. The guard gets it with its command.
#[derive(Clone, Default, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// The name of the daemon's home in each hierarchy.
    pub(crate) home: String,
    /// The daemon's own cgroup of version 2, and the controllers that a leaf below it can have.
    pub(crate) v2: Option<(PathBuf, Vec<String>)>,
    /// Version 1, where version 2 does not have the controller.
    pub(crate) memory: Option<PathBuf>,
    /// The same for pids.
    pub(crate) pids: Option<PathBuf>,
    /// The same for cpu.
    pub(crate) cpu: Option<PathBuf>,
}

impl Plan {
    /// Whether leaves of version 2 have this controller.
    pub(crate) fn v2_has(&self, controller: &str) -> bool {
        self.v2.as_ref().is_some_and(|(_, all)| all.iter().any(|one| one == controller))
    }

    /// The daemon's own cgroups that homes are in, each once.
    pub(crate) fn owns(&self) -> Vec<&Path> {
        let v2 = self.v2.as_ref().map(|(own, _)| own);
        let v1 = [&self.memory, &self.pids, &self.cpu].into_iter().flatten();
        let mut all: Vec<&Path> = v2.into_iter().chain(v1).map(AsRef::as_ref).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// The leaf of version 2 of one tree.
    pub(crate) fn v2_leaf(&self, mark: &str) -> Option<PathBuf> {
        self.v2.as_ref().map(|(own, _)| own.join(&self.home).join(mark))
    }
}

/// What was found, and why it is not more.
#[derive(Clone, Default, Debug)]
pub(crate) struct Found {
    pub(crate) plan: Plan,
    pub(crate) notes: Vec<String>,
}

static CLAIMED: OnceLock<Found> = OnceLock::new();

/// What this daemon uses, if it has begun to.
pub(crate) fn claimed() -> Option<&'static Found> {
    CLAIMED.get()
}

/// Makes this process's home where it may, once, after removing what dead daemons left.
pub(crate) fn claim() -> &'static Found {
    CLAIMED.get_or_init(|| match Own::look() {
        Ok(own) => {
            remove_left_over(&own);
            settle(&own, true)
        }
        Err(error) => nothing(&error),
    })
}

/// What [`claim`] would find, touching nothing.
pub(crate) fn look() -> Found {
    Own::look().map_or_else(|error| nothing(&error), |own| settle(&own, false))
}

fn nothing(error: &io::Error) -> Found {
    Found { plan: Plan::default(), notes: vec![format!("no cgroup is used: cannot read /proc: {error}")] }
}

fn settle(own: &Own, act: bool) -> Found {
    let mut found = Found::default();
    found.plan.home = match Name::own() {
        Ok(name) => name.to_string(),
        Err(error) => return nothing(&error),
    };
    if !may_manage(own) {
        found.notes.push(
            "systemd has not handed this cgroup over; run Ostler as a service with `Delegate=yes`, or by \
             `systemd-run --user --scope -p Delegate=yes ostler up`"
                .to_owned(),
        );
        return found;
    }
    if let Some(v2) = &own.v2 {
        match settle_v2(v2, &found.plan.home, act, &mut found.notes) {
            Ok(controllers) => found.plan.v2 = Some((v2.clone(), controllers)),
            Err(why) => found.notes.push(why),
        }
    }
    for (name, directory) in [("memory", &own.memory), ("pids", &own.pids), ("cpu", &own.cpu)] {
        let Some(directory) = directory.as_ref().filter(|_| !found.plan.v2_has(name)) else { continue };
        match writable(directory) {
            Ok(()) => {
                let slot = match name {
                    "memory" => &mut found.plan.memory,
                    "pids" => &mut found.plan.pids,
                    _ => &mut found.plan.cpu,
                };
                *slot = Some(directory.clone());
            }
            Err(error) => found.notes.push(format!("cgroup v1 {name} is not used: {error}")),
        }
    }
    found
}

/// Under systemd a cgroup belongs to systemd unless it says otherwise (systemd.resource-control(5), `Delegate=`),
/// whatever its permissions allow; it says so in an extended attribute.
fn may_manage(own: &Own) -> bool {
    let delegated = |directory: &PathBuf| {
        let mut value = [0_u8; 8];
        ["user.delegate", "trusted.delegate"]
            .iter()
            .any(|name| rustix::fs::getxattr(directory, *name, &mut value).is_ok_and(|_| value[0] == b'1'))
    };
    !Path::new("/run/systemd/system").exists() || [&own.v2, &own.systemd].into_iter().flatten().any(delegated)
}

fn writable(directory: &Path) -> io::Result<()> {
    let named =
        |error: io::Error| io::Error::new(error.kind(), format!("`{}`: {error}", directory.display()));
    // The directory, to make a home in; its list of processes, to move one of them down.
    let check = |path: &Path| rustix::fs::access(path, Access::WRITE_OK).map_err(|e| named(e.into()));
    check(directory)?;
    check(&directory.join("cgroup.procs"))
}

/// Version 2: the controllers that leaves will have, none if they are for `cgroup.kill` only.
fn settle_v2(own: &Path, home: &str, act: bool, notes: &mut Vec<String>) -> Result<Vec<String>, String> {
    writable(own).map_err(|error| format!("cgroup v2 is not used: {error}"))?;
    let words = |file: &str| -> Vec<String> {
        let text = read(&own.join(file)).unwrap_or_default();
        text.split_ascii_whitespace()
            .filter(|word| CONTROLLERS.contains(word))
            .map(ToOwned::to_owned)
            .collect()
    };
    let available = words("cgroup.controllers");
    if available.is_empty() {
        notes.push(format!(
            "cgroup v2 has no controllers at `{}`: it is used for killing only",
            own.display()
        ));
        return Ok(available);
    }
    // The topmost cgroup of the machine alone may hold processes and hand out controllers; it has no type.
    let topmost = !own.join("cgroup.type").exists();
    let me = std::process::id().cast_signed();
    let others = members(own).into_iter().filter(|&pid| pid != me).count();
    if !topmost && others > 0 {
        notes.push(format!(
            "cgroup v2 is used for killing only: {others} other processes live in `{}`; start Ostler in a cgroup of its own",
            own.display()
        ));
        return Ok(Vec::new());
    }
    if !act {
        return Ok(available);
    }
    let failed = |what: &str, error: &io::Error| {
        format!("cgroup v2 is not used: {what} in `{}`: {error}", own.display())
    };
    let home = own.join(home);
    make(&home).map_err(|error| failed("cannot make a home", &error))?;
    if !topmost {
        let daemon = home.join(DAEMON);
        make(&daemon)
            .and_then(|()| write(&daemon.join("cgroup.procs"), &me.to_string()))
            .map_err(|error| failed("cannot move the daemon down", &error))?;
    }
    for controller in &available {
        if let Err(error) = hand_out(own, controller).and_then(|()| hand_out(&home, controller)) {
            notes.push(format!("cgroup v2 cannot hand out {controller} at `{}`: {error}", own.display()));
        }
    }
    let usable = read(&home.join("cgroup.subtree_control")).unwrap_or_default();
    Ok(usable.split_ascii_whitespace().map(ToOwned::to_owned).collect())
}

/// Lets the cgroups below `directory` have a controller.
pub(super) fn hand_out(directory: &Path, controller: &str) -> io::Result<()> {
    write(&directory.join("cgroup.subtree_control"), &format!("+{controller}"))
}

/// Makes a cgroup, which may be there already.
pub(super) fn make(directory: &Path) -> io::Result<()> {
    match std::fs::create_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// What names one daemon for good: its pid means something in its pid namespace, within one boot.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Name {
    pid: i32,
    start: u64,
    namespace: u64,
    boot: String,
}

impl Name {
    fn own() -> io::Result<Self> {
        use std::os::unix::fs::MetadataExt as _;
        let pid = std::process::id().cast_signed();
        let me = tree::read(pid)?.ok_or_else(|| io::Error::other("/proc does not show this process"))?;
        let namespace = std::fs::metadata("/proc/self/ns/pid")?.ino();
        Ok(Self { pid, start: me.start_time, namespace, boot: boot::boot_id()?.replace('-', "") })
    }

    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.strip_prefix(PREFIX)?.split('-');
        let name = Self {
            pid: parts.next()?.parse().ok()?,
            start: parts.next()?.parse().ok()?,
            namespace: parts.next()?.parse().ok()?,
            boot: parts.next()?.to_owned(),
        };
        (parts.next().is_none() && name.to_string() == text).then_some(name)
    }

    /// Whether it is certain that this daemon has ended: only of those that `me` could see.
    fn has_ended(&self, me: &Self) -> bool {
        let comparable = self.namespace == me.namespace && self.boot == me.boot;
        comparable
            && match tree::read(self.pid) {
                Ok(Some(process)) => process.start_time != self.start || process.is_zombie(),
                Ok(None) => true,
                Err(_) => false,
            }
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{PREFIX}{}-{}-{}-{}", self.pid, self.start, self.namespace, self.boot)
    }
}

/// The homes of ended daemons below these cgroups.
fn left_over(own: &Own) -> Vec<PathBuf> {
    let Ok(me) = Name::own() else { return Vec::new() };
    let mut homes = Vec::new();
    for directory in own.directories() {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            let name = entry.file_name().to_str().and_then(Name::parse);
            if name.is_some_and(|name| name.has_ended(&me)) {
                homes.push(entry.path());
            }
        }
    }
    homes
}

fn remove_left_over(own: &Own) {
    for home in left_over(own) {
        match remove(&home, MAX_DEPTH) {
            Ok(()) => tracing::info!(cgroup = %home.display(), "removed what an ended daemon left"),
            // Its guards may still be at it, or the reaper has not been here yet.
            Err(error) => tracing::debug!(%error, cgroup = %home.display(), "not empty yet"),
        }
    }
}

/// Removes the homes of ended daemons, as far as nobody lives in them.
pub(crate) fn remove_ended() {
    if let Ok(own) = Own::look() {
        remove_left_over(&own);
    }
}

/// The processes that live in leaves of these marks, of this daemon or of ended ones: exact, whatever they did to
/// their environment or their session.
pub(crate) fn members_of(marks: &[String]) -> Vec<i32> {
    let Ok(own) = Own::look() else { return Vec::new() };
    let mut homes = left_over(&own);
    if let Some(found) = claimed() {
        homes.extend(found.plan.owns().iter().map(|own| own.join(&found.plan.home)));
    }
    homes.iter().flat_map(|home| marks.iter().flat_map(|mark| members(&home.join(mark)))).collect()
}

/// Kills everything in the tree's leaf of version 2, if it has one. Whether it could be asked for.
pub(crate) fn kill(mark: Mark) -> bool {
    claimed()
        .and_then(|found| found.plan.v2_leaf(&mark.to_string()))
        .is_some_and(|leaf| write(&leaf.join("cgroup.kill"), "1").is_ok())
}

/// Removes what a dead guard left of its tree's leaves.
pub(crate) fn remove_leaves(mark: Mark) {
    let Some(found) = claimed() else { return };
    for own in found.plan.owns() {
        let leaf = own.join(&found.plan.home).join(mark.to_string());
        if let Err(error) = remove_patiently(&leaf) {
            tracing::warn!(%error, cgroup = %leaf.display(), "cannot remove the cgroup of an ended tree");
        }
    }
    remove_home(&found.plan);
}

/// Removes the home when no leaf is in it: the last tree to end leaves nothing, whether the daemon lives or not.
pub(crate) fn remove_home(plan: &Plan) {
    for own in plan.owns() {
        // Not empty, or gone.
        let _ = std::fs::remove_dir(own.join(&plan.home));
    }
}

/// Removes a cgroup that is, or will be in a moment, empty.
pub(crate) fn remove_patiently(directory: &Path) -> io::Result<()> {
    let mut tries = 0;
    loop {
        match remove(directory, MAX_DEPTH) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && tries < REMOVE_TRIES => {
                tries += 1;
                pause(REMOVE_PAUSE);
            }
            other => return other,
        }
    }
}

/// The kernel tells nobody when a cgroup of version 1 becomes removable.
fn pause(time: Duration) {
    let time = rustix::event::Timespec { tv_sec: 0, tv_nsec: time.subsec_nanos().into() };
    // Cut short by a signal: the next try comes sooner.
    let _ = rustix::event::poll(&mut [], Some(&time));
}

/// Removes a cgroup and those below it. One that is not there is no error.
fn remove(directory: &Path, depth: u32) -> io::Result<()> {
    match std::fs::remove_dir(directory) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) if depth == 0 => return Err(error),
        Err(_) => {}
    }
    for entry in std::fs::read_dir(directory)?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path(), depth - 1)?;
        }
    }
    std::fs::remove_dir(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_reads_back_and_others_are_refused() {
        let name = Name::own().expect("/proc");
        assert_eq!(Name::parse(&name.to_string()), Some(name));
        for text in
            ["ostler-1-2-3", "ostler-1-2-3-b-c", "ostler-01-2-3-b", "ostler-x-2-3-b", "1-2-3-b", "ostler-"]
        {
            assert_eq!(Name::parse(text), None, "{text}");
        }
    }

    #[test]
    fn only_a_daemon_that_surely_ended_has() {
        let me = Name::own().expect("/proc");
        assert!(!me.has_ended(&me));
        let recycled = Name { start: me.start + 1, ..me.clone() };
        assert!(recycled.has_ended(&me), "its number is another's now");
        assert!(!Name { namespace: me.namespace + 1, ..recycled.clone() }.has_ended(&me), "cannot be seen");
        assert!(!Name { boot: "other".into(), ..recycled }.has_ended(&me), "cannot be");
    }
}
