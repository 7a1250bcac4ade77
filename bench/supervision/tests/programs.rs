//! The benchmark's programs say what happened, when it happened.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use bench_supervision::monotonic_ns;
use rustix::fs::Mode;
use rustix::process::{Pid, Signal};

const CHILD: &str = env!("CARGO_BIN_EXE_bench-child");
const FLOOR: &str = env!("CARGO_BIN_EXE_bench-floor");
const DEADLINE: Duration = Duration::from_secs(20);

/// The named pipe, and what is said on it.
struct Said {
    path: PathBuf,
    lines: Receiver<Vec<String>>,
}

impl Said {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("bench-supervision-{name}-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, Mode::RUSR | Mode::WUSR).expect("a named pipe");
        // For reading and writing, so that it is never at its end and opening it does not wait.
        let pipe = std::fs::File::options().read(true).write(true).open(&path).expect("it opens");
        let (tell, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                let words = line.split(' ').map(str::to_owned).collect();
                if tell.send(words).is_err() {
                    return;
                }
            }
        });
        Self { path, lines }
    }

    fn next(&self) -> Vec<String> {
        self.lines.recv_timeout(DEADLINE).expect("a line in time")
    }
}

impl Drop for Said {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_child_says_when_it_runs_and_stays() {
    let said = Said::new("stays");
    let before = monotonic_ns();
    let mut child = Killed(Command::new(CHILD).arg("a").arg(&said.path).spawn().expect("it starts"));
    let words = said.next();
    assert_eq!(words[..3], ["run".to_owned(), "a".to_owned(), child.0.id().to_string()]);
    let at: u64 = words[3].parse().expect("a number");
    assert!((before..=monotonic_ns()).contains(&at), "{before} <= {at} <= now");
    assert!(child.0.try_wait().expect("its state").is_none(), "it goes on");
}

#[test]
fn a_flood_is_as_long_as_it_says() {
    let said = Said::new("flood");
    let mut child = Command::new(CHILD);
    child.arg("a").arg(&said.path).arg("0.05").stdout(Stdio::piped());
    let mut child = Killed(child.spawn().expect("it starts"));
    let output: ChildStdout = child.0.stdout.take().expect("piped");
    let (counted, count) = channel();
    std::thread::spawn(move || {
        let mut lines = BufReader::new(output).lines();
        let bytes: usize = lines.by_ref().map_while(Result::ok).map(|line| line.len() + 1).sum();
        let _ = counted.send(bytes);
    });
    assert_eq!(said.next()[0], "run");
    let words = said.next();
    assert_eq!(words[0], "flooded");
    assert!(words[3].parse::<u64>().expect("a number") >= 50_000_000, "{words:?}");
    drop(child);
    let bytes = count.recv_timeout(DEADLINE).expect("the end of its output");
    assert_eq!(words[2], bytes.to_string());
}

#[test]
fn the_floor_starts_again_what_was_killed() {
    let said = Said::new("floor");
    let floor = Command::new(FLOOR).args(["2", CHILD]).arg(&said.path).spawn().expect("it starts");
    let floor = Killed(floor);
    let (one, other) = (said.next(), said.next());
    let pid = |words: &[String]| Pid::from_raw(words[2].parse().expect("a pid")).expect("not 0");
    rustix::process::kill_process(pid(&one), Signal::KILL).expect("it is killed");
    let again = said.next();
    assert_eq!(again[1], one[1], "the same name");
    assert_ne!(again[2], one[2], "another process");
    // The floor first, or it starts them again.
    drop(floor);
    for child in [&other, &again] {
        rustix::process::kill_process(pid(child), Signal::KILL).expect("it is killed");
    }
}
