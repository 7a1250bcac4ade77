//! The sandbox of task workers: what a worker sees of the machine, built by bubblewrap (`bwrap`).
//!
//! ```text
//!   guard ── sh ⇒ bwrap ─────────── bwrap, pid 1 ── ostler confine ⇒ the worker ...        (⇒ exec)
//!            waits, and hands on    namespaces,     system call filter, number of
//!            the exit status        the view        processes, signals as they were
//! ```
//!
//! The view is made of nothing: the system's programs and libraries read-only, what they need of `/etc`, a `/proc`,
//! `/dev`, `/tmp` and `/dev/shm` of its own, the worker's private folder as [`WORK`], and what its project allows. No
//! home, no daemon, no other process, no network unless that is allowed.
//!
//! Everything is in the arguments, so a sandbox needs no file that could be missing, and what builds them is pure.
//! [`confine`] is the last step, inside: what bubblewrap does not do, or does only by a descriptor that a server behind a guard
//! has none to spare for.

pub mod confine;
mod filter;
mod view;

use std::ffi::{OsStr, OsString};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::limits::Limits;
use crate::mark::Mark;
use crate::spawn::SpawnRequest;
use confine::CONFINE_ARGUMENT;

/// The worker's private folder, as it is called inside: its working directory and its `HOME`.
pub const WORK: &str = "/ostler/work";

/// Ostler's own program, as it is called inside: `ostler worker` is this with `worker`.
pub const PROGRAM: &str = "/ostler/bin/ostler";

/// Where there is nothing but what Ostler itself puts into a sandbox.
const OURS: &str = "/ostler";

/// Where programs are looked for inside.
pub const PATH: &str = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin";

/// Bytes of `/tmp`, and as many of `/dev/shm`, where nothing else is said. They count as memory of the worker, too.
pub const SCRATCH_BYTES: u64 = 64 << 20;

/// Processes of a sandbox that are not the worker's, and count against its limit of `pids`: the two of bubblewrap.
pub const OWN_PROCESSES: u32 = 2;

/// What a project lets its code reach beside the worker's own. It is fixed when a sandbox is built: workers are shared by those
/// only who are allowed the same, so this is a key.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct Allowed {
    /// The machine's network, with everything that listens on it, the loopback interface and abstract sockets included.
    network: bool,
    /// Folders to read and write, under the names that they have outside. Real paths, sorted, none within another.
    folders: Vec<PathBuf>,
}

impl Allowed {
    /// What is allowed, with folders as their real paths: what is a link today may lead elsewhere tomorrow. Asks the file system.
    ///
    /// # Errors
    /// When one of `folders` is not there or no folder, or is none that can be allowed.
    pub fn new(network: bool, folders: &[PathBuf]) -> Result<Self, Refused> {
        let mut real = folders.iter().map(|folder| real_folder(folder)).collect::<Result<Vec<_>, _>>()?;
        real.sort();
        real.dedup();
        // Sorted, a folder comes right before what is within it.
        real.dedup_by(|inner, outer| inner.starts_with(outer));
        real.iter().try_for_each(|folder| view::may_be_allowed(folder))?;
        Ok(Self { network, folders: real })
    }

    /// Whether there is a network.
    pub fn network(&self) -> bool {
        self.network
    }

    /// The folders, as real paths.
    pub fn folders(&self) -> &[PathBuf] {
        &self.folders
    }
}

fn real_folder(folder: &Path) -> Result<PathBuf, Refused> {
    let refused = |why: String| Refused::Folder { folder: folder.to_owned(), why };
    if !folder.is_absolute() {
        return Err(refused("is no absolute path".to_owned()));
    }
    let real = folder.canonicalize().map_err(|error| refused(format!("cannot be used: {error}")))?;
    if !real.is_dir() {
        return Err(refused("is no folder".to_owned()));
    }
    Ok(real)
}

/// Something that a worker needs to see: its own files. Read-only.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct See {
    /// A file or a folder.
    pub from: PathBuf,
    /// What it is called inside; below `/ostler`, or its name outside.
    pub to: PathBuf,
}

impl See {
    /// Under the name that it has outside.
    pub fn in_place(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        Self { from: path.clone(), to: path }
    }
}

