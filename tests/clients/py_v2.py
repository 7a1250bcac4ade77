"""Driver: PyPI `mcp` 2.x. See README.md."""

import asyncio

import mcp_types as types
from mcp import Client, StdioServerParameters

from driver import elicited, emit, run_steps, sampled, spec


async def on_sampling(_context, params):
    return types.CreateMessageResult(
        role="assistant", model="none", content=types.TextContent(type="text", text=sampled(params))
    )


async def on_elicitation(_context, params):
    return types.ElicitResult(action="accept", content=elicited(params.requested_schema))


async def main():
    job = spec()
    target = job["target"]
    server = target["url"] if "url" in target else StdioServerParameters(**target["stdio"])
    # `auto` probes with server/discover and falls back to initialize, as an application would ask it to.
    mode = "auto" if job["era"] == "modern" else "legacy"
    async with Client(
        server, mode=mode, sampling_callback=on_sampling, elicitation_callback=on_elicitation
    ) as client:

        async def list_tools():
            return [tool.name for tool in (await client.list_tools()).tools]

        async def call(tool, args, on_progress):
            result = await client.call_tool(tool, args, progress_callback=on_progress)
            return result.content[0].text, bool(result.is_error)

        await run_steps(job["steps"], client.protocol_version, list_tools, call)
    emit(check="close")


asyncio.run(main())
