// npm piscina: threads in this process.
'use strict';
const os = require('node:os');
const { Piscina } = require('piscina');
const { serve } = require('./driver.cjs');

const threads = Number(process.env.BENCH_WORKERS) || os.availableParallelism();
const pool = new Piscina({
  filename: require.resolve('./piscina-worker.cjs'),
  minThreads: threads,
  maxThreads: threads,
  concurrentTasksPerWorker: Number(process.env.BENCH_AT_ONCE) || 1,
});
serve({
  submit: (kind, n) => pool.run(n, { name: kind }),
  end: () => pool.destroy(),
});