/// A worker to be run in a sandbox.
#[derive(Clone, Debug)]
pub struct Confined {
    /// As it is called inside: a path, or a name looked up in [`PATH`].
    pub program: OsString,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Its environment, beside `PATH`, `HOME`, `TMPDIR`, `USER`, `LOGNAME`, `SHELL` and `LANG`, which are set where it has none.
    pub env: Vec<(OsString, OsString)>,
    /// Its private folder, which exists, is its alone, and becomes [`WORK`].
    pub own: PathBuf,
    /// What its project allows.
    pub allowed: Allowed,
    /// What it needs to see.
    pub see: Vec<See>,
    /// Where it starts, as that is called inside: something that it sees. `None`: in [`WORK`].
    pub start_in: Option<PathBuf>,
    /// What nobody may see, even within what is allowed: the daemon's runtime and state directories.
    pub hidden: Vec<PathBuf>,
    /// Bytes of its `/tmp`, and as many of `/dev/shm`.
    pub scratch_bytes: u64,
    /// What its tree may use. Of `pids`, [`OWN_PROCESSES`] are the sandbox's.
    pub limits: Limits,
    /// The mark of its tree.
    pub mark: Mark,
}

/// Why a sandbox is not built as it was asked for.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refused {
    /// A folder that cannot be allowed.
    #[error("the folder `{folder}` {why}; correct `folders` of the project")]
    Folder {
        /// Which.
        folder: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The private folder is not there.
    #[error("the worker's private folder `{own}` {why}")]
    Own {
        /// Which.
        own: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Something to be seen cannot be.
    #[error("`{path}`, which the worker needs to see, {why}")]
    See {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Too few processes are allowed.
    #[error("`pids = {0}` leaves a worker none: {own} are its sandbox's; allow some more", own = OWN_PROCESSES)]
    Pids(u32),
    /// The program is none that can be seen inside.
    #[error("the program `{program}` {why}")]
    Program {
        /// Which.
        program: String,
        /// Why not, and what to do.
        why: String,
    },
}

/// Why there are no sandboxes on this machine. `Display` says what is missing and the way out.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Unavailable {
    /// There is no bubblewrap.
    #[error(
        "there is no sandbox for workers: bubblewrap (`bwrap`) is not in PATH; install it (`apt-get install bubblewrap`), or let \
         their code run as the daemon's user without one (`workers.sandbox = \"off\"`)"
    )]
    NoBubblewrap,
    /// A program that it takes beside bubblewrap is not there.
    #[error(
        "there is no sandbox for workers: `{program}` cannot be used: {why}; or let their code run as the daemon's user without one \
         (`workers.sandbox = \"off\"`)"
    )]
    NoProgram {
        /// Which.
        program: PathBuf,
        /// Why.
        why: String,
    },
    /// It was tried, and failed.
    #[error(
        "there is no sandbox for workers: bubblewrap failed ({said}): {hint}; or let their code run as the daemon's user without one \
         (`workers.sandbox = \"off\"`)"
    )]
    Failed {
        /// What it said.
        said: String,
        /// What that means, as far as it is known, and what to do.
        hint: &'static str,
    },
}

impl Unavailable {
    /// Of a trial that failed, by what was said.
    pub fn of(said: &str) -> Self {
        Self::Failed { said: said.trim().to_owned(), hint: hint(said) }
    }
}

/// What bubblewrap's words mean. They are not a contract: what is not recognised is shown with a general hint.
fn hint(said: &str) -> &'static str {
    let known: [(&[&str], &'static str); 4] = [
        (
            &["unknown option"],
            "it is older than 0.7, the first that bounds the size of a private /tmp; install a newer one",
        ),
        (
            &["mount proc", "/newroot/proc"],
            "a private /proc may not be mounted here: this is a container that hides parts of its own /proc; run it with those \
             unmasked (Docker: `--security-opt systempaths=unconfined`)",
        ),
        (
            &["namespace", "uid map", "loopback", "rtm_newaddr", "unshare"],
            "this user may not make user namespaces here: check `sysctl user.max_user_namespaces` (not 0), \
             `kernel.unprivileged_userns_clone` (1, on old Debian), `kernel.apparmor_restrict_unprivileged_userns` (0, or a profile \
             that allows bwrap, on Ubuntu), and in a container its system call filter",
        ),
        (
            &["system call filter"],
            "the kernel takes no system call filter; it needs CONFIG_SECCOMP_FILTER, on x86-64, aarch64 or riscv64",
        ),
    ];
    let said = said.to_lowercase();
    let is_meant = |words: &&[&str]| words.iter().any(|word| said.contains(word));
    let found = known.iter().find(|(words, _)| is_meant(words));
    found.map_or("run it by hand to see why: `bwrap --unshare-all --ro-bind / / true`", |(_, hint)| *hint)
}

