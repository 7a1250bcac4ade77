// Starts the two things the outside-in tests talk to: the fixture server directly over HTTP, and
// an Ostler daemon with directories, a port and a mark of its own.
import { randomUUID } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { killGroup, processesMarked, scratchDir, start, stop, until } from './processes.mjs';

/** The checkout. */
export const ROOT = resolve(dirname(fileURLToPath(import.meta.url)), '../..');
/** The fixture: an MCP server that speaks both eras, over stdio or over HTTP. */
export const FIXTURE = join(ROOT, 'tests/fixtures/mcp-server/server.mjs');

/** Time for a process of ours to start listening; a cold Node on a loaded two-core machine needs seconds. */
const START_MS = 30_000;
/** Time for the daemon to drain and stop (its own limit for a graceful shutdown is 30 s). */
const STOP_MS = 40_000;
/** Time after which no process of a tree may be alive once the daemon has ended (promise 1 of the design). */
const EMPTY_MS = 2_000;

/** The binary under test: $OSTLER_BIN, else the checkout's own build, release before debug. */
export function ostlerBinary() {
  const named = process.env.OSTLER_BIN;
  const target = process.env.CARGO_TARGET_DIR ?? join(ROOT, 'target');
  const candidates = named ? [resolve(named)] : ['release', 'debug'].map(profile => join(target, profile, 'ostler'));
  const found = candidates.find(path => existsSync(path));
  if (!found) throw new Error(`no ostler binary (looked for ${candidates.join(' and ')}): run \`cargo build -p ostler\`, or set OSTLER_BIN`);
  return found;
}

/** A value as TOML: strings, numbers, booleans, arrays and inline tables, which JSON's strings and numbers fit. */
function toml(value) {
  if (Array.isArray(value)) return `[${value.map(toml).join(', ')}]`;
  if (typeof value === 'object') return `{ ${Object.entries(value).map(([key, inner]) => `${key} = ${toml(inner)}`).join(', ')} }`;
  return JSON.stringify(value);
}

/** Renders { "section.name": { key: value } } as an ostler.toml. */
export function renderConfig(sections) {
  return Object.entries(sections).map(([section, keys]) =>
    `[${section}]\n${Object.entries(keys).map(([key, value]) => `${key} = ${toml(value)}\n`).join('')}`).join('\n');
}

/** Starts the fixture over HTTP on a port the system chooses. Returns { url, stop() }. */
export async function startFixture(node = process.execPath) {
  const one = start(node, [FIXTURE, '--http', '0']);
  const url = await until('the fixture server listening', () => one.output().match(/fixture: (http:\S+)/)?.[1], { timeoutMs: START_MS, alive: one });
  return { url, stop: async () => { await stop(one, { graceMs: 2_000 }); killGroup(one.pid); } };
}

/**
 * Starts `ostler up` with the given configuration sections; every server inherits a mark.
 * Returns { http, mark, env, output(), stop() }: `http` is the base address, `mark` that of the servers' processes, `env`
 * what a client command needs to find this daemon, and `stop()` gives a list of what went wrong while stopping (empty is good).
 */
export async function startOstler(bin, sections) {
  const dir = scratchDir('ostler-test-');
  const runtime = join(dir, 'run');
  const state = join(dir, 'state');
  for (const path of [runtime, state]) mkdirSync(path, { mode: 0o700 });
  const mark = randomUUID();
  const marked = Object.fromEntries(Object.entries(sections).map(([name, keys]) =>
    [name, name.startsWith('servers.') ? { ...keys, env: { ...keys.env, OSTLER_TEST_MARK: mark } } : keys]));
  const config = join(dir, 'ostler.toml');
  writeFileSync(config, renderConfig({ ...marked, gateway: { listen: '127.0.0.1:0', ...marked.gateway } }));

  const env = { ...process.env, OSTLER_RUNTIME_DIR: runtime, OSTLER_STATE_DIR: state };
  const one = start(bin, ['up', config], { env });
  const endpoint = join(runtime, 'endpoint.json');
  try {
    const { http } = await until('ostler listening (endpoint.json)', () => readEndpoint(endpoint), { timeoutMs: START_MS, alive: one });
    return { http, mark, env: { OSTLER_RUNTIME_DIR: runtime, OSTLER_STATE_DIR: state }, output: one.output, stop: () => stopOstler(one, mark, dir) };
  } catch (error) {
    await stopOstler(one, mark, dir);
    throw error;
  }
}

/** The endpoint file, once it is there and whole. */
function readEndpoint(path) {
  try {
    const endpoint = JSON.parse(readFileSync(path, 'utf8'));
    return endpoint.http ? endpoint : undefined;
  } catch {
    return undefined;                                 // not written yet, or half written
  }
}

async function stopOstler(one, mark, dir) {
  const wrong = [];
  if (!await stop(one, { graceMs: STOP_MS })) wrong.push(`ostler did not stop within ${STOP_MS} ms of SIGTERM\n${one.output()}`);
  try {
    await until('an empty tree', () => processesMarked('OSTLER_TEST_MARK', mark).length ? undefined : true, { timeoutMs: EMPTY_MS });
  } catch {
    const left = processesMarked('OSTLER_TEST_MARK', mark);
    wrong.push(`${left.length} server process(es) outlived the daemon by ${EMPTY_MS} ms: ${left.join(' ')}`);
    for (const pid of left) {                         // ours by the mark: leave none behind
      try { process.kill(pid, 'SIGKILL'); } catch { /* ended meanwhile */ }
    }
  }
  if (one.pid !== undefined) killGroup(one.pid);
  rmSync(dir, { recursive: true, force: true });
  return wrong;
}
