"""A task of reasoning-gym: its help with an example, and answers graded by its own scorer."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

from grpo_core.child_process import KILL_AFTER, ChildFailed, NoValue, free_one
from grpo_core.config.sections.task import FILE_INSTRUCTION, MAX_SIZE
from grpo_core.tasks.reasoning_gym import MADE, PREFIX, gym_tasks, helpers, is_gym
from grpo_core.tasks.task import Task
from grpo_core.types import Prompt

SCORE_SECONDS = 3.0
MAX_ANSWER_CHARS = 20_000
SLOW_SECONDS = 0.03  # a prompt; what is slower is said


@cache
def gym_task(name: str) -> Task | None:
    """The task without its prompts; None if there is none of that name."""
    inner = name.removeprefix(PREFIX)
    if not is_gym(name) or inner not in gym_tasks():
        return None
    known = gym_tasks()[inner]
    levels = f"Levels 0 to {known.levels - 1}. " if known.levels else ""
    slow = f"Slow: about {known.seconds:.1g} s a prompt. " if known.seconds >= SLOW_SECONDS else ""
    text = f"{levels}{slow}Example: {known.example} Answer: {known.answer}"
    title = f"{inner} · reasoning-gym"
    return Task(name, title, text, FILE_INSTRUCTION, None, partial(_grade, inner))


def _grade(name: str, answer_text: str, prompt: Prompt) -> float:
    """What the task's own scorer gives, from 0 to 1; 0 for an answer that it cannot read.

    Raises NoValue for a prompt that the task did not make, and where the scorer takes too long.
    """
    columns = prompt.meta.get("columns")
    made = columns.get(MADE) if isinstance(columns, dict) else None
    if not isinstance(made, list) or not _is_made(made):
        raise NoValue("the task did not make this prompt, so it cannot score its answers")
    *of, index = made
    arguments = [[name, *of], index, prompt.text, answer_text[:MAX_ANSWER_CHARS]]
    question = {"do": "score", "arguments": arguments, "seconds": SCORE_SECONDS}

    def read(answer: Any) -> float | str:
        return str(answer["null"])[:300] if "null" in answer else float(answer["value"])

    try:
        value = free_one(helpers).request(question, SCORE_SECONDS + KILL_AFTER, read)
    except ChildFailed as error:
        value = str(error)
    if isinstance(value, str):
        raise NoValue(f"reasoning-gym's scorer: {value}")
    return value


def _is_made(made: list[Any]) -> bool:
    """Whether a list has the form [size, seed, level, number]: a file can hold anything."""
    if len(made) != 4:
        return False
    size, seed, level, index = made
    numbers = (size, seed, index) if level is None else (size, seed, index, level)
    if not all(type(n) is int and 0 <= n < 2**31 for n in numbers):
        return False
    return index < size <= MAX_SIZE
