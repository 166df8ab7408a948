"""Criteria: small pure functions (completion, prompt, parameters) -> score, or None = could not be scored; and the table of all of them.

Adding one is adding a parameter model, a function, a row of CHECKS and a test.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

from pydantic import Field, model_validator

from grpo_core.rubric.answers import ANSWER_CHECKS
from grpo_core.rubric.check import MAX_CHARS, Check, Params
from grpo_core.rubric.judge import JUDGE_CHECKS
from grpo_core.rubric.reward_model import MODEL_CHECKS
from grpo_core.rubric.sandbox.plugins import load_plugins
from grpo_core.rubric.sandbox.snippet import SNIPPET_CHECKS
from grpo_core.rubric.texts import TEXT_CHECKS
from grpo_core.tasks import CHOICES, FILE, extract_answer, given_answer
from grpo_core.types import Completion, Prompt


class AccuracyParams(Params):
    pass


class FormatParams(Params):
    """`required` and `optional` tags, in the order in which they must come."""

    required: tuple[str, ...] = Field(("answer",), min_length=1, max_length=8)
    optional: tuple[str, ...] = Field(("think",), max_length=8)

    @model_validator(mode="after")
    def _names(self) -> FormatParams:
        for tag in (*self.required, *self.optional):
            if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,31}", tag):
                raise ValueError(f"{tag!r} is no tag name: letters, digits, - and _ only")
        return self


class LanguageParams(Params):
    script: Literal[
        "latin", "cyrillic", "greek", "arabic", "hebrew", "devanagari", "cjk", "hangul", "any"
    ] = "latin"


class LengthParams(Params):
    """Full score from `min_tokens` to `max_tokens`."""

    min_tokens: int = Field(1, ge=0, le=1_000_000)
    max_tokens: int = Field(32, ge=1, le=1_000_000)

    @model_validator(mode="after")
    def _ordered(self) -> LengthParams:
        if self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens {self.min_tokens} is above max_tokens {self.max_tokens}")
        return self


class ReasoningParams(Params):
    tag: str = Field("think", pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,31}$")


def accuracy(completion: Completion, prompt: Prompt, params: AccuracyParams) -> float | None:
    r"""Is the text in the answer tag right, by the task's own exact grader? 0 without an answer tag, None without a key.

    For prompts of a file a \boxed answer and one after #### count as well: models bring their own habits.
    """
    task = CHOICES.get(prompt.task)
    if task is None or prompt.answer == "":
        return None
    answer = (given_answer if task is FILE else extract_answer)(completion.text[:MAX_CHARS])
    return 0.0 if answer is None else float(task.grade(answer, prompt))


def format_score(completion: Completion, prompt: Prompt, params: FormatParams) -> float:
    """Is the structure regular?

    score = 1/2 · (required tags that stand exactly once, closed and not blank) / (required tags)
          + 1/2 · [all of them do, the tags are in order, and nothing but space stands outside them]
    """
    text = completion.text[:MAX_CHARS]
    good = sum(_span(text, tag) is not None for tag in params.required)
    clean = good == len(params.required) and _only_tags(text, params)
    return 0.5 * good / len(params.required) + 0.5 * clean


def _span(text: str, tag: str) -> tuple[int, int] | None:
    """Where <tag>…</tag> begins and ends, if it stands exactly once and holds something."""
    opening, closing = f"<{tag}>", f"</{tag}>"
    if text.count(opening) != 1 or text.count(closing) != 1:
        return None
    start, end = text.find(opening), text.find(closing)
    return (
        (start, end + len(closing))
        if text[start + len(opening) : end].strip() and start < end
        else None
    )


def _only_tags(text: str, params: FormatParams) -> bool:
    at = 0
    for tag in (*(t for t in params.optional if t not in params.required), *params.required):
        span = _span(text, tag)
        if (
            span is None
        ):  # an optional tag that is absent or broken: broken, its text is found outside below
            continue
        if text[at : span[0]].strip():
            return False
        at = span[1]
    return not text[at:].strip()


_SCRIPTS: dict[str, tuple[str, ...]] = {
    "latin": ("LATIN",),
    "cyrillic": ("CYRILLIC",),
    "greek": ("GREEK",),
    "arabic": ("ARABIC",),
    "hebrew": ("HEBREW",),
    "devanagari": ("DEVANAGARI",),
    "cjk": ("CJK", "HIRAGANA", "KATAKANA"),
    "hangul": ("HANGUL",),
}
# Four copies in a row of a unit of up to 16 characters; short runs such as the zeros of 10000 are no loop.
_LOOP = re.compile(r"(.{1,16}?)\1{3,}", re.DOTALL)
_LOOP_MIN_CHARS = 8


def language(completion: Completion, prompt: Prompt, params: LanguageParams) -> float:
    """Is it clean text: the expected script, printable characters, no repetition loop?

        score = (share of visible characters that belong) · (1 - share of the text inside loops)

    Letters must be of the script; digits, punctuation and symbols always belong; control characters and U+FFFD never do.
    An empty completion is no text: 0.
    """
    text = completion.text[:MAX_CHARS]
    visible = [c for c in text if not c.isspace()]
    if not visible:
        return 0.0
    belongs = sum(_belongs(c, params.script) for c in visible) / len(visible)
    loops = sum(len(m.group()) for m in _LOOP.finditer(text) if len(m.group()) >= _LOOP_MIN_CHARS)
    return belongs * (1.0 - loops / len(text))


@lru_cache(maxsize=4096)
def _belongs(char: str, script: str) -> bool:
    category = unicodedata.category(char)
    if category[0] == "C" or char == "�":
        return False
    if category[0] != "L" or script == "any":
        return True
    return unicodedata.name(char, "").startswith(_SCRIPTS[script])


def length(completion: Completion, prompt: Prompt, params: LengthParams) -> float:
    """Is the completion as long as wished? 1 from min to max tokens; below it n/min, above it falls to 0 at 2·max."""
    n = completion.num_tokens
    if n < params.min_tokens:
        return n / params.min_tokens
    return 1.0 if n <= params.max_tokens else max(0.0, 2.0 - n / params.max_tokens)


def reasoning(completion: Completion, prompt: Prompt, params: ReasoningParams) -> float:
    """Does it reason before it answers: is there a closed <think> block that is not blank? Usually watched at weight 0."""
    start = completion.text.find(f"<{params.tag}>")
    end = completion.text.find(f"</{params.tag}>", start + 1)
    return float(
        start >= 0 and end >= 0 and bool(completion.text[start + len(params.tag) + 2 : end].strip())
    )


CHECKS: dict[str, Check] = {
    "accuracy": Check(
        accuracy,
        AccuracyParams,
        "The text in <answer>…</answer> is right, by the task's own grader.",
    ),
    "format": Check(
        format_score,
        FormatParams,
        "Required tags stand once, closed, in order, with nothing outside; half the score for the tags alone.",
    ),
    "language": Check(
        language, LanguageParams, "Expected script, printable characters, no repetition loops."
    ),
    "length": Check(length, LengthParams, "Between min_tokens and max_tokens; fades to 0 outside."),
    "reasoning": Check(reasoning, ReasoningParams, "There is a <think> block that is not blank."),
    **ANSWER_CHECKS,
    **TEXT_CHECKS,
    **SNIPPET_CHECKS,
    **MODEL_CHECKS,
    **JUDGE_CHECKS,
}


def add_plugins(paths: Sequence[str]) -> None:
    """Make the functions of the operator's plug-in files checks like any other. Called once, before anything asks for CHECKS."""
    CHECKS.update(load_plugins(paths))
