//! What is seen inside, as options of `bwrap`. It follows them in their order, so later ones lie over earlier ones.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::{Confined, OURS, PROGRAM, Refused, WORK};

/// What starts bubblewrap, and must be inside as well.
pub(super) const SHELL: &str = "/bin/sh";

/// The user inside, whoever it is outside.
pub(super) const USER: &str = "worker";

/// Its number, as user and as group.
const USER_ID: &str = "1000";

/// Where programs and libraries are. What is a link to another of these is one inside, too.
const SYSTEM: [&str; 8] = ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store"];

/// What lies within these and is no program's: covered.
const COVERED: [&str; 2] = ["/usr/local/etc", "/usr/local/var"];

/// Of `/etc`, what programs need: libraries' places, alternatives (links to programs), time zone, certificates. Never
/// `/etc/ssl/private` and its like.
const ETC: [&str; 11] = [
    "/etc/ld.so.cache",
    "/etc/alternatives",
    "/etc/localtime",
    "/etc/timezone",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
    "/etc/ssl/cert.pem",
    "/etc/ca-certificates",
    "/etc/pki/ca-trust/extracted",
    "/etc/pki/tls/certs",
    "/etc/pki/tls/cert.pem",
];

/// Of `/etc`, what programs need for the network.
const ETC_NETWORK: [&str; 7] = [
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/nsswitch.conf",
    "/etc/host.conf",
    "/etc/gai.conf",
    "/etc/services",
    "/etc/protocols",
];

/// Folders that cannot be allowed, nor can what lies above them: they are the system's, or other users'.
const NEVER_WHOLE: [&str; 14] = [
    "/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc", "/proc", "/sys", "/dev", "/run", "/boot", "/var",
    "/home", OURS,
];

/// Folders in which nothing can be allowed: a sandbox has its own.
const NEVER_WITHIN: [&str; 4] = ["/proc", "/sys", "/dev", OURS];

/// Files that are made for a sandbox: the descriptor by which bubblewrap gets each, what it is called, what is in it.
struct Made {
    fd: u32,
    path: &'static str,
    text: &'static str,
    /// With a network the machine's own is taken.
    only_without_network: bool,
}

static MADE: [Made; 4] = [
    Made {
        fd: 3,
        path: "/etc/passwd",
        text: "worker:x:1000:1000:worker:/ostler/work:/bin/sh\nnobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n",
        only_without_network: false,
    },
    Made {
        fd: 4,
        path: "/etc/group",
        text: "worker:x:1000:\nnogroup:x:65534:\n",
        only_without_network: false,
    },
    Made {
        fd: 5,
        path: "/etc/hosts",
        text: "127.0.0.1 localhost worker\n::1 localhost\n",
        only_without_network: true,
    },
    Made {
        fd: 6,
        path: "/etc/nsswitch.conf",
        text: "passwd: files\ngroup: files\nhosts: files\nservices: files\nprotocols: files\n",
        only_without_network: true,
    },
];

fn made(network: bool) -> impl Iterator<Item = &'static Made> {
    MADE.iter().filter(move |made| !(network && made.only_without_network))
}

/// What the shell does before it becomes bubblewrap: it gives it the files that are made, and has it ignore SIGTERM. A tree that is to
/// end is told SIGTERM as a whole; bubblewrap would end by it, and take the worker along before that has heard. Inside,
/// [`super::confine`] sets it back.
pub(super) fn script(network: bool) -> String {
    let mut script = "trap '' TERM\nexec \"$0\" \"$@\"".to_owned();
    let mut texts = String::new();
    for Made { fd, text, .. } in made(network) {
        // A writer to a text never fails.
        let _ = write!(script, " {fd}<<'end{fd}'");
        let _ = writeln!(texts, "{text}end{fd}");
    }
    script.push('\n');
    script + &texts
}

/// Where this machine has its programs and libraries.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct System {
    /// Folders.
    pub(super) folders: Vec<PathBuf>,
    /// Links, and what they say.
    pub(super) links: Vec<(PathBuf, PathBuf)>,
    /// What is to be covered of them.
    pub(super) covered: Vec<PathBuf>,
}

impl System {
    pub(super) fn look() -> Self {
        let mut system = Self::default();
        for place in SYSTEM.map(PathBuf::from) {
            match std::fs::read_link(&place) {
                Ok(to) => system.links.push((place, to)),
                Err(_) if place.is_dir() => system.folders.push(place),
                Err(_) => {}
            }
        }
        system.covered.extend(COVERED.map(PathBuf::from).into_iter().filter(|covered| covered.is_dir()));
        system
    }

    /// Whether a real path is seen inside.
    pub(super) fn shows(&self, real: &Path) -> bool {
        let within = |places: &[PathBuf]| places.iter().any(|place| real.starts_with(place));
        within(&self.folders) && !within(&self.covered)
    }

