"""The tasks of reasoning-gym, an optional package: reasoning_gym:chain_sum and a hundred others.

reasoning_gym.json lists them with an example of each, so the page shows them without the package.
A process of its own makes the prompts once, into a prompt table, and scores answers to them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from grpo_core.child_process import KILL_AFTER, ChildFailed, free_one, module_child
from grpo_core.config import TaskConfig
from grpo_core.errors import FieldProblem, InvalidConfig

PREFIX = "reasoning_gym:"
PACKAGE = "reasoning-gym"
INSTALL = 'Install it: pip install "reasoning-gym>=0.1.25,<0.2".'
COLUMNS = ("question", "answer")
MADE = "reasoning_gym"  # the column that says how a prompt was made
ALL_SECONDS = 60.0  # to make all prompts of a run
FIRST_SECONDS = 20.0  # for the first of them, and for any single one

# One for a run, the others for visitors: each of them may have two requests at once.
helpers = [module_child("grpo_core.rubric.sandbox.reasoning_gym_child") for _ in range(4)]


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a task without the package. levels: of its curriculum, 0 for none."""

    group: str
    levels: int
    seconds: float  # to make a prompt, on one core
    example: str
    answer: str


@lru_cache(maxsize=1)
def _catalogue() -> tuple[dict[str, Known], dict[str, str]]:
    """The tasks by name, and why some of the package are left out."""
    data = json.loads(Path(__file__).with_name("reasoning_gym.json").read_text("utf-8"))
    return {name: Known(**known) for name, known in data["tasks"].items()}, data["left_out"]


def gym_tasks() -> dict[str, Known]:
    """The tasks by their names in the package."""
    return _catalogue()[0]


def is_gym(name: str) -> bool:
    """Whether a task's name has the form of one of reasoning-gym."""
    return name.startswith(PREFIX)


def check_gym(config: TaskConfig, field: str = "task.name") -> None:
    """Raises InvalidConfig for an unknown task or level, or where the package is missing."""
    inner = config.name.removeprefix(PREFIX)
    known, left_out = _catalogue()
    if inner in left_out:
        raise _invalid(field, config.name, left_out[inner], "Choose another task.")
    if inner not in known:
        near = [n for n in known if inner and (inner in n or n in inner)][:8] or [*known][:8]
        hint = f"Some of its {len(known)} tasks: {', '.join(near)}."
        raise _invalid(field, config.name, "reasoning-gym has no such task", hint)
    levels = known[inner].levels
    if config.level is not None and config.level >= levels:
        hint = f"Use 0 to {levels - 1}, or leave it empty." if levels else "Leave it empty."
        has = f"has {levels} levels" if levels else "has no levels"
        raise _invalid("task.level", config.level, f"the task {inner} {has}", hint)
    if not _version():
        raise _invalid(field, config.name, f"the package {PACKAGE} is not installed", INSTALL)


def gym_source(config: TaskConfig) -> TaskConfig:
    """The configuration with which a prompt table reads the task."""
    return TaskConfig(
        name=config.name,
        size=config.size,
        seed=config.seed,
        level=config.level,
        system=config.system,
        prompt_column=COLUMNS[0],
        answer_column=COLUMNS[1],
        answers="as they are",
    )


def gym_identity(config: TaskConfig) -> list[Any]:
    """What decides the prompts; [] for a file or dataset."""
    if not is_gym(config.name):
        return []
    return [config.name, config.size, config.seed, config.level, _version()]


def gym_rows(config: TaskConfig) -> Iterator[dict[str, Any]]:
    """The prompts of a task as rows of a source. Raises InvalidConfig; also in the middle."""
    name = config.name.removeprefix(PREFIX)
    made, child = [name, config.size, config.seed, config.level], free_one(helpers)
    ends, number = time.monotonic() + ALL_SECONDS, 0
    while number < config.size:
        question = {"do": "rows", "arguments": [*made, number], "seconds": FIRST_SECONDS}
        try:
            found = child.request(question, FIRST_SECONDS + KILL_AFTER, _rows)
        except ChildFailed as error:
            found = str(error)
        if isinstance(found, str):
            hint = "Choose another level, seed or task."
            problem = f"its prompt {number + 1:,} cannot be made: {found}"
            raise _invalid("task.name", config.name, problem, hint)
        for text, answer, metadata in found:
            row = {COLUMNS[0]: text, COLUMNS[1]: answer, "metadata": metadata}
            yield row | {MADE: [*made[1:], number]}
            number += 1
        if number < config.size and time.monotonic() > ends:
            problem = f"only {number:,} prompts were made in {ALL_SECONDS:g} s"
            hint = f"Use {max(1, number // 2):,} or fewer, or an easier task."
            raise _invalid("task.size", config.size, problem, hint)


def _rows(answer: Any) -> list[tuple[str, str, Any]] | str:
    """Rows, or the reason why there are none. Raises ValueError for any other answer."""
    if "null" in answer:
        return str(answer["null"])[:300]
    rows = [(text, right, metadata) for text, right, metadata in answer["value"]]
    if not rows or not all(isinstance(t, str) and isinstance(a, str) for t, a, _ in rows):
        raise ValueError("no rows")
    return rows


def _version() -> str:
    """Of the installed package; "" without it."""
    try:
        return version(PACKAGE)
    except PackageNotFoundError:
        return ""


def _invalid(field: str, value: Any, problem: str, hint: str) -> InvalidConfig:
    return InvalidConfig([FieldProblem(field, value, problem, hint)])
