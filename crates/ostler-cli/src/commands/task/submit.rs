//! `task submit`: what the command line and files ask for, as the API takes it.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;
use std::time::Duration;

use ostler_api::types::tasks::{BATCH_BODY_MAX, TASK_BODY_MAX};
use ostler_api::{BatchOptions, Client, NewBatch, NewTask};
use serde_json::value::{RawValue, to_raw_value};

use super::wait::{self, tell};
use super::{print_view, since_1970};
use crate::args::{Short, SubmitArgs, TaskWaitArgs};
use crate::commands::print;
use crate::exit::Failure;

/// The options that make up a payload, by type: each with the member of the payload that it is.
const PARTS: [(&str, &[(&str, &str)]); 6] = [
    ("execute-code", &[("--code", "code"), ("--args", "args"), ("--language", "language")]),
    ("execute-function", &[("--function", "function"), ("--args", "args"), ("--language", "language")]),
    (
        "execute-module",
        &[("--module", "module"), ("--function", "function"), ("--args", "args"), ("--language", "language")],
    ),
    ("http-request", &[("--url", "url")]),
    ("shell-command", &[("-- COMMAND", "argv"), ("--shell", "command")]),
    ("mcp-tool", &[("--server", "server"), ("--tool", "tool"), ("--args", "arguments")]),
];

pub(super) async fn submit(client: &Client, mut args: SubmitArgs) -> Result<(), Failure> {
    let (json, wait) = (args.json, args.wait);
    let now = since_1970();
    let (id, earlier) = if let Some(file) = args.batch.take() {
        let submitted = client.submit_batch(&batch(&file, args, now)?).await?;
        if json && !wait {
            return print_view(&submitted);
        }
        (submitted.id, submitted.earlier)
    } else {
        let submitted = client.submit_task(&task(args, now)?).await?;
        if json && !wait {
            return print_view(&submitted);
        }
        (submitted.id, submitted.earlier)
    };
    if earlier {
        tell(&format!("{id} was submitted before under this key"));
    }
    if !wait {
        return print(format!("{id}\n").as_bytes());
    }
    tell(&format!("{id} is submitted"));
    wait::wait(client, &TaskWaitArgs { ids: vec![id], longest: None, json }).await
}

