"""Plug-in files: full Python with TRL's reward signature f(completions, prompts, **columns), named by the operator on the command line.

Each file runs in a process of its own that cannot write, reach the network, start processes or read what is not Python's; see jail.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from grpo_core.errors import StudioError
from grpo_core.rubric.check import Check, Notes, Params, batched
from grpo_core.rubric.sandbox.child import Child, ChildFailed
from grpo_core.types import Completion, Prompt

START_SECONDS = 20.0
KILL_AFTER = 1.0


class PluginParams(Params):
    """`seconds` for all completions of a step; `messages`: completions as [{"role": "assistant", "content": …}], as TRL gives them for chat data."""

    seconds: float = Field(10.0, gt=0, le=600)
    messages: bool = False


def load_plugins(paths: Sequence[str]) -> dict[str, Check]:
    """Every public function of every file as a check named file.function. Raises StudioError naming the file that cannot be used."""
    checks: dict[str, Check] = {}
    for path in paths:
        file = Path(path).expanduser().resolve()
        if not file.is_file() or file.suffix != ".py":
            raise StudioError(
                f"--rewards {path!r} is no Python file. Name one with functions f(completions, prompts, **columns)."
            )
        root = str(Path(__file__).parents[3])
        child = Child(
            ["-m", "grpo_core.rubric.sandbox.plugin_child", str(file), str(START_SECONDS)],
            {"PYTHONPATH": root, "LANG": "C.UTF-8"},
            root,
        )
        try:
            functions = child.ask({"list": True}, START_SECONDS)["functions"]
        except ChildFailed as error:
            raise StudioError(
                f"--rewards {path!r} cannot be used: {error}. Mend the file and start again."
            ) from None
        if not functions:
            raise StudioError(
                f"--rewards {path!r} defines no public function. Write one: def f(completions, prompts, **columns): …"
            )
        stem = re.sub(r"[^A-Za-z0-9_-]", "_", file.stem)
        for name in functions:
            checks[f"{stem}.{name}"] = batched(
                _scorer(child, name),
                PluginParams,
                f"{name} of {file.name}, a plug-in file.",
                low=None,
                high=None,
            )
    return checks


def _scorer(child: Child, function: str) -> Any:
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
            answer = child.ask(question, params.seconds + KILL_AFTER)
        except ChildFailed as error:
            answer = {"error": str(error)}
        if "error" in answer:
            notes[f"{function}: {answer['error']}"] += len(completions)
            return [None] * len(completions)
        if len(answer["scores"]) != len(completions):
            notes[
                f"{function} returned {len(answer['scores'])} scores for {len(completions)} completions"
            ] += len(completions)
            return [None] * len(completions)
        return [_number(value, function, notes) for value in answer["scores"]]

    return score


def columns(prompts: Sequence[Prompt]) -> dict[str, list[Any]]:
    """What a reward function gets beside completions and prompts: the file's own columns, and the answer under the names that functions use for it."""
    own = [p.meta.get("columns", {}) for p in prompts]
    names = {
        name
        for row in own
        for name in row
        if name.isidentifier() and name not in ("completions", "prompts")
    }
    answers = {name: [p.answer for p in prompts] for name in ("answer", "solution", "ground_truth")}
    return answers | {name: [row.get(name) for row in own] for name in sorted(names)}


def _number(value: Any, function: str, notes: Notes) -> float | None:
    if value is None:
        return None
    if isinstance(value, int | float) and math.isfinite(value):
        return float(value)
    notes[f"{function} returned {value!s}, which is no finite number"] += 1
    return None
