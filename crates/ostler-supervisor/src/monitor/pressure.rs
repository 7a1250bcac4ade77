//! The gauges of the whole daemon: memory, processes, stalls, disks; and what a level that changes brings about.

use std::path::PathBuf;
use std::sync::Arc;

use ostler_config::Limits;
use ostler_domain::alert::AlertKind;
use ostler_domain::event::{Happening, Severity};
use ostler_domain::pressure::{Gauge, HYSTERESIS, Level, Need, Thresholds, Used};
use ostler_domain::text::human_bytes;
use ostler_os::pressure::{Memory, MemoryStall, Space};

use super::machine::Look;
use super::trees::Total;
use super::{Measured, relief};
use crate::admission::{MemoryLoad, Seen, Sizes};
use crate::core::Core;
use crate::session::Sessions;

/// The last bytes of a file system, which are what `limits.warning` and `limits.critical` are parts of: at the
/// defaults it is warned of when 512 MiB are left, and critical at 205 MiB. Of a smaller one, all of it.
const SPACE_RESERVE: u64 = 2 << 30;

/// The same of inodes: each log file and each socket takes one.
const INODE_RESERVE: u64 = 20_000;

/// Where the kernel tells no stalls: the part of the machine's memory in use from which it is warned of, and critical.
/// Page cache that can be given back does not count as used.
const MACHINE: Thresholds = Thresholds { warning: 0.9, critical: 0.95 };

/// What the gauges are about when they speak.
const DAEMON: &str = "daemon";

/// One gauge, and what it showed last.
#[derive(Debug)]
struct Dial {
    name: String,
    unit: &'static str,
    kind: AlertKind,
    gauge: Gauge,
    used: u64,
    limit: u64,
}

impl Dial {
    fn new(name: impl Into<String>, unit: &'static str, kind: AlertKind, thresholds: Thresholds) -> Self {
        Self { name: name.into(), unit, kind, gauge: Gauge::new(thresholds), used: 0, limit: 0 }
    }

    fn level(&self) -> Level {
        self.gauge.level()
    }

    /// Takes a measurement; where the level changed, says so to everybody.
    fn measure(&mut self, core: &Core, used: u64, limit: u64, what: impl Fn() -> String) {
        (self.used, self.limit) = (used, limit);
        let changed = self.gauge.measure(used, limit);
        let level = self.level();
        if changed.is_some() {
            core.events.record(DAEMON, Happening::Pressure { level, what: what() });
        }
        match level {
            Level::Normal if changed.is_some() => core.alerts.resolve(self.kind, &self.name),
            Level::Normal => {}
            Level::Warning => core.alerts.raise(self.kind, &self.name, Severity::Warning, &what()),
            Level::Critical => core.alerts.raise(self.kind, &self.name, Severity::Error, &what()),
        }
    }

    fn show(&self) -> Measured {
        Measured {
            name: self.name.clone(),
            used: self.used,
            limit: self.limit,
            unit: self.unit,
            level: self.level(),
        }
    }
}

/// What is not in a measurement, but will be in one soon.
#[derive(Debug, Default)]
pub(super) struct Coming {
    /// Bytes that will be free soon anyway.
    pub(super) free_soon: u64,
    /// How far those are that were let in, by the numbers of their places.
    pub(super) seen: Vec<(u64, Seen)>,
}

/// All gauges.
#[derive(Debug)]
pub(super) struct Pressure {
    memory: Dial,
    processes: Dial,
    /// Share of the last ten seconds in which something waited for memory.
    stall: Dial,
    /// The machine's memory, where the kernel tells no stalls.
    machine: Dial,
    disks: Vec<(PathBuf, Dial)>,
    /// Why memory counts as critical though the daemon's own limit is not near.
    shortage: Option<String>,
    /// It was told that no more room can be made.
    told_short: bool,
}

impl Pressure {
    pub(super) fn new(limits: &Limits, folders: Vec<PathBuf>) -> Self {
        let thresholds = Thresholds { warning: limits.warning, critical: limits.critical };
        let disk = |folder: PathBuf| {
            let name = format!("disk {}", folder.display());
            (folder, Dial::new(name, "bytes", AlertKind::Disk, thresholds))
        };
        let dial =
            |name, unit, kind, thresholds| Dial { limit: 1, ..Dial::new(name, unit, kind, thresholds) };
        let mut pressure = Self {
            memory: dial("limits.memory", "bytes", AlertKind::MemoryPressure, thresholds),
            processes: dial("limits.processes", "instances", AlertKind::ProcessLimit, thresholds),
            stall: dial("stall", "per mille", AlertKind::MemoryPressure, Thresholds::STALL),
            machine: dial("machine", "bytes", AlertKind::MemoryPressure, MACHINE),
            disks: folders.into_iter().map(disk).collect(),
            shortage: None,
            told_short: false,
        };
        pressure.memory.limit = limits.memory;
        pressure
    }

