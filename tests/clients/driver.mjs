// What the two TypeScript drivers share: the client's side of a conversation, and the report.

/** Answers a sampling request in a way that shows which request it was. */
export function answerSampling({ messages }) {
  const content = [messages.at(-1).content].flat()[0];
  return { model: 'none', role: 'assistant', content: { type: 'text', text: `answer to: ${content.text}` } };
}

/** Accepts an elicitation with `ada` in each field. */
export function answerElicitation({ requestedSchema }) {
  return { action: 'accept', content: Object.fromEntries(Object.keys(requestedSchema.properties).map(field => [field, 'ada'])) };
}

const emit = seen => process.stdout.write(`${JSON.stringify(seen)}\n`);

async function runStep(client, step) {
  if (step.list) return { tools: (await client.list()).map(tool => tool.name) };
  const progress = [];
  const result = await client.call(step.tool, step.args, step.check === 'progress' ? note => progress.push([note.progress, note.total]) : undefined);
  return { text: result.content[0]?.text, isError: result.isError ?? false, progress };
}

/** Two clients at once: which process does each of them reach? */
async function runPair(spec, connect) {
  const clients = await Promise.all(spec.pair.map(connect));
  const identities = await Promise.all(clients.map(client => client.call('probe_identity', {})));
  emit({ check: spec.check, instances: identities.map(identity => JSON.parse(identity.content[0].text).instance) });
  await Promise.all(clients.map(client => client.close()));
}

/** Connects, runs the steps one after another and prints what was seen. A step that throws ends only itself. */
export async function runSteps(spec, connect) {
  if (spec.pair) return runPair(spec, connect);
  const client = await connect(spec.target);
  for (const step of spec.steps) {
    if (step.check === 'connect') { emit({ check: 'connect', revision: client.revision }); continue; }
    try {
      emit({ check: step.check, ...await runStep(client, step) });
    } catch (error) {
      emit({ check: step.check, error: String(error?.message ?? error) });
    }
  }
  await client.close();
  emit({ check: 'close' });
}
