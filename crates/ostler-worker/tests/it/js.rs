//! `execute-code` and `execute-function` of the worker that is built in.

use ostler_worker::protocol::{ErrorKind, Level};
use serde_json::json;

use crate::driver::Driver;

fn code(driver: &mut Driver, code: &str) -> crate::driver::Ended {
    driver.run("execute-code", &json!({"code": code}))
}

#[test]
fn code_and_functions_give_values() {
    let mut driver = Driver::builtin();
    let payload = json!({"code": "console.log('n', {n: 1}); console.error('e'); return (await Promise.resolve(args.n)) + 1", "args": {"n": 41}});
    assert_eq!(driver.run("execute-code", &payload).value(), 42);
    assert_eq!(driver.logs, [(Level::Info, "n {\"n\":1}".into()), (Level::Error, "e".into())]);
    assert_eq!(code(&mut driver, "").value(), json!(null));
    let payload = json!({"function": "async (a, ...rest) => [a, rest.length, 'ä\u{1F600}']", "args": [{"x": 1.5}, 2, 3]});
    assert_eq!(driver.run("execute-function", &payload).value(), json!([{"x": 1.5}, 2, "ä\u{1F600}"]));
    let payload =
        json!({"function": "function f(n) { return n < 2 ? n : f(n - 1) + f(n - 2) }", "args": [12]});
    assert_eq!(driver.run("execute-function", &payload).value(), 144);
}

#[test]
fn each_way_to_fail_has_its_kind() {
    let mut driver = Driver::builtin();
    code(&mut driver, "retrun 1").is(ErrorKind::Invalid, "SyntaxError");
    let ended = code(&mut driver, "let a = 1;\nfunction f() { throw new TypeError('mine') }\nf()");
    ended.is(ErrorKind::Failed, "TypeError: mine");
    let trace = ended.error().trace.clone().unwrap();
    assert!(
        trace.contains("line 2:") && trace.contains("line 3:") && !trace.contains("eval_script"),
        "{trace}"
    );
    code(&mut driver, "throw {a: 1}").is(ErrorKind::Failed, "{\"a\":1}");
    code(&mut driver, "throw null").is(ErrorKind::Memory, "or it threw null");
    code(&mut driver, "await Promise.reject(new Error('later'))").is(ErrorKind::Failed, "later");
    code(&mut driver, "const f = () => f() + 1; f()").is(ErrorKind::Failed, "call stack");
    code(&mut driver, "return new Promise(() => {})").is(ErrorKind::Failed, "never be settled");
    code(&mut driver, "return 1n").is(ErrorKind::Output, "BigInt");
    code(&mut driver, "const a = []; a.push(a); return a").is(ErrorKind::Output, "circular");
    code(&mut driver, "return {toJSON() { throw new Error('not me') }}").is(ErrorKind::Output, "not me");
    code(&mut driver, "await import('std')").is(ErrorKind::Failed, "");
    driver.run("execute-function", &json!({"function": "5"})).is(ErrorKind::Invalid, "no function");
    driver.run("execute-code", &json!({})).is(ErrorKind::Invalid, "code");
    driver.run("execute-code", &json!({"code": "", "cod": 1})).is(ErrorKind::Invalid, "cod");
    driver.run("execute-code", &json!({"code": "", "language": "perl"})).is(ErrorKind::Invalid, "perl");
    let ended = driver.task(
        "execute-code",
        &json!({"code": "return 'x'.repeat(99)"}),
        &json!({"limits": {"output": 100}}),
    );
    ended.is(ErrorKind::Output, "101 bytes");
    assert_eq!(code(&mut driver, "return 'all is well'").value(), "all is well");
}

