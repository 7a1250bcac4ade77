//! Following files: the kernel says when one of them may be another than before.
//!
//! What is watched is not the file but each folder that leads to it, so that an editor that puts a new file in the
//! place of the old one is noticed, and so is a symbolic link that points elsewhere.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use tokio::io::unix::AsyncFd;

/// Links and folders that are followed on the way to one file; more than the kernel follows (`MAXSYMLINKS`, 40).
const MAX_STEPS: usize = 64;

/// Room for the events that one read takes: about a hundred with short names (`inotify(7)`).
const BUFFER: usize = 4096;

/// What of a folder's entries is of interest, and of the folder itself.
const WATCHED: WatchFlags = WatchFlags::CLOSE_WRITE
    .union(WatchFlags::CREATE)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::ONLYDIR);

/// What makes every watch doubtful: a folder is another one now, or events were lost.
const DOUBTFUL: ReadFlags = ReadFlags::DELETE_SELF
    .union(ReadFlags::MOVE_SELF)
    .union(ReadFlags::IGNORED)
    .union(ReadFlags::UNMOUNT)
    .union(ReadFlags::QUEUE_OVERFLOW);

/// Follows some files. See the module's documentation.
#[derive(Debug)]
pub struct FileWatch {
    files: Vec<PathBuf>,
    watches: Watches,
}

/// What the kernel is asked for.
#[derive(Debug)]
struct Watches {
    inotify: AsyncFd<OwnedFd>,
    /// By the number of its watch: a folder, and the entries of it that count.
    folders: HashMap<i32, (PathBuf, HashSet<OsString>)>,
}

impl FileWatch {
    /// Follows these files from now on; one that is not there yet, too. To be called within a runtime.
    ///
    /// # Errors
    /// When the kernel gives no watch (`fs.inotify.max_user_instances`, `max_user_watches`).
    pub fn new(files: Vec<PathBuf>) -> io::Result<Self> {
        let watches = Watches::of(&files)?;
        Ok(Self { files, watches })
    }

    /// Resolves when one of the files may be another than when this was last called, or made. Cancel-safe.
    ///
    /// # Errors
    /// As [`FileWatch::new`]: what leads to the files has changed, and the new way to them cannot be watched.
    pub async fn changed(&mut self) -> io::Result<()> {
        loop {
            let mut ready = self.watches.inotify.readable().await?;
            let concerned = self.watches.read()?;
            ready.clear_ready();
            if concerned {
                // Before the caller looks, so that what comes after its look is noticed again.
                self.watches = Watches::of(&self.files)?;
                return Ok(());
            }
        }
    }
}