    /// Where the space is watched.
    pub(super) fn folders(&self) -> Vec<PathBuf> {
        self.disks.iter().map(|(folder, _)| folder.clone()).collect()
    }

    /// Resident memory of all trees from which it is worth knowing exactly.
    pub(super) fn memory_warning_bytes(&self) -> u64 {
        part(self.memory.limit, self.memory.gauge.thresholds().warning)
    }

    /// Whether something has not returned to normal yet, so that a pass is needed though nothing runs.
    pub(super) fn is_pressed(&self) -> bool {
        self.processes.level() != Level::Normal || self.is_short()
    }

    /// Whether something is short that only measuring shows. How many instances there are is known without.
    pub(super) fn is_short(&self) -> bool {
        let dials = [&self.memory, &self.stall, &self.machine];
        dials.iter().any(|dial| dial.level() != Level::Normal) || self.shortage.is_some()
    }

    /// Each gauge as it stands. Instances come and go between measurements, so they are counted now.
    pub(super) fn show(&self, core: &Core, total: &Total) -> Vec<Measured> {
        let processes = Measured {
            used: core.admission.servers() as u64,
            limit: core.config().limits.processes as u64,
            ..self.processes.show()
        };
        let memory = Measured { used: total.memory_bytes, ..self.memory.show() };
        let measured = [&self.stall, &self.machine].into_iter().filter(|dial| dial.limit > 1);
        let disks = self.disks.iter().map(|(_, dial)| dial).filter(|dial| dial.limit > 0);
        [memory, processes].into_iter().chain(measured.chain(disks).map(Dial::show)).collect()
    }

    /// Takes in a pass; refuses and makes room where that is needed.
    pub(super) async fn judge(
        &mut self,
        core: &Arc<Core>,
        sessions: &Sessions,
        total: &Total,
        look: &Look,
        coming: &Coming,
    ) {
        let config = core.config();
        let limits = &config.limits;
        self.follow(limits);
        let used = total.memory_bytes;
        self.memory.measure(core, used, limits.memory, || {
            let (used, limit) = (human_bytes(used), human_bytes(limits.memory));
            format!("all instances together use {used} of {limit} (limits.memory)")
        });
        let (instances, most) = (core.admission.servers() as u64, limits.processes as u64);
        self.processes.measure(core, instances, most, || {
            format!("{instances} of {most} instances exist (limits.processes)")
        });
        self.machine_level(core, look);
        for (folder, space) in &look.spaces {
            if let Some((_, dial)) = self.disks.iter_mut().find(|(known, _)| known == folder) {
                disk(core, dial, folder, space);
            }
        }
        self.admission(core, total, &coming.seen);
        self.make_room(core, sessions, used, coming.free_soon).await;
    }

    /// A reload may have changed the thresholds.
    fn follow(&mut self, limits: &Limits) {
        let thresholds = Thresholds { warning: limits.warning, critical: limits.critical };
        let disks = self.disks.iter_mut().map(|(_, dial)| dial);
        for dial in [&mut self.memory, &mut self.processes].into_iter().chain(disks) {
            dial.gauge.set_thresholds(thresholds);
        }
    }

    /// How short of memory the machine is, whoever has it.
    fn machine_level(&mut self, core: &Core, look: &Look) {
        if let Some(MemoryStall { some_avg10, .. }) = look.stall {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates")]
            let per_mille = (some_avg10 * 10.0).round() as u64;
            self.stall.measure(core, per_mille, 1000, || {
                format!("in {some_avg10:.0} % of the last 10 s something on this machine waited for memory")
            });
        } else if let Some(Memory { total_bytes, available_bytes }) = look.memory {
            let used = total_bytes.saturating_sub(available_bytes);
            self.machine.measure(core, used, total_bytes, || {
                let (left, all) = (human_bytes(available_bytes), human_bytes(total_bytes));
                format!("{left} of the machine's {all} of memory are left")
            });
        }
        let critical = |dial: &Dial| dial.level() == Level::Critical;
        self.shortage = if critical(&self.stall) {
            let share = self.stall.used / 10;
            Some(format!("processes of this machine wait for memory {share} % of the time"))
        } else if critical(&self.machine) {
            let left = self.machine.limit - self.machine.used;
            Some(format!("only {} of the machine's memory are left", human_bytes(left)))
        } else {
            None
        };
    }

