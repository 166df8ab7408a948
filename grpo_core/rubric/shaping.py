"""Changes to rewards before the advantages: outcome gate, running scale, clip.

Standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from grpo_core.config import RubricConfig

Scores = Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class RunningStd:
    """Standard deviation of all rewards of the run so far.

    It is three numbers, so that a checkpoint can save it with `dataclasses.asdict`.
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0  # Σ (r - mean)²

    def including(self, rewards: Sequence[float | None]) -> RunningStd:
        """Updated by more rewards, by Welford's method (1962), without storing them."""
        count, mean, squares = self.count, self.mean, self.squares
        for r in rewards:
            if r is not None:
                count += 1
                before, mean = r - mean, mean + (r - mean) / count
                squares += before * (r - mean)
        return RunningStd(count, mean, squares)

    @property
    def std(self) -> float:
        """Sample standard deviation; 1 while all rewards are equal, so that dividing is safe."""
        std = math.sqrt(self.squares / (self.count - 1)) if self.count > 1 else 0.0
        return std if std > 1e-8 else 1.0


def gated(scores: Sequence[Scores], keys: Sequence[int], outcome: str) -> list[Scores]:
    """The scores, with only the outcome where no sibling reached it (a score of 1).

    keys: equal for siblings. Without the gate, a group in which all are wrong is trained on
    differences in its smaller criteria.
    """
    reached = {key for row, key in zip(scores, keys, strict=True) if (row[outcome] or 0) >= 1}
    return [
        row if key in reached else {name: s if name == outcome else None for name, s in row.items()}
        for row, key in zip(scores, keys, strict=True)
    ]


def shaped(
    rewards: Sequence[float | None], config: RubricConfig, spread: RunningStd
) -> list[float | None]:
    """Rewards divided by the running std, then clipped, as the rubric says. None stays None."""
    scale = spread.std if config.scale else 1.0
    low = -math.inf if config.clip_low is None else config.clip_low
    high = math.inf if config.clip_high is None else config.clip_high
    return [None if r is None else min(max(r / scale, low), high) for r in rewards]
