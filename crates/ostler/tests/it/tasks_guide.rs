//! `docs/tasks.md` is true: its commands, run as they are written, print what it says.

use std::io::Read as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use crate::support::{PATIENCE, wait_until};

/// A command of the guide, and what it prints.
struct Step {
    command: String,
    output: String,
}

/// The blocks of console: `$ COMMAND`, then what it prints.
fn steps(guide: &str) -> Vec<Step> {
    let blocks = guide.split("```console\n").skip(1);
    let block = |text: &str| {
        let text = text.split("```").next().expect("it ends");
        let (command, output) = text.strip_prefix("$ ").expect("a command").split_once('\n').expect("a line");
        Step { command: command.to_owned(), output: output.to_owned() }
    };
    blocks.map(block).collect()
}

/// A shell of somebody who has just installed Ostler, in an empty folder.
struct Shell {
    dir: tempfile::TempDir,
    daemon: Option<Child>,
}

impl Shell {
    fn command(&self, line: &str) -> Command {
        let ostler = Path::new(env!("CARGO_BIN_EXE_ostler"));
        let mut path = vec![ostler.parent().expect("a folder").to_owned()];
        path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!("exec 2>&1\n{line}")).current_dir(self.dir.path()).stdin(Stdio::null());
        command.env("PATH", std::env::join_paths(path).expect("plain paths"));
        command.env("OSTLER_RUNTIME_DIR", self.dir.path().join("run"));
        command.env("OSTLER_STATE_DIR", self.dir.path().join("state"));
        // Not where another daemon may be listening.
        command.env("OSTLER_GATEWAY__LISTEN", "127.0.0.1:0");
        command
    }

    /// What a command prints; of one that goes on in the background, what it prints until it is as much as is `wanted`.
    fn run(&mut self, line: &str, wanted: &str) -> String {
        let Some(foreground) = line.strip_suffix(" &") else {
            let mut child = self.command(line).stdout(Stdio::piped()).spawn().expect("sh runs");
            let mut text = String::new();
            child.stdout.take().expect("piped").read_to_string(&mut text).expect("text");
            child.wait().expect("it ends");
            return text;
        };
        let path = self.dir.path().join("printed");
        let file = std::fs::File::create(&path).expect("a file");
        // In the shell's place, so that it is the child.
        let (before, last) = foreground.rsplit_once("&& ").unwrap_or(("true ", foreground));
        let mut command = self.command(&format!("{before}&& exec {last}"));
        self.daemon = Some(command.stdout(file).spawn().expect("sh runs"));
        let mut text = String::new();
        wait_until("it has said that it is there", || {
            text = std::fs::read_to_string(&path).expect("readable");
            text.lines().count() >= wanted.lines().count()
        });
        text
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            // Its guards end what it runs.
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

fn is_id(word: &str) -> bool {
    let parts = word.strip_prefix(['t', 'b']).and_then(|rest| rest.split_once('-'));
    parts.is_some_and(|(number, nonce)| {
        number.parse::<u64>().is_ok() && nonce.len() == 8 && u32::from_str_radix(nonce, 16).is_ok()
    })
}

fn is_time(word: &str) -> bool {
    let plain = word.trim_end_matches([',', ')', ';']).trim_start_matches('(');
    let is_span = |unit: &str| {
        let number = plain.strip_suffix(unit);
        number.is_some_and(|number| {
            !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'm')
        })
    };
    ["ms", "s", "m"].into_iter().any(is_span)
        || (plain.len() > 19 && plain.ends_with('Z') && plain.contains('T'))
}

/// The words of a text, by which two runs of one command are compared: not the ids that are drawn by lot, nor moments,
/// times, addresses and the widths that these have in tables; and of how far a batch is only that it is told.
fn plain(text: &str) -> Vec<Vec<String>> {
    let mut lines: Vec<Vec<String>> = Vec::new();
    for line in text.lines() {
        let shown = |word: &str| match word {
            id if is_id(id.trim_end_matches([':', ';', ',', '.'])) => "ID".to_owned(),
            time if is_time(time) => "TIME".to_owned(),
            address if address.starts_with("http://127.0.0.1:") => "ADDRESS".to_owned(),
            word => word.to_owned(),
        };
        let words: Vec<String> = line.split_whitespace().map(shown).collect();
        let is_progress = words.first().is_some_and(|first| first == "ID") && line.contains(" ended");
        let words = if is_progress { vec!["PROGRESS".to_owned()] } else { words };
        if !(is_progress && lines.last() == Some(&words)) {
            lines.push(words);
        }
    }
    lines
}

/// The ids in a text, in their order.
fn ids(text: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for word in text.split(|c: char| !c.is_ascii_alphanumeric() && c != '-').filter(|word| is_id(word)) {
        if !found.iter().any(|known| known == word) {
            found.push(word.to_owned());
        }
    }
    found
}

#[test]
fn the_guide_from_nothing_to_a_batch_is_what_happens() {
    let guide = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/tasks.md");
    let guide = std::fs::read_to_string(guide).expect("the guide");
    let steps = steps(&guide);
    assert_eq!(steps.len(), 5, "it promises five commands");
    let mut shell = Shell { dir: tempfile::tempdir().expect("a temporary directory"), daemon: None };
    // The ids of the guide, and those that they are here.
    let mut names: Vec<(String, String)> = Vec::new();
    let began = Instant::now();
    for Step { command, output } in steps {
        let here = names.iter().fold(command.clone(), |line, (there, here)| line.replace(there, here));
        let printed = shell.run(&here, &output);
        assert_eq!(
            plain(&printed),
            plain(&output),
            "$ {command}\nprinted:\n{printed}\nthe guide says:\n{output}"
        );
        names.extend(ids(&output).into_iter().zip(ids(&printed)));
    }
    assert!(began.elapsed() < PATIENCE, "nobody waits longer for a first try");
}

#[test]
fn what_differs_from_run_to_run_is_left_out_and_nothing_else() {
    let one =
        "b1-5d3f2a10: 4 of 24 ended; about 9s left\nb1-5d3f2a10: 8 of 24 ended\nt2-00000001  ok  1m04s  3\n";
    let two = "b7-11111111: 9 of 24 ended\nt30-0000ffff ok 480ms 3\n";
    assert_eq!(plain(one), plain(two));
    assert_ne!(plain("limit 2"), plain("limit 3"));
    assert_ne!(plain("a\nb"), plain("a"));
    assert_eq!(ids("b1-5d3f2a10: t2-00000001 b1-5d3f2a10 to-do"), ["b1-5d3f2a10", "t2-00000001"]);
}
