// The part of a driver that is the same for all peers in JavaScript: reads a cell to measure from each line of its
// input, keeps so many tasks under way, and answers with a line of what came of it.
'use strict';
const { createInterface } = require('node:readline');
const { performance } = require('node:perf_hooks');

const MOST_ERRORS = 100;

// `submit(kind, n)` promises the result of one task; `bulk(kind, n, many)`, where the peer has that, the results of many
// that are submitted at once, n to n + many - 1. `end()` stops everything.
exports.serve = async function serve({ submit, bulk, end }) {
  // Whatever workers there are to be are there before anything is measured.
  for (const kind of ['noop', 'true']) check(kind, 1, await submit(kind, 1));
  say({ ready: true });
  for await (const line of createInterface({ input: process.stdin })) {
    const cell = JSON.parse(line);
    say(await measure(cell, submit, bulk));
  }
  await end();
};

function say(message) {
  process.stdout.write(JSON.stringify(message) + '\n');
}

function check(kind, n, result) {
  if (result !== (kind === 'noop' ? n : 0)) throw new Error(`a wrong result of ${n}: ${JSON.stringify(result)}`);
}

async function measure({ kind, window, batch = 0, seconds, warmup }, submit, bulk) {
  const from = performance.now() + warmup * 1e3;
  const until = from + seconds * 1e3;
  const took = [];
  let next = 0;
  let tasks = 0;
  let batchesTook = 0;
  let errors = 0;
  let first = null;
  async function one(n) {
    check(kind, n, await submit(kind, n));
    return 1;
  }
  async function many(n) {
    next += batch;
    (await bulk(kind, n, batch)).forEach((result, at) => check(kind, n + at, result));
    return batch;
  }
  async function inALoop() {
    for (;;) {
      const begun = performance.now();
      if (begun >= until || errors >= MOST_ERRORS) return;
      try {
        const done = await (batch ? many : one)(next++);
        const ended = performance.now();
        // A batch counts if it began in the measured time: one may take longer than all of that.
        if (batch ? begun < from : ended < from || ended > until) continue;
        took.push(ended - begun);
        if (batch) batchesTook += (ended - begun) / 1e3;
        tasks += done;
      } catch (error) {
        errors += 1;
        first ??= String(error);
      }
    }
  }
  await Promise.all(Array.from({ length: batch ? 1 : window }, inALoop));
  took.sort((a, b) => a - b);
  const quantile = (share) => (took.length ? took[Math.max(0, Math.ceil(took.length * share) - 1)] * 1e3 : 0);
  return {
    tasks,
    per_s: tasks / (batchesTook || seconds),
    p50_us: quantile(0.5),
    p99_us: quantile(0.99),
    max_us: quantile(1),
    errors,
    first_error: first,
  };
}
