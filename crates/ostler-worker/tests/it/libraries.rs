//! `workers/python` and `workers/node`, over real pipes.

use std::process::{Command, Stdio};

use ostler_worker::protocol::{ErrorKind, FromWorker, Level, TaskError};
use serde_json::{Value, json};

use crate::driver::{Driver, mark, marked, wait_until, workers};

/// Whether an interpreter is there and new enough; says so loudly where not.
fn is_there(program: &str, check: &[&str]) -> bool {
    let found = Command::new(program).args(check).stdout(Stdio::null()).stderr(Stdio::null()).status();
    let is_there = found.is_ok_and(|status| status.success());
    if !is_there {
        eprintln!("SKIPPED, NOT TESTED: there is no {program} that passes {check:?}");
    }
    is_there
}

/// A worker in Python: the stock one, or a script.
pub(crate) fn python(what: &str) -> Option<Command> {
    if !is_there("python3", &["-c", "import sys; sys.exit(sys.version_info < (3, 9))"]) {
        return None;
    }
    let mut command = Command::new("python3");
    command.env("PYTHONPATH", workers("python")).env("PYTHONDONTWRITEBYTECODE", "1");
    if what == "stock" {
        command.args(["-m", "ostler_worker"])
    } else {
        command.args(["-c", what])
    };
    Some(command)
}

/// A worker in Node: a file of the library's.
pub(crate) fn node(what: &str) -> Option<Command> {
    if !is_there("node", &["-e", "process.exit(parseInt(process.versions.node) < 20)"]) {
        return None;
    }
    let mut command = Command::new("node");
    command.arg(workers("node").join(what));
    Some(command)
}

fn errors(driver: &mut Driver, table: &[((&str, Value), Value, ErrorKind, &str)]) {
    for ((kind, payload), more, expected, part) in table {
        let ended = driver.task(kind, payload, more);
        let TaskError { kind, message, .. } = ended.error();
        assert!(kind == expected && message.contains(part), "{payload}: {ended:?}");
    }
}

fn code(code: &str) -> Value {
    json!({ "code": code })
}

#[test]
fn python_does_its_types() {
    let Some(command) = python("stock") else { return };
    let mut driver = Driver::start(command);
    assert_eq!(driver.ready.types, ["execute-code", "execute-function", "execute-module"]);
    let printing = "import os, sys\nprint('out')\nos.system('echo inner; echo {\\\\\"msg\\\\\":1}')\nprint('err', file=sys.stderr)\nos.write(1, b'raw')\nargs['n'] + 1";
    assert_eq!(driver.run("execute-code", &json!({"code": printing, "args": {"n": 41}})).value(), 42);
    let texts: Vec<&str> = driver.logs.iter().map(|(_, text)| text.as_str()).collect();
    for part in ["out", "inner", "{\"msg\":1}", "err", "raw"] {
        assert!(texts.contains(&part), "{part}: {texts:?}");
    }
    let awaiting = code("import asyncio\nawait asyncio.sleep(0)\nfor n in range(9):\n  if n > 3: return n");
    assert_eq!(driver.run("execute-code", &awaiting).value(), 4);
    let function =
        json!({"function": "def f(a, *, b=1):\n  return [a, b]", "args": ["ä"], "kwargs": {"b": 2}});
    assert_eq!(driver.run("execute-function", &function).value(), json!(["ä", 2]));
    assert_eq!(driver.run("execute-function", &json!({"function": "lambda: None"})).value(), json!(null));
    std::fs::write(
        driver.folder.path().join("mine.py"),
        "class A:\n  @staticmethod\n  def f(x): return x * 2\nasync def main(): return 'main'\n",
    )
    .unwrap();
    let module = json!({"module": "mine.py", "function": "A.f", "args": [21]});
    assert_eq!(driver.run("execute-module", &module).value(), 42);
    assert_eq!(driver.run("execute-module", &json!({"module": "./mine.py"})).value(), "main");
    let package = json!({"module": "os.path", "function": "basename", "args": ["/a/b"]});
    assert_eq!(driver.run("execute-module", &package).value(), "b");
    // Nothing of one is seen by the next.
    driver.run(
        "execute-code",
        &code("import builtins, os\nbuiltins.leak = 1\nos.environ['LEAK'] = '1'\nos.chdir('/')"),
    );
    let probe = code("import os\n['leak' in dir(__builtins__), 'LEAK' in os.environ, os.getcwd() == '/']");
    assert_eq!(driver.run("execute-code", &probe).value(), json!([false, false, false]));
}