/// What builds sandboxes on this machine, once it was found. That it works is known when it was tried: see [`Self::trial`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bubblewrap {
    bwrap: PathBuf,
    /// Ostler's own program, or one that calls [`confine::main`] as it does.
    exe: PathBuf,
    system: view::System,
}

impl Bubblewrap {
    /// Looks for what it takes: `bwrap` in `path`, a shell, and `exe`, the program that calls [`confine::main`] (Ostler's own).
    ///
    /// # Errors
    /// When something of it is missing.
    pub fn find(path: &OsStr, exe: &Path) -> Result<Self, Unavailable> {
        let mut candidates = std::env::split_paths(path).map(|folder| folder.join("bwrap"));
        let bwrap = candidates.find(|file| is_program(file)).ok_or(Unavailable::NoBubblewrap)?;
        let missing =
            |program: &Path, why: String| Unavailable::NoProgram { program: program.to_owned(), why };
        if !is_program(Path::new(view::SHELL)) {
            return Err(missing(Path::new(view::SHELL), "it is no program".to_owned()));
        }
        let real = exe.canonicalize().map_err(|error| missing(exe, error.to_string()))?;
        Ok(Self { bwrap, exe: real, system: view::System::look() })
    }

    /// Where `bwrap` is.
    pub fn bwrap(&self) -> &Path {
        &self.bwrap
    }

    /// The command that runs a worker in a sandbox. Asks the file system whether everything is where it should be.
    ///
    /// # Errors
    /// When something is not.
    pub fn request(&self, confined: &Confined) -> Result<SpawnRequest, Refused> {
        self.check(confined)?;
        let mut confined = confined.clone();
        confined.hidden.retain_mut(|hidden| match hidden.canonicalize() {
            Ok(real) if real.is_dir() => {
                *hidden = real;
                true
            }
            // What is not there need not be covered.
            _ => false,
        });
        let confined = &confined;
        Ok(SpawnRequest {
            program: view::SHELL.into(),
            args: self.arguments(confined),
            env: environment(&confined.env),
            // Its own is entered inside.
            cwd: Some("/".into()),
            mark: confined.mark,
            limits: confined.limits,
        })
    }

    /// A worker that does nothing but end with status 0: if that goes well, sandboxes can be built here. `own` is a folder that
    /// it may use.
    ///
    /// # Errors
    /// As [`Self::request`].
    pub fn trial(&self, own: &Path, mark: Mark) -> Result<SpawnRequest, Refused> {
        self.request(&Confined {
            program: view::SHELL.into(),
            args: ["-c", ":"].map(Into::into).to_vec(),
            env: Vec::new(),
            own: own.to_owned(),
            allowed: Allowed::default(),
            see: Vec::new(),
            start_in: None,
            hidden: Vec::new(),
            scratch_bytes: SCRATCH_BYTES,
            limits: Limits::default(),
            mark,
        })
    }

    /// Everything that can have changed since it was configured.
    fn check(&self, confined: &Confined) -> Result<(), Refused> {
        let own = |why: String| Refused::Own { own: confined.own.clone(), why };
        match confined.own.canonicalize() {
            Ok(real) if real.is_dir() && real == confined.own => {}
            Ok(real) => return Err(own(format!("is none: it leads to `{}`", real.display()))),
            Err(error) => return Err(own(format!("cannot be used: {error}"))),
        }
        for folder in &confined.allowed.folders {
            let refused = |why| Refused::Folder { folder: folder.clone(), why };
            let real = real_folder(folder)?;
            if real != *folder {
                return Err(refused(format!("has become a link, to `{}`", real.display())));
            }
            let mut hidden = confined.hidden.iter().filter_map(|hidden| hidden.canonicalize().ok());
            if hidden.any(|hidden| folder.starts_with(hidden)) {
                return Err(refused("is the daemon's own".to_owned()));
            }
        }
        for See { from, to } in &confined.see {
            let refused = |why: String| Refused::See { path: from.clone(), why };
            if !from.is_absolute() {
                return Err(refused("is no absolute path".to_owned()));
            }
            from.metadata().map_err(|error| refused(format!("cannot be used: {error}")))?;
            if to != from && !(to.starts_with(OURS) && to != Path::new(OURS)) {
                return Err(refused(format!("cannot be called `{}` inside", to.display())));
            }
            if to == from {
                view::may_be_seen(from)?;
            }
        }
        if let Some(pids) = confined.limits.pids.filter(|&pids| pids <= OWN_PROCESSES) {
            return Err(Refused::Pids(pids));
        }
        self.check_program(confined)
    }

