//! `shell-command`.

use ostler_worker::protocol::ErrorKind;
use serde_json::{Value, json};

use crate::driver::{Driver, builtin, mark, marked, wait_until};

const NOTHING: Value = Value::Null;

fn shell(driver: &mut Driver, payload: &Value) -> crate::driver::Ended {
    driver.run("shell-command", payload)
}

#[test]
fn a_command_gives_what_it_prints_and_how_it_ended() {
    let mut driver = Driver::builtin();
    let report = shell(&mut driver, &json!({"argv": ["cat"], "stdin": "hällo"})).value();
    let expected = json!({"status": 0, "signal": null, "stdout": "hällo", "stderr": "", "stdout_dropped": 0, "stderr_dropped": 0});
    assert_eq!(report, expected);
    // Arguments are no shell's business.
    let report = shell(&mut driver, &json!({"argv": ["printf", "%s|", "$HOME", "a b", ";ls"]})).value();
    assert_eq!(report["stdout"], "$HOME|a b|;ls|");
    let report = shell(&mut driver, &json!({"command": "echo $((6 * 7)) | tr 4 5", "shell": true})).value();
    assert_eq!(report["stdout"], "52\n");
    // More than a pipe holds, both ways.
    let text = "0123456789".repeat(50_000);
    let report = driver.task(
        "shell-command",
        &json!({"argv": ["cat"], "stdin": text, "max_output": 600_000}),
        &json!({"limits": {"output": 2_000_000}}),
    );
    assert_eq!(report.value()["stdout"], text);
    let failed = shell(&mut driver, &json!({"command": "echo out; echo why >&2; exit 3", "shell": true}));
    failed.is(ErrorKind::Failed, "status 3");
    let detail: Value = serde_json::from_str(failed.error().detail.as_ref().unwrap().get()).unwrap();
    assert_eq!((&detail["status"], &detail["stdout"]), (&json!(3), &json!("out\n")));
    assert_eq!(failed.error().trace.as_deref(), Some("why\n"));
    let report = shell(&mut driver, &json!({"command": "kill -9 $$", "shell": true, "check": false})).value();
    assert_eq!((&report["status"], &report["signal"]), (&NOTHING, &json!(9)));
    let report = shell(&mut driver, &json!({"argv": ["printf", "\\377\\001"], "encoding": "base64"})).value();
    assert_eq!(report["stdout"], "/wE=");
}

#[test]
fn it_has_a_clean_environment_and_the_folder_it_is_allowed() {
    let mut command = builtin();
    command.env("SECRET", "do not tell").env("WANTED", "yes");
    let mut driver = Driver::start(command);
    let report =
        shell(&mut driver, &json!({"argv": ["env"], "env": {"MINE": "1"}, "inherit": ["WANTED", "MISSING"]}));
    let printed = report.value()["stdout"].as_str().unwrap().to_owned();
    let mut names: Vec<&str> = printed.lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
    names.sort_unstable();
    assert_eq!(names, ["LANG", "MINE", "PATH", "WANTED"]);
    let own = driver.folder.path().canonicalize().unwrap();
    std::fs::create_dir(own.join("inner")).unwrap();
    std::os::unix::fs::symlink("/", own.join("way-out")).unwrap();
    let report = shell(&mut driver, &json!({"argv": ["pwd"], "cwd": "inner"})).value();
    assert_eq!(report["stdout"], format!("{}\n", own.join("inner").display()));
    for outside in ["/", "..", "way-out/etc"] {
        shell(&mut driver, &json!({"argv": ["pwd"], "cwd": outside}))
            .is(ErrorKind::Refused, "project allows");
    }
    let allowed = json!({"allow": {"folders": ["/etc"]}});
    let report = driver.task("shell-command", &json!({"argv": ["pwd"], "cwd": "/etc"}), &allowed);
    assert_eq!(report.value()["stdout"], "/etc\n");
}

