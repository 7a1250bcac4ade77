//! Where the daemon's socket and its lasting state are. The daemon and the command line both decide here.

use std::ffi::OsString;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Longest path a unix socket can have, in bytes: `sun_path` of unix(7) less its final zero byte.
const MAX_SOCKET_PATH: usize = 107;

/// Why a directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PathError {
    /// The directory cannot be made or looked at.
    #[error("cannot use the directory {}: {source}", path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Someone else could have put a socket there.
    #[error("the directory {} is not safe: {reason}", path.display())]
    Unsafe {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The socket's path would not fit.
    #[error("the path {} is longer than the {MAX_SOCKET_PATH} bytes a unix socket can have", path.display())]
    TooLong {
        /// The socket's path.
        path: PathBuf,
    },
    /// No home directory is known.
    #[error("no directory for lasting state: none of OSTLER_STATE_DIR, XDG_STATE_HOME and HOME is set")]
    NoHome,
}

impl PathError {
    /// What a person can do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::Io { .. } | Self::TooLong { .. } => {
                "name another with `--runtime-dir DIR` (or OSTLER_RUNTIME_DIR, OSTLER_STATE_DIR)".to_owned()
            }
            Self::Unsafe { path, .. } => {
                format!("make it yours with `chmod 700 {0}`, or remove {0}", path.display())
            }
            Self::NoHome => "set OSTLER_STATE_DIR to a directory of yours".to_owned(),
        }
    }
}

/// What the environment says, as a function from a variable's name to its value.
type Lookup<'a> = &'a dyn Fn(&str) -> Option<OsString>;

fn process_environment(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

/// An absolute path from a variable. The XDG specification says a relative one is to be ignored; so is an
/// empty one.
fn absolute(env: Lookup<'_>, name: &str) -> Option<PathBuf> {
    env(name).map(PathBuf::from).filter(|path| path.is_absolute())
}

/// The directory that holds what lives as long as the daemon: its socket, its lock and its endpoint file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RuntimeDir {
    root: PathBuf,
    /// Whether it lies in a directory that everyone may write to.
    in_temp: bool,
}

impl RuntimeDir {
    /// The directory to use: `explicit`, else `OSTLER_RUNTIME_DIR`, else `$XDG_RUNTIME_DIR/ostler`, else
    /// `/run/user/UID/ostler` where that user directory exists, else `ostler-UID` in the temporary directory.
    /// Nothing is created.
    ///
    /// # Errors
    ///
    /// [`PathError::TooLong`] if a socket in it could not be bound; [`PathError::Unsafe`] if it lies in the
    /// temporary directory and is someone else's.
    pub fn resolve(explicit: Option<&Path>) -> Result<Self, PathError> {
        Self::resolve_with(explicit, &process_environment, Path::new("/run/user"))
    }

