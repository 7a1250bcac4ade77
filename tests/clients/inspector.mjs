// Driver: `@modelcontextprotocol/inspector --cli`, one start of it for each step. See README.md.
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { run, scratchDir } from '../lib/processes.mjs';

const CLI = join(dirname(fileURLToPath(import.meta.url)), 'node_modules/@modelcontextprotocol/inspector/clients/launcher/build/index.js');
/** One start of the CLI takes about a second. */
const STEP_TIMEOUT_MS = 20_000;
/** How much of its output an error shows, in characters. */
const ERROR_KEPT = 500;

const spec = JSON.parse(process.argv[2]);
const home = scratchDir('ostler-inspector-');      // it writes a catalog into the home directory

function targetArgs({ url, stdio }) {
  if (url) return { options: ['--transport', 'http', '--server-url', url], command: [] };
  const env = Object.entries(stdio.env ?? {}).flatMap(([name, value]) => ['-e', `${name}=${value}`]);
  return { options: env, command: [stdio.command, ...stdio.args] };
}

async function runStep(step) {
  const { options, command } = targetArgs(spec.target);
  const method = step.list ? ['--method', 'tools/list']
    : ['--method', 'tools/call', '--tool-name', step.tool, '--tool-args-json', JSON.stringify(step.args)];
  // The command comes first: an option that takes several values would swallow it.
  const ended = await run(process.execPath, [CLI, '--cli', ...command, ...options, '--quiet', '--format', 'json',
    '--protocol-era', spec.era === 'modern' ? 'auto' : 'legacy', ...method],
    { timeoutMs: STEP_TIMEOUT_MS, env: { ...process.env, HOME: home } });
  if (ended.timedOut) return { error: `no exit within ${STEP_TIMEOUT_MS} ms: ${ended.output.trim().slice(-ERROR_KEPT)}` };
  if (ended.code !== 0) return { error: `exit code ${ended.code}: ${ended.output.trim().slice(-ERROR_KEPT)}` };
  const { result } = JSON.parse(ended.stdout);
  return step.list ? { tools: result.tools.map(tool => tool.name) } : { text: result.content[0]?.text, isError: result.isError ?? false };
}

for (const step of spec.steps) console.log(JSON.stringify({ check: step.check, ...await runStep(step) }));
console.log(JSON.stringify({ check: 'close' }));
