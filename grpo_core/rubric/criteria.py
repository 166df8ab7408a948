"""The basic checks, and CHECKS, the table of all checks.

A check is a pure function (completion, prompt, parameters) -> score; None = could not be scored.
To add one, write a parameter model, a function, a row of CHECKS and a test.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

from pydantic import Field, model_validator

from grpo_core.child_process import NoValue
from grpo_core.rubric.answers import ANSWER_CHECKS
from grpo_core.rubric.check import MAX_CHARS, UNBOUNDED, Check, Params, length_of
from grpo_core.rubric.judge import JUDGE_CHECKS
from grpo_core.rubric.reward_model import MODEL_CHECKS
from grpo_core.rubric.sandbox.plugins import load_plugins
from grpo_core.rubric.sandbox.snippet import SNIPPET_CHECKS
from grpo_core.rubric.texts import TEXT_CHECKS
from grpo_core.tasks import extract_answer, find_task, given_answer
from grpo_core.types import Completion, Prompt


class AccuracyParams(Params):
    """None."""


class EnvironmentParams(Params):
    """None."""


class FormatParams(Params):
    """`required` and `optional` tags, each in the order in which they must occur."""

    required: tuple[str, ...] = Field(("answer",), min_length=1, max_length=8)
    optional: tuple[str, ...] = Field(("think",), max_length=8)

    @model_validator(mode="after")
    def _are_tag_names(self) -> FormatParams:
        for tag in (*self.required, *self.optional):
            if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,31}", tag):
                raise ValueError(f"{tag!r} is not a tag name: use letters, digits, - and _ only")
        return self


class LanguageParams(Params):
    """The script that letters must have."""

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
    """The tag that holds the reasoning."""

    tag: str = Field("think", pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,31}$")


def accuracy(completion: Completion, prompt: Prompt, params: AccuracyParams) -> float | None:
    r"""Is the answer right, by the task's own exact grader?

    0 without an answer, None without a right answer. The answer is read from the answer tag; for
    prompts of a file or package also from \boxed or after ####: models have their own formats.
    """
    task = find_task(prompt.task)
    if task is None or prompt.answer == "":
        return None
    answer = (given_answer if task.make is None else extract_answer)(completion.text[:MAX_CHARS])
    return 0.0 if answer is None else float(task.grade(answer, prompt))


def format_score(completion: Completion, prompt: Prompt, params: FormatParams) -> float:
    """Are the tags as required?

    score = 1/2 · (required tags that occur exactly once, closed and not blank) / (required tags)
          + 1/2 · [all required tags do, tags are in order, and only white space is outside them]
    """
    text = completion.text[:MAX_CHARS]
    good = sum(_span(text, tag) is not None for tag in params.required)
    clean = good == len(params.required) and _only_tags(text, params)
    return 0.5 * good / len(params.required) + 0.5 * clean


def _span(text: str, tag: str) -> tuple[int, int] | None:
    """Start and end of <tag>…</tag>, if it occurs exactly once and is not blank."""
    opening, closing = f"<{tag}>", f"</{tag}>"
    if text.count(opening) != 1 or text.count(closing) != 1:
        return None
    start, end = text.find(opening), text.find(closing)
    if start >= end or not text[start + len(opening) : end].strip():
        return None
    return start, end + len(closing)


def _only_tags(text: str, params: FormatParams) -> bool:
    """Are the tags in order, with only white space outside them?"""
    at = 0
    for tag in (*(t for t in params.optional if t not in params.required), *params.required):
        span = _span(text, tag)
        # An optional tag may be missing. The text of a broken one counts as outside.
        if span is None:
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
# At least four copies in a row of up to 16 characters. Short runs, such as the zeros of 10000, are
# no loop.
_LOOP = re.compile(r"(.{1,16}?)\1{3,}", re.DOTALL)
_LOOP_MIN_CHARS = 8


def language(completion: Completion, prompt: Prompt, params: LanguageParams) -> float:
    """Is it clean text: the expected script, printable characters, no repetition loops?

        score = (share of visible characters that are allowed) · (1 - share of the text in loops)

    Letters of the script, digits, punctuation and symbols are allowed; control characters and
    U+FFFD are not. 0 for an empty completion.
    """
    text = completion.text[:MAX_CHARS]
    visible = [c for c in text if not c.isspace()]
    if not visible:
        return 0.0
    allowed = sum(_is_allowed(c, params.script) for c in visible) / len(visible)
    loops = sum(len(m.group()) for m in _LOOP.finditer(text) if len(m.group()) >= _LOOP_MIN_CHARS)
    return allowed * (1.0 - loops / len(text))


@lru_cache(maxsize=4096)
def _is_allowed(char: str, script: str) -> bool:
    category = unicodedata.category(char)
    if category[0] == "C" or char == "�":
        return False
    if category[0] != "L" or script == "any":
        return True
    return unicodedata.name(char, "").startswith(_SCRIPTS[script])


def environment(completion: Completion, prompt: Prompt, params: EnvironmentParams) -> float | None:
    """What get_reward of the completion's environment returned; None without an environment."""
    if completion.environment_error:
        raise NoValue(completion.environment_error)
    return completion.environment_reward


def length(completion: Completion, prompt: Prompt, params: LengthParams) -> float:
    """Is the length n in range? 1 from min to max tokens; n/min below; above, 0 from 2·max on."""
    n = length_of(completion)
    if n < params.min_tokens:
        return n / params.min_tokens
    return 1.0 if n <= params.max_tokens else max(0.0, 2.0 - n / params.max_tokens)


def reasoning(completion: Completion, prompt: Prompt, params: ReasoningParams) -> float:
    """Is there a closed <think> block that is not blank? Usually only measured, at weight 0."""
    text = completion.text
    start = text.find(f"<{params.tag}>")
    end = text.find(f"</{params.tag}>", start + 1)
    if start < 0 or end < 0:
        return 0.0
    return float(bool(text[start + len(params.tag) + 2 : end].strip()))


CHECKS: dict[str, Check] = {
    "accuracy": Check(
        accuracy,
        AccuracyParams,
        "The text in <answer>…</answer> is right, by the task's own grader.",
    ),
    "format": Check(
        format_score,
        FormatParams,
        "Each required tag occurs once and is closed, in order, with nothing outside. "
        "Half the score is for the tags alone.",
    ),
    "language": Check(
        language,
        LanguageParams,
        "Letters of the expected script, printable characters, no repetition loops.",
    ),
    "length": Check(
        length, LengthParams, "Length from min_tokens to max_tokens; the score falls to 0 outside."
    ),
    "reasoning": Check(
        reasoning, ReasoningParams, "The completion has a <think> block that is not blank."
    ),
    "environment": Check(
        environment,
        EnvironmentParams,
        "What the environment's get_reward returns for the completion.",
        UNBOUNDED,
    ),
    **ANSWER_CHECKS,
    **TEXT_CHECKS,
    **SNIPPET_CHECKS,
    **MODEL_CHECKS,
    **JUDGE_CHECKS,
}

_plugin_files: list[str] = []


def add_plugins(paths: Sequence[str]) -> None:
    """Add the functions of plug-in files to CHECKS. Call it once, before CHECKS is used.

    Raises StudioError for a file that cannot be used.
    """
    CHECKS.update(load_plugins(paths))
    _plugin_files.extend(paths)


def plugin_files() -> list[str]:
    """The files of `add_plugins`, for another process."""
    return [*_plugin_files]
