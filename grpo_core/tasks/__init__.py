"""Where prompts come from and how an answer is judged right: built-in generators, files, Hub datasets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grpo_core.errors import FieldProblem, InvalidConfig
from grpo_core.tasks.answers import FILE, given_answer, grade_answer
from grpo_core.tasks.countdown import COUNTDOWN
from grpo_core.tasks.short import ARITHMETIC, SORT, SUMS
from grpo_core.tasks.source import check_source, is_file
from grpo_core.tasks.task import (
    Task,
    extract_answer,
    heldout_prompts,
    is_heldout,
    prompt_id,
    train_prompts,
)

if TYPE_CHECKING:
    from grpo_core.config import TaskConfig

TASKS: dict[str, Task] = {task.name: task for task in (SUMS, ARITHMETIC, SORT, COUNTDOWN)}
CHOICES: dict[str, Task] = {**TASKS, FILE.name: FILE}  # what a person can choose


def check_task(config: TaskConfig) -> None:
    """What can be found out about a task without reading a row. Raises InvalidConfig."""
    if config.name not in CHOICES:
        raise InvalidConfig(
            [
                FieldProblem(
                    "task.name",
                    config.name,
                    "there is no such task",
                    f"Known: {', '.join(CHOICES)}.",
                )
            ]
        )
    if config.name == FILE.name:
        check_source(config.path)
        if is_file(config.path) and config.heldout_source:
            check_source(config.heldout_source, "task.heldout_source")
    if config.second and config.second == (
        config.path if config.name == FILE.name else config.name
    ):
        raise InvalidConfig(
            [
                FieldProblem(
                    "task.second",
                    config.second,
                    "this is the task that is trained on",
                    "Name another one, or leave it empty.",
                )
            ]
        )
    if config.second and config.second not in TASKS:
        check_source(config.second, "task.second")


def second_task(config: TaskConfig) -> TaskConfig | None:
    """The task that is only evaluated, as a configuration of its own: as many held-out prompts, columns guessed; None if there is none."""
    if not config.second:
        return None
    check_task(config)
    given = (
        {"name": config.second}
        if config.second in TASKS
        else {"name": FILE.name, "path": config.second, "too_long": "drop"}
    )
    return type(config)(**given, heldout_size=config.heldout_size)


def load_task(config: TaskConfig) -> Task:
    """The task that a configuration names. A file is read the first time that it is asked for. Raises InvalidConfig naming the field."""
    if config.name == FILE.name:
        from grpo_core.tasks.table import open_table  # numpy and pyarrow, only for files

        return FILE.over(open_table(config), config.instruction)
    check_task(config)
    return TASKS[config.name]


__all__ = [
    "CHOICES",
    "FILE",
    "TASKS",
    "Task",
    "check_task",
    "extract_answer",
    "given_answer",
    "grade_answer",
    "heldout_prompts",
    "is_heldout",
    "load_task",
    "prompt_id",
    "second_task",
    "train_prompts",
]
