#!/usr/bin/env node
// The leak, re-enacted: 50 clients with 8 real servers each, which without Ostler are 400 trees of processes that
// outlive their clients. See README.md.
//
//   node run.mjs      the binary is $OSTLER_BIN or the checkout's own build
//
// The last line is `N passed, M failed`; the exit status is 0 when M is 0.
import { existsSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { killGroup, processesMarked, run, scratchDir, start, until } from '../lib/processes.mjs';
import { ROOT, ostlerBinary, startOstler } from '../lib/ostler.mjs';

const HERE = dirname(fileURLToPath(import.meta.url));
const CACHE = process.env.OSTLER_TEST_CACHE ?? join(ROOT, '.cache');
const CLIENTS = 50;
/** The documented defaults, which the configuration of the first daemon leaves alone. */
const PROCESSES = 15, MEMORY = 4 * 2 ** 30;
const CLIENTS_MS = 150_000, COMMAND_MS = 60_000, IDLE_MS = 60_000;
/** Between two looks at what there is. */
const LOOK_MS = 200;

const npx = (name, ...args) => ({ command: 'npx', args: ['--no-install', '--prefix', HERE, name, ...args] });
const npm = (name, ...args) => npx(`mcp-server-${name}`, ...args);
const pypi = (name, ...args) => ({ command: join(CACHE, 'python-leak', 'bin', `mcp-server-${name}`), args });

const count = { passed: 0, failed: 0 };
function check(what, wrong) {
  if (wrong) count.failed += 1; else count.passed += 1;
  console.log(`${wrong ? 'FAIL' : 'ok  '} ${what}${wrong ? `: ${wrong}` : ''}`);
}

/** The eight, and one that gives each client an instance of its own. */
function servers(more) {
  const data = scratchDir('ostler-leak-');
  const memory = { env: { MEMORY_FILE_PATH: join(data, 'memory.json') } };
  const all = {
    context7: npx('context7-mcp'),
    everything: npm('everything'),
    filesystem: npm('filesystem', data),
    memory: { ...npm('memory'), ...memory },
    thinking: npm('sequential-thinking'),
    fetch: pypi('fetch'),
    git: pypi('git'),
    time: pypi('time', '--local-timezone', 'UTC'),
  };
  const own = { ...npm('memory'), ...memory, scope: 'session', start: 'on-demand' };
  const sections = Object.entries({ ...all, own }).map(([name, keys]) => [`servers.${name}`, { ...keys, ...more }]);
  return { names: Object.keys(all), sections: Object.fromEntries(sections) };
}

const ostler = async (daemon, ...args) => {
  const ended = await run(ostlerBinary(), args, { timeoutMs: COMMAND_MS, env: { ...process.env, ...daemon.env } });
  if (ended.code !== 0) throw new Error(`ostler ${args.join(' ')}: ${ended.output}`);
  return ended.stdout;
};

/** Resident memory of these processes, in bytes, as the kernel has it; one that has just ended has none. */
function resident(pids) {
  return pids.reduce((sum, pid) => {
    try {
      return sum + Number(/^Rss:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/smaps_rollup`, 'utf8'))?.[1] ?? 0) * 1024;
    } catch {
      return sum;
    }
  }, 0);
}

/** Looks again and again until told to stop: the most instances and the most memory ever seen. */
function watch(daemon) {
  const most = { instances: 0, bytes: 0 };
  let over = false;
  const watching = (async () => {
    while (!over) {
      const rows = JSON.parse(await ostler(daemon, 'ps', '--json'));
      most.instances = Math.max(most.instances, rows.filter(row => row.processes > 0).length);
      most.bytes = Math.max(most.bytes, resident(processesMarked('OSTLER_TEST_MARK', daemon.mark)));
      await sleep(LOOK_MS);
    }
  })();
  return async () => { over = true; await watching; return most; };
}

/** Lets the clients come, says what came of it, and has them vanish. */
async function vanish(daemon, names, judge) {
  const crowd = start(process.execPath, [join(HERE, 'clients.mjs'), daemon.http, String(CLIENTS), names.join(','), 'own']);
  try {
    const line = await until('the clients', () => crowd.output().match(/^\{.*\}$/m)?.[0], { timeoutMs: CLIENTS_MS, alive: crowd });
    await judge(JSON.parse(line));
  } finally {
    killGroup(crowd.pid);
    await crowd.exited;
  }
}

const running = async daemon => JSON.parse(await ostler(daemon, 'ps', '--json')).filter(row => row.processes > 0);

async function withTheDefaults() {
  const { names, sections } = servers({});
  const daemon = await startOstler(ostlerBinary(), sections);
  try {
    const most = watch(daemon);
    await vanish(daemon, names, async ({ opened, more }) => {
      const wanted = CLIENTS * names.length;
      check(`${CLIENTS} clients have a session at each of ${names.length} real servers`, opened.sessions === wanted ? '' : `${opened.sessions} of ${wanted}; ${JSON.stringify(opened).slice(0, 600)}`);
      check('who asks for more than there may be is refused', more.granted > 0 && more.refused.length > 0 && more.granted + more.refused.length === CLIENTS ? '' : JSON.stringify(more).slice(0, 600));
      const unclear = more.refused.find(text => !/limits\.processes/.test(text) || !text.includes(String(PROCESSES)));
      check('each refusal names the limit and the figure', unclear);
      console.log(`     ${more.granted} granted, ${more.refused.length} refused: ${more.refused[0]}`);
    });
    const { instances, bytes } = await most();
    check(`never more than ${PROCESSES} instances`, instances > names.length && instances <= PROCESSES ? '' : `${instances} were seen`);
    check(`never more than ${MEMORY / 2 ** 30} GiB`, bytes > 0 && bytes <= MEMORY ? '' : `${bytes} bytes were seen`);
    console.log(`     at most ${instances} instances and ${(bytes / 2 ** 20).toFixed(0)} MiB (pages that processes share counted for each)`);
    const shared = (await running(daemon)).filter(row => row.server !== 'own');
    // A process speaks one era of the protocol: a server that speaks both may have one for each (ADR 3).
    const kinds = shared.map(row => `${row.server} ${row.era}`);
    const asMeant = new Set(shared.map(row => row.server)).size === names.length && new Set(kinds).size === kinds.length;
    check('after all clients have vanished the shared ones stay for who comes next, one for each era', asMeant ? '' : kinds.join());
    await ostler(daemon, 'down');
    const left = processesMarked('OSTLER_TEST_MARK', daemon.mark);
    check('after `ostler down` nothing is left', left.length ? `${left.length} processes` : '');
  } finally {
    const wrong = await daemon.stop();
    check('the daemon ends cleanly', wrong.join('; '));
  }
}

/** The same, where what nobody uses goes soon. */
async function withAShortPatience() {
  const { names, sections } = servers({ idle: '2s', start: 'on-demand' });
  const daemon = await startOstler(ostlerBinary(), { sessions: { idle: '2s' }, ...sections });
  try {
    await vanish(daemon, names, async ({ opened }) => {
      check('the clients are served again', opened.sessions === CLIENTS * names.length ? '' : JSON.stringify(opened).slice(0, 600));
    });
    let rows = [];
    const gone = until('no instance', async () => (rows = await running(daemon)).length ? undefined : true, { timeoutMs: IDLE_MS, everyMs: LOOK_MS });
    check('after all clients have vanished and `idle` has passed nothing runs', await gone.then(() => '', () => rows.map(row => row.id).join()));
    const left = processesMarked('OSTLER_TEST_MARK', daemon.mark);
    check('no process of any of them is left', left.length ? `${left.length} processes` : '');
  } finally {
    const wrong = await daemon.stop();
    check('the daemon ends cleanly', wrong.join('; '));
  }
}

try {
  const missing = [join(HERE, 'node_modules'), join(CACHE, 'python-leak/bin/python')].find(path => !existsSync(path));
  if (missing) throw new Error(`${missing} is missing: run scripts/setup-test-deps.sh`);
  await withTheDefaults();
  await withAShortPatience();
} catch (error) {
  console.log(`leak: ${error.stack ?? error}`);
  count.failed += 1;
}
console.log(`${count.passed} passed, ${count.failed} failed`);
process.exit(count.failed ? 1 : 0);
