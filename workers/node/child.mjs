// The process that does the tasks. Descriptor 3 leads to its parent; 1 and 2 are read there as what a task prints.

import { Socket } from 'node:net';

import { TaskError } from './errors.mjs';
import { Lines, MAX_LINE, parse } from './wire.mjs';

/** What a handler gets beside its payload. */
class Task {
  #say;
  #stop = new AbortController();

  constructor(message, say) {
    this.id = message.id;
    this.attempt = message.attempt;
    this.type = message.type;
    this.folders = message.allow?.folders ?? [];
    this.#say = say;
  }

  /** Aborted when the parent is gone. A task that is cancelled ends with its process. */
  get signal() { return this.#stop.signal; }

  /** Writes something down: level debug, info, warn or error. */
  log(text, level = 'info') { this.#say({ msg: 'log', level, text: String(text) }); }

  /** Says how far it is. */
  progress(done, total, note) {
    for (const number of [done, total ?? 0]) {
      if (!Number.isFinite(number)) throw new TypeError('progress is told in numbers');
    }
    this.#say({ msg: 'progress', done, total, note: note === undefined ? undefined : String(note) });
  }
}

/** Does tasks, one after another, for the parent. */
export function runChild(handlers) {
  delete process.env.OSTLER_WORKER_CHILD;
  const parent = new Socket({ fd: 3, readable: true, writable: true });
  const lines = new Lines();
  let current;
  const say = (message) => parent.write(`${JSON.stringify(message)}\n`);
  const end = (answer) => {
    if (current === undefined) return;
    say({ msg: 'result', id: current.id, attempt: current.attempt, ...answer });
    current = undefined;
  };
  // A task that fails on its way, not in its answer. It has failed all the same, and so has whatever relied on it.
  process.on('uncaughtException', (error) => end({ ...failed(error), spoilt: true }));
  process.on('unhandledRejection', (error) => end({ ...failed(error, 'unhandled rejection: '), spoilt: true }));
  parent.on('data', (data) => {
    for (const line of lines.push(data)) {
      const message = parse(line);
      current = new Task(message, (told) => say({ ...told, id: message.id, attempt: message.attempt }));
      const mine = current;
      perform(handlers, message, current).then((answer) => { if (current === mine) end(answer); });
    }
  });
  parent.on('close', () => process.exit(0));
  parent.on('error', () => process.exit(0));
}

async function perform(handlers, message, task) {
  let value;
  try {
    if (!Object.hasOwn(handlers, task.type)) {
      const known = Object.keys(handlers).join(', ');
      throw new TaskError(`this worker does no \`${task.type}\`; it does ${known}`, { kind: 'invalid' });
    }
    value = await handlers[task.type](message.payload, task);
  } catch (error) {
    return failed(error);
  }
  return shown(value, message.limits.output);
}

/** The answer with a value, if it can be shown and is small enough. */
function shown(value, most) {
  const refuse = (message) => ({ ok: false, error: { kind: 'output', message, retry: false } });
  let json;
  try {
    json = JSON.stringify(value) ?? 'null';
  } catch (error) {
    return refuse(`the result is no JSON: ${text(error)}`);
  }
  const size = Buffer.byteLength(json);
  if (size > Math.min(most, MAX_LINE)) {
    return refuse(`the result has ${size} bytes as JSON; ${most} are allowed (\`limits.output\`)`);
  }
  // Shown once: what toJSON says a second time may be something else.
  return { ok: true, value: JSON.parse(json) };
}

function text(error) {
  try {
    return error instanceof Error ? `${error.name}: ${error.message}` : String(error);
  } catch {
    return 'something was thrown that cannot be shown';
  }
}

const HERE = new URL('.', import.meta.url).href;

/** A trace in which lines are those of the task's source, and without what is ours. */
function placed(stack) {
  const lines = stack.split('\n').filter((line) => !line.includes(HERE) && !line.includes('(node:'));
  // The first two lines of `execute-code` are the function's head.
  return lines.join('\n').replace(/task-code:(\d+)/g, (_, line) => `line ${Math.max(1, line - 2)}`).replaceAll('task-function:', 'line ');
}

function failed(error, before = '') {
  if (error instanceof TaskError) {
    return { ok: false, error: { kind: error.kind, message: String(error.message), retry: error.retry } };
  }
  let trace;
  try {
    trace = typeof error?.stack === 'string' ? placed(error.stack) : undefined;
  } catch { /* It does not want to be seen. */ }
  return { ok: false, error: { kind: 'failed', message: before + text(error), trace, retry: true } };
}
