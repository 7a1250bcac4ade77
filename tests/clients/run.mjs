#!/usr/bin/env node
// Released MCP clients against one Ostler daemon, over HTTP and through `ostler connect`. See README.md.
//
//   node run.mjs              everything; the binary is $OSTLER_BIN or the checkout's own build
//   node run.mjs --direct     the same clients against the servers themselves
//   node run.mjs --only TEXT  only the runs whose name holds TEXT
//
// The last line is `N passed, M failed`, counting checks; the exit status is 0 when M is 0.
import { randomUUID } from 'node:crypto';
import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { run } from '../lib/processes.mjs';
import { FIXTURE, ROOT, ostlerBinary, startFixture, startOstler } from '../lib/ostler.mjs';
import { INSPECTOR_CHECKS, PAIR, everythingSteps, fixtureSteps } from './plan.mjs';

const HERE = dirname(fileURLToPath(import.meta.url));
const CACHE = process.env.OSTLER_TEST_CACHE ?? join(ROOT, '.cache');
/** Limit of one run of one client: it takes one to three seconds when nothing is wrong. */
const CLIENT_TIMEOUT_MS = 60_000;

const python = line => [join(CACHE, `python-clients-${line}`, 'bin/python'), join(HERE, `py_${line}.py`)];
const node = script => [process.execPath, join(HERE, script)];
const CLIENTS = [
  { name: 'py-v1', command: python('v1'), eras: ['legacy'] },
  { name: 'py-v2', command: python('v2'), eras: ['legacy', 'modern'] },
  { name: 'ts-v1', command: node('ts-v1.mjs'), eras: ['legacy'] },
  { name: 'ts-v2', command: node('ts-v2.mjs'), eras: ['legacy', 'modern'] },
  { name: 'inspector', command: node('inspector.mjs'), eras: ['legacy', 'modern'], checks: INSPECTOR_CHECKS },
];

/** As people start it: `npx` and its wrapper, here on the copy pinned in package-lock.json. */
const EVERYTHING = { command: 'npx', args: ['--no-install', '--prefix', HERE, 'mcp-server-everything'] };
/** Reached by Ostler over the network: `clients` are those that suffice to show it. */
const atPort = (transport, { command, args }, more) => ({ command, args: [...args, ...more], transport, ports: { mcp: 'auto' }, env: { PORT: '{port.mcp}' } });
const FIXTURE_AT = { command: process.execPath, args: [FIXTURE] };
const SERVERS = [
  { name: 'fixture', scope: 'session', steps: fixtureSteps, stdio: { command: process.execPath, args: [FIXTURE] } },
  { name: 'fixture-shared', scope: 'shared', steps: fixtureSteps, stdio: { command: process.execPath, args: [FIXTURE] } },
  { name: 'everything', scope: 'session', steps: everythingSteps, stdio: EVERYTHING },
  { name: 'fixture-http', scope: 'session', steps: fixtureSteps, upstream: atPort('http', FIXTURE_AT, ['--http', '{port.mcp}']), clients: ['py-v2', 'ts-v2'] },
  { name: 'everything-http', scope: 'session', steps: everythingSteps, upstream: atPort('http', EVERYTHING, ['streamableHttp']), clients: ['py-v1', 'ts-v1'] },
  { name: 'everything-sse', scope: 'session', steps: everythingSteps, upstream: atPort('sse', EVERYTHING, ['sse']), clients: ['py-v1', 'ts-v1'] },
];

const count = { passed: 0, failed: 0 };

/** Judges what a driver printed against the steps; each step that was not reached has failed. */
function judge(name, steps, ended) {
  const seen = new Map(ended.stdout.split('\n').filter(line => line.startsWith('{')).map(line => JSON.parse(line)).map(one => [one.check, one]));
  const problems = [];
  for (const step of steps) {
    const one = seen.get(step.check);
    const reason = !one ? 'not reached' : one.error ?? step.expect(one);
    if (reason === undefined) count.passed += 1;
    else problems.push(`${step.check}: ${reason}`);
  }
  count.failed += problems.length;
  console.log(`${problems.length ? 'FAIL' : 'ok  '} ${name}: ${steps.length - problems.length} of ${steps.length}`);
  for (const problem of problems) console.log(`     ${problem}`);
  if (problems.length && (ended.timedOut || ended.code !== 0)) {
    console.log(`     ${ended.timedOut ? `killed after ${CLIENT_TIMEOUT_MS} ms` : `exit code ${ended.code}`}: ${ended.output.slice(-3000).trim()}`);
  }
}