fn usage(error: String, hint: &str) -> Failure {
    Failure::Usage { error, hint: (!hint.is_empty()).then(|| hint.to_owned()) }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The one task of the command line.
fn task(args: SubmitArgs, now: Duration) -> Result<NewTask, Failure> {
    let kind = args.kind.clone().unwrap_or_default();
    let payload = match &args.payload {
        Some(text) => Some(given(text)?),
        None => made(&kind, &args.short, &args.argv)?,
    };
    Ok(NewTask {
        payload,
        project: args.project.clone(),
        key: args.key.clone(),
        session_id: args.session.clone(),
        ..common(kind, &args, now)
    })
}

/// What holds for a task as for each task of a batch.
fn common(kind: String, args: &SubmitArgs, now: Duration) -> NewTask {
    NewTask {
        kind,
        priority: args.priority,
        delay_ms: args.delay.map(millis),
        not_before_unix_ms: args.not_before.map(|moment| moment.unix_ms(now)),
        deadline_unix_ms: args.deadline.map(|moment| moment.unix_ms(now)),
        timeout_ms: args.timeout.map(millis),
        attempts: args.attempts,
        memory_bytes: args.memory,
        output_bytes: args.output,
        ..NewTask::default()
    }
}

/// A payload as it was given: JSON, `@FILE`, or `-`.
fn given(text: &str) -> Result<Box<RawValue>, Failure> {
    let (what, text) = match text.strip_prefix('@') {
        Some(file) => (file.to_owned(), read(Path::new(file), TASK_BODY_MAX)?),
        None if text == "-" => ("standard input".to_owned(), read(Path::new("-"), TASK_BODY_MAX)?),
        None => ("the payload".to_owned(), text.to_owned()),
    };
    json(&what, text)
}

fn json(what: &str, text: String) -> Result<Box<RawValue>, Failure> {
    RawValue::from_string(text).map_err(|error| {
        usage(
            format!("{what} is not JSON: {error}"),
            "a text is quoted twice: '\"text\"'; @FILE reads a file",
        )
    })
}

/// A payload made of options; none where there are none and the type is one that needs none.
fn made(kind: &str, short: &Short, argv: &[String]) -> Result<Option<Box<RawValue>>, Failure> {
    let parts = parts(kind, short, argv)?;
    let takes = PARTS.iter().find(|(known, _)| *known == kind).map(|(_, takes)| *takes);
    let Some(takes) = takes else {
        return match parts.first() {
            None => Ok(None),
            Some((option, _)) => Err(usage(
                format!("`{option}` makes a payload of Ostler's own types, and `{kind}` is none of them"),
                "give the payload as JSON",
            )),
        };
    };
    let options: Vec<&str> = takes.iter().map(|(option, _)| *option).collect();
    let options = options.join(", ");
    if parts.is_empty() {
        let hint = format!("give it as JSON, or by its parts: {options}");
        return Err(usage(format!("`{kind}` needs a payload"), &hint));
    }
    let mut payload = BTreeMap::new();
    for (option, value) in parts {
        let Some((_, member)) = takes.iter().find(|(taken, _)| *taken == option) else {
            return Err(usage(format!("`{option}` is not of `{kind}`"), &format!("it takes {options}")));
        };
        if *member == "command" {
            payload.insert("shell", written(&true)?);
        }
        payload.insert(*member, value);
    }
    if payload.contains_key("argv") && payload.contains_key("command") {
        return Err(usage("`--shell` and a COMMAND are two commands".to_owned(), "give one of them"));
    }
    written(&payload).map(Some)
}

fn written<T: serde::Serialize>(value: &T) -> Result<Box<RawValue>, Failure> {
    to_raw_value(value).map_err(|error| usage(format!("the payload cannot be written: {error}"), ""))
}

/// The parts of a payload that were given, by option.
fn parts(kind: &str, short: &Short, argv: &[String]) -> Result<Vec<(&'static str, Box<RawValue>)>, Failure> {
    let mut parts = Vec::new();
    let texts = [
        ("--code", &short.code, true),
        ("--function", &short.function, kind == "execute-function"),
        ("--module", &short.module, false),
        ("--language", &short.language, false),
        ("--url", &short.url, false),
        ("--shell", &short.shell, false),
        ("--server", &short.server, false),
        ("--tool", &short.tool, false),
    ];
    for (option, text, is_source) in texts {
        let Some(text) = text else { continue };
        let value = match text.strip_prefix('@').filter(|_| is_source) {
            Some(file) => written(&read(Path::new(file), TASK_BODY_MAX)?)?,
            None => written(text)?,
        };
        parts.push((option, value));
    }
    if let Some(args) = &short.args {
        parts.push(("--args", json("`--args`", args.clone())?));
    }
    if !argv.is_empty() {
        parts.push(("-- COMMAND", written(&argv)?));
    }
    Ok(parts)
}

/// The tasks of a file, with what the command line says for those that do not say it themselves.
fn batch(file: &Path, args: SubmitArgs, now: Duration) -> Result<NewBatch, Failure> {
    let text = read(file, BATCH_BODY_MAX)?;
    let common = common(String::new(), &args, now);
    let mut tasks = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let task: NewTask = serde_json::from_str(line).map_err(|error| {
            usage(
                format!("line {} of {} is no task: {error}", number + 1, shown(file)),
                r#"each line is to be {"type": "TYPE", "payload": {}}"#,
            )
        })?;
        tasks.push(filled(task, &common));
    }
    if tasks.is_empty() {
        return Err(usage(format!("{} holds no task", shown(file)), ""));
    }
    let batch =
        BatchOptions { name: args.name, project: args.project, key: args.key, session_id: args.session };
    Ok(NewBatch { tasks, batch })
}

