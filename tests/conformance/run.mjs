#!/usr/bin/env node
// The official conformance suite, first against the fixture server directly over HTTP, then
// against Ostler in front of the same server over stdio. Every check must come out the same.
//
//   node run.mjs              all legs; the binary is $OSTLER_BIN or the checkout's own build
//   node run.mjs --direct     only the direct runs (no Ostler needed)
//   node run.mjs --leg NAME   one leg of the table below (repeatable), with its direct run
//   --keep                    leave the suite's own output in place and say where
//
// The last line is `N passed, M failed`, counting checks; the exit status is 0 when M is 0.
import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { keepDir, run, scratchDir } from '../lib/processes.mjs';
import { FIXTURE, ostlerBinary, startFixture, startOstler } from '../lib/ostler.mjs';
import { compare, readChecks, requiredScenarios } from './verdicts.mjs';

const HERE = dirname(fileURLToPath(import.meta.url));
const SUITE = join(HERE, 'node_modules/@modelcontextprotocol/conformance/dist/index.js');

/** Limit of one scenario; the suite's own default is 30 s, none takes 3 s here. */
const SCENARIO_TIMEOUT_MS = 10_000;
/** Limit of one run of the suite: it takes 3 to 10 s when nothing is wrong. */
const SUITE_TIMEOUT_MS = 180_000;
/** How many scenarios each revision requires, frozen by the suite: a smaller number means that it ran less. */
const REQUIRED = { '2025-11-25': 30, '2026-07-28': 37 };

/** The suite opens 34 sessions within seconds and leaves one of them behind: the defaults for people (15 instances, 10 of one server for sessions) must not bite. */
const LIMITS = { processes: 64, session_instances: 64 };
const fixture = more => ({ command: process.execPath, args: [FIXTURE], ...more });
const SERVERS = {
  limits: LIMITS,
  'servers.fixture': fixture({ scope: 'session' }),
  'servers.fixture-shared': fixture({ scope: 'shared' }),
  'servers.fixture-serial': fixture({ scope: 'shared', concurrency: 'serial' }),
};

/** In this scenario the server drops its stream while a call runs, and the client resumes it, once. */
const POLLING = 'server-sse-polling';

/**
 * The configurations of the gateway. Over stdio a server has no stream to drop: the gateway does it,
 * once `stream_hold` has passed, with each stream. `plain` leaves that off, as most people will.
 * `polling` drops the streams of all calls that take 60 ms; clients come back as often as they must.
 * `resumed` is for POLLING, whose client comes back once: its call of 1.5 s (`test_reconnection`) ends
 * half a second after the first drop and half a second before the next, also on a busy machine.
 * `sse_after` is how long a legacy call may take before its answer comes as a stream: at 0 always,
 * as the fixture itself does over HTTP.
 */
const CONFIGS = {
  plain: { gateway: { sse_after: '0s' }, ...SERVERS },
  polling: { gateway: { sse_after: '0s', stream_hold: '60ms' }, ...SERVERS },
  resumed: { gateway: { sse_after: '0s', stream_hold: '1s' }, ...SERVERS },
};

/** Each leg: which configuration, server and revision; the one scenario that it cannot show, or that it is for. */
const LEGS = [
  { name: 'session-legacy', config: 'plain', server: 'fixture', revision: '2025-11-25', except: POLLING },
  { name: 'session-modern', config: 'plain', server: 'fixture', revision: '2026-07-28' },
  { name: 'shared-modern', config: 'plain', server: 'fixture-shared', revision: '2026-07-28' },
  { name: 'serial-modern', config: 'plain', server: 'fixture-serial', revision: '2026-07-28' },
  { name: 'session-legacy-polling', config: 'polling', server: 'fixture', revision: '2025-11-25', except: POLLING },
  { name: 'shared-legacy-polling', config: 'polling', server: 'fixture-shared', revision: '2025-11-25', except: POLLING },
  { name: 'serial-legacy-polling', config: 'polling', server: 'fixture-serial', revision: '2025-11-25', except: POLLING },
  { name: 'session-legacy-resumed', config: 'resumed', server: 'fixture', revision: '2025-11-25', only: POLLING },
  { name: 'shared-legacy-resumed', config: 'resumed', server: 'fixture-shared', revision: '2025-11-25', only: POLLING },
  { name: 'serial-legacy-resumed', config: 'resumed', server: 'fixture-serial', revision: '2025-11-25', only: POLLING },
];

