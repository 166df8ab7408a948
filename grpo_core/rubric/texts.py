"""Checks of a text's form: patterns, length, repetition, language, likeness to a reference."""

from __future__ import annotations

import math
import re
from functools import lru_cache
from typing import Any, Literal

import re2
from pydantic import Field, model_validator

from grpo_core.rubric.check import MAX_CHARS, Check, Params
from grpo_core.tasks import CHOICES, given_answer
from grpo_core.types import Completion, Prompt

_WORD = re.compile(r"\w+|[^\w\s]")
_FOREIGN_TO_LANGUAGE = re.compile(
    r"```.*?```|\$[^$]{0,500}\$|https?://\S+|<[^<>]{1,40}>|\\\w+", re.DOTALL
)
MIN_LETTERS = 20  # below this a language detector guesses


class RegexParams(Params):
    """`pattern` in RE2's syntax; `wanted` false turns the score round: 1 when nothing matches."""

    pattern: str = Field(r"\d", min_length=1, max_length=2_000)
    wanted: bool = True
    ignore_case: bool = False
    whole_text: bool = False

    @model_validator(mode="after")
    def _compiles(self) -> RegexParams:
        try:
            _compiled(self.pattern, self.ignore_case)
        except re2.error as error:
            said = (
                error.args[0].decode()
                if error.args and isinstance(error.args[0], bytes)
                else str(error)
            )
            raise ValueError(
                f"no pattern in RE2's syntax, which has no look-around and no back-references: {said}"
            ) from None
        return self


class OverlongParams(Params):
    """Nothing up to max_tokens - soft_tokens, then falling to -1 at max_tokens."""

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
    """Score at length 0 and at `max_tokens` for right and for wrong answers."""

    max_tokens: int = Field(1024, ge=1, le=1_000_000)
    right_short: float = Field(1.0, ge=-10, le=10)
    right_long: float = Field(0.5, ge=-10, le=10)
    wrong_short: float = Field(-1.0, ge=-10, le=10)
    wrong_long: float = Field(-0.5, ge=-10, le=10)


class RepetitionParams(Params):
    """n-grams of words."""

    n: int = Field(3, ge=1, le=20)


class NaturalLanguageParams(Params):
    """ISO 639-1 code of the wanted language, such as en or de."""

    language: str = Field("en", pattern=r"^[a-z]{2,3}$")


class SimilarityParams(Params):
    """`of`: the whole completion or its answer, compared with the prompt's answer."""

    measure: Literal["rouge-l", "bleu", "chrf"] = "rouge-l"
    of: Literal["whole text", "answer"] = "whole text"


@lru_cache(maxsize=64)
def _compiled(pattern: str, ignore_case: bool) -> Any:
    options = re2.Options()
    options.case_sensitive = not ignore_case
    options.log_errors = False
    options.max_mem = 8 << 20
    return re2.compile(pattern, options=options)


def regex(completion: Completion, prompt: Prompt, params: RegexParams) -> float:
    """Does the pattern occur? RE2: time linear in the text, whatever the pattern."""
    pattern, text = _compiled(params.pattern, params.ignore_case), clean(completion.text)
    found = pattern.fullmatch(text) if params.whole_text else pattern.search(text)
    return float((found is not None) == params.wanted)


def clean(text: str) -> str:
    """The part that is looked at, with lone surrogates replaced: they are no text that a C library could be given."""
    return text[:MAX_CHARS].encode("utf-8", "replace").decode()


def soft_overlong(completion: Completion, prompt: Prompt, params: OverlongParams) -> float:
    """How much too long?      0 if n <= L - c;  (L - c - n)/c up to L;  -1 beyond      DAPO, arXiv:2503.14476 eq. 13, n in tokens"""
    n, limit = completion.num_tokens, params.max_tokens - params.soft_tokens
    if n <= limit:
        return 0.0
    return (limit - n) / params.soft_tokens if n <= params.max_tokens else -1.0


