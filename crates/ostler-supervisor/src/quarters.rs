//! Where workers live: each in a private folder, which is made for it and goes with it, and in a sandbox.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ostler_domain::Launch;
use ostler_os::SpawnRequest;
use ostler_os::sandbox::{Allowed, Bubblewrap, Confined, PROGRAM, SCRATCH_BYTES, See};

use crate::launch::Launcher;
use crate::sandbox::Sandboxes;

/// Where the files of Ostler's own workers are, as it is called inside.
const WORKERS: &str = "/ostler/workers";

/// What makes a folder one of a Python environment.
const PYTHON_ENVIRONMENT: &str = "pyvenv.cfg";

/// Whether workers have a sandbox.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Walls {
    /// They do, or are not started.
    Always,
    /// They do where the machine can: they run no code of a task's.
    WherePossible,
    /// They do not: the configuration says so.
    Never,
}

/// What the workers of one part of a lane may reach.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Terms {
    pub(crate) walls: Walls,
    /// The machine's network.
    pub(crate) network: bool,
    /// Folders to read and write.
    pub(crate) folders: Vec<PathBuf>,
    /// What is seen besides, read-only, under its own name.
    pub(crate) see: Vec<PathBuf>,
}

/// The folders of one daemon that its workers have to do with.
#[derive(Debug)]
pub(crate) struct House {
    exe: PathBuf,
    /// Each worker has its private folder here.
    private: PathBuf,
    /// The files of Ostler's own workers.
    pub(crate) workers: PathBuf,
    /// What no worker sees.
    hidden: Vec<PathBuf>,
    sandboxes: Sandboxes,
}

impl House {
    /// Makes the folders in the state directory. What workers of an earlier daemon left is removed in the background: none of them
    /// runs any more. Blocks.
    ///
    /// # Errors
    /// When a folder cannot be made.
    pub(crate) fn open(state_dir: &Path, runtime_dir: &Path) -> io::Result<Self> {
        let private = state_dir.join("private");
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&private)?;
        let exe = std::env::current_exe()?;
        let house = Self {
            sandboxes: Sandboxes::new(std::env::var_os("PATH").unwrap_or_default(), &exe),
            exe,
            private: private.canonicalize()?,
            workers: state_dir.canonicalize()?.join("workers"),
            hidden: vec![state_dir.to_owned(), runtime_dir.to_owned()],
        };
        let left: Vec<PathBuf> =
            std::fs::read_dir(&house.private)?.flatten().map(|entry| entry.path()).collect();
        if !left.is_empty() {
            std::thread::Builder::new().name("ostler-remove".to_owned()).spawn(move || {
                left.iter().for_each(|folder| remove(folder));
            })?;
        }
        Ok(house)
    }

    /// What builds sandboxes here.
    pub(crate) fn sandboxes(&self) -> &Sandboxes {
        &self.sandboxes
    }

    /// A private folder for one process, to be made when that starts.
    fn room(&self) -> Room {
        Room(self.private.join(crate::random::mark().to_string()))
    }
}

/// A worker's private folder. It goes with this, and everything in it.
#[derive(Debug)]
pub(crate) struct Room(PathBuf);

impl Room {
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let folder = std::mem::take(&mut self.0);
        // A task can leave many files. What is not removed because the daemon ends, the next one removes.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(move || remove(&folder))),
            Err(_) => remove(&folder),
        }
    }
}

/// Removes a folder and everything in it, also where a task took away its own right to.
fn remove(folder: &Path) {
    let mut removed = std::fs::remove_dir_all(folder);
    if removed.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied) {
        open_up(folder);
        removed = std::fs::remove_dir_all(folder);
    }
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%error, folder = %folder.display(), "the private folder of a worker cannot be removed");
        }
        _ => {}
    }
}

/// Makes all folders in this one such that what is in them can be removed. Follows no links.
fn open_up(folder: &Path) {
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        let _ = std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o700));
        let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        open.extend(
            entries
                .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                .map(|entry| entry.path()),
        );
    }
}

/// How the workers of one part of a lane live.
#[derive(Debug)]
pub(crate) struct Quarters {
    pub(crate) house: Arc<House>,
    pub(crate) terms: Terms,
}

impl Quarters {
    /// A private folder for one process.
    pub(crate) fn room(&self) -> Room {
        self.house.room()
    }

