// How tasks end without success.

export const KINDS = ['failed', 'invalid', 'timeout', 'memory', 'refused', 'output', 'cancelled'];
const RETRIED = ['failed', 'timeout', 'memory'];

/** Whether another attempt may end better, if nothing else is known. */
export const isRetried = (kind) => RETRIED.includes(kind);

/** Ends a task with an error of a kind. */
export class TaskError extends Error {
  constructor(message, { kind = 'failed', retry } = {}) {
    super(message);
    if (!KINDS.includes(kind)) throw new RangeError(`an error is of one of the kinds ${KINDS.join(', ')}`);
    this.kind = kind;
    this.retry = retry ?? isRetried(kind);
  }
}

/** What was asked for makes no sense. */
export class Invalid extends TaskError {
  constructor(message) { super(message, { kind: 'invalid' }); }
}

/** It is not allowed, or not done here. */
export class Refused extends TaskError {
  constructor(message) { super(message, { kind: 'refused' }); }
}