    fn resolve_with(explicit: Option<&Path>, env: Lookup<'_>, run_user: &Path) -> Result<Self, PathError> {
        let uid = rustix::process::getuid().as_raw();
        let named = explicit
            .map(Path::to_path_buf)
            .or_else(|| env("OSTLER_RUNTIME_DIR").filter(|value| !value.is_empty()).map(PathBuf::from));
        let (root, in_temp) = if let Some(named) = named {
            (named, false)
        } else if let Some(xdg) = absolute(env, "XDG_RUNTIME_DIR") {
            (xdg.join("ostler"), false)
        } else if run_user.join(uid.to_string()).is_dir() {
            (run_user.join(uid.to_string()).join("ostler"), false)
        } else {
            let temp = absolute(env, "TMPDIR").unwrap_or_else(|| PathBuf::from("/tmp"));
            (temp.join(format!("ostler-{uid}")), true)
        };
        let dir = Self { root, in_temp };
        let socket = dir.socket();
        if socket.as_os_str().len() > MAX_SOCKET_PATH {
            return Err(PathError::TooLong { path: socket });
        }
        if dir.in_temp && dir.root.symlink_metadata().is_ok() {
            dir.verify()?;
        }
        Ok(dir)
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The unix socket of the management API.
    pub fn socket(&self) -> PathBuf {
        self.root.join("api.sock")
    }

    /// The file a running daemon holds a lock on.
    pub fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    /// The file in which a running daemon says where its HTTP listener is.
    pub fn endpoint(&self) -> PathBuf {
        self.root.join("endpoint.json")
    }

    /// Makes the directory, mode 0700, if it is not there, and verifies that it is safe: a directory of this
    /// user's that nobody else can write to. In the temporary directory nobody else may even read it, and a
    /// symbolic link is refused.
    ///
    /// # Errors
    ///
    /// [`PathError::Io`] or [`PathError::Unsafe`].
    pub fn ensure(&self) -> Result<(), PathError> {
        make_private(&self.root)?;
        self.verify()
    }

    fn verify(&self) -> Result<(), PathError> {
        let forbidden = if self.in_temp { 0o077 } else { 0o022 };
        verify_ours(&self.root, forbidden, !self.in_temp)
    }
}

/// The directory that holds what outlives the daemon: the ledger of processes and what was learnt of servers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StateDir {
    root: PathBuf,
}

impl StateDir {
    /// The directory to use: `OSTLER_STATE_DIR`, else `$XDG_STATE_HOME/ostler`, else `~/.local/state/ostler`.
    /// Nothing is created.
    ///
    /// # Errors
    ///
    /// [`PathError::NoHome`] if none of them is known.
    pub fn resolve() -> Result<Self, PathError> {
        Self::resolve_with(&process_environment)
    }

    fn resolve_with(env: Lookup<'_>) -> Result<Self, PathError> {
        let named = env("OSTLER_STATE_DIR").filter(|value| !value.is_empty()).map(PathBuf::from);
        let root = named
            .or_else(|| absolute(env, "XDG_STATE_HOME").map(|dir| dir.join("ostler")))
            .or_else(|| absolute(env, "HOME").map(|dir| dir.join(".local/state/ostler")))
            .ok_or(PathError::NoHome)?;
        Ok(Self { root })
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Makes the directory, mode 0700, if it is not there, and verifies that it is this user's and that nobody
    /// else can write to it.
    ///
    /// # Errors
    ///
    /// [`PathError::Io`] or [`PathError::Unsafe`].
    pub fn ensure(&self) -> Result<(), PathError> {
        make_private(&self.root)?;
        verify_ours(&self.root, 0o022, true)
    }
}

fn make_private(path: &Path) -> Result<(), PathError> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| PathError::Io { path: path.to_owned(), source })
}

