// The process that speaks the protocol. No code of a task runs here.

import { spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';

import { isRetried, KINDS } from './errors.mjs';
import {
  bounded, BrokenRules, HEARTBEAT_MS, Lines, MAX_LOG_TEXT, MAX_LOGS, MAX_MESSAGE, MAX_TRACE, MAX_VALUE, parse, VERSION,
} from './wire.mjs';

const DEFAULTS = { time_ms: 300_000, memory: 256 << 20, output: 1 << 20 };
const MAX_TIMER_MS = 2 ** 31 - 1;
// What Node itself has in memory beside the heap that it is told the limit of.
const BESIDE_HEAP = 96 << 20;
const WEIGH_MS = 200;
// How long what a child printed last is waited for once it has ended.
const DRAIN_MS = 1000;
// The end of what a child printed, to see what it died of.
const LAST_WORDS = 4096;

const send = (message) => process.stdout.write(`${JSON.stringify(message)}\n`);

/** A child that does tasks, before and while it has one. */
class Child {
  constructor(memory) {
    this.memory = memory;
    const heap = Math.max(16, Math.floor(memory / (1 << 20)));
    this.process = spawn(
      process.execPath,
      [`--max-old-space-size=${heap}`, ...process.execArgv, ...process.argv.slice(1)],
      // A group of its own: it is ended with all that it started.
      { stdio: ['ignore', 'pipe', 'pipe', 'pipe'], detached: true, env: { ...process.env, OSTLER_WORKER_CHILD: '3' } },
    );
    this.talk = this.process.stdio[3];
    this.talk.on('error', () => {});
    this.process.on('error', (error) => { this.why = error.message; });
    this.lines = new Lines();
    this.held = ['', ''];
    this.lastWords = '';
    this.running = undefined;
    this.isGone = new Promise((gone) => {
      const over = (status, signal) => { this.ended ??= { status, signal }; gone(); this.running?.onGone(); };
      this.process.on('error', () => over());
      this.process.on('close', over);
      // What it started in a session of its own may hold its pipes for ever; they are not waited for.
      this.process.on('exit', (status, signal) => {
        this.kill();
        setTimeout(() => over(status, signal), DRAIN_MS).unref();
      });
    });
    for (const [at, stream] of [this.process.stdout, this.process.stderr].entries()) {
      stream.setEncoding('utf8');
      stream.on('data', (text) => this.#printed(at, text));
    }
    this.talk.on('data', (data) => this.#told(data));
  }

  #printed(at, text) {
    if (at === 1) this.lastWords = (this.lastWords + text).slice(-LAST_WORDS);
    const lines = (this.held[at] + text).split('\n');
    this.held[at] = lines.pop();
    if (this.held[at].length > 65536) {
      lines.push(this.held[at]);
      this.held[at] = '';
    }
    for (const line of lines) this.running?.log(line, at === 0 ? 'info' : 'warn');
  }

  /** What was printed last, without an end of line. */
  flush() {
    for (const at of [0, 1]) if (this.held[at] !== '') this.#printed(at, '\n');
  }

  #told(data) {
    try {
      for (const line of this.lines.push(data)) this.running?.onTold(parse(line), line.length);
    } catch {
      this.running?.end('failed', 'its code wrote where only its worker writes');
    }
  }

  kill() {
    if (this.ended || !this.process.pid) return;
    try {
      // Its number is nobody else's as long as its group has a member.
      process.kill(-this.process.pid, 'SIGKILL');
    } catch { /* Nobody is there any more. */ }
  }
}

/** An attempt that is running. */
class Running {
  constructor(task, child, done) {
    Object.assign(this, { task, child, done, logs: 0, isOver: false, isFit: false });
    const begun = performance.now();
    const { time_ms: time } = task.limits;
    this.timers = [setInterval(() => this.say({ msg: 'heartbeat' }), HEARTBEAT_MS), setInterval(() => this.weigh(), WEIGH_MS)];
    const wait = () => {
      const left = time - (performance.now() - begun);
      if (left <= 0) this.end('timeout', `not done in ${time} ms`);
      else this.timers[2] = setTimeout(wait, Math.min(left, MAX_TIMER_MS));
    };
    wait();
    if (this.isOver) return;
    child.running = this;
    if (child.ended || child.why) this.onGone();
    else child.talk.write(`${JSON.stringify(task)}\n`);
  }

  say(message) { send({ ...message, id: this.task.id, attempt: this.task.attempt }); }

  log(text, level) {
    if (this.isAnswered) return;
    this.logs += 1;
    if (this.logs <= MAX_LOGS) this.say({ msg: 'log', level, text: bounded(text, MAX_LOG_TEXT) });
  }

  /** What the child says; its code may have written there too. */
  onTold(message, size) {
    if (this.isOver || message.id !== this.task.id || message.attempt !== this.task.attempt) return;
    const { msg, level, text, done, total, note } = message;
    if (msg === 'log') {
      this.log(text, ['debug', 'info', 'warn', 'error'].includes(level) ? level : 'info');
    } else if (msg === 'progress' && Number.isFinite(done)) {
      const short = typeof note === 'string' ? bounded(note, MAX_MESSAGE) : undefined;
      this.say({ msg, done, total: Number.isFinite(total) ? total : undefined, note: short });
    } else if (msg === 'result') {
      this.#result(message, size);
    }
  }

  #result({ ok, value, error, spoilt }, size) {
    if (ok === true && value !== undefined && error === undefined && size <= this.task.limits.output * 2 + 4096) {
      this.#finish({ ok, value }, true);
    } else if (ok === false && KINDS.includes(error?.kind)) {
      this.end(error.kind, error.message, { trace: error.trace, retry: error.retry === true, isFit: spoilt !== true });
    } else {
      this.end('failed', 'its code wrote where only its worker writes');
    }
  }

  onGone() {
    const { status, signal } = this.child.ended ?? {};
    if (/heap out of memory|Array buffer allocation failed/.test(this.child.lastWords)) {
      this.end('memory', 'it needs more memory than it may have (`limits.memory`)');
      return;
    }
    const how = signal ? `signal ${signal}` : `exit status ${status ?? this.child.why}`;
    this.end('failed', `its process ended without a result: ${how}`);
  }

  /** The heap is limited by V8; what lies beside it (buffers) is seen here. */
  weigh() {
    let pages;
    try {
      pages = Number(readFileSync(`/proc/${this.child.process.pid}/statm`, 'utf8').split(' ')[1]);
    } catch {
      return;
    }
    const bytes = pages * 4096;
    const most = this.task.limits.memory + BESIDE_HEAP;
    if (bytes > most) this.end('memory', `its process used ${bytes} bytes; ${most} are allowed (\`limits.memory\` and ${BESIDE_HEAP} for Node)`);
  }

  end(kind, message, { trace, retry = isRetried(kind), isFit = false } = {}) {
    const error = { kind, message: bounded(message, MAX_MESSAGE) };
    if (typeof trace === 'string' && trace !== '') error.trace = bounded(trace, MAX_TRACE);
    this.#finish({ ok: false, error: { ...error, retry } }, isFit);
  }

  /** Answers once, when nothing of a child that is not kept is left; `isFit`: it may do another task. */
  async #finish(answer, isFit) {
    if (this.isOver) return;
    this.isOver = true;
    for (const timer of this.timers) clearTimeout(timer);
    const isKept = isFit && this.done.keeps;
    if (!isKept) {
      this.child.kill();
      await this.child.isGone;
    } else {
      // What it printed before its answer is in the pipes already, and is read first.
      await new Promise((read) => { setImmediate(() => setImmediate(read)); });
    }
    this.child.flush();
    const dropped = this.logs - MAX_LOGS;
    if (dropped > 0) this.say({ msg: 'log', level: 'warn', text: `${dropped} more messages were dropped: a task may write ${MAX_LOGS}` });
    this.isAnswered = true;
    this.child.running = undefined;
    this.say({ msg: 'result', ...answer });
    this.done.then(isKept);
  }
}

