r"""Answers to prompts of a file: find them in a completion, and compare them as numbers or text.

A completion gives its answer in <answer>…</answer>, in \boxed{…} or after ####.
"""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

from grpo_core.tasks.columns import last_boxed
from grpo_core.tasks.task import Task, extract_answer, instruction
from grpo_core.types import Prompt

MAX_CHARACTERS = 2_000  # a longer answer is compared as text only
MAX_NUMBER_CHARACTERS = 130
_NUMBER = re.compile(
    r"[+-]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,60})?(?:\.[0-9]{0,60})?(?:[eE][+-]?[0-9]{1,3})?"
)
_GROUPS = re.compile(r"(?<=\d)[ \u2009\u202f](?=\d{3}(?:\D|$))")  # 1 000 and 12 345 678
_AROUND_SIGNS = re.compile(r" ?([^\w\s]) ?")  # makes (1, 2) and (1,2) equal
_SYMBOLS = str.maketrans(
    {
        "\N{MINUS SIGN}": "-",
        "\N{EN DASH}": "-",
        "$": None,
        "€": None,
        "£": None,
        "\N{NO-BREAK SPACE}": " ",
    }
)


def given_answer(text: str) -> str | None:
    r"""The answer that a completion gives; None if it gives none.

    The last <answer> pair, else the last \boxed{…}, else the text after the last ####.
    """
    if (tagged := extract_answer(text)) is not None:
        return tagged
    if (boxed := last_boxed(text)) is not None:
        return boxed
    return text.rpartition("####")[2].strip() if "####" in text else None


def parse_number(text: str) -> Decimal | None:
    """The number that a text states, exactly; None if it states none, or not a finite one.

    Reads "1,234", "$5.00", "−3", "1e-4", "12 %" (0.12) and "3/4".
    """
    if len(text) > MAX_NUMBER_CHARACTERS:
        return None
    text = text.strip().translate(_SYMBOLS)
    text = text.replace("{,}", ",").replace("\\,", " ").replace("\\", "")  # LaTeX
    text = _GROUPS.sub("", text).strip().rstrip(".")
    is_percent = text.endswith("%")
    above, slash, below = text.rstrip("%").rstrip().partition("/")
    value = _decimal(above.strip())
    if slash:
        divisor = _decimal(below.strip())
        value = value / divisor if value is not None and divisor else None
    if value is None:
        return None
    return value / 100 if is_percent else value


def _decimal(text: str) -> Decimal | None:
    if not _NUMBER.fullmatch(text) or not any(c.isdigit() for c in text):
        return None
    try:
        value = Decimal(text.replace(",", ""))
    except InvalidOperation:
        return None
    return value if value.is_finite() and abs(value.adjusted()) < 400 else None


def same_answer(given: str, right: str) -> bool:
    """Whether two answers are equal as numbers, else as text.

    Text is compared without case, spaces, surrounding $ and a full stop at the end.
    """
    a, b = parse_number(given[:MAX_CHARACTERS]), parse_number(right[:MAX_CHARACTERS])
    if a is not None and b is not None:
        return a == b
    return _normal(given) == _normal(right)


def _normal(text: str) -> str:
    text = " ".join(text.casefold().split()).replace("\\left", "").replace("\\right", "")
    return _AROUND_SIGNS.sub(r"\1", text).strip("$").rstrip(".").strip()


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