#[test]
fn what_takes_too_long_or_too_much_is_stopped() {
    let mut driver = Driver::builtin();
    let loops = [
        "for (;;);",
        // It cannot be caught, and what it left to be done does not go on either.
        "for (;;) { try { for (;;); } catch {} finally { continue } }",
        "const f = () => Promise.resolve().then(f); await f(); for (;;) await null",
        "return {toJSON() { for (;;); }}",
        "/(a+)+$/.test('a'.repeat(40) + 'b'); for (;;);",
    ];
    for code in loops {
        let ended = driver.task("execute-code", &json!({"code": code}), &json!({"limits": {"time_ms": 60}}));
        ended.is(ErrorKind::Timeout, "60 ms");
    }
    let hogs = [
        "const a = []; for (;;) a.push('x'.repeat(1000) + a.length)",
        "return 'x'.repeat(40_000_000).split('')",
        "new Uint8Array(50_000_000)",
        "const a = []; for (;;) a.push(() => a)",
    ];
    for code in hogs {
        let ended =
            driver.task("execute-code", &json!({"code": code}), &json!({"limits": {"memory": 8_000_000}}));
        ended.is(ErrorKind::Memory, "limits.memory");
    }
    // Nothing of it counts for the next.
    let ended = driver.task(
        "execute-code",
        &json!({"code": "return 'x'.repeat(6_000_000).length"}),
        &json!({"limits": {"memory": 8_000_000}}),
    );
    assert_eq!(ended.value(), 6_000_000);
}

/// Everything that can be reached from anywhere: what it is called and whether it can be changed.
const SURVEY: &str = r"
  const seen = new Set(), found = [], loose = [];
  const generator = Object.getPrototypeOf(function* () {}), asynchronous = Object.getPrototypeOf(async function* () {});
  const waiting = [[globalThis, 'globalThis'], [generator, 'g'], [asynchronous, 'ag'], [Object.getPrototypeOf(async () => {}), 'a']];
  const step = {next() { return {done: true} }};
  for (const one of [[].values(), ''[Symbol.iterator](), 'a'.matchAll(/a/g), new Map().entries(), new Set().values(),
    Iterator.from(step), [].values().map((x) => x), [].values().take(1), new Uint8Array(), new Date(), /a/, new Error(), new Promise(() => {}),
    Symbol(), 1n, new ArrayBuffer(1), new DataView(new ArrayBuffer(1)), new WeakMap(), new WeakSet()])
    waiting.push([Object.getPrototypeOf(one), Object.prototype.toString.call(one)]);
  while (waiting.length) {
    const [object, name] = waiting.pop();
    if ((typeof object !== 'object' || object === null) && typeof object !== 'function' || seen.has(object)) continue;
    seen.add(object);
    if (!Object.isFrozen(object)) loose.push(name);
    waiting.push([Object.getPrototypeOf(object), name + '.__proto__']);
    for (const key of Reflect.ownKeys(object)) {
      const {value, get, set} = Object.getOwnPropertyDescriptor(object, key);
      found.push(name + '.' + String(key) + ':' + typeof value);
      for (const next of [value, get, set]) waiting.push([next, name + '.' + String(key)]);
    }
  }
  return [found.sort(), loose];";

#[test]
fn nothing_of_one_task_is_seen_by_the_next() {
    let mut driver = Driver::builtin();
    let before = code(&mut driver, SURVEY).value();
    assert_eq!(before[1], json!([]), "can be changed");
    assert!(before[0].as_array().unwrap().len() > 500);
    let attempts = [
        "globalThis.leak = 1",
        "leak = 1",
        "new Function('leak = 1; this.leak = 2; var leak')()",
        "(0, eval)('var leak = 1; function leaked() {}; let a = 1')",
        "}); var leak = 1; globalThis.leak = 2; (async function () {",
        "Object.prototype.leak = 1",
        "Array.prototype.push = () => 'mine'",
        "Reflect.set(Promise.prototype, 'then', 1); Reflect.defineProperty(Promise.prototype, 'then', {value: 1})",
        "Reflect.setPrototypeOf(Error.prototype, {leak: 1}); Object.prototype.__proto__ = {leak: 1}",
        "delete globalThis.Array; delete Array.prototype.map",
        "Error.prepareStackTrace = () => 'mine'; Error.stackTraceLimit = 0",
        "Reflect.set(Error, 'prepareStackTrace', () => 'mine')",
        "console.log = 1; console.leak = 1",
        "Object.getPrototypeOf(function* () {}).leak = 1",
        "Object.getPrototypeOf([].values().map((x) => x)).leak = 1",
        "(function () { try { arguments.callee.leak = 1 } catch {} }())",
        "Promise.resolve().then(() => {}).then(() => { for (;;) new Promise(() => {}) })",
        "const f = () => { console.log('still here'); Promise.resolve().then(f) }; f(); return 1",
    ];
    for attempt in attempts {
        driver.task("execute-code", &json!({"code": attempt}), &json!({"limits": {"time_ms": 100}}));
        // What another left to be done would be done while this waits.
        let probe = r"let stack; try { null.x } catch (error) { stack = error.stack } await null; await null;
            return [typeof leak, typeof leaked, {}.leak === undefined, [1].push(2), Promise.resolve() instanceof Promise, stack.length > 20]";
        let probed = code(&mut driver, probe);
        assert_eq!(probed.value(), json!(["undefined", "undefined", true, 2, true, true]), "after {attempt}");
        assert_eq!(driver.logs, [], "after {attempt}");
        assert_eq!(code(&mut driver, SURVEY).value(), before, "after {attempt}");
    }
    for gone in ["WeakRef", "FinalizationRegistry", "SharedArrayBuffer", "std", "os", "require", "process"] {
        assert_eq!(code(&mut driver, &format!("return typeof {gone}")).value(), "undefined");
    }
}

