"""Driver: PyPI `mcp` 1.x. See README.md."""

import asyncio
import os

from mcp import ClientSession, StdioServerParameters, types
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client

from driver import elicited, emit, run_steps, sampled, spec


async def on_sampling(_context, params):
    return types.CreateMessageResult(
        role="assistant", model="none", content=types.TextContent(type="text", text=sampled(params))
    )


async def on_elicitation(_context, params):
    return types.ElicitResult(action="accept", content=elicited(params.requestedSchema))


async def converse(read, write, steps):
    async with ClientSession(
        read, write, sampling_callback=on_sampling, elicitation_callback=on_elicitation
    ) as session:
        revision = (await session.initialize()).protocolVersion

        async def list_tools():
            return [tool.name for tool in (await session.list_tools()).tools]

        async def call(tool, args, on_progress):
            result = await session.call_tool(tool, args, progress_callback=on_progress)
            return result.content[0].text, result.isError

        await run_steps(steps, revision, list_tools, call)


async def main():
    job = spec()
    target = job["target"]
    if "url" in target:
        async with streamable_http_client(target["url"]) as (read, write, _session_id):
            await converse(read, write, job["steps"])
    else:
        with open(os.devnull, "w") as devnull:
            async with stdio_client(StdioServerParameters(**target["stdio"]), errlog=devnull) as (read, write):
                await converse(read, write, job["steps"])
    emit(check="close")


asyncio.run(main())
