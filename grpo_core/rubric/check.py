"""A check: a function from completions and prompts to scores, its parameters and its help."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict

from grpo_core.child_process import NoValue, reason_of
from grpo_core.errors import StudioError
from grpo_core.time_limit import TIME_IS_UP, seconds_left
from grpo_core.types import Completion, Prompt

MAX_CHARS = 20_000  # a check reads only this much of a completion, so that its time is bounded
MAX_SCORE = 1e15  # beyond it, the squares of rewards overflow


@dataclass(frozen=True, slots=True)
class RunState:
    """What a run knows of completions besides their text, for reward functions that ask for it.

    completion_ids: the token ids of each completion. global_step: optimiser steps done, of
    max_steps.
    """

    completion_ids: Sequence[Sequence[int]]
    global_step: int
    max_steps: int


class Notes(Counter[str]):
    """Why scores are null: reason -> how often. `used`: the cost of scoring, e.g. in "tokens".

    run: of the run that asks for scores, or None for texts that belong to no run.
    """

    def __init__(self, *given: Any, run: RunState | None = None) -> None:
        super().__init__(*given)
        self.used: Counter[str] = Counter()
        self.run = run

    def add(self, more: Notes) -> None:
        """Add the counts of both kinds."""
        self.update(more)
        self.used.update(more.used)


class Bounds(NamedTuple):
    """Lowest and highest score of a check; None: no bound, as for the logit of a reward model."""

    low: float | None
    high: float | None


def read_scores(values: Any, count: int) -> list[float | None]:
    """Scores that another process or machine gave, as floats.

    Raises ValueError unless they are a list of `count` finite numbers or None.
    """
    if not isinstance(values, list) or len(values) != count:
        raise ValueError(f"not a list of {count} scores")
    return [None if value is None else finite(value) for value in values]


def finite(value: Any) -> float:
    """A finite number as a float. Raises ValueError for anything else."""
    if not isinstance(value, bool | int | float) or not abs(value) < math.inf:
        raise ValueError("not a finite number")
    try:
        return float(value)
    except OverflowError:  # an int of more than 308 digits
        raise ValueError("not a finite number") from None


def length_of(completion: Completion) -> int:
    """The number of its tokens. Raises NoValue where another trainer did not record it."""
    if completion.num_tokens is None:
        raise NoValue("the number of tokens was not recorded")
    return completion.num_tokens


UNIT = Bounds(0.0, 1.0)
UNBOUNDED = Bounds(None, None)

One = Callable[[Completion, Prompt, Any], float | None]
Many = Callable[[Sequence[Completion], Sequence[Prompt], Any, Notes], list[float | None]]


class Params(BaseModel):
    """Base of the parameters of a check."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, slots=True)
class Check:
    """A row of CHECKS.

    `score` scores one completion. `many`, if given, scores a batch and counts in its notes why
    scores are null. `is_async`: a score depends on nothing else of the step, and another process or
    machine computes it. Such a check can score a group while other groups are still sampled.
    """

    score: One
    params: type[Params]
    help: str
    bounds: Bounds = UNIT
    many: Many | None = None
    is_async: bool = False

    def scores(
        self,
        completions: Sequence[Completion],
        prompts: Sequence[Prompt],
        params: Any,
        notes: Notes,
    ) -> list[float | None]:
        """One score for each completion, in order; None = could not be scored.

        Completions that are left when grpo_core.time_limit is over are not scored. Where a check
        fails or returns no number, the score is None and the reason is in the notes. Raises only
        StudioError: a person's mistake in the configuration.
        """
        try:
            given = self._given(completions, prompts, params, notes)
        except BaseException as error:
            notes[_failure(error)] += len(completions)
            return [None] * len(completions)
        if not isinstance(given, list) or len(given) != len(completions):
            notes[f"the check did not return a list of {len(completions)} scores"] += len(
                completions
            )
            return [None] * len(completions)
        return [_score(value, notes) for value in given]

    def _given(
        self,
        completions: Sequence[Completion],
        prompts: Sequence[Prompt],
        params: Any,
        notes: Notes,
    ) -> list[Any]:
        if self.many is not None and seconds_left():
            return self.many(completions, prompts, params, notes)
        out: list[Any] = []
        for completion, prompt in zip(completions, prompts, strict=True):
            value, reason = None, TIME_IS_UP
            if seconds_left():
                try:
                    value, reason = self.score(completion, prompt, params), ""
                except BaseException as error:  # the other completions are scored
                    reason = _failure(error)
            out.append(value)
            if reason:
                notes[reason] += 1
        return out


def _failure(error: BaseException) -> str:
    """The reason, for the error of a check. Raises any other error again."""
    # A panic of a library in Rust is no Exception, and it says nothing about this process.
    is_panic = type(error).__name__ == "PanicException"
    if isinstance(error, StudioError) or not (isinstance(error, Exception) or is_panic):
        raise error
    return reason_of(error)


def _score(value: Any, notes: Notes) -> float | None:
    if value is None:
        return None
    try:
        if abs(number := finite(value)) <= MAX_SCORE:
            return number
        notes[f"a score of {number:g} is beyond {MAX_SCORE:g}"] += 1
    except ValueError:
        notes[f"a score was not a finite number: {type(value).__name__}"] += 1
    return None


def batched(
    many: Many,
    params: type[Params],
    help: str,
    bounds: Bounds = UNIT,
    is_async: bool = False,
) -> Check:
    """A check that gets all completions of a step in one call."""

    def score(completion: Completion, prompt: Prompt, given: Any) -> float | None:
        return many([completion], [prompt], given, Notes())[0]

    return Check(score, params, help, bounds, many, is_async)
