"""What the two Python drivers share: the client's side of a conversation, and the report."""

import json
import sys


def spec():
    """The driver's one argument: how to connect, which era, which steps."""
    return json.loads(sys.argv[1])


def emit(**seen):
    """Prints what was seen, one line of JSON."""
    print(json.dumps(seen), flush=True)


def sampled(params):
    """Answers a sampling request in a way that shows which request it was."""
    content = params.messages[-1].content
    content = content[0] if isinstance(content, list) else content
    return f"answer to: {content.text}"


def elicited(schema):
    """Accepts an elicitation with `ada` in each field."""
    return {field: "ada" for field in schema["properties"]}


async def run_steps(steps, revision, list_tools, call):
    """Runs the steps one after another; one that throws ends only itself."""
    for step in steps:
        check = step["check"]
        if check == "connect":
            emit(check=check, revision=revision)
            continue
        try:
            if step.get("list"):
                emit(check=check, tools=await list_tools())
                continue
            notes = []

            async def on_progress(progress, total, _message, notes=notes):
                notes.append([int(progress), int(total)])

            text, is_error = await call(step["tool"], step["args"], on_progress if check == "progress" else None)
            emit(check=check, text=text, isError=is_error, progress=notes)
        except Exception as error:  # the client's own exception types differ by version
            emit(check=check, error=f"{type(error).__name__}: {error}")
