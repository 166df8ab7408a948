"""The process that runs the snippets of another process; started as a module.

They run in pydantic-monty, an interpreter without files, network, environment or processes, with
limits on time and memory. It turns a value into a number before the value leaves it. This process
can be killed, so a value that is slow to read cannot hold the server. A fork of a process that uses
pydantic-monty would crash its threads: another reason for a process of its own.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import pydantic_monty

from grpo_core.child_process import one_line, serve
from grpo_core.rubric.check import MAX_SCORE

MAX_MEMORY = 2 << 30  # bytes of address space; its threads reserve most of it
MAX_SNIPPET_MEMORY = 64 << 20
MAX_PRINTED = 64 << 10
TOO_LONG = "the snippet took too long"
ERRORS = (pydantic_monty.MontyError, TimeoutError, ValueError, TypeError)
# Runs before the snippet. A snippet may give other meanings to the names of types; these stay.
# A value that is no number becomes the name of its type.
NUMBER = f"""
def _number(value, type=type, int=int, float=float):
    if value is None or value is True or value is False or type(value) is float:
        return value
    if type(value) is int:
        return value if -{MAX_SCORE} <= value <= {MAX_SCORE} else "an int beyond {MAX_SCORE:g}"
    return "a value of type " + type(value).__name__[:40]
"""
SNIPPET = "<python-input-1>"  # monty's name for the second text that a session runs
CALL = "_number(score(completion, prompt, answer, tokens))"

_pools: list[pydantic_monty.Monty] = []


def start() -> None:
    """Start the interpreter's process."""
    _pools.append(pydantic_monty.Monty(max_processes=1, checkout_timeout=5.0))
    _pools[0].__enter__()


def score(
    completions: Sequence[tuple[str, int]],
    prompts: Sequence[tuple[str, str]],
    limits: Mapping[str, Any],
) -> tuple[list[float | None], dict[str, int]]:
    """Scores of (text, tokens) and (prompt, answer), and how often each reason made one null.

    limits: the `code`, seconds for `each` completion and for `all`, and how many may hang.
    """
    end = time.monotonic() + limits["all"]
    out: list[float | None] = []
    notes: dict[str, int] = {}
    with contextlib.ExitStack() as stack:
        session: Any = None
        for (text, num_tokens), (prompt, answer) in zip(completions, prompts, strict=True):
            left = end - time.monotonic()
            value, reason = None, None
            if notes.get(TOO_LONG, 0) >= limits["hung"]:  # an endless loop is always endless
                reason = f"not tried after {limits['hung']} that took too long"
            elif left <= 0:
                reason = f"not tried: all together took longer than {limits['all']:.3g} s"
            else:
                inputs = {"completion": _text(text), "prompt": _text(prompt)}
                inputs |= {"answer": _text(answer), "tokens": num_tokens}
                try:
                    session = session or _session(stack, limits["code"], min(limits["each"], left))
                    value, reason = _finite(_run(session, CALL, inputs))
                except ERRORS as error:
                    reason = _reason(error)
                    stack.close()  # after an exceeded limit the interpreter's state is unknown
                    session = None
            out.append(value)
            if reason:
                notes[reason] = notes.get(reason, 0) + 1
    return out, notes


def _session(stack: contextlib.ExitStack, code: str, seconds: float) -> Any:
    """An interpreter that has run the snippet's definitions."""
    limits: pydantic_monty.ResourceLimits = {
        "max_feed_duration_secs": seconds,
        "max_memory": MAX_SNIPPET_MEMORY,
        "max_suspensions": 10,
        "max_total_sleep_secs": 0.0,
    }
    session = stack.enter_context(_pools[0].checkout(limits=limits))
    _run(session, NUMBER)
    _run(session, f"{code}\nNone")  # the value of a last expression stays inside
    return session


def _run(session: Any, code: str, inputs: dict[str, Any] | None = None) -> Any:
    printed = pydantic_monty.CollectString(max_bytes=MAX_PRINTED)
    return session.feed_run(code, inputs=inputs, print_callback=printed)


def _text(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _finite(value: Any) -> tuple[float | None, str | None]:
    """The score of a value that _number let out, and the reason if there is none.

    A snippet can replace _number; then the value can be anything and is not looked at further.
    """
    if value is None:
        return None, None
    if isinstance(value, bool | int | float) and abs(value) <= MAX_SCORE:
        return float(value), None
    if isinstance(value, float):
        what = repr(value)
    else:
        what = value[:60] if isinstance(value, str) else "something"
    return None, f"the snippet returned {what}, which is not a finite number up to {MAX_SCORE:g}"


def _reason(error: BaseException) -> str:
    text = str(error).rstrip()
    line = one_line(text[text.rfind("\n") + 1 :], 200) or type(error).__name__
    if "limit exceeded" in line and "TimeoutError" in line:
        return TOO_LONG
    number = _line_number(error)
    return f"the snippet failed: {f'line {number}: ' if number else ''}{line}"


def _line_number(error: BaseException) -> int | None:
    """The last line of the snippet that led to an error."""
    if not isinstance(error, pydantic_monty.MontyRuntimeError | pydantic_monty.MontySyntaxError):
        return None
    lines = [frame.line for frame in error.traceback() if frame.filename == SNIPPET]
    return lines[-1] if lines else None


if __name__ == "__main__":
    serve({"score": score}, MAX_MEMORY, start)