    /// For a person.
    pub(super) fn places(&self) -> String {
        let places: Vec<_> = self.folders.iter().map(|folder| folder.display().to_string()).collect();
        places.join(", ")
    }
}

/// Whether a folder of this real path may be one that a project allows.
pub(super) fn may_be_allowed(folder: &Path) -> Result<(), Refused> {
    let refused = |why: &str| Err(Refused::Folder { folder: folder.to_owned(), why: why.to_owned() });
    if is_above_never(folder) {
        return refused("is the system's, or that of all users, and cannot be allowed as a whole");
    }
    if NEVER_WITHIN.iter().any(|never| folder.starts_with(never)) {
        return refused("lies where a sandbox has something of its own");
    }
    Ok(())
}

/// Whether this may be seen under its own name.
pub(super) fn may_be_seen(path: &Path) -> Result<(), Refused> {
    let refused = |why: &str| Err(Refused::See { path: path.to_owned(), why: why.to_owned() });
    if !path.is_absolute() {
        return refused("is no absolute path");
    }
    if is_above_never(path) || NEVER_WITHIN.iter().any(|never| path.starts_with(never)) {
        return refused("lies where a sandbox has something of its own, or is the system's as a whole");
    }
    Ok(())
}

fn is_above_never(path: &Path) -> bool {
    NEVER_WHOLE.iter().any(|never| Path::new(never).starts_with(path))
}

/// Options, one after the other.
#[derive(Default)]
struct Options(Vec<OsString>);

impl Options {
    fn add<const N: usize>(&mut self, words: [&str; N]) {
        self.0.extend(words.map(OsString::from));
    }

    /// An option with two paths.
    fn bind(&mut self, option: &str, from: &Path, to: &Path) {
        self.0.extend([option.into(), from.as_os_str().to_owned(), to.as_os_str().to_owned()]);
    }

    /// An empty folder that stays so.
    fn cover(&mut self, path: &Path) {
        for option in ["--tmpfs", "--remount-ro"] {
            self.0.extend([option.into(), path.as_os_str().to_owned()]);
        }
    }

    /// Memory as a folder, of so many bytes at most.
    fn memory(&mut self, bytes: u64, path: &str) {
        self.add(["--size", &bytes.to_string(), "--tmpfs", path]);
    }
}

/// All options of a sandbox.
pub(super) fn options(system: &System, exe: &Path, confined: &Confined) -> Vec<OsString> {
    let mut options = Options::default();
    let network = confined.allowed.network;
    options.add([
        "--unshare-user",
        "--unshare-pid",
        "--unshare-ipc",
        "--unshare-uts",
        "--unshare-cgroup-try",
    ]);
    if !network {
        options.add(["--unshare-net"]);
    }
    options.add(["--uid", USER_ID, "--gid", USER_ID, "--hostname", USER, "--cap-drop", "ALL"]);
    // Not `--new-session`: the guard has begun one for it, which has no terminal that input could be put into, and whose
    // niceness is that of the worker's limits.
    options.add(["--die-with-parent"]);
    read_only(&mut options, system, network);
    options.add(["--proc", "/proc", "--remount-ro", "/proc", "--dev", "/dev"]);
    options.memory(confined.scratch_bytes, "/dev/shm");
    options.add(["--remount-ro", "/dev"]);
    options.memory(confined.scratch_bytes, "/tmp");
    options.add(["--dir", "/run", "--dir", "/var", "--symlink", "../tmp", "/var/tmp"]);
    options.bind("--ro-bind", exe, Path::new(PROGRAM));
    for see in &confined.see {
        options.bind("--ro-bind", &see.from, &see.to);
    }
    for folder in &confined.allowed.folders {
        options.bind("--bind", folder, folder);
    }
    for hidden in &confined.hidden {
        let mut shown = confined.allowed.folders.iter().chain(confined.see.iter().map(|see| &see.to));
        if shown.any(|shown| hidden.starts_with(shown)) {
            options.cover(hidden);
        }
    }
    options.bind("--bind", &confined.own, Path::new(WORK));
    // What is mounted is not concerned; what is between would else be memory without a bound.
    let start_in = confined.start_in.as_deref().unwrap_or(Path::new(WORK));
    options.add(["--remount-ro", "/", "--chdir"]);
    options.0.push(start_in.into());
    options.0
}

fn read_only(options: &mut Options, system: &System, network: bool) {
    for folder in &system.folders {
        options.bind("--ro-bind", folder, folder);
    }
    for (link, to) in &system.links {
        options.bind("--symlink", to, link);
    }
    for covered in &system.covered {
        options.cover(covered);
    }
    let etc = ETC.iter().chain(ETC_NETWORK.iter().filter(|_| network));
    for file in etc.map(|file| Path::new(*file)) {
        options.bind("--ro-bind-try", file, file);
    }
    for Made { fd, path, .. } in made(network) {
        options.add(["--perms", "0444", "--ro-bind-data", &fd.to_string(), path]);
    }
}
