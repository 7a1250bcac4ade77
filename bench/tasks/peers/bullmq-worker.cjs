// npm bullmq: who does the jobs.
'use strict';
const { Worker } = require('bullmq');
const work = require('./work.cjs');

const worker = new Worker('bench', async (job) => work[job.name](job.data), {
  connection: { path: process.env.BENCH_REDIS },
  concurrency: Number(process.env.BENCH_AT_ONCE) || 1,
});
worker.on('error', (error) => console.error(error));
process.on('SIGTERM', async () => {
  await worker.close();
  process.exit(0);
});
