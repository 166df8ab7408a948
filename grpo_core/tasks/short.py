"""Built-in tasks of one line: sums and arithmetic, whose answer is a whole number, and sorting the letters of a word."""

from __future__ import annotations

import random
import re
from string import ascii_lowercase

from grpo_core.tasks.task import Task, instruction
from grpo_core.types import Prompt

INTEGER = re.compile(
    r"[+-]?[0-9]{1,12}"
)  # [0-9], because int() also reads digits of every other script


def grade_integer(answer_text: str, prompt: Prompt) -> float:
    """1.0 if the text is the whole number asked for. "+7", "07" and the typographic minus of chat models are that number too."""
    given, right = answer_text.strip().replace("\N{MINUS SIGN}", "-"), prompt.answer
    return float(all(map(INTEGER.fullmatch, (given, right))) and int(given) == int(right))


def make_sum(rng: random.Random) -> tuple[str, str, dict]:
    numbers = [rng.randint(10, 99) for _ in range(3)]
    return f"Q: {'+'.join(map(str, numbers))}=?", str(sum(numbers)), {"numbers": numbers}


def make_arithmetic(rng: random.Random) -> tuple[str, str, dict]:
    a, b = rng.randint(10, 99), rng.randint(10, 99)
    if rng.random() < 0.5:
        return f"Q: {a}+{b}=?", str(a + b), {"numbers": [a, b], "operator": "+"}
    a, b = max(a, b), min(a, b)  # no negative answers: the task is about borrowing, not about signs
    return f"Q: {a}-{b}=?", str(a - b), {"numbers": [a, b], "operator": "-"}


SUMS = Task(
    "sums",
    "Sums",
    "Add three two-digit numbers. Hard at a glance, easy step by step: thinking pays.",
    instruction("Work out the sum."),
    make_sum,
    grade_integer,
)
ARITHMETIC = Task(
    "arithmetic",
    "Arithmetic",
    "Add or subtract two two-digit numbers.",
    instruction("Work out the result."),
    make_arithmetic,
    grade_integer,
)

LETTERS = 5


def make_sort(rng: random.Random) -> tuple[str, str, dict]:
    word = "".join(rng.choices(ascii_lowercase, k=LETTERS))
    return f"Q: sort {word}", "".join(sorted(word)), {"word": word}


def grade_sort(answer_text: str, prompt: Prompt) -> float:
    return float(answer_text.strip() == prompt.answer)


SORT = Task(
    "sort",
    "Sort letters",
    "Put the letters of a five-letter word in alphabetical order; repeated letters stay repeated.",
    instruction("Sort the letters of the word alphabetically and write them without spaces."),
    make_sort,
    grade_sort,
)