/// Refuses a path that is not a directory of this user's, or has one of the `forbidden` mode bits.
fn verify_ours(path: &Path, forbidden: u32, follow_links: bool) -> Result<(), PathError> {
    let meta = if follow_links { path.metadata() } else { path.symlink_metadata() };
    let meta = meta.map_err(|source| PathError::Io { path: path.to_owned(), source })?;
    let reason = if !meta.is_dir() {
        "it is not a directory"
    } else if meta.uid() != rustix::process::geteuid().as_raw() {
        "it belongs to another user"
    } else if meta.mode() & forbidden != 0 {
        "its mode lets other users in"
    } else {
        return Ok(());
    };
    Err(PathError::Unsafe { path: path.to_owned(), reason })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    fn env<'a>(pairs: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<OsString> + 'a {
        move |name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
    }

    fn uid() -> u32 {
        rustix::process::getuid().as_raw()
    }

    #[test]
    fn the_first_of_flag_variable_xdg_and_temp_wins() {
        let none = Path::new("/nonexistent");
        let all = [("OSTLER_RUNTIME_DIR", "/a"), ("XDG_RUNTIME_DIR", "/b"), ("TMPDIR", "/c")];
        let root = |explicit: Option<&Path>, pairs: &[(&str, &str)]| {
            RuntimeDir::resolve_with(explicit, &env(pairs), none).expect("resolves").root().to_owned()
        };
        assert_eq!(root(Some(Path::new("/x")), &all), Path::new("/x"));
        assert_eq!(root(None, &all), Path::new("/a"));
        assert_eq!(root(None, &all[1..]), Path::new("/b/ostler"));
        assert_eq!(root(None, &all[2..]), Path::new("/c").join(format!("ostler-{}", uid())));
        assert_eq!(
            root(None, &[("XDG_RUNTIME_DIR", "relative"), ("TMPDIR", "/c")]),
            Path::new("/c").join(format!("ostler-{}", uid()))
        );
    }

    #[test]
    fn the_users_run_directory_is_used_where_it_exists() {
        let run = tempfile::tempdir().expect("temporary directory");
        let mine = run.path().join(uid().to_string());
        fs::create_dir(&mine).expect("made");
        let dir = RuntimeDir::resolve_with(None, &env(&[]), run.path()).expect("resolves");
        assert_eq!(dir.root(), mine.join("ostler"));
    }

    #[test]
    fn a_socket_path_that_cannot_be_bound_is_refused() {
        let long = PathBuf::from("/").join("d".repeat(100));
        let error = RuntimeDir::resolve_with(Some(&long), &env(&[]), Path::new("/nonexistent"));
        assert!(matches!(error, Err(PathError::TooLong { .. })), "{error:?}");
    }

    #[test]
    fn ensure_makes_a_private_directory() {
        let base = tempfile::tempdir().expect("temporary directory");
        let root = base.path().join("a/b");
        let dir =
            RuntimeDir::resolve_with(Some(&root), &env(&[]), Path::new("/nonexistent")).expect("resolves");
        dir.ensure().expect("made");
        dir.ensure().expect("still there");
        assert_eq!(root.metadata().expect("there").mode() & 0o777, 0o700);
        fs::set_permissions(&root, fs::Permissions::from_mode(0o777)).expect("opened");
        assert!(matches!(dir.ensure(), Err(PathError::Unsafe { .. })));
    }

    #[test]
    fn the_temporary_directory_is_not_trusted() {
        let base = tempfile::tempdir().expect("temporary directory");
        let temp = base.path().to_str().expect("plain path").to_owned();
        let pairs = [("TMPDIR", temp.as_str())];
        let resolve = || RuntimeDir::resolve_with(None, &env(&pairs), Path::new("/nonexistent"));
        let dir = resolve().expect("resolves while it is not there");
        dir.ensure().expect("made");
        resolve().expect("ours and private");
        fs::set_permissions(dir.root(), fs::Permissions::from_mode(0o755)).expect("opened");
        assert!(matches!(resolve(), Err(PathError::Unsafe { .. })));
        fs::remove_dir(dir.root()).expect("removed");
        let elsewhere = base.path().join("elsewhere");
        fs::create_dir(&elsewhere).expect("made");
        fs::set_permissions(&elsewhere, fs::Permissions::from_mode(0o700)).expect("private");
        std::os::unix::fs::symlink(&elsewhere, dir.root()).expect("linked");
        assert!(matches!(resolve(), Err(PathError::Unsafe { .. })));
    }

    #[test]
    fn state_falls_back_from_variable_to_xdg_to_home() {
        let all = [("OSTLER_STATE_DIR", "/s"), ("XDG_STATE_HOME", "/x"), ("HOME", "/h")];
        let root = |pairs: &[(&str, &str)]| StateDir::resolve_with(&env(pairs)).map(|d| d.root().to_owned());
        assert_eq!(root(&all).expect("s"), Path::new("/s"));
        assert_eq!(root(&all[1..]).expect("x"), Path::new("/x/ostler"));
        assert_eq!(root(&all[2..]).expect("h"), Path::new("/h/.local/state/ostler"));
        assert!(matches!(root(&[]), Err(PathError::NoHome)));
    }
}
