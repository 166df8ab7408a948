"""A task about text: the letters of a short word in alphabetical order."""

from __future__ import annotations

import random
from string import ascii_lowercase

from grpo_core.tasks.task import Task, instruction
from grpo_core.types import Prompt

LETTERS = 5


def make_sort(rng: random.Random) -> tuple[str, str, dict]:
    word = "".join(rng.choices(ascii_lowercase, k=LETTERS))
    return f"Q: sort {word}", "".join(sorted(word)), {"word": word}


def grade_sort(answer_text: str, prompt: Prompt) -> float:
    return float(answer_text.strip() == prompt.answer)


SORT = Task("sort", "Sort letters", "Put the letters of a five-letter word in alphabetical order; repeated letters stay repeated.",
            instruction("Sort the letters of the word alphabetically and write them without spaces."), make_sort, grade_sort)