    /// What starts a worker that is asked for as if there were no sandbox. Its folder is made.
    ///
    /// # Errors
    /// What is missing, and the way out.
    pub(crate) async fn request(
        self: Arc<Self>,
        launcher: &dyn Launcher,
        plain: SpawnRequest,
        launch: &Launch,
        room: PathBuf,
    ) -> Result<SpawnRequest, String> {
        let sandboxes = match self.terms.walls {
            Walls::Never => None,
            Walls::WherePossible => self.house.sandboxes.get(launcher).await.ok(),
            Walls::Always => Some(self.house.sandboxes.get(launcher).await.map_err(|why| why.to_string())?),
        };
        let launch = launch.clone();
        // It asks the file system, also that of allowed folders, which may be far away.
        let made = tokio::task::spawn_blocking(move || {
            std::fs::DirBuilder::new().mode(0o700).create(&room).map_err(|error| {
                format!("its private folder `{}` cannot be made: {error}", room.display())
            })?;
            match sandboxes {
                Some(sandboxes) => self.confined(&sandboxes, plain, &launch, room),
                None => Ok(SpawnRequest { cwd: Some(plain.cwd.unwrap_or(room)), ..plain }),
            }
        });
        made.await.map_err(|error| error.to_string())?
    }

    fn confined(
        &self,
        sandboxes: &Bubblewrap,
        plain: SpawnRequest,
        launch: &Launch,
        own: PathBuf,
    ) -> Result<SpawnRequest, String> {
        let Terms { network, folders, .. } = &self.terms;
        let allowed = Allowed::new(*network, folders).map_err(|refused| refused.to_string())?;
        let inherited = std::env::vars_os()
            .filter(|(name, _)| launch.inherit_env.iter().any(|inherited| name == inherited.as_str()));
        let set: BTreeMap<String, String> =
            launch.env.iter().map(|(name, value)| (name.clone(), self.inside(value.as_ref()))).collect();
        let program = found(Path::new(&plain.program));
        let confined = Confined {
            env: ostler_os::env::clean(&launch.inherit_env, &set, inherited),
            args: plain.args.iter().map(|arg| OsString::from(self.inside(arg))).collect(),
            see: self.seen(&plain, &program),
            start_in: plain.cwd,
            program: self.inside(program.as_os_str()).into(),
            own,
            allowed,
            hidden: self.house.hidden.clone(),
            scratch_bytes: SCRATCH_BYTES,
            limits: plain.limits,
            mark: plain.mark,
        };
        sandboxes.request(&confined).map_err(|refused| refused.to_string())
    }

    /// A text that may name something of Ostler's own, with what that is called inside.
    fn inside(&self, text: &OsStr) -> String {
        if Path::new(text) == self.house.exe {
            return PROGRAM.to_owned();
        }
        text.to_string_lossy().replace(&*self.house.workers.to_string_lossy(), WORKERS)
    }

    /// What it needs to see: what the configuration says, where it starts, and its program with what belongs to that.
    fn seen(&self, plain: &SpawnRequest, program: &Path) -> Vec<See> {
        let mut places: Vec<PathBuf> = self.terms.see.iter().chain(&plain.cwd).cloned().collect();
        if program.is_absolute() && program != self.house.exe {
            places.extend(belongings(program));
        }
        let allowed = &self.terms.folders;
        // What is allowed is there already, and may be written to; of the system all is seen.
        places.retain(|place| !allowed.iter().chain(&system()).any(|folder| place.starts_with(folder)));
        let mut see: Vec<See> = places.into_iter().map(See::in_place).collect();
        see.push(See { from: self.house.workers.clone(), to: WORKERS.into() });
        see
    }
}

/// A program as it is started inside. One that is called by its name alone is as a sandbox finds it, else as the daemon does. Outside of
/// the system a link is followed: what is seen inside has one name.
fn found(program: &Path) -> PathBuf {
    let within = |path: &OsStr| {
        let mut files = std::env::split_paths(path).map(|folder| folder.join(program));
        files.find(|file| file.is_file())
    };
    let file = if program.components().count() > 1 {
        Some(program.to_owned())
    } else if within(ostler_os::sandbox::PATH.as_ref()).is_some() {
        None
    } else {
        std::env::var_os("PATH").and_then(|path| within(&path))
    };
    let Some(file) = file else { return program.to_owned() };
    let is_system = system().iter().any(|folder| file.starts_with(folder));
    if is_system || environment(&file).is_some() {
        return file;
    }
    file.canonicalize().unwrap_or(file)
}