/** Speaks the protocol until there is nobody to speak to. */
export function runParent(name, types, fresh) {
  const lines = new Lines();
  let memory = DEFAULTS.memory;
  let child = new Child(memory);
  let running;
  let isLast = false;
  const leave = (status) => {
    child?.kill();
    process.exitCode = status;
    // What is written already is written out; nothing else is waited for.
    process.stdout.write('', () => process.exit(status));
  };
  const done = {
    keeps: !fresh,
    then(isKept) {
      running = undefined;
      if (isLast) return leave(0);
      if (!isKept) child = new Child(memory);
      return undefined;
    },
  };
  const refuse = ({ id, attempt }, kind, message, retry) => {
    send({ msg: 'result', id, attempt, ok: false, error: { kind, message: bounded(message, MAX_MESSAGE), retry } });
  };
  const begin = (message) => {
    if (typeof message.id !== 'string' || !Number.isSafeInteger(message.attempt)) {
      throw new BrokenRules('a `task` without a text `id` and a number `attempt`');
    }
    if (running) {
      refuse(message, 'refused', `this worker is busy with ${running.task.id}; it does one task at a time`, true);
      return;
    }
    const wrong = check(message);
    if (wrong) {
      refuse(message, 'invalid', wrong, false);
      return;
    }
    if (!types.includes(message.type)) {
      refuse(message, 'invalid', `this worker does no \`${message.type}\`; it does ${types.join(', ')}`, false);
      return;
    }
    const limits = { ...DEFAULTS, ...message.limits };
    limits.output = Math.min(limits.output, MAX_VALUE);
    if (child.memory !== limits.memory || child.ended) {
      child.kill();
      memory = limits.memory;
      child = new Child(memory);
    }
    running = new Running({ ...message, limits }, child, done);
  };
  const hear = (message) => {
    if (message.msg === 'task') begin(message);
    else if (message.msg === 'cancel' && message.id === running?.task.id && message.attempt === running.task.attempt) {
      running.end('cancelled', 'cancelled while it ran');
    } else if (message.msg === 'shutdown') {
      isLast = true;
      if (!running) leave(0);
    }
  };
  process.stdin.on('data', (data) => {
    try {
      for (const line of lines.push(data)) hear(parse(line));
    } catch (error) {
      if (!(error instanceof BrokenRules)) throw error;
      process.stdin.pause();
      const text = bounded(`this worker ends: it was sent ${error.message}`, MAX_LOG_TEXT);
      send({ msg: 'log', level: 'error', text });
      leave(2);
    }
  });
  process.stdin.on('end', () => leave(0));
  process.stdout.on('error', () => leave(0));
  send({ msg: 'ready', protocol: VERSION, name, types, at_once: 1, heartbeat_ms: HEARTBEAT_MS });
}

/** What is wrong with a task. */
function check({ type, payload, limits = {}, allow = {} }) {
  const isObject = (value) => typeof value === 'object' && value !== null && !Array.isArray(value);
  if (typeof type !== 'string' || payload === undefined) return 'the task is not as it should be: it has a text `type` and a `payload`';
  if (!isObject(limits) || !isObject(allow)) return 'the task is not as it should be: `limits` and `allow` are objects';
  for (const name of Object.keys(DEFAULTS)) {
    const limit = limits[name];
    if (limit !== undefined && !(Number.isInteger(limit) && limit >= 0)) return `\`limits.${name}\` is no number of 0 or more`;
  }
  const { folders = [] } = allow;
  if (!Array.isArray(folders) || folders.some((folder) => typeof folder !== 'string')) {
    return 'the task is not as it should be: `allow.folders` is a list of texts';
  }
  return undefined;
}
