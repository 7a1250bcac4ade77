// A worker of Ostler in Node: the protocol of docs/worker-protocol.md, and nothing but Node.
//
//   import { serve } from 'ostler-worker';
//
//   serve('thumbnails 1.0', {
//     async thumbnail(payload, task) {
//       task.progress(1, 2, 'reading');
//       return { size: await make(payload.path) };
//     },
//   });
//
// The file is started twice: once to speak the protocol, and once more, as a child of that, to do the tasks. So code
// that never comes back, prints, runs out of memory or ends its process is only ever a task that failed. The child
// is kept from one task to the next; with `{ fresh: true }` each task has a process of its own, and one is ready.

import { runChild } from './child.mjs';
import { runParent } from './parent.mjs';

export { Invalid, Refused, TaskError } from './errors.mjs';

/** Does tasks of these types until there are no more. */
export function serve(name, handlers, { fresh = false } = {}) {
  if (process.env.OSTLER_WORKER_CHILD === '3') runChild(handlers);
  else runParent(name, Object.keys(handlers), fresh);
}