/// The Python environment that a program is of.
fn environment(program: &Path) -> Option<PathBuf> {
    let home = program.parent()?.parent()?;
    home.join(PYTHON_ENVIRONMENT).is_file().then(|| home.to_owned())
}

/// A program's file, or for an interpreter of Python the environment and the installation that it is of.
fn belongings(program: &Path) -> Vec<PathBuf> {
    let real = program.canonicalize().unwrap_or_else(|_| program.to_owned());
    let is_installation = |home: &&Path| {
        let libraries = std::fs::read_dir(home.join("lib")).into_iter().flatten().flatten();
        libraries.map(|entry| entry.path()).any(|library| library.join("os.py").is_file())
    };
    let installation = real.parent().and_then(Path::parent).filter(is_installation).map(Path::to_owned);
    environment(program).into_iter().chain([installation.unwrap_or(real)]).collect()
}

/// What every sandbox sees, as [`ostler_os::sandbox`] has it.
fn system() -> [PathBuf; 6] {
    ["/usr", "/bin", "/sbin", "/lib", "/lib64", "/nix/store"].map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn house(state: &Path) -> House {
        std::fs::create_dir_all(state.join("workers")).expect("made");
        House::open(state, Path::new("/nowhere")).expect("opened")
    }

    #[test]
    fn what_a_task_left_goes_also_where_it_took_its_own_rights_away() {
        let state = tempfile::tempdir().expect("a folder");
        let outside = state.path().join("outside");
        std::fs::create_dir_all(outside.join("kept")).expect("made");
        let house = house(state.path());
        let room = house.room();
        let deep = room.path().join("a/b");
        std::fs::create_dir_all(&deep).expect("made");
        std::fs::write(deep.join("c"), "d").expect("written");
        std::os::unix::fs::symlink(&outside, room.path().join("link")).expect("linked");
        for folder in [deep.as_path(), &room.path().join("a")] {
            std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o000)).expect("set");
        }
        open_up(room.path());
        assert_eq!(std::fs::read_dir(&deep).expect("it can be read").count(), 1);
        let path = room.path().to_owned();
        drop(room);
        assert!(!path.exists() && outside.join("kept").exists());
    }

    #[test]
    fn its_own_things_have_other_names_inside() {
        let state = tempfile::tempdir().expect("a folder");
        let quarters = Quarters {
            house: Arc::new(house(state.path())),
            terms: Terms { walls: Walls::Always, network: false, folders: Vec::new(), see: Vec::new() },
        };
        let script = quarters.house.workers.join("node/stock.mjs");
        assert_eq!(quarters.inside(script.as_os_str()), "/ostler/workers/node/stock.mjs");
        assert_eq!(quarters.inside(quarters.house.exe.as_os_str()), PROGRAM);
        let path = format!("{}:/lib", quarters.house.workers.join("python").display());
        assert_eq!(quarters.inside(path.as_ref()), "/ostler/workers/python:/lib");
        assert_eq!(quarters.inside("-m".as_ref()), "-m");
    }

    #[test]
    fn an_interpreter_is_seen_with_what_it_is_of() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path().canonicalize().expect("real");
        let file = |name: &str| {
            let path = root.join(name);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            std::fs::write(&path, "").expect("written");
            path
        };
        let (python, alone) = (file("py/bin/python3"), file("bin/alone"));
        file("py/lib/python3.12/os.py");
        file("venv/pyvenv.cfg");
        std::fs::create_dir(root.join("venv/bin")).expect("made");
        let venv = root.join("venv/bin/python");
        std::os::unix::fs::symlink(&python, &venv).expect("linked");
        let link = root.join("bin/python");
        std::os::unix::fs::symlink(&python, &link).expect("linked");
        assert_eq!((found(&alone), belongings(&alone)), (alone.clone(), vec![alone]));
        assert_eq!((found(&link), belongings(&python)), (python, vec![root.join("py")]));
        assert_eq!((found(&venv), belongings(&venv)), (venv, vec![root.join("venv"), root.join("py")]));
        // What nobody has stays as it is called.
        assert_eq!(found(Path::new("no-such-program")), Path::new("no-such-program"));
        assert_eq!(found(Path::new("sh")), Path::new("sh"));
    }
}
