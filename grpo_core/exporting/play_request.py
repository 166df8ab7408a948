"""A request of the Playground and its result. Without torch, which the page does not import."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from grpo_core.errors import StudioError
from grpo_core.types import Prompt, Rollout


@dataclass(frozen=True, slots=True)
class State:
    """The policy of a run after `step` steps (0 = before training)."""

    run_id: str
    step: int


@dataclass(frozen=True, slots=True)
class PlayRequest:
    """One prompt for several states, of one run or of different ones.

    count: sampled answers per state, beside a greedy one; none at temperature 0.
    answer: the right one; may be empty.
    number: of the held-out prompt that the text was taken from; None if somebody typed it.
    turns: in an environment, pause after so many actions; None: play to the end.
    """

    text: str
    answer: str
    states: Sequence[State]
    count: int
    temperature: float
    number: int | None = None
    turns: int | None = None


@dataclass(frozen=True, slots=True)
class Side:
    """Answers of one state. greedy: takes the likeliest token each time; None: not begun yet.

    sampled: none at temperature 0. An answer that is being written or that pauses has no finish
    reason, and one that is not scored yet no scores. begun: what the environment added to the
    prompt.
    """

    state: State
    greedy: Rollout | None
    sampled: tuple[Rollout, ...]
    begun: str = ""


@dataclass(frozen=True, slots=True)
class PlayResult:
    """One prompt, answered by several states, scored by the rubric of the run that was asked.

    outcome: the criterion that says whether an answer is right (a score of 1); None without one.
    """

    prompt: Prompt
    outcome: str | None
    sides: tuple[Side, ...]


class PlayStopped(StudioError):
    """Somebody stopped the answers of a question. `partial`: what was written until then."""

    partial: PlayResult | None = None


class PlayWatch:
    """A question that is being answered: what is written so far, and whether to stop.

    One thread answers; others look and stop.
    """

    def __init__(self) -> None:
        self.is_stopped = False
        self.revision = 0  # grows with every change of `partial`
        self.partial: PlayResult | None = None

    def check(self) -> None:
        """Raises PlayStopped once somebody has pressed Stop."""
        if self.is_stopped:
            raise PlayStopped("The answers were stopped.")

    def show(self, partial: PlayResult) -> None:
        self.partial = partial
        self.revision += 1
