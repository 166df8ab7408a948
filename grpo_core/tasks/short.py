"""Built-in one-line tasks: arithmetic with whole numbers, and sorting letters."""

from __future__ import annotations

import random
from string import ascii_lowercase

from grpo_core.tasks.markup import strip_markup
from grpo_core.tasks.numbers import parse_number
from grpo_core.tasks.task import Task, instruction
from grpo_core.types import Prompt

LETTERS = 5


def grade_integer(answer_text: str, prompt: Prompt) -> float:
    """1.0 if the text is the right number, in any form that parse_number reads."""
    given = parse_number(answer_text)
    return float(given is not None and given == parse_number(prompt.answer))


def make_sum(rng: random.Random) -> tuple[str, str, dict]:
    numbers = [rng.randint(10, 99) for _ in range(3)]
    return f"Q: {'+'.join(map(str, numbers))}=?", str(sum(numbers)), {"numbers": numbers}


def make_arithmetic(rng: random.Random) -> tuple[str, str, dict]:
    a, b = rng.randint(10, 99), rng.randint(10, 99)
    if rng.random() < 0.5:
        return f"Q: {a}+{b}=?", str(a + b), {"numbers": [a, b], "operator": "+"}
    a, b = max(a, b), min(a, b)  # no negative answers: the task is about borrowing, not signs
    return f"Q: {a}-{b}=?", str(a - b), {"numbers": [a, b], "operator": "-"}


def make_product(rng: random.Random) -> tuple[str, str, dict]:
    a, b = rng.randint(11, 99), rng.randint(11, 99)
    return f"Q: {a}*{b}=?", str(a * b), {"numbers": [a, b], "operator": "*"}


def make_sort(rng: random.Random) -> tuple[str, str, dict]:
    word = "".join(rng.choices(ascii_lowercase, k=LETTERS))
    return f"Q: sort {word}", "".join(sorted(word)), {"word": word}


def grade_sort(answer_text: str, prompt: Prompt) -> float:
    """1.0 if the text is the sorted word."""
    return float(strip_markup(answer_text) == prompt.answer)


SUMS = Task(
    "sums",
    "Sums",
    "Add three two-digit numbers. Hard to answer at once, easy step by step.",
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
PRODUCTS = Task(
    "products",
    "Products",
    "Multiply two two-digit numbers, with a calculator to call. Hopeless in the head.",
    instruction("Work out the product."),
    make_product,
    grade_integer,
    environment="Calculator",
)
# For environments whose reset says all that the policy must know: each number is another start.
EPISODES = Task(
    "episodes",
    "Episodes of an environment",
    "Numbered prompts, Episode 1 and so on, for an environment whose start is the task, "
    "such as textarena:Sudoku-v0. There is no right answer: use the rubric `environment`.",
    "",
    lambda rng: (f"Episode {rng.randint(1, 1_000_000)}.\n", "", {}),
    lambda answer_text, prompt: 0.0,
)
SORT = Task(
    "sort",
    "Sort letters",
    "Put the letters of a five-letter word in alphabetical order; repeated letters stay repeated.",
    instruction("Sort the letters of the word alphabetically and write them without spaces."),
    make_sort,
    grade_sort,
)
