//! What can be told without running anything; real processes are in `tests/it/sandbox.rs`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::*;

fn found() -> Bubblewrap {
    let links = [("/bin", "usr/bin"), ("/lib64", "usr/lib64")].map(|(link, to)| (link.into(), to.into()));
    let system = view::System {
        folders: vec!["/usr".into()],
        links: links.to_vec(),
        covered: vec!["/usr/local/etc".into()],
    };
    Bubblewrap { bwrap: "/usr/bin/bwrap".into(), exe: "/opt/ostler".into(), system }
}

fn worker(own: &Path) -> Confined {
    Confined {
        program: "sh".into(),
        args: vec!["-c".into(), "exit".into()],
        env: vec![("LANG".into(), "de_DE.UTF-8".into()), ("TOKEN".into(), "t".into())],
        own: own.to_owned(),
        allowed: Allowed::default(),
        see: Vec::new(),
        start_in: None,
        hidden: Vec::new(),
        scratch_bytes: 4096,
        limits: Limits { pids: Some(64), ..Limits::default() },
        mark: Mark::from(1),
    }
}

fn own() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let real = folder.path().canonicalize().expect("real");
    (folder, real)
}

/// The words after an option, each time that it is there.
fn after<'a, const N: usize>(arguments: &'a [OsString], option: &str) -> Vec<[&'a str; N]> {
    let text = |at: usize| arguments[at].to_str().expect("text");
    let found = arguments.iter().enumerate().filter(|(_, word)| *word == option);
    found.map(|(at, _)| std::array::from_fn(|next| text(at + 1 + next))).collect()
}

#[test]
fn without_leave_there_is_no_network_and_no_folder() {
    let (_folder, own) = own();
    let arguments = found().request(&worker(&own)).expect("can be").args;
    assert!(arguments.contains(&"--unshare-net".into()));
    let own = own.to_str().expect("text");
    assert_eq!(after(&arguments, "--bind"), [[own, WORK]], "its own folder and nothing else is written to");
    assert_eq!(after(&arguments, "--ro-bind"), [["/usr", "/usr"], ["/opt/ostler", PROGRAM]]);
    assert!(
        after::<2>(&arguments, "--ro-bind-try")
            .iter()
            .all(|[from, to]| from == to && from.starts_with("/etc/"))
    );
    assert!(!arguments.contains(&"/etc/resolv.conf".into()));
    for part in ["--unshare-user", "--unshare-pid", "--unshare-ipc", "--die-with-parent"] {
        assert!(arguments.contains(&part.into()), "{part}");
    }
    assert_eq!(after(&arguments, "--cap-drop"), [["ALL"]]);
    assert_eq!(after(&arguments, "--size"), [["4096", "--tmpfs", "/dev/shm"], ["4096", "--tmpfs", "/tmp"]]);
    assert_eq!(after(&arguments, "--remount-ro"), [["/usr/local/etc"], ["/proc"], ["/dev"], ["/"]]);
}

#[test]
fn what_is_allowed_is_there() {
    let (_folder, own) = own();
    let (_other, other) = self::own();
    let daemon = other.join("run");
    std::fs::create_dir(&daemon).expect("made");
    let mut worker = worker(&own);
    worker.allowed = Allowed::new(true, std::slice::from_ref(&other)).expect("can be");
    worker.hidden = vec![daemon.clone(), "/nowhere/near".into()];
    worker.see = vec![See { from: other.clone(), to: "/ostler/workers".into() }];
    let arguments = found().request(&worker).expect("can be").args;
    let [own, other, daemon] = [&own, &other, &daemon].map(|path| path.to_str().expect("text"));
    assert!(!arguments.contains(&"--unshare-net".into()));
    assert!(arguments.contains(&"/etc/resolv.conf".into()));
    assert_eq!(after(&arguments, "--bind"), [[other, other], [own, WORK]]);
    assert_eq!(after(&arguments, "--ro-bind")[2], [other, "/ostler/workers"]);
    let covered = arguments.iter().position(|word| word == daemon).expect("covered");
    let shown = arguments.iter().position(|word| word == "--bind").expect("shown");
    assert!(covered > shown, "over what is shown: {arguments:?}");
    assert_eq!(after(&arguments, "--remount-ro")[3..], [[daemon], ["/"]]);
    worker.allowed = Allowed::new(false, &[daemon.into()]).expect("may be one, as far as is known");
    let why = found().request(&worker).expect_err("the daemon's").to_string();
    assert!(why.ends_with("is the daemon's own; correct `folders` of the project"), "{why}");
}

#[test]
fn the_command_comes_last_under_its_limits() {
    let (_folder, own) = own();
    let request = found().request(&worker(&own)).expect("can be");
    let end = request.args.iter().position(|word| word == "--").expect("an end of options");
    assert_eq!(request.args[end + 1..], [PROGRAM, CONFINE_ARGUMENT, "63", "sh", "-c", "exit"]);
    assert_eq!(request.limits.pids, Some(64));
    assert_eq!(request.program, "/bin/sh");
    assert_eq!(request.args[2], "/usr/bin/bwrap");
    let mut worker = worker(&own);
    worker.limits.pids = Some(OWN_PROCESSES);
    let why = found().request(&worker).expect_err("none left").to_string();
    assert!(why.contains("`pids = 2` leaves a worker none"), "{why}");
}

