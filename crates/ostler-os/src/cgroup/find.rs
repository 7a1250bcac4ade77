//! Where this process stands in the hierarchies of the machine (cgroups(7), proc_pid_mountinfo(5)).

use std::io;
use std::path::{Path, PathBuf};

/// The cgroup of this process in each hierarchy that can limit something, as directories.
#[derive(Clone, Default, Debug, PartialEq, Eq)]
pub(crate) struct Own {
    /// Version 2, alone or beside version 1.
    pub(crate) v2: Option<PathBuf>,
    /// Version 1, memory.
    pub(crate) memory: Option<PathBuf>,
    /// Version 1, pids.
    pub(crate) pids: Option<PathBuf>,
    /// Version 1, cpu.
    pub(crate) cpu: Option<PathBuf>,
    /// Version 1 without controllers, where systemd keeps its units.
    pub(crate) systemd: Option<PathBuf>,
}

impl Own {
    /// Looks.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub(crate) fn look() -> io::Result<Self> {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
        let groups = std::fs::read_to_string("/proc/self/cgroup")?;
        Ok(Self::from_texts(&mounts, &groups))
    }

    fn from_texts(mounts: &str, groups: &str) -> Self {
        let mounts: Vec<Mount> = mounts.lines().filter_map(Mount::parse).collect();
        let mut own = Self::default();
        for line in groups.lines() {
            let mut fields = line.splitn(3, ':');
            let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            let named = |name: &str| controllers.split(',').any(|one| one == name);
            let directory = |name: &str| mounts.iter().find_map(|mount| mount.directory(name, path));
            if controllers.is_empty() {
                own.v2 = directory("");
            }
            for (name, slot) in [
                ("memory", &mut own.memory),
                ("pids", &mut own.pids),
                ("cpu", &mut own.cpu),
                ("name=systemd", &mut own.systemd),
            ] {
                if named(name) {
                    *slot = directory(name);
                }
            }
        }
        own
    }

    /// The hierarchies that homes can be in, each directory once: two controllers can share one.
    pub(crate) fn directories(&self) -> Vec<&Path> {
        let mut all: Vec<&Path> = [&self.v2, &self.memory, &self.pids, &self.cpu]
            .into_iter()
            .flatten()
            .map(AsRef::as_ref)
            .collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

/// One mounted hierarchy.
struct Mount {
    /// Which cgroup is at the mount point: not the topmost one in some containers.
    root: PathBuf,
    point: PathBuf,
    /// The controllers of version 1, or a single empty word for version 2.
    controllers: Vec<String>,
}

impl Mount {
    fn parse(line: &str) -> Option<Self> {
        let (before, after) = line.split_once(" - ")?;
        let mut before = before.split(' ').skip(3);
        let (root, point) = (unescape(before.next()?), unescape(before.next()?));
        let mut after = after.split(' ');
        let kind = after.next()?;
        let controllers = match kind {
            "cgroup2" => vec![String::new()],
            "cgroup" => after.nth(1)?.split(',').map(ToOwned::to_owned).collect(),
            _ => return None,
        };
        Some(Self { root: root.into(), point: point.into(), controllers })
    }

    /// Where the cgroup `path` is in the file system, if it is in this mount.
    fn directory(&self, controller: &str, path: &str) -> Option<PathBuf> {
        if !self.controllers.iter().any(|one| one == controller) {
            return None;
        }
        let path = Path::new(path);
        // Outside of this namespace's part of the hierarchy: `/../..`.
        if path.components().any(|part| part == std::path::Component::ParentDir) {
            return None;
        }
        let below = path.strip_prefix(&self.root).ok()?;
        Some(if below.as_os_str().is_empty() { self.point.clone() } else { self.point.join(below) })
    }
}

/// Spaces, tabs, newlines and backslashes are written as `\ooo`.
fn unescape(text: &str) -> String {
    let mut plain = text.to_owned();
    for (written, meant) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        plain = plain.replace(written, meant);
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hybrid_machine_has_both() {
        let mounts = "\
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:7 - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
22 1 0:5 / /proc rw - proc proc rw
";
        let groups = "9:name=systemd:/\n4:memory:/a/b\n1:cpu,cpuacct:/\n0::/\n";
        let own = Own::from_texts(mounts, groups);
        let expected = Own {
            v2: Some("/sys/fs/cgroup/unified".into()),
            memory: Some("/sys/fs/cgroup/memory/a/b".into()),
            pids: None,
            cpu: Some("/sys/fs/cgroup/cpu,cpuacct".into()),
            systemd: Some("/sys/fs/cgroup/systemd".into()),
        };
        assert_eq!(own, expected);
        assert_eq!(own.directories().len(), 3, "systemd's own is not for homes");
    }

    #[test]
    fn a_container_sees_its_part_only() {
        let mounts = "41 31 0:38 /docker/1 /my\\040groups rw - cgroup2 cgroup2 rw\n";
        let own = |groups| Own::from_texts(mounts, groups).v2;
        assert_eq!(own("0::/docker/1/x\n"), Some("/my groups/x".into()));
        assert_eq!(own("0::/docker/1\n"), Some("/my groups".into()));
        assert_eq!(own("0::/elsewhere\n"), None);
        assert_eq!(own("0::/docker/1/../2\n"), None);
    }
}
