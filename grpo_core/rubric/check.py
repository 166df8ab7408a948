"""What a check is: a function from completions and prompts to scores, the model of its parameters, a line of help."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict

from grpo_core.types import Completion, Prompt

MAX_CHARS = 20_000  # only so much of a completion is looked at, so that a check's time is bounded


class Notes(Counter[str]):
    """Why scores are null: reason -> how often. `used`: what scoring cost where it costs something, e.g. "tokens"."""

    def __init__(self, *given: Any, **named: int) -> None:
        super().__init__(*given, **named)
        self.used: Counter[str] = Counter()

    def add(self, more: Notes) -> None:
        """Both counts."""
        self.update(more)
        self.used.update(more.used)


One = Callable[[Completion, Prompt, Any], float | None]
Many = Callable[[Sequence[Completion], Sequence[Prompt], Any, Notes], list[float | None]]


class Params(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, slots=True)
class Check:
    """A row of CHECKS. `many` scores a whole batch and says in its notes why what is null is null; `score` scores one.

    low and high bound the score; a check without bounds (a reward model's logit) has None. `ahead`: what a completion scores depends on
    nothing else of the step and comes from another process or machine, so it can be asked for while others are still sampled.
    """

    score: One
    params: type[Params]
    help: str
    low: float | None = 0.0
    high: float | None = 1.0
    many: Many | None = None
    ahead: bool = False

    def scores(
        self,
        completions: Sequence[Completion],
        prompts: Sequence[Prompt],
        params: Any,
        notes: Notes,
    ) -> list[float | None]:
        if self.many is not None:
            return self.many(completions, prompts, params, notes)
        return [self.score(c, p, params) for c, p in zip(completions, prompts, strict=True)]


def batched(
    many: Many,
    params: type[Params],
    help: str,
    low: float | None = 0.0,
    high: float | None = 1.0,
    ahead: bool = False,
) -> Check:
    """A check that is given all completions of a step at once."""
    return Check(
        lambda completion, prompt, given: many([completion], [prompt], given, Notes())[0],
        params,
        help,
        low,
        high,
        many,
        ahead,
    )
