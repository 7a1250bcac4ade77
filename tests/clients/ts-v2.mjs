// Driver: `@modelcontextprotocol/client` 2.x. See README.md.
import { Client, StreamableHTTPClientTransport } from '@modelcontextprotocol/client';
import { StdioClientTransport } from '@modelcontextprotocol/client/stdio';
import { answerElicitation, answerSampling, runSteps } from './driver.mjs';

const spec = JSON.parse(process.argv[2]);

async function connect(target) {
  // `auto` probes with server/discover and falls back to initialize, as an application would ask it to.
  const client = new Client({ name: 'ts-v2', version: '1' }, {
    capabilities: { sampling: {}, elicitation: {} },
    versionNegotiation: { mode: spec.era === 'modern' ? 'auto' : 'legacy' },
  });
  client.setRequestHandler('sampling/createMessage', request => answerSampling(request.params));
  client.setRequestHandler('elicitation/create', request => answerElicitation(request.params));
  const transport = target.url
    ? new StreamableHTTPClientTransport(new URL(target.url))
    : new StdioClientTransport({ ...target.stdio, stderr: 'ignore' });
  await client.connect(transport);
  return {
    revision: client.getNegotiatedProtocolVersion(),
    list: async () => (await client.listTools()).tools,
    call: (name, args, onprogress) => client.callTool({ name, arguments: args }, { onprogress }),
    close: async () => {
      if (target.url && client.getProtocolEra() === 'legacy') await transport.terminateSession();
      await client.close();
    },
  };
}

await runSteps(spec, connect);