    fn level(&self) -> Level {
        let own = self.memory.level();
        if self.shortage.is_some() { Level::Critical } else { own }
    }

    /// What the next start is measured against.
    fn admission(&self, core: &Core, total: &Total, seen: &[(u64, Seen)]) {
        let sizes = total.by_type.iter().map(|(name, (bytes, count))| (name.as_str().into(), bytes / count));
        let load = MemoryLoad {
            used: Used { used: total.memory_bytes, limit: core.config().limits.memory },
            level: self.level(),
            shortage: self.shortage.clone(),
            sizes: sizes.collect::<Sizes>(),
        };
        core.admission.set_memory(load, seen);
    }

    async fn make_room(&mut self, core: &Arc<Core>, sessions: &Sessions, used: u64, free_soon: u64) {
        if self.level() != Level::Critical {
            self.told_short = false;
            return;
        }
        // So far down that it is critical no more.
        let goal = part(core.config().limits.memory, core.config().limits.critical * (1.0 - HYSTERESIS));
        let mut bytes = used.saturating_sub(goal).saturating_sub(free_soon);
        if self.shortage.is_some() && free_soon == 0 {
            // How much would do is not known: one instance after the other.
            bytes = bytes.max(1);
        }
        if bytes == 0 {
            return;
        }
        let why = match &self.shortage {
            Some(shortage) => shortage.clone(),
            None => format!(
                "all instances together use {} of {} (limits.memory)",
                human_bytes(used),
                human_bytes(core.config().limits.memory)
            ),
        };
        let short = relief::memory(core, sessions, &Need::Bytes(bytes), &why).await;
        if short > 0 && !std::mem::replace(&mut self.told_short, true) {
            let hint = if core.config().limits.emergency {
                "what is left may not be stopped: raise the limit, or stop a server"
            } else {
                "what is left is in use: end sessions, stop a server, raise the limit, or set limits.emergency"
            };
            let what = format!("{} more would be needed; {hint} ({why})", human_bytes(short));
            core.events.record(DAEMON, Happening::Relief { what });
        }
    }
}

fn disk(core: &Core, dial: &mut Dial, folder: &std::path::Path, space: &Space) {
    let bytes = taken(space.free_bytes, space.total_bytes, SPACE_RESERVE);
    let inodes = taken(space.free_inodes, space.total_inodes, INODE_RESERVE);
    let folder = folder.display();
    // The greater share counts; a file system that does not count its inodes has none of them taken.
    if inodes.used as f64 * bytes.limit as f64 > bytes.used as f64 * inodes.limit as f64 {
        dial.unit = "inodes";
        dial.measure(core, inodes.used, inodes.limit, || {
            format!("the file system of `{folder}` has {} free inodes left", space.free_inodes)
        });
    } else {
        dial.unit = "bytes";
        dial.measure(core, bytes.used, bytes.limit, || {
            let (free, all) = (human_bytes(space.free_bytes), human_bytes(space.total_bytes));
            format!("the file system of `{folder}` has {free} of {all} left")
        });
    }
}

/// How much of the last of something is taken; all of it where there is less than that at all.
fn taken(free: u64, total: u64, reserve: u64) -> Used {
    let limit = reserve.min(total);
    Used { used: limit.saturating_sub(free), limit }
}

fn part(of: u64, share: f64) -> u64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates")]
    let part = (of as f64 * share) as u64;
    part
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_a_disk_counts_and_a_small_one_as_a_whole() {
        const GIB: u64 = 1 << 30;
        let share = |free, total| {
            let Used { used, limit } = taken(free, total, SPACE_RESERVE);
            used as f64 / limit as f64
        };
        assert_eq!(share(100 * GIB, 1000 * GIB).to_bits(), 0.0_f64.to_bits());
        assert_eq!(share(GIB / 2, 1000 * GIB).to_bits(), 0.75_f64.to_bits());
        assert_eq!(share(GIB / 4, GIB).to_bits(), 0.75_f64.to_bits());
        assert_eq!(taken(0, 0, INODE_RESERVE), Used { used: 0, limit: 0 }, "no inodes are counted");
    }
}
