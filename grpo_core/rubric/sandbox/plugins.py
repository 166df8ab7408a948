"""Plug-in files: Python with TRL's reward signature f(completions, prompts, **columns).

The operator names them on the command line. Each file runs in its own process, which cannot write,
use the network, start processes or read anything but Python's own files; see jail.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from grpo_core.child_process import Child, ChildFailed
from grpo_core.errors import StudioError
from grpo_core.rubric.check import UNBOUNDED, Check, Many, Notes, Params, batched
from grpo_core.types import Completion, Prompt

START_SECONDS = 20.0
KILL_AFTER = 1.0  # seconds; a process that is this much over its time limit is killed


class PluginParams(Params):
    """`seconds`: time limit for all completions of a step.

    `messages`: pass [{"role": "assistant", "content": …}], as TRL does for chat data.
    """

    seconds: float = Field(10.0, gt=0, le=600)
    messages: bool = False


def load_plugins(paths: Sequence[str]) -> dict[str, Check]:
    """Every public function of every file as a check with the name file.function.

    Raises StudioError that names a file that cannot be used.
    """
    checks: dict[str, Check] = {}
    for path in paths:
        file = Path(path).expanduser().resolve()
        if not file.is_file() or file.suffix != ".py":
            raise StudioError(
                f"--rewards {path!r} is no Python file. "
                "Name one with functions f(completions, prompts, **columns)."
            )
        root = str(Path(__file__).parents[3])
        child = Child(
            ["-m", "grpo_core.rubric.sandbox.plugin_child", str(file), str(START_SECONDS)],
            {"PYTHONPATH": root, "LANG": "C.UTF-8"},
            root,
        )
        try:
            functions = child.request({"list": True}, START_SECONDS)["functions"]
        except ChildFailed as error:
            raise StudioError(
                f"--rewards {path!r} cannot be used: {error}. Correct the file and start again."
            ) from None
        if not functions:
            raise StudioError(
                f"--rewards {path!r} defines no public function. "
                "Write one: def f(completions, prompts, **columns): …"
            )
        stem = re.sub(r"[^A-Za-z0-9_-]", "_", file.stem)
        for name in functions:
            help = f"{name} of {file.name}, a plug-in file."
            checks[f"{stem}.{name}"] = batched(_scorer(child, name), PluginParams, help, UNBOUNDED)
    return checks


def _scorer(child: Child, function: str) -> Many:
    """The scores of one function, as `many` of a check."""

    def score(
        completions: Sequence[Completion],
        prompts: Sequence[Prompt],
        params: PluginParams,
        notes: Notes,
    ) -> list[float | None]:
        texts: list[Any] = [
            [{"role": "assistant", "content": c.text}] if params.messages else c.text
            for c in completions
        ]
        question = {
            "function": function,
            "completions": texts,
            "prompts": [p.text for p in prompts],
            "columns": columns(prompts),
            "seconds": params.seconds,
        }
        try:
            answer = child.request(question, params.seconds + KILL_AFTER)
        except ChildFailed as error:
            answer = {"error": str(error)}
        if "error" in answer:
            notes[f"{function}: {answer['error']}"] += len(completions)
            return [None] * len(completions)
        scores = answer["scores"]
        if len(scores) != len(completions):
            reason = f"{function} returned {len(scores)} scores for {len(completions)} completions"
            notes[reason] += len(completions)
            return [None] * len(completions)
        return [_finite(value, function, notes) for value in scores]

    return score


def columns(prompts: Sequence[Prompt]) -> dict[str, list[Any]]:
    """What a reward function gets besides completions and prompts.

    These are the columns of the prompt file, and the right answer under three usual names.
    """
    own = [p.meta.get("columns", {}) for p in prompts]
    names = {
        name
        for row in own
        for name in row
        if name.isidentifier() and name not in ("completions", "prompts")
    }
    answers = {name: [p.answer for p in prompts] for name in ("answer", "solution", "ground_truth")}
    return answers | {name: [row.get(name) for row in own] for name in sorted(names)}


def _finite(value: Any, function: str, notes: Notes) -> float | None:
    if value is None:
        return None
    if isinstance(value, int | float) and math.isfinite(value):
        return float(value)
    notes[f"{function} returned {value!s}, which is no finite number"] += 1
    return None
