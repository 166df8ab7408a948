"""The process in which one plug-in file runs; started as a module with the name of the file.

The process locks itself up before the first line of the file runs. That protects the machine from
the file, with limits on memory and on the time of each call.
"""

from __future__ import annotations

import inspect
import json
import os
import signal
import sys
import types
from typing import Any

from grpo_core.rubric.sandbox.jail import NoJail, lock_up

MAX_MEMORY = 4 << 30
LIBRARIES = (
    "/usr",
    "/lib",
    "/lib64",
    "/bin",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/dev/null",
    "/dev/urandom",
    "/dev/zero",
)


def main(path: str, start_seconds: float) -> None:
    """Load the file, write which functions it has, then answer each JSON line with one."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.environ.clear()
    signal.signal(signal.SIGALRM, _late)
    try:
        with open(path, encoding="utf-8") as file:
            source = file.read()
        lock_up([*LIBRARIES, sys.prefix, sys.base_prefix, path], MAX_MEMORY)
        signal.setitimer(signal.ITIMER_REAL, start_seconds)
        module = types.ModuleType("rewards")
        exec(compile(source, path, "exec"), module.__dict__)
        signal.setitimer(signal.ITIMER_REAL, 0)
    except NoJail as error:
        print(json.dumps({"error": str(error)}), file=out, flush=True)
        return
    except BaseException as error:  # a file can raise anything; all of it becomes a message
        print(json.dumps({"error": _reason(error)}), file=out, flush=True)
        return
    functions = {
        n: f
        for n, f in vars(module).items()
        if inspect.isfunction(f) and f.__module__ == "rewards" and not n.startswith("_")
    }
    print(json.dumps({"functions": list(functions)}), file=out, flush=True)
    for line in sys.stdin:
        print(json.dumps(_answer(functions, json.loads(line))), file=out, flush=True)


def _late(*_: Any) -> None:
    raise TimeoutError


def _answer(functions: dict[str, Any], question: dict[str, Any]) -> dict[str, Any]:
    if question.get("list"):
        return {"functions": list(functions)}
    signal.setitimer(signal.ITIMER_REAL, question["seconds"])
    try:
        scores = functions[question["function"]](
            completions=question["completions"], prompts=question["prompts"], **question["columns"]
        )
        return {"scores": [_plain(value) for value in scores]}
    except BaseException as error:
        return {"error": _reason(error)}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _plain(value: Any) -> float | str | None:
    """A number as a float; anything else as text, for the message."""
    if value is None:
        return None
    if isinstance(value, str | bytes):
        return repr(value)[:60]
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return repr(value)[:60]


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "it took too long"
    return f"{type(error).__name__}: {str(error)[:200]}" if str(error) else type(error).__name__


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
