"""Tasks: where prompts come from and how an answer is graded. Generators, files, Hub datasets."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from grpo_core.errors import FieldProblem, InvalidConfig
from grpo_core.tasks.answers import FILE, given_answer, grade_answer
from grpo_core.tasks.countdown import COUNTDOWN
from grpo_core.tasks.short import ARITHMETIC, PRODUCTS, SORT, SUMS
from grpo_core.tasks.source import check_source, check_sources
from grpo_core.tasks.task import (
    Task,
    extract_answer,
    heldout_prompts,
    is_heldout,
    prompt_id,
    remarks,
    train_prompts,
)

if TYPE_CHECKING:
    from grpo_core.config import TaskConfig

TASKS: dict[str, Task] = {task.name: task for task in (SUMS, ARITHMETIC, SORT, COUNTDOWN, PRODUCTS)}
CHOICES: dict[str, Task] = {**TASKS, FILE.name: FILE}  # what a user can choose


def check_task(config: TaskConfig) -> None:
    """Check what needs no rows of a file or dataset. Raises InvalidConfig."""
    if config.name not in CHOICES:
        known = f"Known: {', '.join(CHOICES)}."
        problem = FieldProblem("task.name", config.name, "there is no such task", known)
        raise InvalidConfig([problem])
    if config.name == FILE.name:
        check_sources(config)
    if not config.second:
        return
    if config.second == (config.path if config.name == FILE.name else config.name):
        problem = FieldProblem(
            "task.second",
            config.second,
            "this is the task that is trained on",
            "Name another one, or leave it empty.",
        )
        raise InvalidConfig([problem])
    if config.second not in TASKS:
        check_source(config.second, "task.second")


def second_task(config: TaskConfig) -> TaskConfig | None:
    """The configuration of the task that is only evaluated; None if there is none.

    It has the same number of held-out prompts; the columns of a file are guessed.
    Raises InvalidConfig.
    """
    if not config.second:
        return None
    check_task(config)
    new, size = type(config), config.heldout_size
    if config.second in TASKS:
        return new(name=config.second, heldout_size=size)
    return new(name=FILE.name, path=config.second, too_long="drop", heldout_size=size)


def load_task(config: TaskConfig) -> Task:
    """The task that a configuration names. Reads a file or dataset once, then from the cache.

    Raises InvalidConfig naming the field.
    """
    check_task(config)
    if config.name == FILE.name:
        from grpo_core.tasks.table import open_table  # numpy and pyarrow, only for files

        task = FILE.with_table(open_table(config), config.instruction)
    else:
        task = TASKS[config.name]
    environment = environment_named(config)
    return task if environment == task.environment else replace(task, environment=environment)


def environment_named(config: TaskConfig) -> str:
    """The environment that a configuration or its task names; "": none. Reads no prompts."""
    if config.environment:
        return "" if config.environment == "none" else config.environment
    return TASKS[config.name].environment if config.name in TASKS else ""


__all__ = [
    "CHOICES",
    "FILE",
    "TASKS",
    "Task",
    "check_task",
    "environment_named",
    "extract_answer",
    "given_answer",
    "grade_answer",
    "heldout_prompts",
    "is_heldout",
    "load_task",
    "prompt_id",
    "remarks",
    "second_task",
    "train_prompts",
]
