r"""Answers to prompts of a file: found in <answer>…</answer>, \boxed{…} or after ####, and equal as text or as a number."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

from grpo_core.tasks.columns import last_boxed
from grpo_core.tasks.task import Task, extract_answer, instruction
from grpo_core.types import Prompt

MAX_CHARACTERS = 2_000  # an answer, not an essay: what is longer is compared as text only
_NUMBER = re.compile(
    r"[+-]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,60})?(?:\.[0-9]{0,60})?(?:[eE][+-]?[0-9]{1,3})?"
)
_GROUPS = re.compile(r"(?<=\d)[ \u2009\u202f](?=\d{3}(?:\D|$))")  # 1 000 and 12 345 678
_AROUND_SIGNS = re.compile(r" ?([^\w\s]) ?")  # (1, 2) and (1,2) are one text
_DRESSING = str.maketrans(
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
    r"""What a completion gives as its answer: the last <answer> pair, else the last \boxed{…}, else what follows the last ####; None if nothing."""
    if (found := extract_answer(text)) is not None:
        return found
    if (found := last_boxed(text)) is not None:
        return found
    return text.rpartition("####")[2].strip() if "####" in text else None


def number(text: str) -> Decimal | None:
    """The number that a text is: "1,234", "$5.00", "−3", "1e-4", "12 %" (0.12), "3/4". None if it is none, or not a finite one."""
    text = (
        _GROUPS.sub(
            "",
            text.strip()
            .translate(_DRESSING)
            .replace("{,}", ",")
            .replace("\\,", " ")
            .replace("\\", "")
            if len(text) <= 130
            else "",
        )
        .strip()
        .rstrip(".")
    )
    percent = text.endswith("%")
    text = text.rstrip("%").rstrip()
    above, slash, below = text.partition("/")
    parts = [_decimal(part.strip()) for part in ((above, below) if slash else (above,))]
    if None in parts or (slash and not parts[1]):
        return None
    value = parts[0] / parts[1] if slash else parts[0]
    return value / 100 if percent else value


def _decimal(text: str) -> Decimal | None:
    if not _NUMBER.fullmatch(text) or not any(c.isdigit() for c in text):
        return None
    try:
        value = Decimal(text.replace(",", ""))
    except InvalidOperation:
        return None
    return value if value.is_finite() and abs(value.adjusted()) < 400 else None


def same_answer(given: str, right: str) -> bool:
    """Equal as numbers, else as text up to case, spaces, surrounding $ and a full stop at the end."""
    a, b = number(given[:MAX_CHARACTERS]), number(right[:MAX_CHARACTERS])
    if a is not None and b is not None:
        return a == b
    return _normal(given) == _normal(right)


def _normal(text: str) -> str:
    return (
        _AROUND_SIGNS.sub(
            r"\1", " ".join(text.casefold().split()).replace("\\left", "").replace("\\right", "")
        )
        .strip("$")
        .rstrip(".")
        .strip()
    )


def grade_answer(answer_text: str, prompt: Prompt) -> float:
    """1.0 if the answer is the one in the file, as a number or as text."""
    return float(bool(prompt.answer.strip()) and same_answer(answer_text, prompt.answer))


FILE = Task(
    "file",
    "Your own prompts",
    "Prompts of a CSV, TSV, JSONL or Parquet file, or of a dataset on the Hub, with the answers beside them.",
    instruction("Answer the question."),
    None,
    grade_answer,
)
