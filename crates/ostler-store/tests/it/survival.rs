//! What was written survives SIGKILL of the writer, at whatever moment it comes.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::{dir, open, tree};

/// Tells the child, which is this test binary again, where to write.
const DIR_VARIABLE: &str = "OSTLER_STORE_TEST_DIR";

/// The child: writes trees without end and prints each mark once its insert has returned.
#[test]
#[ignore = "the child of `trees_survive_sigkill`, which starts it"]
fn child_that_writes_until_killed() {
    let dir = PathBuf::from(std::env::var_os(DIR_VARIABLE).expect("started by its parent"));
    let mut store = open(&dir);
    let mut out = std::io::stdout();
    for number in 0.. {
        let mark = format!("mark-{number}");
        store.trees_insert(&tree(&mark)).expect("inserts");
        writeln!(out, "wrote {mark}").expect("the parent reads");
        if number % 3 == 0 {
            store.trees_remove(&mark).expect("removes");
            writeln!(out, "removed {mark}").expect("the parent reads");
        }
    }
}

#[test]
fn trees_survive_sigkill() {
    for lines_before_kill in [1, 50, 400] {
        let dir = dir();
        let mut child = Command::new(std::env::current_exe().expect("a path"))
            .args(["--ignored", "--exact", "--nocapture", "survival::child_that_writes_until_killed"])
            .env(DIR_VARIABLE, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .expect("starts");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut written = std::collections::BTreeSet::new();
        let mut seen = 0;
        let mut note = |line: String| {
            // The first line may share its row with the test harness's own words.
            if let Some((_, mark)) = line.split_once("wrote ") {
                written.insert(mark.to_owned());
            } else if let Some(mark) = line.strip_prefix("removed ") {
                written.remove(mark);
            } else {
                return 0;
            }
            1
        };
        while seen < lines_before_kill {
            seen += note(lines.next().expect("the child goes on").expect("reads"));
        }
        child.kill().expect("SIGKILL");
        // What it had said before it died counts as said. A line is one write to the pipe, so none is cut.
        for line in lines {
            note(line.expect("reads"));
        }
        child.wait().expect("is reaped");

        let found: Vec<_> =
            open(dir.path()).trees_all().expect("reads").into_iter().map(|tree| tree.mark).collect();
        let lost: Vec<_> = written.iter().filter(|mark| !found.contains(mark)).collect();
        // A removal that was done but not yet said explains one missing mark, an insert one too many.
        assert!(lost.len() <= 1, "{} of {} lost, the first {:?}", lost.len(), written.len(), lost[0]);
        if let [mark] = lost[..] {
            let number: u64 = mark["mark-".len()..].parse().expect("a number");
            let last = written.iter().filter_map(|mark| mark["mark-".len()..].parse().ok()).max();
            assert!(number.is_multiple_of(3) && Some(number) == last, "{mark} is lost");
        }
        let extra = found.iter().filter(|mark| !written.contains(*mark)).count();
        assert!(extra <= 1, "more trees than were written: {extra}");
    }
}
