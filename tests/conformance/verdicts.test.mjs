// The comparison has to be able to fail: each way two runs can differ is shown to be seen.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { addChecks, compare, requiredScenarios } from './verdicts.mjs';

const check = (id, status, errorMessage) => ({ id, name: id.toUpperCase(), status, errorMessage });
const runOf = (...list) => { const checks = new Map(); addChecks(checks, 'ping', list); return checks; };

test('two equal runs do not differ', () => {
  assert.deepEqual(compare(runOf(check('a', 'SUCCESS')), runOf(check('a', 'SUCCESS'))), { same: 1, different: [] });
});

test('another status is a difference, with the suite\'s reason', () => {
  const { same, different } = compare(runOf(check('a', 'SUCCESS')), runOf(check('a', 'FAILURE', 'no answer')));
  assert.equal(same, 0);
  assert.deepEqual(different, ['ping / a / A #1: directly SUCCESS, through Ostler FAILURE (no answer)']);
});

test('a check that passes only through Ostler is a difference too', () => {
  assert.equal(compare(runOf(check('a', 'FAILURE')), runOf(check('a', 'SUCCESS'))).different.length, 1);
});

test('a missing and a surplus check are differences', () => {
  assert.match(compare(runOf(check('a', 'SUCCESS')), runOf()).different[0], /directly SUCCESS, through Ostler absent/);
  assert.match(compare(runOf(), runOf(check('a', 'INFO'))).different[0], /directly absent, through Ostler INFO/);
});

test('each occurrence of an id counts', () => {
  const twice = [check('a', 'SUCCESS'), check('a', 'SUCCESS')];
  assert.equal(compare(runOf(...twice), runOf(check('a', 'SUCCESS'))).different.length, 1);
  assert.equal(compare(runOf(...twice), runOf(check('a', 'SUCCESS'), check('a', 'WARNING'))).different.length, 1);
});

test('the transcript of a scenario is not compared', () => {
  assert.deepEqual(compare(runOf(check('incoming-response', 'INFO')), runOf()), { same: 0, different: [] });
});

test('a scenario can be left out by name', () => {
  assert.deepEqual(compare(runOf(check('a', 'SUCCESS')), runOf(), scenario => scenario === 'ping'), { same: 0, different: [] });
});

test('required scenarios are counted from the summary; one without a check has failed', () => {
  const text = '=== SUMMARY ===\n✓ ping: 2 passed, 0 failed\n✗ tools: 1 passed, 1 failed\n✓ empty: 0 passed, 0 failed\n'
    + '✗ tasks: 0 passed, 3 failed\n\nNot scored for X: 1 scenario(s) run\n  ✗ tasks (extension)\n';
  assert.deepEqual(requiredScenarios(text), { passed: ['ping'], failed: ['tools', 'empty'] });
});