#[test]
fn each_way_to_fail_in_python_has_its_kind() {
    let Some(command) = python("stock") else { return };
    let mut driver = Driver::start(command);
    let none = json!({});
    let ended = driver.run("execute-code", &code("def f():\n  return 1 / 0\nf()"));
    ended.is(ErrorKind::Failed, "ZeroDivisionError");
    let trace = ended.error().trace.clone().unwrap();
    assert!(trace.contains("line 2, in f") && !trace.contains("ostler_worker"), "{trace}");
    let ended = driver.run("execute-code", &code("def f(n):\n  raise ValueError('x' * 100000)\nf(1)"));
    let error = ended.error();
    assert!(
        error.message.len() <= 4 << 10 && error.message.contains("bytes left out"),
        "{}",
        error.message.len()
    );
    let execute = |source: &str| ("execute-code", code(source));
    let table = [
        (execute("import os; os._exit(3)"), none.clone(), ErrorKind::Failed, "exit status 3"),
        (execute("import os; os.kill(os.getpid(), 11)"), none.clone(), ErrorKind::Failed, "signal 11"),
        (execute("raise SystemExit(4)"), none.clone(), ErrorKind::Failed, "SystemExit"),
        (execute("import sys\ndef f(): f()\nf()"), none.clone(), ErrorKind::Failed, "RecursionError"),
        (execute("{1, 2}"), none.clone(), ErrorKind::Output, "set"),
        (execute("float('nan')"), none.clone(), ErrorKind::Output, "no JSON"),
        (execute("'x' * 99"), json!({"limits": {"output": 100}}), ErrorKind::Output, "101 bytes"),
        (
            execute("bytearray(500 << 20)"),
            json!({"limits": {"memory": 50 << 20}}),
            ErrorKind::Memory,
            "limits.memory",
        ),
        (
            execute("while True:\n  try:\n    while True: pass\n  except BaseException: pass"),
            json!({"limits": {"time_ms": 100}}),
            ErrorKind::Timeout,
            "100 ms",
        ),
        (execute("retrun 1"), none.clone(), ErrorKind::Invalid, "SyntaxError"),
        (("execute-code", json!({"cod": ""})), none.clone(), ErrorKind::Invalid, "cod"),
        (("execute-code", json!({"code": 1})), none.clone(), ErrorKind::Invalid, "code"),
        (("execute-code", json!({"code": "", "language": "perl"})), none.clone(), ErrorKind::Invalid, "perl"),
        (("execute-function", json!({"function": "5"})), none.clone(), ErrorKind::Invalid, "no function"),
        (
            ("execute-module", json!({"module": "no_such_module"})),
            none.clone(),
            ErrorKind::Invalid,
            "no module",
        ),
        (
            ("execute-module", json!({"module": "math", "function": "nope"})),
            none.clone(),
            ErrorKind::Invalid,
            "nope",
        ),
        (("execute-module", json!({"module": "/etc/passwd"})), none.clone(), ErrorKind::Refused, "allows"),
        (("no-such-type", json!({})), none.clone(), ErrorKind::Invalid, "no-such-type"),
    ];
    errors(&mut driver, &table);
    // Rubbish where only the worker writes is no harm to the protocol; the driver would say so.
    driver.run("execute-code", &code("import os\nfor fd in range(3, 64):\n  try: os.write(fd, b'rubbish\\n')\n  except OSError: pass\n"));
    assert_eq!(driver.run("execute-code", &code("'well'")).value(), "well");
}

