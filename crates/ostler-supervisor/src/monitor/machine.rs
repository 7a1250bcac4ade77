//! Where the monitor meets the machine: what is asked in one pass, and what was seen.
//!
//! [`System`] is the one that production has. A simulation may have another.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use ostler_os::meter::{Detail, Meter, TreeRoot, TreeUsage};
use ostler_os::pressure::{self, Memory, MemoryStall, Space};
use ostler_os::{Mark, Readings, Rungs, limits};

/// A look that goes on.
pub type Looking<'a> = Pin<Box<dyn Future<Output = io::Result<Look>> + Send + 'a>>;

/// What can be measured.
pub trait Machine: fmt::Debug + Send + Sync {
    /// Which means hold a tree to its limits.
    fn rungs(&self) -> Rungs;

    /// How the machine is as a whole, in a few microseconds; `None` where that cannot be told. What its processors have
    /// done takes longer, and is said where that is asked for.
    fn pulse(&self, _work: bool) -> Option<Pulse> {
        None
    }

    /// Measures what is asked for. One look at a time.
    ///
    /// # Errors
    /// When processes cannot be measured at all.
    fn look(&self, ask: Ask) -> Looking<'_>;
}

/// How a machine is as a whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pulse {
    /// Its memory.
    pub memory: Memory,
    /// Its processes and threads.
    pub threads: u16,
    /// Time that its processors have worked, all together, in milliseconds, where that was asked for.
    pub busy_ms: Option<u64>,
}

/// One tree that is to be measured.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct AskTree {
    /// Its guard.
    pub root: TreeRoot,
    /// Its mark, by which its cgroups are called.
    pub mark: Mark,
    /// Whether the kernel holds it to a limit, so that its counters are worth reading.
    pub counted: bool,
    /// Processor time, in milliseconds, by which its open files were last counted: they are counted again when it
    /// has run since.
    pub fds_at: Option<u64>,
    /// The same of its PSS.
    pub pss_at: Option<u64>,
    /// Resident memory in bytes from which its PSS decides about something.
    pub pss_from: u64,
}

/// What is to be measured.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Ask {
    /// These trees.
    pub trees: Vec<AskTree>,
    /// Resident memory of all trees, in bytes, from which the PSS of each decides about something.
    pub pss_from: u64,
    /// Whether the PSS of every tree that has run is wanted anyway.
    pub thorough: bool,
    /// The memory of the machine, and whether something waits for it.
    pub memory: bool,
    /// The space of the file systems that these folders are on.
    pub folders: Vec<PathBuf>,
}

/// What was seen.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Look {
    /// Of the trees, in the order asked.
    pub trees: Vec<(TreeUsage, Readings)>,
    /// Memory of the machine, when asked for.
    pub memory: Option<Memory>,
    /// Stalls for memory, when asked for and where the kernel tells them.
    pub stall: Option<MemoryStall>,
    /// The space of those folders that could be looked at.
    pub spaces: Vec<(PathBuf, Space)>,
}

/// This machine.
#[derive(Debug, Default)]
pub struct System {
    meter: Arc<Mutex<Meter>>,
}

impl Machine for System {
    fn rungs(&self) -> Rungs {
        limits::rungs()
    }

    fn pulse(&self, work: bool) -> Option<Pulse> {
        let busy_ms = if work { Some(pressure::busy_ms().ok()?) } else { None };
        Some(Pulse { memory: pressure::memory().ok()?, threads: pressure::threads(), busy_ms })
    }

    fn look(&self, ask: Ask) -> Looking<'_> {
        let meter = Arc::clone(&self.meter);
        Box::pin(async move {
            let looked = tokio::task::spawn_blocking(move || {
                // What a look that panicked has left is overwritten by the next.
                look(&mut meter.lock().unwrap_or_else(PoisonError::into_inner), &ask)
            });
            looked.await.unwrap_or_else(|error| Err(io::Error::other(error)))
        })
    }
}

