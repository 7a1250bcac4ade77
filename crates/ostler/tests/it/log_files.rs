//! `log_files`: what a server writes is in a file, until its very end.

use crate::cli::done;
use crate::support::{Daemon, wait_until};

#[test]
fn the_output_of_a_server_is_in_its_file_to_the_last_line() {
    let config = "[servers.loud]\ncommand = \"sh\"\n\
         args = [\"-c\", \"trap 'echo goodbye; exit 0' TERM; echo hello; while :; do sleep 0.1; done\"]\n\
         transport = \"none\"\nscope = \"shared\"\nlog_files = 2\n";
    let mut daemon = Daemon::start(config, &[]);
    let file = daemon.state_dir().join("logs/loud.log");
    let text = || std::fs::read_to_string(&file).unwrap_or_default();
    wait_until("what it says is in the file", || text().contains(" loud.1 stdout hello\n"));
    done(&daemon, &["down"]);
    daemon.wait();
    let text = text();
    assert!(text.contains(" loud.1 stdout goodbye\n"), "{text}{}", daemon.stderr());
    let last = text.lines().last().expect("a line");
    assert!(last.contains(" loud.1 ostler stopped, nothing of it runs"), "{text}");
}
