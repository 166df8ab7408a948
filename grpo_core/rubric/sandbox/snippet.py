"""Python typed into the page.

It runs in pydantic-monty, an interpreter without files, network, environment or processes, with
limits on time and memory. So a visitor's code can neither reach the machine nor block the server.
"""

from __future__ import annotations

import atexit
import contextlib
import math
import os
import threading
from collections.abc import Sequence
from typing import Any

from pydantic import Field

from grpo_core.child_process import Child, ChildFailed, module_child
from grpo_core.rubric.check import MAX_CHARS, UNBOUNDED, Check, Notes, Params, batched
from grpo_core.types import Completion, Prompt

MAX_MEMORY = 64 << 20
MAX_PRINTED = 64 << 10
MAX_HUNG = 4  # calls that may exceed their time before the rest of the step is skipped
HELPER_SECONDS = 10.0
TOO_LONG = "the snippet took too long"
EXAMPLE = (
    "def score(completion, prompt, answer, tokens):\n"
    "    return 1.0 if answer in completion else 0.0"
)


class PythonParams(Params):
    """`code`: defines score(completion, prompt, answer, tokens) -> number, True, False or None.

    `seconds`: time limit for one completion.
    """

    code: str = Field(EXAMPLE, min_length=1, max_length=20_000)
    seconds: float = Field(1.0, gt=0, le=10)


def python(
    completions: Sequence[Completion], prompts: Sequence[Prompt], params: PythonParams, notes: Notes
) -> list[float | None]:
    """What the snippet returns for each completion.

    None, with the reason in the notes, if it raises, takes too long or returns no finite number.
    """
    if _helper is not None:
        return _in_helper(completions, prompts, params, notes)
    out: list[float | None] = []
    with contextlib.ExitStack() as stack:
        session: Any = None
        for completion, prompt in zip(completions, prompts, strict=True):
            if notes[TOO_LONG] >= MAX_HUNG:  # an endless loop is endless for every completion
                notes[f"not tried after {MAX_HUNG} that took too long"] += 1
                out.append(None)
                continue
            try:
                session = session or _session(stack, params)
                out.append(_finite(_call(session, completion, prompt), notes))
            except _pool().errors as error:
                notes[_reason(error)] += 1
                out.append(None)
                stack.close()  # after an exceeded limit the state of the interpreter is unknown
                session = None
    return out


def _session(stack: contextlib.ExitStack, params: PythonParams) -> Any:
    """An interpreter that has run the snippet's definitions."""
    session = stack.enter_context(
        _pool().monty.checkout(
            limits={
                "max_feed_duration_secs": params.seconds,
                "max_memory": MAX_MEMORY,
                "max_suspensions": 10,
                "max_total_sleep_secs": 0.0,
            }
        )
    )
    session.feed_run(params.code, print_callback=_pool().printed())
    return session


def _call(session: Any, completion: Completion, prompt: Prompt) -> Any:
    inputs = {
        "completion": _text(completion.text[:MAX_CHARS]),
        "prompt": _text(prompt.text),
        "answer": _text(prompt.answer),
        "tokens": completion.num_tokens,
    }
    return session.feed_run(
        "score(completion, prompt, answer, tokens)", inputs=inputs, print_callback=_pool().printed()
    )


def _text(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _finite(value: Any, notes: Notes) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool | int | float):
        with contextlib.suppress(OverflowError):
            if math.isfinite(value):
                return float(value)
    notes[f"the snippet returned {str(value)[:60]!r}, which is no finite number"] += 1
    return None


def _reason(error: BaseException) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]
    if "limit exceeded" in line and "TimeoutError" in line:
        return TOO_LONG
    return f"the snippet failed: {line}"


class _Pool:
    """The pool of interpreter processes."""

    def __init__(self) -> None:
        import pydantic_monty

        self.errors = (pydantic_monty.MontyError, TimeoutError, ValueError, TypeError)
        self.printed = lambda: pydantic_monty.CollectString(max_bytes=MAX_PRINTED)
        self.monty = pydantic_monty.Monty(max_processes=2, checkout_timeout=30.0)
        self.monty.__enter__()
        atexit.register(self.monty.__exit__, None, None, None)


_pools: list[_Pool] = []
_pool_lock = threading.Lock()


def _pool() -> _Pool:
    """The one pool of this process, started by its first snippet."""
    with _pool_lock:
        if not _pools:
            _pools.append(_Pool())
    return _pools[0]


# ---- in a forked process -------------------------------------------------------------------------

# Set in a fork: a process that was not forked and runs the snippets; see snippet_child.py.
_helper: Child | None = None


def _in_helper(
    completions: Sequence[Completion],
    prompts: Sequence[Prompt],
    params: PythonParams,
    notes: Notes,
) -> list[float | None]:
    assert _helper is not None
    question = {
        "completions": [[c.text[:MAX_CHARS], c.num_tokens] for c in completions],
        "prompts": [[p.text, p.answer] for p in prompts],
        "params": params.model_dump(),
    }
    try:
        seconds = HELPER_SECONDS + params.seconds * max(MAX_HUNG, len(completions))
        answer = _helper.request(question, seconds)
    except ChildFailed as error:
        notes[f"the snippet's process: {error}"] += len(completions)
        return [None] * len(completions)
    notes.update(answer["notes"])
    return answer["scores"]


def _after_fork() -> None:
    global _helper
    _helper = module_child("grpo_core.rubric.sandbox.snippet_child")


os.register_at_fork(after_in_child=_after_fork)

SNIPPET_CHECKS: dict[str, Check] = {
    "python": batched(
        python,
        PythonParams,
        "Your own Python function score(completion, prompt, answer, tokens), "
        "in a sandbox without files and network.",
        UNBOUNDED,
    ),
}
