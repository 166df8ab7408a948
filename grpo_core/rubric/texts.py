"""Checks of the text: patterns, length, repetition, language, similarity to a reference."""

from __future__ import annotations

import math
import re
from functools import lru_cache
from typing import Any, Literal

import re2
from pydantic import Field, model_validator

from grpo_core.rubric.check import MAX_CHARS, Bounds, Check, Params, length_of
from grpo_core.tasks import find_task, given_answer
from grpo_core.tasks.markup import strip_markup
from grpo_core.types import Completion, Prompt

_WORD = re.compile(r"\w+|[^\w\s]")
_NOT_PROSE = re.compile(r"```.*?```|\$[^$]{0,500}\$|https?://\S+|<[^<>]{1,40}>|\\\w+", re.DOTALL)
# A search takes up to 10 ns for each character and instruction: 2 s for the longest text. It does
# not hold Python's lock, so that the page goes on.
MAX_PROGRAM = 10_000
TOO_LARGE = (
    f"the pattern makes a program of more than {MAX_PROGRAM:,} instructions. "
    "Use smaller numbers in {…}, or * and +"
)
MIN_LETTERS = 20  # with fewer, a language detector only guesses


class RegexParams(Params):
    """`pattern` in RE2's syntax. `wanted` false: 1 if nothing matches.

    `whole_text`: the pattern must match the whole text.
    """

    pattern: str = Field(r"\d", min_length=1, max_length=2_000)
    wanted: bool = True
    ignore_case: bool = False
    whole_text: bool = False

    @model_validator(mode="after")
    def _compiles(self) -> RegexParams:
        try:
            size = _compiled(self.pattern, self.ignore_case).programsize
        except re2.error as error:
            reason = error.args[0] if error.args else ""
            text = reason.decode() if isinstance(reason, bytes) else str(error)
            if "too large" in text:
                raise ValueError(TOO_LARGE) from None
            raise ValueError(
                f"not a pattern in RE2 syntax (no look-around, no back-references): {text}"
            ) from None
        if size > MAX_PROGRAM:
            raise ValueError(TOO_LARGE)
        return self


class OverlongParams(Params):
    """0 up to max_tokens - soft_tokens tokens, then falling to -1 at max_tokens."""

    max_tokens: int = Field(1024, ge=1, le=1_000_000)
    soft_tokens: int = Field(256, ge=0, le=1_000_000)

    @model_validator(mode="after")
    def _ordered(self) -> OverlongParams:
        if self.soft_tokens > self.max_tokens:
            raise ValueError(
                f"soft_tokens {self.soft_tokens} is above max_tokens {self.max_tokens}"
            )
        return self


class CosineParams(Params):
    """Scores at length 0 (short) and at `max_tokens` (long), for right and for wrong answers."""

    max_tokens: int = Field(1024, ge=1, le=1_000_000)
    right_short: float = Field(1.0, ge=-10, le=10)
    right_long: float = Field(0.5, ge=-10, le=10)
    wrong_short: float = Field(-1.0, ge=-10, le=10)
    wrong_long: float = Field(-0.5, ge=-10, le=10)


class RepetitionParams(Params):
    """`n`: words in an n-gram."""

    n: int = Field(3, ge=1, le=20)


class NaturalLanguageParams(Params):
    """`language`: ISO 639-1 code, such as en or de."""

    language: str = Field("en", pattern=r"^[a-z]{2,3}$")


class SimilarityParams(Params):
    """`of`: what is compared with the prompt's answer, the whole completion or its answer."""

    measure: Literal["rouge-l", "bleu", "chrf"] = "rouge-l"
    of: Literal["whole text", "answer"] = "whole text"


@lru_cache(maxsize=64)
def _compiled(pattern: str, ignore_case: bool) -> Any:
    options = re2.Options()
    options.case_sensitive = not ignore_case
    options.log_errors = False
    options.never_capture = True  # only whether it matches counts; groups would take much longer
    options.max_mem = 1 << 20  # a larger program is refused while it is compiled, within 0.1 s
    return re2.compile(pattern, options=options)


def regex(completion: Completion, prompt: Prompt, params: RegexParams) -> float:
    """Does the pattern occur? RE2 takes time linear in the text for every pattern."""
    pattern, text = _compiled(params.pattern, params.ignore_case), clean(completion.text)
    match = pattern.fullmatch(text) if params.whole_text else pattern.search(text)
    return float((match is not None) == params.wanted)


def clean(text: str) -> str:
    """The first MAX_CHARS, with lone surrogates replaced: C libraries cannot encode them."""
    return text[:MAX_CHARS].encode("utf-8", "replace").decode()