fn filled(task: NewTask, common: &NewTask) -> NewTask {
    // One of these says when it begins, and only one may.
    let has_begin = task.delay_ms.is_some() || task.not_before_unix_ms.is_some();
    let begin = |common: Option<u64>| common.filter(|_| !has_begin);
    NewTask {
        priority: task.priority.or(common.priority),
        delay_ms: task.delay_ms.or(begin(common.delay_ms)),
        not_before_unix_ms: task.not_before_unix_ms.or(begin(common.not_before_unix_ms)),
        deadline_unix_ms: task.deadline_unix_ms.or(common.deadline_unix_ms),
        timeout_ms: task.timeout_ms.or(common.timeout_ms),
        attempts: task.attempts.or(common.attempts),
        memory_bytes: task.memory_bytes.or(common.memory_bytes),
        output_bytes: task.output_bytes.or(common.output_bytes),
        ..task
    }
}

fn is_input(file: &Path) -> bool {
    file == Path::new("-")
}

fn shown(file: &Path) -> String {
    if is_input(file) { "standard input".to_owned() } else { file.display().to_string() }
}

/// A file, or standard input, of at most so many bytes.
fn read(file: &Path, most: usize) -> Result<String, Failure> {
    let mut text = Vec::new();
    let more = most as u64 + 1;
    let length = match is_input(file) {
        true => std::io::stdin().lock().take(more).read_to_end(&mut text),
        false => std::fs::File::open(file).and_then(|open| open.take(more).read_to_end(&mut text)),
    };
    match length {
        Ok(length) if length > most => {
            Err(usage(format!("{} is larger than {most} bytes", shown(file)), "submit it in parts"))
        }
        Ok(_) => String::from_utf8(text).map_err(|_| usage(format!("{} is not UTF-8", shown(file)), "")),
        Err(error) => Err(usage(format!("{} cannot be read: {error}", shown(file)), "")),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::{Cli, ClientCommand, Command, TaskCommand};
    use crate::exit::Exit;

    const NOW: Duration = Duration::from_secs(1_000);

    fn args(words: &[&str]) -> SubmitArgs {
        let words = ["ostler", "task", "submit"].iter().chain(words);
        match Cli::try_parse_from(words).expect("understood").command {
            Command::Client(ClientCommand::Task(TaskCommand::Submit(args))) => *args,
            other => panic!("{other:?}"),
        }
    }

    fn sent(words: &[&str]) -> String {
        serde_json::to_string(&task(args(words), NOW).expect("a task")).expect("JSON")
    }

    fn refused(words: &[&str]) -> String {
        let failure = task(args(words), NOW).expect_err("wrong");
        assert_eq!(failure.exit(), Exit::Usage);
        failure.report()
    }

    #[test]
    fn payloads_are_made_of_options() {
        let cases: [(&[&str], &str); 8] = [
            (&["shell-command", "--", "echo", "-n", "hi"], r#"{"argv":["echo","-n","hi"]}"#),
            (&["shell-command", "--shell", "a | b"], r#"{"command":"a | b","shell":true}"#),
            (&["execute-code", "--code", "return 1"], r#"{"code":"return 1"}"#),
            (
                &["execute-function", "--function", "(a) => a", "--args", "[1e400]", "--language", "node"],
                r#"{"args":[1e400],"function":"(a) => a","language":"node"}"#,
            ),
            (
                &["execute-module", "--module", "./m.py", "--function", "@run"],
                r#"{"function":"@run","module":"./m.py"}"#,
            ),
            (&["http-request", "--url", "https://example.org/"], r#"{"url":"https://example.org/"}"#),
            (
                &["mcp-tool", "--server", "s", "--tool", "t", "--args", "{}"],
                r#"{"arguments":{},"server":"s","tool":"t"}"#,
            ),
            (&["resize", r#"{"b":1, "a":[]}"#], r#"{"b":1, "a":[]}"#),
        ];
        for (words, payload) in cases {
            assert_eq!(sent(words), format!(r#"{{"type":"{}","payload":{payload}}}"#, words[0]), "{words:?}");
        }
        assert_eq!(sent(&["resize"]), r#"{"type":"resize"}"#);
    }

    #[test]
    fn what_does_not_go_together_is_refused_with_what_does() {
        let cases: [(&[&str], &str); 7] = [
            (&["execute-code"], "by its parts: --code, --args, --language"),
            (&["execute-code", "--url", "x"], "`--url` is not of `execute-code`"),
            (&["resize", "--code", "x"], "`resize` is none of them"),
            (&["shell-command", "--shell", "x", "--", "y"], "two commands"),
            (&["resize", "{"], "the payload is not JSON"),
            (&["execute-function", "--function", "f", "--args", "1,2"], "`--args` is not JSON"),
            (&["resize", "@/nonexistent/x.json"], "/nonexistent/x.json cannot be read"),
        ];
        for (words, says) in cases {
            let report = refused(words);
            assert!(report.contains(says), "{words:?}: {report}");
        }
    }

    #[test]
    fn options_become_members() {
        let words = [
            "x",
            "--project",
            "p",
            "--priority",
            "9",
            "--delay",
            "2s",
            "--deadline",
            "10s",
            "--timeout",
            "1m",
            "--attempts",
            "2",
            "--key",
            "k",
            "--session",
            "s",
            "--memory",
            "64MiB",
            "--output",
            "1KiB",
        ];
        let expected = r#"{"type":"x","project":"p","priority":9,"delay_ms":2000,"deadline_unix_ms":1010000,"timeout_ms":60000,"attempts":2,"key":"k","session_id":"s","memory_bytes":67108864,"output_bytes":1024}"#;
        assert_eq!(sent(&words), expected);
        let later = sent(&["x", "--not-before", "1970-01-01T00:00:07Z"]);
        assert_eq!(later, r#"{"type":"x","not_before_unix_ms":7000}"#);
    }

    #[test]
    fn files_hold_payloads_sources_and_batches() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).expect("written");
            path.to_str().expect("plain").to_owned()
        };
        let code = file("code.js", "return \"é\";\n");
        assert_eq!(
            sent(&["execute-code", "--code", &format!("@{code}")]),
            r#"{"type":"execute-code","payload":{"code":"return \"é\";\n"}}"#
        );
        let tasks = file(
            "tasks.jsonl",
            "{\"type\":\"a\",\"payload\":{\"n\": 1},\"delay_ms\":5,\"priority\":1}\n\n{\"type\":\"b\"}\n",
        );
        let words = [
            "--batch",
            &tasks,
            "--name",
            "n",
            "--project",
            "p",
            "--key",
            "k",
            "--not-before",
            "1s",
            "--priority",
            "7",
        ];
        let read = |words: &[&str]| {
            let mut args = args(words);
            let file = args.batch.take().expect("a file");
            batch(&file, args, NOW)
        };
        assert_eq!(
            serde_json::to_string(&read(&words).expect("a batch")).expect("JSON"),
            r#"{"tasks":[{"type":"a","payload":{"n": 1},"priority":1,"delay_ms":5},{"type":"b","priority":7,"not_before_unix_ms":1001000}],"batch":{"name":"n","project":"p","key":"k"}}"#
        );
        let wrong = file("wrong.jsonl", "{\"type\":\"a\"}\n{\"typ\":\"b\"}\n");
        let report = read(&["--batch", &wrong]).expect_err("a slip").report();
        assert!(report.contains("line 2 of") && report.contains("unknown field `typ`"), "{report}");
        let empty = file("empty.jsonl", "\n");
        assert!(read(&["--batch", &empty]).expect_err("empty").report().contains("holds no task"));
    }
}