def cosine_length(completion: Completion, prompt: Prompt, params: CosineParams) -> float | None:
    """Right answers earn more when short, wrong ones lose less when long.      Yeo et al., arXiv:2502.03373 App. C.1

    score = long + (short - long)/2 · (1 + cos(π·min(n/L, 1)))        n, L in tokens
    """
    task = CHOICES.get(prompt.task)
    if task is None or not prompt.answer:
        return None
    given = given_answer(completion.text[:MAX_CHARS])
    right = given is not None and task.grade(given, prompt) >= 1
    short, long = (
        (params.right_short, params.right_long)
        if right
        else (params.wrong_short, params.wrong_long)
    )
    return long + 0.5 * (short - long) * (
        1 + math.cos(math.pi * min(completion.num_tokens / params.max_tokens, 1.0))
    )


def repetition(completion: Completion, prompt: Prompt, params: RepetitionParams) -> float:
    """Minus the share of n-grams that were there before.      -(1 - unique/all)      arXiv:2502.03373 App. C.2, over words; 0 for shorter texts"""
    words = _WORD.findall(completion.text[:MAX_CHARS])
    grams = list(zip(*(words[i:] for i in range(params.n)), strict=False))
    return len(set(grams)) / len(grams) - 1 if grams else 0.0


def natural_language(
    completion: Completion, prompt: Prompt, params: NaturalLanguageParams
) -> float | None:
    """Is it written in the wanted language? Code, formulas, links and tags aside; None below 20 letters: too little to tell."""
    text = _FOREIGN_TO_LANGUAGE.sub(" ", clean(completion.text))
    if sum(c.isalpha() for c in text) < MIN_LETTERS:
        return None
    import py3langid  # 0.3 s, and only for this

    return float(py3langid.classify(text)[0] == params.language)


def similarity(completion: Completion, prompt: Prompt, params: SimilarityParams) -> float | None:
    """How alike are completion and reference? ROUGE-L F1 over words, sentence BLEU or chrF (sacrebleu), from 0 to 1; None without a reference."""
    given = given_answer(completion.text[:MAX_CHARS]) if params.of == "answer" else completion.text
    if not prompt.answer.strip():
        return None
    given, right = clean(given or ""), clean(prompt.answer)
    if not given.strip():
        return 0.0
    if params.measure == "rouge-l":
        from rapidfuzz.distance import LCSseq

        a, b = _WORD.findall(given.casefold()), _WORD.findall(right.casefold())
        return 2 * LCSseq.similarity(a, b) / (len(a) + len(b)) if a and b else 0.0
    import sacrebleu

    found = (
        sacrebleu.sentence_bleu(given, [right])
        if params.measure == "bleu"
        else sacrebleu.sentence_chrf(given, [right])
    )
    return min(1.0, max(0.0, found.score / 100))


TEXT_CHECKS: dict[str, Check] = {
    "regex": Check(
        regex,
        RegexParams,
        "A pattern occurs, or does not. RE2 syntax: linear time, no look-around, no back-references.",
    ),
    "soft_overlong": Check(
        soft_overlong,
        OverlongParams,
        "0 up to max_tokens − soft_tokens, then falling to −1 at max_tokens (DAPO).",
        low=-1.0,
        high=0.0,
    ),
    "cosine_length": Check(
        cosine_length,
        CosineParams,
        "Right answers earn more when short, wrong ones lose less when long, along a cosine.",
        low=-10.0,
        high=10.0,
    ),
    "repetition": Check(
        repetition,
        RepetitionParams,
        "Minus the share of word n-grams that repeat earlier ones.",
        low=-1.0,
        high=0.0,
    ),
    "natural_language": Check(
        natural_language,
        NaturalLanguageParams,
        "Written in the wanted language; null for texts too short to tell.",
    ),
    "similarity": Check(
        similarity, SimilarityParams, "Likeness to the prompt's answer: ROUGE-L, BLEU or chrF."
    ),
}
