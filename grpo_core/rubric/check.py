"""A check: a function from completions and prompts to scores, its parameters and its help."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict

from grpo_core.types import Completion, Prompt

MAX_CHARS = 20_000  # a check reads only this much of a completion, so that its time is bounded


class Notes(Counter[str]):
    """Why scores are null: reason -> how often. `used`: the cost of scoring, e.g. in "tokens"."""

    def __init__(self, *given: Any, **named: int) -> None:
        super().__init__(*given, **named)
        self.used: Counter[str] = Counter()

    def add(self, more: Notes) -> None:
        """Add the counts of both kinds."""
        self.update(more)
        self.used.update(more.used)


class Bounds(NamedTuple):
    """Lowest and highest score of a check; None: no bound, as for the logit of a reward model."""

    low: float | None
    high: float | None


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
        """One score for each completion, in order; None = could not be scored."""
        if self.many is not None:
            return self.many(completions, prompts, params, notes)
        return [self.score(c, p, params) for c, p in zip(completions, prompts, strict=True)]


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