/** Runs the suite once, or one scenario of it. Returns { checks, required }; one scenario alone has no summary. */
async function runSuite(url, revision, outputDir, only) {
  const which = only ? ['--scenario', only, '--spec-version', revision] : ['--requirements', revision];
  const args = [SUITE, 'server', '--url', url, ...which, '--timeout', String(SCENARIO_TIMEOUT_MS), '--output-dir', outputDir];
  // Its exit status is not the verdict: extensions that the fixture lacks fail, directly as well.
  const ended = await run(process.execPath, args, { timeoutMs: SUITE_TIMEOUT_MS });
  if (ended.timedOut) throw new Error(`the suite took more than ${SUITE_TIMEOUT_MS} ms at ${url}\n${ended.output.slice(-2000)}`);
  const required = requiredScenarios(ended.stdout);
  if (!only && required.passed.length + required.failed.length === 0) throw new Error(`the suite printed no summary for ${url}\n${ended.output.slice(-2000)}`);
  return { checks: readChecks(outputDir), required };
}

const count = { passed: 0, failed: 0 };

/** Prints a leg's differences and its line, and adds to the total. */
function report(name, passed, problems, note) {
  for (const problem of problems) console.log(`  ${problem}`);
  console.log(`conformance ${name}: ${passed} passed, ${problems.length} failed (${note})`);
  count.passed += passed;
  count.failed += problems.length;
}

/** The direct runs: they must be whole, or comparing with them would prove nothing. */
async function directVerdicts(revisions, scratch) {
  const server = await startFixture();
  const verdicts = {};
  try {
    for (const revision of revisions) {
      const { checks, required } = await runSuite(server.url, revision, join(scratch, `direct-${revision}`));
      const wanted = REQUIRED[revision];
      const problems = required.failed.map(scenario => `required scenario failed directly: ${scenario}`);
      if (required.passed.length + required.failed.length !== wanted) problems.push(`${required.passed.length + required.failed.length} required scenarios ran, ${wanted} expected`);
      report(`direct ${revision}`, required.passed.length, problems, `required scenarios; ${checks.size} checks recorded`);
      verdicts[revision] = checks;
    }
  } finally {
    await server.stop();
  }
  return verdicts;
}

async function runLeg(leg, http, direct, scratch) {
  const { checks, required } = await runSuite(`${http}/mcp/${leg.server}`, leg.revision, join(scratch, leg.name), leg.only);
  const { same, different } = compare(direct[leg.revision], checks, scenario => (leg.only ? scenario !== leg.only : scenario === leg.except));
  const scenarios = leg.only ?? `${required.passed.length} of ${required.passed.length + required.failed.length} required scenarios`;
  report(`${leg.name} ${leg.revision}`, same, different, leg.except ? `${scenarios}; ${leg.except} not compared` : scenarios);
}

/** Runs the legs of one configuration on one daemon. */
async function runConfig(config, legs, direct, scratch) {
  const daemon = await startOstler(ostlerBinary(), CONFIGS[config]);
  let broke = true;
  try {
    for (const leg of legs) await runLeg(leg, daemon.http, direct, scratch);
    broke = false;
  } finally {
    if (broke) console.log(daemon.output().slice(-4000));
    const wrong = await daemon.stop();
    report(`clean stop (${config})`, wrong.length ? 0 : 1, wrong, 'the daemon ended and no server process was left');
  }
}

async function main() {
  const { values } = parseArgs({ options: { direct: { type: 'boolean' }, keep: { type: 'boolean' }, leg: { type: 'string', multiple: true } } });
  if (!existsSync(SUITE)) throw new Error('the suite is not installed: run scripts/setup-test-deps.sh');
  const unknown = values.leg?.find(name => !LEGS.some(leg => leg.name === name));
  if (unknown) throw new Error(`no leg ${unknown}: the legs are ${LEGS.map(leg => leg.name).join(', ')}`);
  const legs = values.direct ? [] : LEGS.filter(leg => !values.leg || values.leg.includes(leg.name));
  const revisions = values.direct ? Object.keys(REQUIRED) : [...new Set(legs.map(leg => leg.revision))];

  const scratch = scratchDir('ostler-conformance-');
  if (values.keep) {
    keepDir(scratch);
    console.log(`the suite's output, every check with its details, is kept in ${scratch}`);
  }
  const direct = await directVerdicts(revisions, scratch);
  for (const config of Object.keys(CONFIGS)) {
    const own = legs.filter(leg => leg.config === config);
    if (own.length) await runConfig(config, own, direct, scratch);
  }
}

try {
  await main();
} catch (error) {
  console.log(`conformance: ${error.stack ?? error}`);
  count.failed += 1;
}
console.log(`${count.passed} passed, ${count.failed} failed`);
process.exit(count.failed ? 1 : 0);