/// Cancels tasks that do not listen, and looks for what they started.
fn nothing_is_left(driver: &mut Driver, family: &str, processes: usize, mark: &str) {
    let before = marked(mark);
    driver.begin("execute-code", &code(family), &json!({}));
    driver.until_log("begun");
    wait_until("its processes are there", || marked(mark) >= before + processes);
    driver.until(|message| matches!(message, FromWorker::Heartbeat(_)).then_some(()));
    driver.cancel();
    driver.ended().is(ErrorKind::Cancelled, "");
    assert!(marked(mark) <= before, "{} of {before}", marked(mark));
    assert_eq!(driver.run("execute-code", &code("return 1")).value(), 1);
}

#[test]
fn a_cancelled_python_task_is_gone_with_all_it_started() {
    let Some(mut command) = python("stock") else { return };
    let mark = mark();
    command.env("MARK", &mark);
    let mut driver = Driver::start(command);
    let family = "import subprocess\nsubprocess.Popen(['sleep', '1000'])\nsubprocess.Popen(['setsid', 'sleep', '1000'])\nprint('begun')\nwhile True:\n  try:\n    while True: pass\n  except BaseException: pass";
    nothing_is_left(&mut driver, family, 3, &mark);
}

const PYTHON: &str = "
from ostler_worker import Invalid, Worker
worker = Worker('mine 1.0', isolate=ISOLATE)
seen = []
@worker.task('count')
def count(payload, task):
    seen.append(1)
    task.progress(1, 2, 'half')
    task.log('careful', 'warn')
    print('printed')
    if payload == 'no': raise Invalid('not that')
    return len(seen)
@worker.task('hang')
def hang(payload, task):
    import time
    print('begun')
    while True:
        try:
            time.sleep(1000)
        except Exception:
            pass
worker.run()
";

