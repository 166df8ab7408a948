r"""Answers to prompts of a file: find them in a completion, and compare them as numbers or text.

A completion gives its answer in <answer>…</answer>, in \boxed{…} or after ####.
"""

from __future__ import annotations

import re

from grpo_core.tasks.columns import last_boxed
from grpo_core.tasks.markup import strip_markup
from grpo_core.tasks.numbers import parse_money
from grpo_core.tasks.task import Task, extract_answer, instruction
from grpo_core.types import Prompt

MAX_CHARACTERS = 2_000  # a longer answer is compared as text only
_PIECES = re.compile(r"\\[A-Za-z]+|[^\\]+")
_AROUND_SIGNS = re.compile(r" ?([^\w\s]) ?")  # makes (1, 2) and (1,2) equal


def given_answer(text: str) -> str | None:
    r"""The answer that a completion gives; None if it gives none.

    The last <answer> pair, else the last \boxed{…}, else the line after the last ####.
    """
    if (tagged := extract_answer(text)) is not None:
        return tagged
    if (boxed := last_boxed(text)) is not None:
        return boxed
    return text.rpartition("####")[2].strip().partition("\n")[0] if "####" in text else None


def same_answer(given: str, right: str) -> bool:
    """Whether two answers are equal as numbers, else as text.

    Text is compared without markup, case and spaces. $5 is 5, but not €5.
    """
    a, b = parse_money(given[:MAX_CHARACTERS]), parse_money(right[:MAX_CHARACTERS])
    if a is not None and b is not None:
        return a[0] == b[0] and ("" in (a[1], b[1]) or a[1] == b[1])
    return _normal(given) == _normal(right)


def _normal(text: str) -> str:
    # Case matters in the names of commands: \theta is not \Theta.
    text = _PIECES.sub(lambda m: m[0] if m[0][0] == "\\" else m[0].casefold(), strip_markup(text))
    text = " ".join(text.split()).replace("\\left", "").replace("\\right", "")
    return _AROUND_SIGNS.sub(r"\1", text).strip()


def grade_answer(answer_text: str, prompt: Prompt) -> float:
    """1.0 if the answer equals the file's, as a number or as text; else 0.0."""
    return float(bool(prompt.answer.strip()) and same_answer(answer_text, prompt.answer))


FILE = Task(
    "file",
    "Your own prompts",
    "Prompts and answers from a CSV, TSV, JSONL or Parquet file, or from a dataset on the Hub.",
    instruction("Answer the question."),
    None,
    grade_answer,
)