fn look(meter: &mut Meter, ask: &Ask) -> io::Result<Look> {
    let mut look = Look::default();
    if !ask.trees.is_empty() {
        look.trees = trees(meter, ask)?;
    }
    if ask.memory {
        // Where one of them cannot be read, the others still tell.
        look.memory = pressure::memory().ok();
        look.stall = pressure::memory_stall().ok().flatten();
    }
    for folder in &ask.folders {
        look.spaces.extend(pressure::space(folder).ok().map(|space| (folder.clone(), space)));
    }
    Ok(look)
}

fn trees(meter: &mut Meter, ask: &Ask) -> io::Result<Vec<(TreeUsage, Readings)>> {
    let roots: Vec<TreeRoot> = ask.trees.iter().map(|tree| tree.root).collect();
    let mut usages = meter.sample(&roots, Detail::default())?;
    let short = usages.iter().map(|usage| usage.rss_bytes).sum::<u64>() >= ask.pss_from;
    let measured = ask.trees.iter().zip(&mut usages).map(|(tree, usage)| {
        // What has not run since has opened and touched nothing.
        let ran_since = |at: Option<u64>| at != Some(usage.cpu_ms);
        let near = short || usage.rss_bytes >= tree.pss_from;
        let detail =
            Detail { fds: ran_since(tree.fds_at), pss: ran_since(tree.pss_at) && (near || ask.thorough) };
        meter.detail(detail, usage);
        let readings = if tree.counted { limits::readings(tree.mark) } else { Readings::default() };
        (std::mem::take(usage), readings)
    });
    Ok(measured.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn me(fds_at: Option<u64>, pss_at: Option<u64>, pss_from: u64) -> AskTree {
        let root = TreeRoot { guard_pid: std::process::id().cast_signed(), guard_start: 0 };
        AskTree { root, mark: crate::random::mark(), counted: false, fds_at, pss_at, pss_from }
    }

    #[tokio::test]
    async fn what_decides_nothing_or_has_not_changed_is_not_read() {
        let mut child = std::process::Command::new("sleep").arg("600").spawn().expect("sleep starts");
        let system = System::default();
        let ask = async |tree: AskTree, pss_from: u64, thorough: bool| {
            let ask = Ask { trees: vec![tree], pss_from, thorough, ..Ask::default() };
            system.look(ask).await.expect("/proc").trees.remove(0).0
        };
        let first = ask(me(None, None, u64::MAX), u64::MAX, false).await;
        assert!(first.processes >= 1 && first.fds.is_some() && first.pss_bytes.is_none(), "{first:?}");
        assert!(
            ask(me(None, None, 1), u64::MAX, false).await.pss_bytes.is_some(),
            "it is near its own limit"
        );
        assert!(ask(me(None, None, u64::MAX), 1, false).await.pss_bytes.is_some(), "all are near theirs");
        assert!(ask(me(None, None, u64::MAX), u64::MAX, true).await.pss_bytes.is_some(), "it was asked for");
        let ran = Some(first.cpu_ms + 1_000_000);
        let again = ask(me(ran, ran, 1), 1, true).await;
        assert!(again.fds.is_some() && again.pss_bytes.is_some(), "another time than then: {again:?}");
        // Nothing below this process runs but the sleeping child, so the time stands still.
        let quiet = Some(again.cpu_ms);
        let same = ask(me(quiet, quiet, 1), 1, true).await;
        assert!(same.cpu_ms != again.cpu_ms || (same.fds.is_none() && same.pss_bytes.is_none()), "{same:?}");
        child.kill().and_then(|()| child.wait()).expect("it ends");
    }

    #[tokio::test]
    async fn the_machine_is_looked_at_only_when_asked() {
        let system = System::default();
        assert_eq!(system.look(Ask::default()).await.expect("nothing"), Look::default());
        let folders = vec![std::env::temp_dir(), "/no/such/folder".into()];
        let look = system.look(Ask { memory: true, folders, ..Ask::default() }).await.expect("all of it");
        assert!(look.memory.is_some() && look.spaces.len() == 1, "{look:?}");
    }
}