#[test]
fn what_makes_no_sense_is_not_started() {
    let mut driver = Driver::builtin();
    for (payload, part) in [
        (json!({"argv": []}), "empty"),
        (json!({"argv": [""]}), "empty"),
        (json!({"argv": ["a\u{0}b"]}), "NUL"),
        (json!({"argv": ["echo", "x".repeat(200_000)]}), "131071"),
        (json!({"argv": "ls"}), "sequence"),
        (json!({"command": "ls"}), "shell"),
        (json!({"argv": ["ls"], "command": "ls", "shell": true}), "either"),
        (json!({"argv": ["ls"], "shell": true}), "either"),
        (json!({"argv": ["no-such-program-here"]}), "PATH"),
        (json!({"argv": ["/etc/passwd"]}), "no program"),
        (json!({"argv": ["ls"], "cwd": "missing"}), "cwd"),
        (json!({"argv": ["ls"], "env": {"A=B": "1"}}), "variable"),
        (json!({"argv": ["ls"], "env": {"A": "\u{0}"}}), "NUL"),
        (json!({"argv": ["ls"], "max_output": 1 << 30}), "max_output"),
        (json!({"argv": ["ls"], "agrv": 1}), "agrv"),
        (json!({}), "either"),
        (json!(null), "payload"),
    ] {
        shell(&mut driver, &payload).is(ErrorKind::Invalid, part);
    }
}

#[test]
fn too_much_output_is_counted_and_too_much_memory_ends_it() {
    let mut driver = Driver::builtin();
    let report = shell(&mut driver, &json!({"argv": ["seq", "100000"], "max_output": 4})).value();
    assert_eq!((&report["stdout"], &report["stdout_dropped"]), (&json!("1\n2\n"), &json!(588_891)));
    let limits = json!({"limits": {"output": 100}});
    driver
        .task("shell-command", &json!({"argv": ["seq", "1000"]}), &limits)
        .is(ErrorKind::Output, "limits.output");
    // A child's memory counts too.
    let hog = "sh -c 'x=$(head -c 60000000 /dev/zero | tr \"\\0\" x); sleep 1000'";
    driver
        .task(
            "shell-command",
            &json!({"command": hog, "shell": true}),
            &json!({"limits": {"memory": 20_000_000}}),
        )
        .is(ErrorKind::Memory, "limits.memory");
}

/// Descendants of every kind, which say when all of them are there.
const FAMILY: &str = "
    sleep 1000 &
    setsid sleep 1000 &
    (setsid sh -c 'sleep 1000 & trap \"\" TERM HUP; sleep 1000' &)
    while [ \"$(ls | wc -l)\" -lt 1 ]; do :; done";

#[test]
fn nothing_of_a_command_outlives_it() {
    let (mut driver, mark) = (Driver::builtin(), mark());
    let with = |command: &str| json!({"command": command, "shell": true, "env": {"MARK": mark}});
    // It ends by itself.
    let ended = shell(
        &mut driver,
        &with("sleep 1000 & setsid sleep 1000 & (setsid sh -c 'sleep 1000 & sleep 1000' &) ; echo $!"),
    );
    assert!(ended.0.ok, "{ended:?}");
    assert_eq!(marked(&mark), 0);
    // It is cancelled.
    driver.begin("shell-command", &with(FAMILY), &json!({}));
    wait_until("its processes are there", || marked(&mark) >= 5);
    driver.cancel();
    driver.ended().is(ErrorKind::Cancelled, "");
    assert_eq!(marked(&mark), 0);
    // Its time is over.
    let limits = json!({"limits": {"time_ms": 150}});
    driver.task("shell-command", &with(FAMILY), &limits).is(ErrorKind::Timeout, "150 ms");
    assert_eq!(marked(&mark), 0);
    // Nobody is there any more who would hear of it.
    driver.begin("shell-command", &with(FAMILY), &json!({}));
    wait_until("its processes are there", || marked(&mark) >= 5);
    driver.close();
    assert!(driver.exit().success());
    assert_eq!(marked(&mark), 0);
}