impl Watches {
    fn of(files: &[PathBuf]) -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        let mut folders: HashMap<i32, (PathBuf, HashSet<OsString>)> = HashMap::new();
        for (folder, entry) in files.iter().flat_map(|file| way_to(file)) {
            let watch = match inotify::add_watch(&inotify, &folder, WATCHED) {
                Ok(watch) => watch,
                // It was there a moment ago; its own folder is watched as well.
                Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => continue,
                Err(error) => return Err(error.into()),
            };
            folders.entry(watch).or_insert_with(|| (folder, HashSet::new())).1.insert(entry);
        }
        Ok(Self { inotify: crate::spawn::watch(inotify)?, folders })
    }

    /// Reads all events that wait; whether any concerns a file.
    fn read(&self) -> io::Result<bool> {
        let mut buffer = [MaybeUninit::uninit(); BUFFER];
        let mut reader = inotify::Reader::new(self.inotify.get_ref(), &mut buffer);
        let mut concerned = false;
        loop {
            match reader.next() {
                Ok(event) => {
                    let name = event.file_name().map(|name| OsStr::from_bytes(name.to_bytes()));
                    concerned |= self.concerns(event.wd(), event.events(), name);
                }
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(concerned),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn concerns(&self, watch: i32, what: ReadFlags, name: Option<&OsStr>) -> bool {
        if what.intersects(DOUBTFUL) {
            return true;
        }
        let Some((folder, entries)) = self.folders.get(&watch) else { return false };
        let Some(name) = name.filter(|name| entries.contains(*name)) else { return false };
        !(what.contains(ReadFlags::CREATE) && is_being_written(&folder.join(name)))
    }
}

/// A plain file that was just made is empty; that it is written is told when it is closed. A link to one that is
/// written already, and a symbolic link, are made in one step.
fn is_being_written(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|entry| entry.is_file() && entry.nlink() == 1)
}

/// Each folder, with its entry, that decides which file `path` is.
fn way_to(path: &Path) -> Vec<(PathBuf, OsString)> {
    let mut way = Vec::new();
    let mut left = VecDeque::from([path.to_owned()]);
    while let Some(path) = left.pop_front()
        && way.len() < MAX_STEPS
    {
        let Some(name) = path.file_name() else { continue };
        let folder = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let step = (folder.clone(), name.to_owned());
        if way.contains(&step) {
            continue;
        }
        way.push(step);
        if let Ok(target) = std::fs::read_link(&path) {
            left.push_back(folder.join(target));
        }
        // A folder that is not there, or is a link itself, is decided by its own folder; and so is a link above it.
        if !folder.symlink_metadata().is_ok_and(|folder| folder.is_dir()) {
            left.push_back(folder.clone());
        }
        left.extend(folder.ancestors().filter(|above| above.is_symlink()).map(Path::to_owned));
    }
    way
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::time::Duration;

    use super::*;

    /// How long an event may take before the test counts as failed.
    const DEADLINE: Duration = Duration::from_secs(10);

    async fn told(watch: &mut FileWatch, what: &str) {
        let changed = tokio::time::timeout(DEADLINE, watch.changed()).await;
        changed.unwrap_or_else(|_| panic!("nothing was told of: {what}")).expect("the kernel tells");
        // One act may be several events.
        while quiet(watch).await.is_err() {}
    }

    /// Ok when nothing is told: a change of another watched file would be told before a later one of its own.
    async fn quiet(watch: &mut FileWatch) -> Result<(), ()> {
        match tokio::time::timeout(Duration::from_millis(20), watch.changed()).await {
            Ok(_) => Err(()),
            Err(_) => Ok(()),
        }
    }

    #[tokio::test]
    async fn whatever_puts_other_contents_there_is_told() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("a.toml");
        fs::write(&file, "1").expect("written");
        let mut watch = FileWatch::new(vec![file.clone()]).expect("watched");
        fs::write(&file, "2").expect("written");
        told(&mut watch, "written over").await;
        fs::write(dir.path().join("new"), "3").expect("written");
        assert!(quiet(&mut watch).await.is_ok(), "another file");
        fs::rename(dir.path().join("new"), &file).expect("renamed");
        told(&mut watch, "another file put in its place").await;
        fs::write(&file, "4").expect("written");
        told(&mut watch, "that file written over").await;
        fs::remove_file(&file).expect("removed");
        told(&mut watch, "removed").await;
        fs::write(&file, "5").expect("written");
        told(&mut watch, "made anew").await;
    }

    #[tokio::test]
    async fn links_and_folders_on_the_way_are_followed() {
        let dir = tempfile::tempdir().expect("a folder");
        let at = |name: &str| dir.path().join(name);
        for version in ["one", "two"] {
            fs::create_dir(at(version)).expect("made");
            fs::write(at(version).join("a.toml"), version).expect("written");
        }
        symlink("one", at("current")).expect("linked");
        symlink("current/a.toml", at("a.toml")).expect("linked");
        let mut watch = FileWatch::new(vec![at("a.toml")]).expect("watched");
        symlink("two", at("next")).expect("linked");
        fs::rename(at("next"), at("current")).expect("renamed");
        told(&mut watch, "the folder's link points elsewhere").await;
        fs::write(at("one").join("a.toml"), "old").expect("written");
        assert!(quiet(&mut watch).await.is_ok(), "that is not it any more");
        fs::write(at("two").join("a.toml"), "new").expect("written");
        told(&mut watch, "the file it points to now").await;
    }

    #[tokio::test]
    async fn a_link_above_the_last_folder_is_followed() {
        let dir = tempfile::tempdir().expect("a folder");
        let at = |name: &str| dir.path().join(name);
        for version in ["one", "two"] {
            fs::create_dir_all(at(version).join("deep/er")).expect("made");
            fs::write(at(version).join("deep/er/a.toml"), version).expect("written");
        }
        symlink("one", at("current")).expect("linked");
        let mut watch = FileWatch::new(vec![at("current/deep/er/a.toml")]).expect("watched");
        symlink("two", at("next")).expect("linked");
        fs::rename(at("next"), at("current")).expect("renamed");
        told(&mut watch, "the link points elsewhere").await;
        fs::write(at("two/deep/er/a.toml"), "new").expect("written");
        told(&mut watch, "the file it points to now").await;
    }

    #[tokio::test]
    async fn a_file_whose_folder_comes_later_is_told_when_it_is_there() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("deep/er/a.toml");
        let mut watch = FileWatch::new(vec![file.clone()]).expect("watched");
        fs::create_dir_all(dir.path().join("deep/er")).expect("made");
        told(&mut watch, "its folder").await;
        fs::write(&file, "1").expect("written");
        told(&mut watch, "the file").await;
    }
}
