'use strict';
const work = require('./work.cjs');
require('workerpool').worker({ noop: work.noop, true: work.true });
