'use strict';
const work = require('./work.cjs');
exports.noop = work.noop;
exports.true = work.true;