#[test]
fn the_environment_is_what_was_given_and_the_usual() {
    let (_folder, own) = own();
    let env = found().request(&worker(&own)).expect("can be").env;
    let value = |name: &str| {
        env.iter().filter(|(known, _)| known == name).map(|(_, value)| value.to_str()).collect::<Vec<_>>()
    };
    assert_eq!(value("LANG"), [Some("de_DE.UTF-8")], "the given one wins");
    assert_eq!(value("HOME"), [Some(WORK)]);
    assert_eq!(value("TOKEN"), [Some("t")]);
    assert_eq!(env.len(), 8, "{env:?}");
}

#[test]
fn folders_of_the_system_cannot_be_allowed() {
    for (folder, part) in [
        ("/", "as a whole"),
        ("/etc", "as a whole"),
        ("/usr", "as a whole"),
        ("/proc/self", "something of its own"),
        ("relative", "no absolute path"),
        ("/etc/passwd", "is no folder"),
        ("/nowhere/at/all", "cannot be used"),
    ] {
        let why = Allowed::new(false, &[folder.into()]).expect_err(folder).to_string();
        assert!(why.contains(part), "{folder}: {why}");
    }
}

#[test]
fn folders_are_real_and_in_order_and_none_is_within_another() {
    let (_folder, real) = own();
    let path = |name: &str| real.join(name);
    for name in ["a", "a/b", "a-b", "c"] {
        std::fs::create_dir(path(name)).expect("made");
    }
    std::os::unix::fs::symlink(path("c"), path("link")).expect("made");
    let one = Allowed::new(false, &["link", "a/b", "a-b", "a", "c"].map(path)).expect("can be");
    assert_eq!(one.folders(), ["a", "a-b", "c"].map(path));
    let other = Allowed::new(false, &["c", "a", "a-b"].map(path)).expect("can be");
    assert_eq!(one, other, "who is allowed the same may share a worker");
    assert_ne!(one, Allowed::new(true, &["c", "a", "a-b"].map(path)).expect("can be"));
}

#[test]
fn a_folder_that_became_a_link_is_refused() {
    let (_folder, real) = own();
    let (allowed, own) = (real.join("allowed"), real.join("own"));
    for folder in [&allowed, &own] {
        std::fs::create_dir(folder).expect("made");
    }
    let mut worker = worker(&own);
    worker.allowed = Allowed::new(false, std::slice::from_ref(&allowed)).expect("can be");
    found().request(&worker).expect("can be");
    std::fs::remove_dir(&allowed).expect("removed");
    std::os::unix::fs::symlink(&own, &allowed).expect("made");
    let why = found().request(&worker).expect_err("a link").to_string();
    assert!(why.contains("has become a link, to `"), "{why}");
}

#[test]
fn a_program_must_be_one_that_is_seen() {
    let (_folder, real) = own();
    let mut worker = worker(&real);
    let file = real.join("program");
    std::fs::copy("/bin/sh", &file).expect("copied");
    let mut refused = |program: &Path, see: &[See]| {
        worker.program = program.into();
        worker.see = see.to_vec();
        found().request(&worker).err().map(|why| why.to_string()).unwrap_or_default()
    };
    assert_eq!(refused(Path::new("/bin/sh"), &[]), "");
    assert_eq!(refused(Path::new(PROGRAM), &[]), "");
    assert_eq!(refused(&file, &[See::in_place(&real)]), "");
    for (program, part) in [
        (Path::new("no-such-program"), "is not in /usr/local/bin:"),
        (Path::new("./sh"), "is a relative path"),
        (Path::new("/no/such/program"), "does not exist"),
        (Path::new("/ostler/workers/x"), "is nothing that is put into a sandbox"),
        (&file, "which a sandbox does not see (it sees /usr)"),
    ] {
        let why = refused(program, &[]);
        assert!(why.contains(part), "{program:?}: {why}");
    }
    let why = refused(Path::new("/bin/sh"), &[See { from: real.clone(), to: "/usr".into() }]);
    assert!(why.contains("cannot be called `/usr` inside"), "{why}");
    let why = refused(Path::new("/bin/sh"), &[See::in_place("/etc")]);
    assert!(why.contains("is the system's as a whole"), "{why}");
}

#[test]
fn what_is_missing_is_named_with_the_way_out() {
    let why = Bubblewrap::find("/nowhere:/etc".as_ref(), Path::new("/bin/sh")).expect_err("none").to_string();
    assert!(why.contains("`bwrap`") && why.contains("apt-get install bubblewrap"), "{why}");
    assert!(why.contains("workers.sandbox = \"off\""), "{why}");
    for (said, part) in [
        ("bwrap: No permissions to create new namespace, likely because ...", "user namespaces"),
        ("bwrap: setting up uid map: Permission denied", "user namespaces"),
        ("bwrap: Unknown option --size", "older than 0.7"),
        ("bwrap: Can't mount proc on /newroot/proc: Operation not permitted", "a container"),
        ("something else", "by hand"),
    ] {
        let why = Unavailable::of(said).to_string();
        assert!(why.contains(part) && why.contains(said) && why.contains("\"off\""), "{said}: {why}");
    }
}

#[test]
fn the_script_gives_each_file_that_is_made() {
    let script = view::script(false);
    assert!(
        script.starts_with(
            "trap '' TERM\nexec \"$0\" \"$@\" 3<<'end3' 4<<'end4' 5<<'end5' 6<<'end6'\nworker:x:1000:"
        ),
        "{script}"
    );
    assert!(script.ends_with("\nend6\n"), "{script}");
    assert!(!view::script(true).contains("5<<"), "with a network the machine's own are taken");
}
