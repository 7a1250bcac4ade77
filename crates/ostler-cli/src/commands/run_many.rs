//! `run-many`: calls of tools from a file, in one go.

use std::io::{Read as _, Write as _};
use std::path::Path;

use ostler_api::{Client, RunEvent, RunMany, RunReport};

use super::{print, print_json};
use crate::args::RunManyArgs;
use crate::exit::Failure;
use crate::render;

/// Largest file that is read, in bytes: what the daemon takes.
const MAX_FILE: u64 = 2 << 20;

pub(super) async fn run_many(client: &Client, args: RunManyArgs) -> Result<(), Failure> {
    let json = args.json;
    let wanted = wanted(args)?;
    let mut run = client.follow_run(&wanted).await?;
    let report = loop {
        match run.next().await? {
            // For whoever watches; nobody may be there.
            RunEvent::Progress(further) => drop(writeln!(std::io::stderr(), "{}", further.message)),
            RunEvent::Report(report) => break report,
        }
    };
    if json {
        print_json(&serde_json::to_vec(&report).map_err(std::io::Error::from)?)?;
    } else {
        print(render::report(&report).as_bytes())?;
    }
    verdict(&report)
}

fn verdict(report: &RunReport) -> Result<(), Failure> {
    match report.failed {
        0 => Ok(()),
        failed => Err(Failure::Outcome {
            error: format!("{failed} of {} calls failed", report.results.len()),
            hint: Some("the others were made all the same; `--json` shows all that each answered".to_owned()),
        }),
    }
}

/// What the file asks for, with what the command line says beside it.
fn wanted(args: RunManyArgs) -> Result<RunMany, Failure> {
    let text = read(&args.file)?;
    let wanted: Result<RunMany, _> = serde_json::from_slice(&text);
    let mut wanted = wanted.map_err(|error| Failure::Usage {
        error: format!("{} does not say which calls to make: {error}", shown(&args.file)),
        hint: Some(
            r#"it is to be {"calls": [{"server": "NAME", "tool": "NAME", "arguments": {}}]}"#.to_owned(),
        ),
    })?;
    if let Some(at_once) = args.concurrent {
        wanted.concurrent = true;
        wanted.limit = at_once.or(wanted.limit);
    }
    wanted.session_id = args.session.or(wanted.session_id);
    Ok(wanted)
}

fn shown(file: &Path) -> String {
    if is_input(file) { "standard input".to_owned() } else { file.display().to_string() }
}

fn is_input(file: &Path) -> bool {
    file == Path::new("-")
}

fn read(file: &Path) -> Result<Vec<u8>, Failure> {
    let mut text = Vec::new();
    let more = MAX_FILE + 1;
    let length = match is_input(file) {
        true => std::io::stdin().lock().take(more).read_to_end(&mut text),
        false => std::fs::File::open(file).and_then(|open| open.take(more).read_to_end(&mut text)),
    };
    let usage = |error: String| Failure::Usage { error, hint: None };
    match length {
        Ok(length) if length as u64 > MAX_FILE => {
            Err(usage(format!("{} is larger than {MAX_FILE} bytes", shown(file))))
        }
        Ok(_) => Ok(text),
        Err(error) => Err(usage(format!("{} cannot be read: {error}", shown(file)))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(dir: &Path, text: &str, concurrent: Option<Option<u32>>) -> RunManyArgs {
        let file = dir.join("calls.json");
        std::fs::write(&file, text).expect("written");
        RunManyArgs { file, concurrent, session: Some("k".to_owned()), json: false }
    }

    #[test]
    fn the_command_line_goes_before_the_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let text =
            r#"{"calls": [{"server": "s", "tool": "t"}], "concurrent": true, "limit": 3, "session_id": "f"}"#;
        let read = |concurrent| wanted(args(dir.path(), text, concurrent)).expect("calls");
        assert_eq!(
            (read(None).limit, read(Some(None)).limit, read(Some(Some(9))).limit),
            (Some(3), Some(3), Some(9))
        );
        assert_eq!(read(None).session_id.as_deref(), Some("k"));
        let wrong = wanted(args(dir.path(), r#"{"calls": [{"server": "s"}]}"#, None)).expect_err("no tool");
        assert_eq!(wrong.exit(), crate::exit::Exit::Usage);
        assert!(wrong.report().contains("missing field `tool`"), "{}", wrong.report());
        let none = read_missing(dir.path());
        assert!(none.report().contains("cannot be read"), "{}", none.report());
    }

    fn read_missing(dir: &Path) -> Failure {
        super::read(&dir.join("none.json")).expect_err("it is not there")
    }
}