async function drive(name, command, spec, steps) {
  const ended = await run(command[0], [...command.slice(1), JSON.stringify(spec)], { timeoutMs: CLIENT_TIMEOUT_MS });
  judge(name, steps, ended);
}

/** One client, one era, one server, one way to reach it. */
async function runClient(client, era, server, way, target) {
  const payload = `${client.name} ${era} ${server.name} ${way} ${randomUUID()}`;
  const done = { check: 'close', expect: () => undefined };
  const steps = [...server.steps(era, payload), done].filter(step => !client.checks || step.check === 'close' || client.checks.includes(step.check));
  const spec = { target, era, steps: steps.filter(step => step !== done) };
  await drive(`${client.name} ${era} ${server.name} ${way}`, client.command, spec, steps);
}

/** Two clients at once, for each pair of ways to reach the server: who shares a process with whom? */
async function runPairs(server, targets, wanted) {
  const { check, expect } = PAIR[server.scope];
  for (const pair of [['http', 'http'], ['stdio', 'stdio'], ['http', 'stdio']]) {
    const name = `pair ${server.name} ${pair.join('+')}`;
    if (wanted(name)) await drive(name, node('ts-v1.mjs'), { check, pair: pair.map(way => targets[way]) }, [{ check, expect }]);
  }
}

async function runAll(targetsOf, wanted, { pairs }) {
  for (const server of SERVERS) {
    const targets = targetsOf(server);
    for (const client of CLIENTS.filter(({ name }) => server.clients?.includes(name) ?? true)) {
      for (const era of client.eras) {
        for (const way of Object.keys(targets)) {
          if (wanted(`${client.name} ${era} ${server.name} ${way}`)) await runClient(client, era, server, way, targets[way]);
        }
      }
    }
    if (pairs && server.name.startsWith('fixture') && !server.upstream) await runPairs(server, targets, wanted);
  }
}

async function direct(wanted) {
  // Without the `npx` wrapper: the Inspector, which signals only the process it started, waits for ever on the rest.
  const everything = { command: process.execPath, args: [join(HERE, 'node_modules/@modelcontextprotocol/server-everything/dist/index.js')] };
  const fixture = await startFixture();
  try {
    await runAll(server => server.upstream ? {} : (server.name === 'everything' ? { stdio: { stdio: everything } } : { http: { url: fixture.url }, stdio: { stdio: server.stdio } }), wanted, { pairs: false });
  } finally {
    await fixture.stop();
  }
}

async function throughOstler(wanted) {
  const bin = ostlerBinary();
  const servers = Object.fromEntries(SERVERS.map(({ name, scope, stdio, upstream }) => [`servers.${name}`, { ...(upstream ?? stdio), scope }]));
  // The Inspector leaves without ending its session, and such an instance lives until it is idle for minutes.
  const daemon = await startOstler(bin, { limits: { processes: 64 }, ...servers });
  const failedBefore = count.failed;
  try {
    await runAll(server => server.upstream ? { http: { url: `${daemon.http}/mcp/${server.name}` } } : ({
      http: { url: `${daemon.http}/mcp/${server.name}` },
      stdio: { stdio: { command: bin, args: ['connect', server.name], env: daemon.env } },
    }), wanted, { pairs: true });
  } finally {
    if (count.failed > failedBefore) console.log(`--- the daemon's output\n${daemon.output().slice(-6000)}\n---`);
    const wrong = await daemon.stop();
    for (const problem of wrong) console.log(`FAIL clean stop: ${problem}`);
    if (wrong.length) count.failed += 1; else count.passed += 1;
  }
}

try {
  const { values } = parseArgs({ options: { direct: { type: 'boolean' }, only: { type: 'string' } } });
  const missing = [...CLIENTS.map(client => client.command[0]), join(HERE, 'node_modules')].find(path => !existsSync(path));
  if (missing) throw new Error(`${missing} is missing: run scripts/setup-test-deps.sh`);
  const wanted = name => !values.only || name.includes(values.only);
  await (values.direct ? direct : throughOstler)(wanted);
} catch (error) {
  console.log(`clients: ${error.stack ?? error}`);
  count.failed += 1;
}
console.log(`${count.passed} passed, ${count.failed} failed`);
process.exit(count.failed ? 1 : 0);
