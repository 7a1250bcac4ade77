//! The servers of the proof: evil children, and a real one from npm behind `npx`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use ostler_testkit::evil;
use ostler_testkit::mark::{Mark, Marked};

/// A download that takes longer than this is stuck.
const DOWNLOAD_LIMIT_S: u64 = 300;

/// How a server meets a client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Manners {
    /// It completes the handshake and answers `echo`.
    Answers,
    /// It completes the handshake, and answers nothing after it.
    Falls,
    /// It lives and never completes the handshake.
    Silent,
    /// It ends, or has to be ended, before the handshake, again and again.
    Dies,
}

/// One kind of server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Species {
    /// Its name in the configuration.
    pub(crate) name: &'static str,
    /// What the evil child is told; nothing for the real server.
    words: &'static [&'static str],
    /// Its processes, at its worst: those that stay, grandchildren and wrappers included.
    least: usize,
    pub(crate) manners: Manners,
}

const fn evil(name: &'static str, words: &'static [&'static str], least: usize, manners: Manners) -> Species {
    Species { name, words, least, manners }
}

/// Everything that is let loose on a daemon at once.
pub(crate) const ZOO: [Species; 17] = [
    evil("plain", &[], 1, Manners::Answers),
    evil("double-fork", &["double-fork"], 2, Manners::Answers),
    evil("ignore-term", &["ignore-term", "ignore-eof", "double-fork"], 2, Manners::Answers),
    evil("ignore-eof", &["ignore-eof"], 1, Manners::Answers),
    evil("sigstop", &["sigstop", "double-fork"], 2, Manners::Falls),
    evil("exit-early", &["exit-early", "double-fork"], 0, Manners::Dies),
    evil("never-answer", &["never-answer", "double-fork"], 2, Manners::Silent),
    evil("never-ends", &["never-answer", "ignore-eof", "ignore-term"], 1, Manners::Silent),
    evil("flood-stdout", &["late", "flood-stdout", "ignore-eof"], 1, Manners::Answers),
    evil("flood-stderr", &["late", "flood-stderr", "ignore-term"], 1, Manners::Answers),
    evil("close-stdio", &["close-stdio", "double-fork", "ignore-term"], 0, Manners::Dies),
    evil("wrapper", &["wrapper", "double-fork", "ignore-eof"], 3, Manners::Answers),
    evil("npx-like", &["npx-like", "ignore-term", "ignore-eof"], 3, Manners::Answers),
    evil("fork-many", &["fork-many", "12", "ignore-term"], 13, Manners::Answers),
    evil("clean-env-fork", &["clean-env-fork", "ignore-eof"], 2, Manners::Answers),
    evil(
        "everything",
        &["late", "npx-like", "ignore-term", "ignore-eof", "double-fork", "clean-env-fork", "fork-many", "6"],
        11,
        Manners::Answers,
    ),
    // npx, the shell it starts, and the server: how many of them stay is npm's affair.
    evil("npx", &[], 2, Manners::Answers),
];

impl Species {
    /// One for a test of its own.
    pub(crate) const fn new(
        name: &'static str,
        words: &'static [&'static str],
        least: usize,
        manners: Manners,
    ) -> Self {
        evil(name, words, least, manners)
    }

    /// The program and its arguments.
    fn launch(&self) -> (PathBuf, Vec<&'static str>) {
        if self.name == "npx" {
            (npx(), vec!["-y", everything()])
        } else {
            (evil::path(), self.words.to_vec())
        }
    }

    /// Its section of the configuration; `more` are further keys.
    pub(crate) fn section(&self, mark: &Mark, more: &str) -> String {
        let (program, args) = self.launch();
        let (name, value) = mark.env();
        format!(
            "[servers.{}]\ncommand = {program:?}\nargs = {args:?}\nenv = {{ {name} = {value:?} }}\n{more}\n",
            self.name
        )
    }

    /// Whether so many of its processes are there as it is going to have. Those on their way to another
    /// program or to their end are not counted.
    pub(crate) fn at_its_worst(&self, seen: &[Marked]) -> bool {
        let orphans =
            ["double-fork", "clean-env-fork"].iter().filter(|word| self.words.contains(word)).count();
        let fleeting =
            |one: &&Marked| one.command.contains("fork-and-leave") || one.command.starts_with("sh -c trap");
        let stays = seen.len() - seen.iter().filter(fleeting).count();
        self.manners == Manners::Dies
            || (stays >= self.least && seen.iter().filter(|one| is_orphan(one)).count() >= orphans)
    }

    /// Whether it leaves processes that outlive their leader and their guard.
    pub(crate) fn leaves_orphans(&self) -> bool {
        self.manners != Manners::Dies
            && ["double-fork", "clean-env-fork", "fork-many"].iter().any(|word| self.words.contains(word))
    }
}

/// The grandchild of a double fork, once it runs its own program.
fn is_orphan(marked: &Marked) -> bool {
    marked.command.contains(" orphan") && !marked.command.starts_with("sh ")
}

/// `npx` of the `PATH`, with the real server in its cache: the first use downloads it, and several first uses at
/// the same time would disturb each other.
fn npx() -> PathBuf {
    static NPX: OnceLock<PathBuf> = OnceLock::new();
    let find = || {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let found = std::env::split_paths(&path).map(|dir| dir.join("npx")).find(|file| file.is_file());
        let npx = found.expect(
            "`npx` is not on the PATH: run the tests as `make test` does, or run scripts/setup-test-deps.sh and put its Node on the PATH",
        );
        let mut once = Command::new("timeout");
        once.arg(DOWNLOAD_LIMIT_S.to_string()).arg(&npx).args(["-y", everything()]);
        // It ends by itself: its standard input is at its end.
        let output = once.stdin(Stdio::null()).output().expect("npx runs");
        assert!(output.status.success(), "{once:?}: {}", String::from_utf8_lossy(&output.stderr));
        npx
    };
    NPX.get_or_init(find).clone()
}

/// The package of the real server, in the version that the quickstart pins.
fn everything() -> &'static str {
    static PACKAGE: OnceLock<String> = OnceLock::new();
    PACKAGE.get_or_init(|| {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/quickstart/ostler.toml");
        let text = std::fs::read_to_string(&file).expect("the quickstart is there");
        let package =
            text.split('"').find(|word| word.starts_with("@modelcontextprotocol/server-everything@"));
        package.expect("the quickstart pins the server").to_owned()
    })
}