    fn check_program(&self, confined: &Confined) -> Result<(), Refused> {
        let program = &confined.program;
        let refused = |why: String| Refused::Program { program: program.display().to_string(), why };
        if !program.as_encoded_bytes().contains(&b'/') {
            let mut candidates = std::env::split_paths(PATH).map(|folder| folder.join(program));
            let Some(file) = candidates.find(|file| is_program(file)) else {
                return Err(refused(format!(
                    "is not in {PATH}, which is where a sandbox has programs; install it there, or give \
                                            its full path and let the worker see its folder"
                )));
            };
            return self.must_be_seen(&file, confined);
        }
        let path = Path::new(program);
        if !path.is_absolute() {
            return Err(refused("is a relative path; give a name or a full path".to_owned()));
        }
        if path.starts_with(OURS) {
            let is_ours = path == Path::new(PROGRAM) || path.starts_with(WORK);
            let is_there = is_ours || confined.see.iter().any(|see| path.starts_with(&see.to));
            return if is_there {
                Ok(())
            } else {
                Err(refused("is nothing that is put into a sandbox".to_owned()))
            };
        }
        if !is_program(path) {
            return Err(refused("does not exist, or may not be executed".to_owned()));
        }
        self.must_be_seen(path, confined)
    }

    /// A program may be a link to where nothing can be seen.
    fn must_be_seen(&self, file: &Path, confined: &Confined) -> Result<(), Refused> {
        let refused = |why: String| Refused::Program { program: confined.program.display().to_string(), why };
        let real = file.canonicalize().map_err(|error| refused(format!("cannot be used: {error}")))?;
        let in_place = confined.see.iter().filter(|see| see.from == see.to);
        let mut places = in_place.filter_map(|see| see.from.canonicalize().ok());
        let in_folder = || confined.allowed.folders.iter().any(|folder| real.starts_with(folder));
        if self.system.shows(&real) || in_folder() || places.any(|place| real.starts_with(place)) {
            return Ok(());
        }
        Err(refused(format!(
            "is `{}`, which a sandbox does not see (it sees {}); install one there, or let the worker see that folder",
            real.display(),
            self.system.places()
        )))
    }

    /// From here on nothing is asked: the same for the same.
    fn arguments(&self, confined: &Confined) -> Vec<OsString> {
        let mut all: Vec<OsString> = vec!["-c".into(), view::script(confined.allowed.network).into()];
        all.push(self.bwrap.clone().into());
        all.extend(view::options(&self.system, &self.exe, confined));
        all.extend(["--", PROGRAM, CONFINE_ARGUMENT].map(OsString::from));
        // One of bubblewrap's two is outside.
        let pids = confined.limits.pids.map_or(0, |pids| pids.saturating_sub(1));
        all.push(pids.to_string().into());
        all.push(confined.program.clone());
        all.extend(confined.args.iter().cloned());
        all
    }
}

fn is_program(file: &Path) -> bool {
    file.metadata().is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}

/// What every program may rely on, under what was given.
fn environment(given: &[(OsString, OsString)]) -> Vec<(OsString, OsString)> {
    let usual = [
        ("PATH", PATH),
        ("HOME", WORK),
        ("TMPDIR", "/tmp"),
        ("USER", view::USER),
        ("LOGNAME", view::USER),
        ("SHELL", view::SHELL),
        ("LANG", "C.UTF-8"),
    ];
    let mut env: Vec<(OsString, OsString)> = given.to_vec();
    for (name, value) in usual {
        if !given.iter().any(|(known, _)| known == name) {
            env.push((name.into(), value.into()));
        }
    }
    env
}

#[cfg(test)]
mod tests;