#[test]
fn a_python_worker_of_ones_own_takes_ten_lines() {
    for isolate in ["True", "False"] {
        let Some(command) = python(&PYTHON.replace("ISOLATE", isolate)) else { return };
        let mut driver = Driver::start(command);
        assert_eq!(
            (driver.ready.name.as_str(), driver.ready.types.join(" ")),
            ("mine 1.0", "count hang".to_owned())
        );
        assert_eq!(driver.run("count", &json!(1)).value(), 1);
        assert!(driver.logs.contains(&(Level::Warn, "careful".into())), "{:?}", driver.logs);
        assert!(driver.logs.contains(&(Level::Info, "printed".into())), "{:?}", driver.logs);
        driver.begin("count", &json!(1), &json!({}));
        driver.until(|message| matches!(message, FromWorker::Progress(at) if at.done == 1.0 && at.note.as_deref() == Some("half")).then_some(()));
        assert_eq!(driver.ended().value(), if isolate == "True" { 1 } else { 2 });
        driver.run("count", &json!("no")).is(ErrorKind::Invalid, "not that");
        driver.begin("hang", &json!(1), &json!({}));
        driver.until_log("begun");
        driver.cancel();
        driver.ended().is(ErrorKind::Cancelled, "");
        driver.task("hang", &json!(1), &json!({"limits": {"time_ms": 100}})).is(ErrorKind::Timeout, "100 ms");
        assert!(driver.run("count", &json!(1)).0.ok);
        driver.write(br#"{"msg":"shutdown"}"#);
        assert!(driver.exit().success());
    }
}

#[test]
fn node_does_its_types() {
    let Some(command) = node("stock.mjs") else { return };
    let mut driver = Driver::start(command);
    let printing = "console.log('out'); require('fs').writeSync(1, 'raw\\n'); require('child_process').execSync('echo {\\\\\"msg\\\\\":1}', {stdio: 'inherit'}); console.error('err'); return args.n + 1";
    assert_eq!(driver.run("execute-code", &json!({"code": printing, "args": {"n": 41}})).value(), 42);
    let texts: Vec<&str> = driver.logs.iter().map(|(_, text)| text.as_str()).collect();
    for part in ["out", "raw", "{\"msg\":1}", "err"] {
        assert!(texts.contains(&part), "{part}: {texts:?}");
    }
    let function = json!({"function": "async (a, b = 2) => [a, b]", "args": ["ä"]});
    assert_eq!(driver.run("execute-function", &function).value(), json!(["ä", 2]));
    let folder = driver.folder.path().to_owned();
    std::fs::write(
        folder.join("mine.mjs"),
        "export default () => 'main'; export const a = {f: (x) => x * 2};",
    )
    .unwrap();
    std::fs::write(folder.join("old.cjs"), "exports.g = (x) => x + 1").unwrap();
    assert_eq!(driver.run("execute-module", &json!({"module": "./mine.mjs"})).value(), "main");
    let module = json!({"module": "mine.mjs", "function": "a.f", "args": [21]});
    assert_eq!(driver.run("execute-module", &module).value(), 42);
    assert_eq!(
        driver.run("execute-module", &json!({"module": "old.cjs", "function": "g", "args": [1]})).value(),
        2
    );
    let package = json!({"module": "node:path", "function": "basename", "args": ["/a/b"]});
    assert_eq!(driver.run("execute-module", &package).value(), "b");
    driver.run("execute-code", &code("globalThis.leak = 1; process.env.LEAK = '1'; process.chdir('/')"));
    let probe = code("return [typeof leak, process.env.LEAK ?? null, process.cwd() === '/']");
    assert_eq!(driver.run("execute-code", &probe).value(), json!(["undefined", null, false]));
}

#[test]
fn each_way_to_fail_in_node_has_its_kind() {
    let Some(command) = node("stock.mjs") else { return };
    let mut driver = Driver::start(command);
    let none = json!({});
    let ended = driver.run("execute-code", &code("\nfunction f() { throw new TypeError('mine') }\nf()"));
    ended.is(ErrorKind::Failed, "TypeError: mine");
    let trace = ended.error().trace.clone().unwrap();
    assert!(trace.contains("line 2:") && !trace.contains(".mjs"), "{trace}");
    let execute = |source: &str| ("execute-code", code(source));
    let table = [
        (execute("process.exit(3)"), none.clone(), ErrorKind::Failed, "exit status 3"),
        (
            execute("process.kill(process.pid, 'SIGSEGV'); await new Promise(() => {})"),
            none.clone(),
            ErrorKind::Failed,
            "SIGSEGV",
        ),
        (
            execute("Promise.reject(new Error('lost')); await new Promise(() => setTimeout(() => {}, 1e6))"),
            none.clone(),
            ErrorKind::Failed,
            "unhandled rejection: Error: lost",
        ),
        (
            execute(
                "setImmediate(() => { throw new Error('later') }); await new Promise(() => setTimeout(() => {}, 1e6))",
            ),
            none.clone(),
            ErrorKind::Failed,
            "later",
        ),
        (execute("throw null"), none.clone(), ErrorKind::Failed, "null"),
        (
            execute("require('fs').writeSync(3, 'rubbish\\n'); for (;;);"),
            none.clone(),
            ErrorKind::Failed,
            "only its worker writes",
        ),
        (execute("return 1n"), none.clone(), ErrorKind::Output, "BigInt"),
        (
            execute("return 'x'.repeat(99)"),
            json!({"limits": {"output": 100}}),
            ErrorKind::Output,
            "101 bytes",
        ),
        (
            execute("const a = []; for (;;) a.push(new Array(1000).fill(a.length))"),
            json!({"limits": {"memory": 40 << 20}}),
            ErrorKind::Memory,
            "limits.memory",
        ),
        (
            execute("const b = Buffer.alloc(400 << 20, 1); await new Promise((r) => setTimeout(r, 1e6, b))"),
            json!({"limits": {"memory": 40 << 20}}),
            ErrorKind::Memory,
            "limits.memory",
        ),
        (execute("for (;;);"), json!({"limits": {"time_ms": 400}}), ErrorKind::Timeout, "400 ms"),
        (execute("retrun 1"), none.clone(), ErrorKind::Invalid, "SyntaxError"),
        (("execute-code", json!({"cod": ""})), none.clone(), ErrorKind::Invalid, "cod"),
        (("execute-code", json!({"code": 1})), none.clone(), ErrorKind::Invalid, "code"),
        (("execute-function", json!({"function": "5"})), none.clone(), ErrorKind::Invalid, "no function"),
        (
            ("execute-module", json!({"module": "no-such-module"})),
            none.clone(),
            ErrorKind::Invalid,
            "no module",
        ),
        (
            ("execute-module", json!({"module": "node:path", "function": "nope"})),
            none.clone(),
            ErrorKind::Invalid,
            "nope",
        ),
        (("execute-module", json!({"module": "/etc/passwd"})), none.clone(), ErrorKind::Refused, "allows"),
        (("no-such-type", json!({})), none.clone(), ErrorKind::Invalid, "no-such-type"),
    ];
    errors(&mut driver, &table);
    assert_eq!(driver.run("execute-code", &code("return 'well'")).value(), "well");
}

#[test]
fn a_cancelled_node_task_is_gone_with_all_it_started() {
    let Some(mut command) = node("stock.mjs") else { return };
    let mark = mark();
    command.env("MARK", &mark);
    let mut driver = Driver::start(command);
    // The worker and the spare.
    wait_until("a spare is there", || marked(&mark) >= 2);
    let family = "require('child_process').spawn('sleep', ['1000']); console.log('begun'); for (;;);";
    nothing_is_left(&mut driver, family, 1, &mark);
    driver.close();
    assert!(driver.exit().success());
    wait_until("nothing is left", || marked(&mark) == 0);
}

const NODE: &str = "
import { Invalid, serve } from 'LIBRARY';
let seen = 0;
serve('mine 1.0', {
  count(payload, task) {
    seen += 1;
    task.progress(1, 2, 'half');
    task.log('careful', 'warn');
    console.log('printed');
    if (payload === 'no') throw new Invalid('not that');
    return seen;
  },
  hang() { console.log('begun'); for (;;); },
});
";

#[test]
fn a_node_worker_of_ones_own_takes_ten_lines() {
    let Some(_) = node("stock.mjs") else { return };
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("mine.mjs");
    std::fs::write(&script, NODE.replace("LIBRARY", &workers("node/index.mjs").display().to_string()))
        .unwrap();
    let mut command = Command::new("node");
    command.arg(script);
    let mut driver = Driver::start(command);
    assert_eq!(
        (driver.ready.name.as_str(), driver.ready.types.join(" ")),
        ("mine 1.0", "count hang".to_owned())
    );
    assert_eq!(driver.run("count", &json!(1)).value(), 1);
    assert!(driver.logs.contains(&(Level::Warn, "careful".into())), "{:?}", driver.logs);
    driver.begin("count", &json!(1), &json!({}));
    driver.until(|message| matches!(message, FromWorker::Progress(at) if at.done == 1.0 && at.note.as_deref() == Some("half")).then_some(()));
    assert_eq!(driver.ended().value(), 2);
    assert!(driver.logs.contains(&(Level::Info, "printed".into())), "{:?}", driver.logs);
    driver.run("count", &json!("no")).is(ErrorKind::Invalid, "not that");
    driver.begin("hang", &json!(1), &json!({}));
    driver.until_log("begun");
    driver.cancel();
    driver.ended().is(ErrorKind::Cancelled, "");
    // Another process does the next.
    assert_eq!(driver.run("count", &json!(1)).value(), 1);
    driver.write(br#"{"msg":"shutdown"}"#);
    assert!(driver.exit().success());
}
