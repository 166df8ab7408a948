"""Python typed into the page: always in pydantic-monty, an interpreter without files, network, environment or processes, with limits on time and memory."""

from __future__ import annotations

import atexit
import contextlib
import math
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from grpo_core.rubric.check import MAX_CHARS, Check, Notes, Params, batched
from grpo_core.rubric.sandbox.child import Child, ChildFailed
from grpo_core.types import Completion, Prompt

MAX_MEMORY = 64 << 20
MAX_PRINTED = 64 << 10
MAX_HUNG = 4
HELPER_SECONDS = 10.0
TOO_LONG = "the snippet took too long"
EXAMPLE = "def score(completion, prompt, answer, tokens):\n    return 1.0 if answer in completion else 0.0"


class PythonParams(Params):
    """`code` defines score(completion, prompt, answer, tokens) -> number, True, False or None; `seconds` is the limit for one completion."""

    code: str = Field(EXAMPLE, min_length=1, max_length=20_000)
    seconds: float = Field(1.0, gt=0, le=10)


def python(
    completions: Sequence[Completion], prompts: Sequence[Prompt], params: PythonParams, notes: Notes
) -> list[float | None]:
    """What the snippet returns for each completion; null with the reason when it raises, takes too long or returns no finite number."""
    if _helper is not None:
        return _helped(_helper, completions, prompts, params, notes)
    out: list[float | None] = []
    with contextlib.ExitStack() as stack:
        session: Any = None
        for completion, prompt in zip(completions, prompts, strict=True):
            if notes[TOO_LONG] >= MAX_HUNG:  # one that loops for ever loops for every completion
                notes[f"not tried after {MAX_HUNG} that took too long"] += 1
                out.append(None)
                continue
            try:
                session = session or _session(stack, params)
                out.append(_number(_call(session, completion, prompt), notes))
            except _pool().errors as error:
                notes[_why(error)] += 1
                out.append(None)
                stack.close()  # after a limit nothing is known about the worker's heap
                session = None
    return out


def _session(stack: contextlib.ExitStack, params: PythonParams) -> Any:
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


def _number(value: Any, notes: Notes) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool | int | float):
        with contextlib.suppress(OverflowError):
            if math.isfinite(value):
                return float(value)
    notes[f"the snippet returned {str(value)[:60]!r}, which is no finite number"] += 1
    return None


def _why(error: BaseException) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]
    return (
        TOO_LONG
        if "limit exceeded" in line and "TimeoutError" in line
        else f"the snippet failed: {line}"
    )


class _Pool:
    """The pool of interpreter processes, started when the first snippet runs."""

    def __init__(self) -> None:
        import pydantic_monty

        self.errors = (pydantic_monty.MontyError, TimeoutError, ValueError, TypeError)
        self.printed = lambda: pydantic_monty.CollectString(max_bytes=MAX_PRINTED)
        self.monty = pydantic_monty.Monty(max_processes=2, checkout_timeout=30.0)
        self.monty.__enter__()
        atexit.register(self.monty.__exit__, None, None, None)


_made: list[_Pool] = []
_making = threading.Lock()


def _pool() -> _Pool:
    with _making:
        if not _made:
            _made.append(_Pool())
    return _made[0]


# ---- in a forked process ------------------------------------------------------------------------------------------------------

_helper: Child | None = None  # there: a process that was not forked, see snippet_child


def _helped(
    child: Child,
    completions: Sequence[Completion],
    prompts: Sequence[Prompt],
    params: PythonParams,
    notes: Notes,
) -> list[float | None]:
    question = {
        "completions": [[c.text[:MAX_CHARS], c.num_tokens] for c in completions],
        "prompts": [[p.text, p.answer] for p in prompts],
        "params": params.model_dump(),
    }
    try:
        answer = child.ask(
            question, HELPER_SECONDS + params.seconds * max(MAX_HUNG, len(completions))
        )
    except ChildFailed as error:
        notes[f"the snippet's process: {error}"] += len(completions)
        return [None] * len(completions)
    notes.update(answer["notes"])
    return answer["scores"]


def _after_fork() -> None:
    global _helper
    root = str(Path(__file__).parents[3])
    _helper = Child(
        ["-m", "grpo_core.rubric.sandbox.snippet_child"],
        {"PATH": os.environ.get("PATH", ""), "PYTHONPATH": root, "LANG": "C.UTF-8"},
        root,
    )


os.register_at_fork(after_in_child=_after_fork)

SNIPPET_CHECKS: dict[str, Check] = {
    "python": batched(
        python,
        PythonParams,
        "Your own Python: a function score(completion, prompt, answer, tokens), run in a sandbox without files and network.",
        low=None,
        high=None,
    ),
}
