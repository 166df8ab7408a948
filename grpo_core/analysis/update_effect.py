"""What a step's update did to the probability of each completion, as it was measured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from grpo_core.store import RolloutRow, Store


@dataclass(frozen=True, slots=True)
class Effect:
    """log π(completion), summed over its tokens, under the policy before and after the update.

    In nats, at the training temperature.
    """

    before: float
    after: float

    @property
    def change(self) -> float:
        return self.after - self.before

    @property
    def times(self) -> float:
        """How many times as likely the completion has become; inf beyond what a float holds."""
        return math.exp(self.change) if self.change < 700 else math.inf


def update_effects(store: Store, rollouts: Sequence[RolloutRow]) -> list[Effect | None]:
    """The effect of a step's update on completions of that step, in their order.

    None: not recorded. The step kept no tokens, the update left the completion out, or the file is
    of an earlier version.
    """
    effects: list[Effect | None] = []
    for rollout in rollouts:
        row = store.token_row(rollout.id)
        if row is None or row.logprobs is None or row.logprobs_after is None:
            effects.append(None)
            continue
        before = _of_completion(row.logprobs[: len(row.token_ids)])
        effects.append(Effect(before, _of_completion(row.logprobs_after)))
    return effects


def _of_completion(logprobs: Iterable[float]) -> float:
    """The sum over the policy's own tokens; those of observations are nan."""
    return math.fsum(p for p in logprobs if not math.isnan(p))
