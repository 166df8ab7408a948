"""Where prompts come from and how an answer is judged right. Standard library and pydantic only."""

from __future__ import annotations

from grpo_core.errors import FieldProblem, InvalidConfig
from grpo_core.tasks.countdown import COUNTDOWN
from grpo_core.tasks.numbers import ARITHMETIC, SUMS
from grpo_core.tasks.sort import SORT
from grpo_core.tasks.task import Task, extract_answer, heldout_prompts, is_heldout, prompt_id, train_prompts

TASKS: dict[str, Task] = {task.name: task for task in (SUMS, ARITHMETIC, SORT, COUNTDOWN)}


def load_task(name: str) -> Task:
    """The task of that name, or InvalidConfig naming those that exist."""
    if name not in TASKS:
        raise InvalidConfig([FieldProblem("task.name", name, "there is no such task", f"Known: {', '.join(TASKS)}.")])
    return TASKS[name]


__all__ = ["TASKS", "Task", "extract_answer", "heldout_prompts", "is_heldout", "load_task", "prompt_id", "train_prompts"]
