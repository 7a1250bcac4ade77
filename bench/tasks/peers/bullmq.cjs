// npm bullmq: who submits. A result is known by the event that says so, which is how its guide does it; asking for
// each (`waitUntilFinished`) would take one more command each.
'use strict';
const { Queue, QueueEvents } = require('bullmq');
const { serve } = require('./driver.cjs');

const connection = { path: process.env.BENCH_REDIS };
// Each job that is kept costs memory and nothing else; a thousand are.
const queue = new Queue('bench', { connection, defaultJobOptions: { removeOnComplete: { count: 1000 } } });
const events = new QueueEvents('bench', { connection });
const waiting = new Map();
// Results that were there before their job's id was.
const early = new Map();

function settle(id, outcome) {
  const settled = waiting.get(id);
  waiting.delete(id);
  if (settled) settled(outcome);
  else early.set(id, outcome);
}
events.on('completed', ({ jobId, returnvalue }) => settle(jobId, { value: returnvalue }));
events.on('failed', ({ jobId, failedReason }) => settle(jobId, { error: new Error(failedReason) }));

function result({ id }) {
  return new Promise((resolve, reject) => {
    const settled = ({ error, value }) => (error ? reject(error) : resolve(value));
    if (!early.has(id)) return void waiting.set(id, settled);
    settled(early.get(id));
    early.delete(id);
  });
}

async function main() {
  await events.waitUntilReady();
  await serve({
    submit: async (kind, n) => result(await queue.add(kind, n)),
    bulk: async (kind, n, many) => {
      const jobs = Array.from({ length: many }, (_, at) => ({ name: kind, data: n + at }));
      return Promise.all((await queue.addBulk(jobs)).map(result));
    },
    end: () => Promise.all([queue.close(), events.close()]),
  });
}
main();
