"""`execute-code`, `execute-function` and `execute-module` in Python."""

import ast
import importlib
import importlib.util
import os
import platform

from .task import Invalid, Refused
from .worker import Worker

worker = Worker("ostler python worker (Python %s)" % platform.python_version())


def _fields(payload, required, optional):
    if not isinstance(payload, dict):
        raise Invalid("the payload is no object")
    known = {**required, **optional, "language": str}
    for name, value in payload.items():
        if name not in known:
            raise Invalid("the payload has no member `%s`; it has %s" % (name, ", ".join(known)))
        if not isinstance(value, known[name]):
            raise Invalid("`%s` is of the wrong type" % name)
    for name in required:
        if name not in payload:
            raise Invalid("the payload lacks `%s`" % name)
    if payload.get("language", "python") != "python":
        raise Invalid("this worker knows `language` python, not %s" % payload["language"])


def _compiled(tree):
    try:
        return compile(ast.fix_missing_locations(tree), "<task>", "exec")
    except (SyntaxError, ValueError, RecursionError) as error:
        raise _syntax(error) from None


def _parsed(source):
    try:
        return ast.parse(source, "<task>")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _syntax(error) from None


def _syntax(error):
    line = getattr(error, "lineno", None)
    where = " (line %d)" % line if line else ""
    return Invalid("%s: %s%s" % (type(error).__name__, getattr(error, "msg", error), where))


def _awaits(nodes):
    """Whether there is an `await` that is in no inner function."""
    for node in nodes:
        if isinstance(node, (ast.Await, ast.AsyncFor, ast.AsyncWith)):
            return True
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)):
            continue
        if _awaits(ast.iter_child_nodes(node)):
            return True
    return False


@worker.task("execute-code")
def execute_code(payload, task):
    """The body of a function: `return` gives the result, else the last expression does. It finds `args`."""
    _fields(payload, {"code": str}, {"args": object})
    body = _parsed(payload["code"]).body
    if body and isinstance(body[-1], ast.Expr):
        body[-1] = ast.copy_location(ast.Return(body[-1].value), body[-1])
    function = ast.parse("async def task(args): pass" if _awaits(body) else "def task(args): pass").body[0]
    function.body = body or function.body
    space = {"__name__": "__task__"}
    exec(_compiled(ast.Module([function], [])), space)
    return space["task"](payload.get("args"))


@worker.task("execute-function")
def execute_function(payload, task):
    """A `def`, or an expression that is a function, with its arguments."""
    _fields(payload, {"function": str}, {"args": list, "kwargs": dict})
    tree = _parsed(payload["function"].strip())
    if not tree.body:
        raise Invalid("the source is no function")
    last = tree.body[-1]
    name = "__function__"
    if isinstance(last, ast.Expr):
        tree.body[-1] = ast.copy_location(ast.Assign([ast.Name(name, ast.Store())], last.value), last)
    elif isinstance(last, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        name = last.name
    space = {"__name__": "__task__"}
    exec(_compiled(tree), space)
    function = space.get(name)
    if not callable(function):
        raise Invalid("the source is no function")
    return function(*payload.get("args", []), **payload.get("kwargs", {}))


def _allowed(path, folders):
    path = os.path.realpath(path)
    for folder in [os.getcwd(), *folders]:
        folder = os.path.realpath(folder)
        if os.path.commonpath([folder, path]) == folder:
            return path
    raise Refused("%s is neither in the worker's own folder nor in one that its project allows" % path)


@worker.task("execute-module")
def execute_module(payload, task):
    """A function that a file or a package exports, with its arguments."""
    _fields(payload, {"module": str}, {"function": str, "args": list, "kwargs": dict})
    wanted, name = payload["module"], payload.get("function", "main")
    if "\0" in wanted:
        raise Invalid("`module` has a NUL in it")
    if wanted.endswith(".py") or "/" in wanted:
        path = _allowed(wanted, task.folders)
        if not os.path.isfile(path):
            raise Invalid("there is no module %s" % path)
        spec = importlib.util.spec_from_file_location("__task_module__", path)
        if spec is None:
            raise Invalid("%s is no Python module" % path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        try:
            module = importlib.import_module(wanted)
        except ModuleNotFoundError as error:
            if error.name and (wanted == error.name or wanted.startswith(error.name + ".")):
                raise Invalid("there is no module %s" % wanted) from None
            raise
        except (TypeError, ValueError) as error:
            raise Invalid("`module`: %s" % error) from None
    found = module
    for part in name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise Invalid("%s exports no function %s" % (wanted, name))
    return found(*payload.get("args", []), **payload.get("kwargs", {}))
