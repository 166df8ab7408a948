"""The countdown task: reach a target from three numbers. Many answers are right.

The grader parses the answer by this grammar and runs no code:

    expression = term {("+" | "-") term}
    term       = factor {"*" factor}
    factor     = number | "(" expression ")"
"""

from __future__ import annotations

import random
import re

from grpo_core.tasks.markup import strip_markup
from grpo_core.tasks.task import Task, instruction
from grpo_core.types import Prompt

# Bounds time, recursion depth and the size of products; a real answer needs fewer than 20.
MAX_CHARACTERS = 64
TOKEN = re.compile(r"[0-9]+|[-+*()]")


class NotAnExpression(ValueError):
    """The text does not follow the grammar."""


def evaluate(text: str) -> tuple[int, list[int]]:
    """The value of an expression, and its numbers in order. Raises NotAnExpression."""
    if len(text) > MAX_CHARACTERS:
        raise NotAnExpression("too long")
    text = text.translate({ord("×"): "*", ord("−"): "-"})
    if TOKEN.sub("", text).strip(" "):
        raise NotAnExpression("a character that is not allowed in an expression")
    tokens = TOKEN.findall(text)[::-1]  # a stack: the next token is the last
    numbers: list[int] = []

    def factor() -> int:
        token = tokens.pop() if tokens else ""
        if token == "(":
            value = expression()
            if not tokens or tokens.pop() != ")":
                raise NotAnExpression("a bracket is not closed")
            return value
        if not token.isdigit():
            raise NotAnExpression("a number is missing")
        numbers.append(int(token))
        return numbers[-1]

    def term() -> int:
        value = factor()
        while tokens and tokens[-1] == "*":
            tokens.pop()
            value *= factor()
        return value

    def expression() -> int:
        value = term()
        while tokens and tokens[-1] in "+-":
            value += term() if tokens.pop() == "+" else -term()
        return value

    value = expression()
    if tokens:
        raise NotAnExpression("text after the end of the expression")
    return value, numbers


def grade_countdown(answer_text: str, prompt: Prompt) -> float:
    """1.0 if the expression has the target's value and uses each given number exactly once.

    Reads target and numbers from the prompt's answer, so a prompt from the store needs no meta.
    """
    try:
        value, numbers = evaluate(strip_markup(answer_text))
        target, given = evaluate(prompt.answer)
    except NotAnExpression:
        return 0.0
    return float(value == target and sorted(numbers) == sorted(given))


def make_countdown(rng: random.Random) -> tuple[str, str, dict]:
    """Three numbers from 1 to 9, and a target from 1 to 99 that a ∘ b ∘ c reaches."""
    numbers = [rng.randint(1, 9) for _ in range(3)]
    while True:
        a, b, c = rng.sample(numbers, 3)
        answer = f"{a}{rng.choice('+-*')}{b}{rng.choice('+-*')}{c}"
        target, _ = evaluate(answer)
        if 1 <= target <= 99:
            text = f"Q: {target} from {' '.join(map(str, numbers))}"
            return text, answer, {"numbers": numbers, "target": target}


COUNTDOWN = Task(
    "countdown",
    "Countdown",
    "Reach a target from three numbers with + - *, each number used exactly once.",
    instruction(
        "Write an expression that has the target's value and uses each of the given numbers "
        "exactly once. Use only + - * and brackets, no equals sign."
    ),
    make_countdown,
    grade_countdown,
)
