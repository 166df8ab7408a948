"""A request of the Playground and its result. Without torch, which the page does not import."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from grpo_core.types import Prompt, Rollout


@dataclass(frozen=True, slots=True)
class PlayRequest:
    """One prompt for the policy after each of `steps` steps (0 = before training).

    count: sampled answers per step, beside a greedy one; none at temperature 0.
    answer: the right one; may be empty.
    number: of the held-out prompt that the text was taken from; None if somebody typed it.
    """

    text: str
    answer: str
    steps: Sequence[int]
    count: int
    temperature: float
    number: int | None = None


@dataclass(frozen=True, slots=True)
class Side:
    """Answers of the policy after `step` steps (0 = before training).

    greedy: takes the likeliest token each time. sampled: none at temperature 0.
    """

    step: int
    greedy: Rollout
    sampled: tuple[Rollout, ...]


@dataclass(frozen=True, slots=True)
class PlayResult:
    """One prompt, answered after several steps, scored by the run's rubric.

    outcome: the criterion that says whether an answer is right (a score of 1); None without one.
    """

    prompt: Prompt
    outcome: str | None
    sides: tuple[Side, ...]
