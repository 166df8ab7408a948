"""Tasks: where prompts come from and how an answer is graded. Generators, files, Hub datasets."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from grpo_core.errors import FieldProblem, InvalidConfig
from grpo_core.tasks.answers import FILE, given_answer, grade_answer
from grpo_core.tasks.columns import NO_ENVIRONMENT
from grpo_core.tasks.countdown import COUNTDOWN
from grpo_core.tasks.gym_grader import gym_task
from grpo_core.tasks.reasoning_gym import check_gym, gym_source, is_gym
from grpo_core.tasks.short import ARITHMETIC, EPISODES, PRODUCTS, SORT, SUMS
from grpo_core.tasks.source import check_source, check_sources
from grpo_core.tasks.task import (
    Task,
    environment_of,
    environments_of,
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
CHOICES: dict[str, Task] = {**TASKS, FILE.name: FILE, EPISODES.name: EPISODES}  # without a package


def find_task(name: str) -> Task | None:
    """A task by its name, without the prompts of a file or package; None if there is none."""
    return CHOICES.get(name) or gym_task(name)


def check_task(config: TaskConfig) -> None:
    """Check what needs no rows of a file or dataset. Raises InvalidConfig."""
    if is_gym(config.name):
        check_gym(config)
    elif config.name not in CHOICES:
        known = f"Known: {', '.join(CHOICES)}, and reasoning_gym:NAME."
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
    if is_gym(config.second):
        check_gym(second_of(config), "task.second")
    elif config.second not in TASKS:
        check_source(config.second, "task.second")


def second_task(config: TaskConfig) -> TaskConfig | None:
    """The configuration of the task that is only evaluated; None if there is none.

    It has the same number of held-out prompts; the columns of a file are guessed.
    Raises InvalidConfig.
    """
    if not config.second:
        return None
    check_task(config)
    return second_of(config)


def second_of(config: TaskConfig) -> TaskConfig:
    """The configuration of the second task, unchecked."""
    new, size = type(config), config.heldout_size
    if config.second in TASKS or is_gym(config.second):
        return new(name=config.second, too_long="drop", heldout_size=size)
    return new(name=FILE.name, path=config.second, too_long="drop", heldout_size=size)


def load_task(config: TaskConfig) -> Task:
    """The task that a configuration names. Its prompts are read or made once, then cached.

    Raises InvalidConfig naming the field.
    """
    check_task(config)
    task = find_task(config.name)
    assert task is not None  # checked above
    if task.make is None:
        from grpo_core.tasks.table import open_table  # numpy and pyarrow, only where needed

        source = gym_source(config) if is_gym(config.name) else config
        task = task.with_table(open_table(source), config.instruction)
    if config.environment != NO_ENVIRONMENT and task.table is not None and task.table.environments:
        task = replace(task, by_row=True)
    environment = environment_named(config)
    return task if environment == task.environment else replace(task, environment=environment)


def environment_named(config: TaskConfig) -> str:
    """The environment that a configuration or its task names; "": none. Reads no prompts."""
    if config.environment:
        return "" if config.environment == NO_ENVIRONMENT else config.environment
    return TASKS[config.name].environment if config.name in TASKS else ""


__all__ = [
    "CHOICES",
    "FILE",
    "TASKS",
    "Task",
    "check_task",
    "environment_named",
    "environment_of",
    "environments_of",
    "extract_answer",
    "find_task",
    "given_answer",
    "grade_answer",
    "heldout_prompts",
    "is_gym",
    "is_heldout",
    "load_task",
    "prompt_id",
    "remarks",
    "second_task",
    "train_prompts",
]
