#!/usr/bin/env node
// Many clients, each with a session of its own at every server. Says what came of it in one line of JSON, and then
// stays, holding all of them, until it is killed: that is how clients vanish.
//
//   node clients.mjs BASE CLIENTS SHARED OWN     SHARED: names with commas; OWN: a server with an instance for each
import { Client } from '@modelcontextprotocol/sdk/client/index.js';
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js';

const [base, clients, shared, own] = process.argv.slice(2);
/** A cold start of eight interpreters on a small machine takes most of this. */
const PATIENCE_MS = 120_000;
const held = [];

/** Opens a session and asks for the tools; their number. */
async function open(server) {
  const client = new Client({ name: 'leak', version: '1.0.0' });
  const transport = new StreamableHTTPClientTransport(new URL(`${base}/mcp/${server}`));
  await client.connect(transport, { timeout: PATIENCE_MS });
  held.push(client);
  return (await client.listTools(undefined, { timeout: PATIENCE_MS })).tools.length;
}

const names = shared.split(',');
const opened = { sessions: 0, toolless: [], failed: [] };
await Promise.all(Array.from({ length: Number(clients) }, async () => {
  for (const server of names) {
    try {
      if (await open(server) > 0) opened.sessions += 1;
      else opened.toolless.push(server);
    } catch (error) {
      opened.failed.push(`${server}: ${error.message}`);
    }
  }
}));
const more = { granted: 0, refused: [] };
await Promise.all(Array.from({ length: Number(clients) }, async () => {
  try {
    await open(own);
    more.granted += 1;
  } catch (error) {
    more.refused.push(error.message);
  }
}));
console.log(JSON.stringify({ opened, more }));
setInterval(() => {}, 1_000_000);
