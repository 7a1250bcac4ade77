// What one run of the suite said, and how two runs differ. Pure: no processes, no network.
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';

/**
 * Checks that record the traffic of a scenario (one per request, response and stream event) and
 * judge nothing: always INFO, and their number depends on timing and on how many events a stream
 * carries. They are left out by id. Every other check is compared, INFO and SKIPPED included.
 */
const TRANSCRIPT = new Set(['outgoing-request', 'incoming-response', 'incoming-sse-event', 'stream-closed']);

/** A scenario's folder: `server-<scenario>-<time>`. */
const FOLDER = /^server-(.+)-\d{4}-\d{2}-\d{2}T\d{2}-\d{2}-\d{2}-\d{3}Z$/;

/**
 * Reads the suite's output folder into a Map from check to { status, message }. A check is named
 * by scenario, id, name and its occurrence, because a scenario may report one id several times.
 * A scenario that reached no check at all is in the map too, as `(no check was reached)`.
 */
export function readChecks(dir) {
  const checks = new Map();
  for (const folder of readdirSync(dir).sort()) {
    const scenario = folder.match(FOLDER)?.[1];
    if (!scenario) throw new Error(`unexpected entry in the suite's output: ${folder}`);
    const before = checks.size;
    addChecks(checks, scenario, JSON.parse(readFileSync(join(dir, folder, 'checks.json'), 'utf8')));
    if (checks.size === before) checks.set(`${scenario} (no check was reached)`, { status: 'NONE' });
  }
  return checks;
}

/** Adds one scenario's checks; exported for the test. */
export function addChecks(checks, scenario, list) {
  const seen = new Map();
  for (const { id, name, status, errorMessage } of list) {
    if (TRANSCRIPT.has(id)) continue;
    const base = `${scenario} / ${id} / ${name}`;
    const occurrence = (seen.get(base) ?? 0) + 1;
    seen.set(base, occurrence);
    checks.set(`${base} #${occurrence}`, { status, message: errorMessage });
  }
}

/**
 * Compares two runs. Returns { same, different }, `different` being readable lines, one for each
 * check whose status differs or that only one of the runs has. `except(scenario)` leaves out.
 */
export function compare(direct, through, except = () => false) {
  const different = [];
  let same = 0;
  const names = [...new Set([...direct.keys(), ...through.keys()])].filter(name => !except(name.split(' ')[0]));
  for (const name of names) {
    const [a, b] = [direct.get(name), through.get(name)];
    if (a?.status === b?.status) same += 1;
    else different.push(`${name}: directly ${a?.status ?? 'absent'}, through Ostler ${b?.status ?? 'absent'}${b?.message ? ` (${b.message})` : ''}`);
  }
  return { same, different };
}

/**
 * Reads the required scenarios from the suite's printed summary: { passed: [...], failed: [...] }.
 * A scenario listed under "Not scored" is not required; one with no check at all counts as failed.
 */
export function requiredScenarios(text) {
  const [, summary = ''] = text.replace(/\x1b\[[0-9;]*m/g, '').split('=== SUMMARY ===');
  const notScored = new Set([...summary.matchAll(/^\s+[✓✗] (\S+) \([a-z-]+\)/gm)].map(match => match[1]));
  const required = { passed: [], failed: [] };
  for (const [, scenario, passed, failed] of summary.matchAll(/^[✓✗] (\S+): (\d+) passed, (\d+) failed/gm)) {
    if (notScored.has(scenario)) continue;
    (Number(failed) === 0 && Number(passed) > 0 ? required.passed : required.failed).push(scenario);
  }
  return required;
}
