// What the clients do and what they must see. A step is { check, tool, args, list } and `expect`,
// a function from the driver's observation to undefined (good) or a reason. Pure.

const same = (what, seen, wanted) =>
  JSON.stringify(seen) === JSON.stringify(wanted) ? undefined : `${what} ${JSON.stringify(seen)}, expected ${JSON.stringify(wanted)}`;
const text = wanted => seen => (seen.isError ? `a tool error: ${seen.text}` : same('text', seen.text, wanted));
const contains = wanted => seen => (seen.text?.includes(wanted) && !seen.isError ? undefined : `text ${JSON.stringify(seen.text)}, expected it to hold ${JSON.stringify(wanted)}`);
const lists = (...wanted) => seen => {
  const missing = wanted.filter(name => !seen.tools?.includes(name));
  return missing.length ? `the list lacks ${missing.join(', ')}` : undefined;
};

/**
 * This server answers right after its last note. A TypeScript client that reads both at once
 * resolves the call first and drops the note (directly as well), so that one may be missing.
 */
const progressButLast = seen =>
  (seen.progress?.length === 3 ? same('progress', seen.progress, [[1, 3], [2, 3], [3, 3]]) : same('progress', seen.progress, [[1, 3], [2, 3]]));

/** The revision that each era negotiates with today's servers. */
const REVISION = { legacy: '2025-11-25', modern: '2026-07-28' };
const connected = era => ({ check: 'connect', expect: seen => same('revision', seen.revision, REVISION[era]) });

/**
 * The drivers' side of a conversation is fixed: a sampling request is answered with
 * `answer to: ` and the prompt, each string field of an elicitation with `ada`.
 */
const ROUND_TRIPS = {
  legacy: [
    { check: 'sampling', tool: 'test_sampling', args: { prompt: 'why?' }, expect: text('LLM response: answer to: why?') },
    { check: 'elicitation', tool: 'test_elicitation', args: { message: 'who?' }, expect: text('User response: action=accept, content={"username":"ada","email":"ada"}') },
  ],
  modern: [
    { check: 'sampling', tool: 'test_input_required_result_sampling', args: {}, expect: text('Model said: answer to: What is the capital of France?') },
    { check: 'elicitation', tool: 'test_input_required_result_elicitation', args: {}, expect: text('Hello, ada!') },
  ],
};

/** The steps against the fixture; `payload` is unlike any other run's, so that a stray answer shows. */
export function fixtureSteps(era, payload) {
  return [
    connected(era),
    { check: 'list', list: true, expect: lists('probe_echo', 'test_sampling', 'test_x_mcp_header') },
    { check: 'call', tool: 'probe_echo', args: { data: payload }, expect: text(payload) },
    { check: 'tool error', tool: 'test_error_handling', args: {}, expect: seen => same('isError', seen.isError, true) },
    { check: 'progress', tool: 'probe_progress', args: { ms: 100 }, expect: seen => same('progress', seen.progress, [[1, 3], [2, 3], [3, 3]]) },
    ...ROUND_TRIPS[era],
    { check: 'call after', tool: 'probe_echo', args: { data: `${payload} again` }, expect: text(`${payload} again`) },
  ];
}

/** The steps against server-everything, which is legacy whatever the client would prefer. */
export function everythingSteps(_era, payload) {
  return [
    connected('legacy'),
    { check: 'list', list: true, expect: lists('echo', 'get-sum', 'trigger-long-running-operation') },
    { check: 'call', tool: 'echo', args: { message: payload }, expect: text(`Echo: ${payload}`) },
    { check: 'progress', tool: 'trigger-long-running-operation', args: { duration: 0.3, steps: 3 }, expect: progressButLast },
    { check: 'sampling', tool: 'trigger-sampling-request', args: { prompt: 'why?' }, expect: contains('answer to: Resource trigger-sampling-request context: why?') },
  ];
}

/** What the Inspector's CLI can show: one method for each start of it. */
export const INSPECTOR_CHECKS = ['list', 'call'];

/** Two clients at once see two processes in scope `session`, and one in scope `shared`. */
export const PAIR = {
  session: { check: 'two clients, two instances', expect: seen => (new Set(seen.instances).size === 2 ? undefined : `instances ${seen.instances}`) },
  shared: { check: 'two clients, one instance', expect: seen => (seen.instances?.length === 2 && new Set(seen.instances).size === 1 ? undefined : `instances ${seen.instances}`) },
};
