// Runs first in a realm, before any code of a task. Called with (host, shared); gives what the host calls later.
//
// `shared`: the realm serves one task after another. Then everything that they could leave something in for the next
// is frozen: the built-in objects, the global object, and what can only be reached through a value. What would keep
// state all the same is taken away. So a task can change only what it made itself, which ends with it.
(function (host, shared) {
  'use strict';
  // Of the sources that are kept compiled (`KEPT` in `realm.rs` is room for them).
  const LONGEST = 1024;
  const MOST = 64;
  const { getOwnPropertyDescriptor, defineProperty, getPrototypeOf, freeze, hasOwn } = Object;
  const { ownKeys } = Reflect;
  const { stringify, parse } = JSON;
  const AsyncFunction = getPrototypeOf(async function () {}).constructor;
  const { Function } = globalThis;
  const isObject = (value) => (typeof value === 'object' && value !== null) || typeof value === 'function';

  // As people print: texts as they are, errors with their trace, the rest as JSON.
  const shown = (value) => {
    if (typeof value === 'string') return value;
    if (typeof value === 'function') return '[function]';
    if (value instanceof Error) return `${value}\n${value.stack}`;
    try {
      const json = isObject(value) ? stringify(value) : undefined;
      return json === undefined ? String(value) : json;
    } catch {
      return '[object]';
    }
  };
  const console = {};
  for (const [name, level] of [['debug', 0], ['log', 1], ['info', 1], ['warn', 2], ['error', 3]]) {
    console[name] = (...values) => {
      let text = '';
      for (let at = 0; at < values.length; at += 1) text += (at ? ' ' : '') + shown(values[at]);
      host(level, text);
    };
  }
  defineProperty(globalThis, 'console', { value: console, writable: true, configurable: true });

  // An inherited frozen property cannot be assigned to: `error.name = 'Mine'` would fail. As an accessor that gives
  // the receiver a property of its own, it can.
  const letOverride = (object) => {
    for (const key of ownKeys(object)) {
      const { value, writable, configurable, enumerable } = getOwnPropertyDescriptor(object, key);
      if (!writable || !configurable) continue;
      defineProperty(object, key, {
        get() { return value; },
        set(mine) {
          if (this === object || !isObject(this)) throw new TypeError(`${String(key)} of a built-in cannot be changed`);
          defineProperty(this, key, { value: mine, writable: true, configurable: true, enumerable: true });
        },
        enumerable,
        configurable: false,
      });
    }
  };

  // What no name leads to.
  const hidden = () => {
    const step = { next() { return { done: true }; } };
    const roots = [
      function* () {}, async function () {}, async function* () {}, new (class { static x = 1; })(),
      [].values(), ''[Symbol.iterator](), 'a'.matchAll(/a/g), new Map().entries(), new Set().values(),
      Iterator.from(step), [].values().map((x) => x), Uint8Array, (function () { return arguments; })(),
      (function* () {})(), (async function* () {})(), new Proxy({}, {}),
    ];
    if (typeof Iterator.concat === 'function') roots.push(Iterator.concat([]));
    return roots.map(getPrototypeOf);
  };

  const lockDown = () => {
    for (const name of ['WeakRef', 'FinalizationRegistry', 'Atomics', 'SharedArrayBuffer']) delete globalThis[name];
    // Accessors of state that the engine keeps for the whole realm.
    for (const name of ['prepareStackTrace', 'stackTraceLimit']) {
      if (hasOwn(Error, name)) delete Error[name];
    }
    const errors = [Error, EvalError, RangeError, ReferenceError, SyntaxError, TypeError, URIError, AggregateError];
    const overridden = [Object, Function, Promise, RegExp, Date, ...errors].map((one) => one.prototype);
    overridden.push(getPrototypeOf(function* () {}), getPrototypeOf(async function () {}), AsyncFunction.prototype);
    for (const object of overridden) letOverride(object);
    for (const name of ['constructor', 'toString']) {
      const only = {};
      for (const one of [Array, Map, Set, String, Number, Boolean, Uint8Array]) {
        const found = getOwnPropertyDescriptor(one.prototype, name);
        if (!found || !found.writable) continue;
        const { value } = found;
        defineProperty(one.prototype, name, {
          get() { return value; },
          set(mine) {
            if (this === one.prototype || !isObject(this)) throw new TypeError(`${name} of a built-in cannot be changed`);
            defineProperty(this, name, { value: mine, writable: true, configurable: true, enumerable: true });
          },
          configurable: false,
        });
      }
    }
    const waiting = [globalThis, ...hidden()];
    const seen = new Set();
    while (waiting.length > 0) {
      const object = waiting.pop();
      if (!isObject(object) || seen.has(object)) continue;
      seen.add(object);
      freeze(object);
      waiting.push(getPrototypeOf(object));
      for (const key of ownKeys(object)) {
        const { value, get, set } = getOwnPropertyDescriptor(object, key);
        waiting.push(value, get, set);
      }
    }
  };
  if (shared) lockDown();
  const strict = shared ? '"use strict";\n' : '\n';

  // Short sources that ran lately, compiled: the same ones come again and again. A task cannot reach the function that is made
  // of its source, and whatever that makes it makes anew each time it is called. Only where the source is a function's whole body: one that
  // closes it, and opens another at its end, may be a function that remembers.
  const lately = new Map();
  const textOf = Function.prototype.call.bind(Function.prototype.toString);
  const compiled = (constructor, args, head, body) => {
    if (!shared || body.length > LONGEST) return new constructor(args, body);
    const key = head + body;
    const found = lately.get(key);
    if (found !== undefined) return found;
    const made = new constructor(args, body);
    if (textOf(made) === `${head} anonymous(${args}\n) {\n${body}\n}`) {
      if (lately.size >= MOST) lately.clear();
      lately.set(key, made);
    }
    return made;
  };

  return {
    compileCode: (source) => compiled(AsyncFunction, 'args', 'async function', strict + source),
    compileFunction: (source) => {
      const evaluate = compiled(Function, '', 'function', `${strict}return (${source}\n)`);
      const found = evaluate.call(globalThis);
      if (typeof found !== 'function') throw new TypeError('the source is no function');
      return found;
    },
    call: (compiled, json) => (json === undefined ? compiled(undefined) : compiled(parse(json))),
    apply: (compiled, json) => compiled(...parse(json)),
    describe: (thrown) => {
      try {
        if (thrown instanceof Error) return [String(thrown.name), String(thrown.message), String(thrown.stack)];
        return ['', shown(thrown), ''];
      } catch {
        return ['', 'something was thrown that cannot be shown', ''];
      }
    },
  };
});
