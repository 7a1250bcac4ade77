// npm workerpool: threads in this process.
'use strict';
const os = require('node:os');
const workerpool = require('workerpool');
const { serve } = require('./driver.cjs');

const workers = Number(process.env.BENCH_WORKERS) || os.availableParallelism();
const pool = workerpool.pool(require.resolve('./workerpool-worker.cjs'), {
  minWorkers: workers,
  maxWorkers: workers,
  workerType: process.env.BENCH_WORKER_TYPE || 'thread',
});
serve({
  submit: (kind, n) => pool.exec(kind, [n]),
  end: () => pool.terminate(),
});
