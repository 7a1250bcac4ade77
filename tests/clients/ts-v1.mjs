// Driver: `@modelcontextprotocol/sdk` 1.x. See README.md.
import { Client } from '@modelcontextprotocol/sdk/client/index.js';
import { StdioClientTransport } from '@modelcontextprotocol/sdk/client/stdio.js';
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js';
import { CreateMessageRequestSchema, ElicitRequestSchema } from '@modelcontextprotocol/sdk/types.js';
import { answerElicitation, answerSampling, runSteps } from './driver.mjs';

const spec = JSON.parse(process.argv[2]);

async function connect(target) {
  const client = new Client({ name: 'ts-v1', version: '1' }, { capabilities: { sampling: {}, elicitation: {} } });
  client.setRequestHandler(CreateMessageRequestSchema, request => answerSampling(request.params));
  client.setRequestHandler(ElicitRequestSchema, request => answerElicitation(request.params));
  const transport = target.url
    ? new StreamableHTTPClientTransport(new URL(target.url))
    : new StdioClientTransport({ ...target.stdio, stderr: 'ignore' });
  // This line of the SDK keeps the negotiated revision to itself and tells only the transport.
  let revision;
  const tell = transport.setProtocolVersion?.bind(transport);
  transport.setProtocolVersion = version => { revision = version; tell?.(version); };
  await client.connect(transport);
  return {
    revision,
    list: async () => (await client.listTools()).tools,
    call: (name, args, onprogress) => client.callTool({ name, arguments: args }, undefined, { onprogress }),
    close: async () => { if (target.url) await transport.terminateSession(); await client.close(); },
  };
}

await runSteps(spec, connect);