def soft_overlong(completion: Completion, prompt: Prompt, params: OverlongParams) -> float:
    """Penalty for a completion of n tokens near or above the limit L (DAPO).

        0 if n <= L - c;  (L - c - n)/c up to L;  -1 beyond      arXiv:2503.14476 eq. 13

    L = max_tokens, c = soft_tokens. Range -1 to 0.
    """
    n, limit = length_of(completion), params.max_tokens - params.soft_tokens
    if n <= limit:
        return 0.0
    return (limit - n) / params.soft_tokens if n <= params.max_tokens else -1.0


def cosine_length(completion: Completion, prompt: Prompt, params: CosineParams) -> float | None:
    """A score that depends on correctness and length: right answers should be short.

        score = long + (short - long)/2 · (1 + cos(π·min(n/L, 1)))      n, L = max_tokens

    Yeo et al., arXiv:2502.03373 App. C.1. With the defaults a long wrong answer loses less than a
    short one. None without a right answer.
    """
    task = find_task(prompt.task)
    if task is None or not prompt.answer:
        return None
    given = given_answer(completion.text[:MAX_CHARS])
    right = given is not None and task.grade(given, prompt) >= 1
    if right:
        short, long = params.right_short, params.right_long
    else:
        short, long = params.wrong_short, params.wrong_long
    share = min(length_of(completion) / params.max_tokens, 1.0)
    return long + 0.5 * (short - long) * (1 + math.cos(math.pi * share))


def repetition(completion: Completion, prompt: Prompt, params: RepetitionParams) -> float:
    """Minus the share of word n-grams that repeat earlier ones: -(1 - unique/all).

    arXiv:2502.03373 App. C.2. 0 for a text with fewer than n words.
    """
    words = _WORD.findall(completion.text[:MAX_CHARS])
    grams = list(zip(*(words[i:] for i in range(params.n)), strict=False))
    return len(set(grams)) / len(grams) - 1 if grams else 0.0


def natural_language(
    completion: Completion, prompt: Prompt, params: NaturalLanguageParams
) -> float | None:
    """Is it written in the wanted language?

    Code, formulas, links and tags are ignored. None below 20 letters, too few to decide.
    """
    text = _NOT_PROSE.sub(" ", clean(completion.text))
    if sum(c.isalpha() for c in text) < MIN_LETTERS:
        return None
    import py3langid  # takes 0.3 s to import

    return float(py3langid.classify(text)[0] == params.language)


def similarity(completion: Completion, prompt: Prompt, params: SimilarityParams) -> float | None:
    """Similarity to the reference, 0 to 1: ROUGE-L F1 over words, or sacrebleu's BLEU or chrF.

    None without a reference.
    """
    if not prompt.answer.strip():
        return None
    given, right = clean(completion.text), clean(prompt.answer)
    if params.of == "answer":
        given, right = strip_markup(given_answer(given) or ""), strip_markup(right)
    if not given.strip():
        return 0.0
    if params.measure == "rouge-l":
        from rapidfuzz.distance import LCSseq

        a, b = _WORD.findall(given.casefold()), _WORD.findall(right.casefold())
        return 2 * LCSseq.similarity(a, b) / (len(a) + len(b)) if a and b else 0.0
    import sacrebleu

    measure = sacrebleu.sentence_bleu if params.measure == "bleu" else sacrebleu.sentence_chrf
    return min(1.0, max(0.0, measure(given, [right]).score / 100))


TEXT_CHECKS: dict[str, Check] = {
    "regex": Check(
        regex,
        RegexParams,
        "A pattern occurs, or does not. RE2 syntax: linear time, no look-around, "
        "no back-references.",
    ),
    "soft_overlong": Check(
        soft_overlong,
        OverlongParams,
        "0 up to max_tokens − soft_tokens, then falling to −1 at max_tokens (DAPO).",
        Bounds(-1.0, 0.0),
    ),
    "cosine_length": Check(
        cosine_length,
        CosineParams,
        "Right answers score more when short, wrong ones lose less when long, along a cosine.",
        Bounds(-10.0, 10.0),
    ),
    "repetition": Check(
        repetition,
        RepetitionParams,
        "Minus the share of word n-grams that repeat earlier ones.",
        Bounds(-1.0, 0.0),
    ),
    "natural_language": Check(
        natural_language,
        NaturalLanguageParams,
        "Written in the wanted language; null for texts that are too short to decide.",
    ),
    "similarity": Check(
        similarity, SimilarityParams, "Similarity to the prompt's answer: ROUGE-L, BLEU or chrF."
    ),
}