#[test]
fn the_same_source_again_starts_anew() {
    let mut driver = Driver::builtin();
    for _ in 0..3 {
        for source in [
            "class A { static n = 0 }; A.n += 1; return A.n",
            "const each = /a/g; each.test('aa'); return each.lastIndex",
            "const site = (parts) => parts; return Object.isFrozen(site`a`) ? 1 : 0",
            // Closes the function that is made of it, and makes one that counts how often it was called.
            "}); ((n) => async () => { n += 1; return n })(0, async function () {",
        ] {
            assert_eq!(code(&mut driver, source).value(), 1, "{source}");
        }
        for source in [
            "((n) => () => { n += 1; return n })(0)",
            "function f() { f.n = (f.n ?? 0) + 1; return f.n }",
            "() => 0)}); ((n) => () => () => { n += 1; return n })(0, function () { return (0",
        ] {
            let ended = driver.run("execute-function", &json!({"function": source}));
            assert_eq!(ended.value(), 1, "{source}");
        }
    }
    // More than are kept, and longer ones.
    for n in 0..200 {
        let long = "/".repeat(if n % 3 == 0 { 2000 } else { 2 });
        assert_eq!(code(&mut driver, &format!("return {n}; //{long}")).value(), n);
    }
    let ended = driver.run("execute-function", &json!({"function": "() => {\n  throw new Error('mine')\n}"}));
    assert!(ended.error().trace.as_deref().is_some_and(|trace| trace.contains("line 2:")), "{ended:?}");
}

#[test]
fn frozen_built_ins_are_not_in_the_way() {
    let mut driver = Driver::builtin();
    let ordinary = r"
        const error = new Error('x'); error.name = 'Mine'; error.message = 'y';
        class Own extends Error { constructor(m) { super(m); this.name = 'Own'; } toString() { return 'own'; } }
        function Old() {} Old.prototype = Object.create(Error.prototype); Old.prototype.constructor = Old; Old.prototype.toString = () => 'old';
        const o = {}; o.toString = () => 'o'; o.constructor = 1; o.valueOf = () => 7; o.hasOwnProperty = 1;
        const f = () => {}; f.call = 1; f.bind = 2;
        const list = [3, 1, 2]; list.toString = () => 'list'; list.sort();
        const dictionary = {}; for (const word of ['toString', 'constructor', 'valueOf']) dictionary[word] = word.length;
        return [String(error), String(new Own('z')), new Own() instanceof Error, String(new Old()), `${o}`, +o, f.call, String(list), list[0],
          dictionary, Object.keys(o).length]";
    assert_eq!(
        code(&mut driver, ordinary).value(),
        json!(["Mine: y", "own", true, "old", "o", 7, 1, "list", 1, {"toString": 8, "constructor": 11, "valueOf": 7}, 4])
    );
}

#[test]
fn a_fresh_realm_can_be_changed_and_is_nobody_elses() {
    let mut driver = Driver::builtin();
    let payload = json!({"code": "leak = 1; Array.prototype.last = function () { return this[this.length - 1] }; return [1, 2].last() + leak", "fresh": true});
    assert_eq!(driver.run("execute-code", &payload).value(), 3);
    let probe = json!({"code": "return [typeof leak, typeof [].last]", "fresh": true});
    assert_eq!(driver.run("execute-code", &probe).value(), json!(["undefined", "undefined"]));
    assert_eq!(
        code(&mut driver, "return [typeof leak, typeof [].last]").value(),
        json!(["undefined", "undefined"])
    );
}
