// Processes of the outside-in tests: each is started in its own process group, remembered, and
// ended by that group; nothing is ever looked up by name. Ended means gone, and that is checked.
import { spawn } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

/** How much of a process's output is kept for an error message, in characters. */
const OUTPUT_KEPT = 64 * 1024;
/** How long processes get to end by themselves when the runner is told to stop. */
const INTERRUPTED_GRACE_MS = 10_000;

const running = new Set();
const scratch = new Set();

/** A new folder that is removed when the runner ends, however it ends. */
export function scratchDir(prefix) {
  const dir = mkdtempSync(join(tmpdir(), prefix));
  scratch.add(dir);
  return dir;
}

/** Keeps a folder of `scratchDir` after all. */
export function keepDir(dir) {
  scratch.delete(dir);
}

/** Ends a whole process group. A group that is already gone is not an error. */
export function killGroup(pid, signal = 'SIGKILL') {
  try {
    process.kill(-pid, signal);
  } catch (error) {
    if (error.code !== 'ESRCH') throw error;
  }
}

// The runner itself may be told to stop (a step's time limit, Ctrl-C): end what it started first.
// The daemon gets SIGTERM, so that it ends its own trees, before it gets SIGKILL.
for (const [signal, code] of [['SIGINT', 130], ['SIGTERM', 143], ['SIGHUP', 129]]) {
  process.once(signal, async () => {
    for (const one of running) killGroup(one.pid, 'SIGTERM');
    await Promise.race([Promise.all([...running].map(one => one.exited)), sleep(INTERRUPTED_GRACE_MS)]);
    process.exit(code);
  });
}
process.once('exit', () => {
  for (const one of running) killGroup(one.pid);
  for (const dir of scratch) rmSync(dir, { recursive: true, force: true });
});

/**
 * Starts `command args` in a process group of its own.
 * Returns { pid, child, exited, output() }: `exited` resolves to { code, signal }, `output()` is
 * the last part of stdout and stderr together.
 */
export function start(command, args, { env = process.env, cwd, onStdout } = {}) {
  const child = spawn(command, args, { env, cwd, detached: true, stdio: ['ignore', 'pipe', 'pipe'] });
  let kept = '';
  const keep = data => { kept = (kept + data).slice(-OUTPUT_KEPT); };
  child.stdout.setEncoding('utf8').on('data', data => { keep(data); onStdout?.(data); });
  child.stderr.setEncoding('utf8').on('data', keep);
  const one = { pid: child.pid, child, output: () => kept };
  one.exited = new Promise(resolve => {
    child.once('error', error => { keep(`${command}: ${error.message}\n`); running.delete(one); resolve({ code: null, signal: null, error }); });
    // 'exit', not 'close': a grandchild that keeps the pipe open must not hide that the process ended.
    child.once('exit', (code, signal) => { running.delete(one); resolve({ code, signal }); });
  });
  if (child.pid !== undefined) running.add(one);
  return one;
}

/** Runs a command to its end, or kills its group after `timeoutMs`. Returns { code, signal, stdout, output, timedOut }. */
export async function run(command, args, { timeoutMs, ...options }) {
  let stdout = '';
  const one = start(command, args, { ...options, onStdout: data => { stdout += data; } });
  const closed = new Promise(resolve => one.child.once('close', resolve));
  const timer = new AbortController();
  const late = sleep(timeoutMs, 'late', { signal: timer.signal }).catch(() => undefined);
  const timedOut = await Promise.race([one.exited, late]) === 'late';
  if (timedOut) killGroup(one.pid);
  const ended = await one.exited;
  await Promise.race([closed, sleep(1_000, undefined, { ref: false })]);   // the last output, not held up by a stray grandchild
  timer.abort();
  if (one.pid !== undefined) killGroup(one.pid);
  return { ...ended, timedOut, stdout, output: one.output() };
}

/**
 * Asks a process to end and waits `graceMs`; if it is late, its group is killed. Returns true when
 * it ended by itself: what it then left in its group is the caller's to look at, and to kill.
 */
export async function stop(one, { graceMs, signal = 'SIGTERM' }) {
  if (one.child.exitCode === null && one.child.signalCode === null) one.child.kill(signal);
  const late = await Promise.race([one.exited, sleep(graceMs, 'late', { ref: false })]) === 'late';
  if (late) killGroup(one.pid);
  await one.exited;
  return !late;
}

/**
 * Waits until `probe()` gives something other than undefined, at most `timeoutMs`.
 * `what` names the awaited thing in the error; `alive` ends the wait early once that process has ended.
 */
export async function until(what, probe, { timeoutMs, alive, everyMs = 20 }) {
  const deadline = Date.now() + timeoutMs;
  for (;;) {
    const value = await probe();
    if (value !== undefined) return value;
    const dead = alive && (alive.child.exitCode !== null || alive.child.signalCode !== null || alive.pid === undefined);
    if (dead) throw new Error(`${what}: the process ended first (exit code ${alive.child.exitCode}, signal ${alive.child.signalCode})\n${alive.output()}`);
    if (Date.now() > deadline) throw new Error(`${what}: not seen within ${timeoutMs} ms\n${alive?.output() ?? ''}`);
    await sleep(everyMs);
  }
}

/** The ids of all live processes whose environment holds `NAME=value`: a mark is inherited, so nothing can hide. */
export function processesMarked(name, value) {
  const needle = `${name}=${value}`;
  return readdirSync('/proc').filter(entry => /^\d+$/.test(entry)).map(Number).filter(pid => {
    if (pid === process.pid) return false;
    try {
      // A zombie's environment reads as empty: it is dead already and waits for its parent only.
      return readFileSync(`/proc/${pid}/environ`, 'latin1').split('\0').includes(needle);
    } catch {
      return false;                                   // ended meanwhile, or not ours to read
    }
  });
}
