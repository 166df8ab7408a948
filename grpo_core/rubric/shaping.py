"""Between the rubric's reward and the comparison: outcome gate, running scale, clip. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from grpo_core.config import RubricConfig

Scores = Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class RunningStd:
    """Standard deviation of all rewards of the run so far. Three numbers, so a checkpoint saves it with `dataclasses.asdict`."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0  # Σ (r - mean)²

    def including(self, rewards: Sequence[float | None]) -> RunningStd:
        """One by one, without keeping them      Welford 1962"""
        count, mean, squares = self.count, self.mean, self.squares
        for r in rewards:
            if r is not None:
                count += 1
                before, mean = r - mean, mean + (r - mean) / count
                squares += before * (r - mean)
        return RunningStd(count, mean, squares)

    @property
    def std(self) -> float:
        """Sample standard deviation; 1 while all rewards were equal, so that dividing by it is harmless."""
        std = math.sqrt(self.squares / (self.count - 1)) if self.count > 1 else 0.0
        return std if std > 1e-8 else 1.0


def gated(scores: Sequence[Scores], keys: Sequence[int], outcome: str) -> list[Scores]:
    """Scores with all but the outcome taken away where nobody among the siblings reached it (a score of 1).

    keys: equal for siblings. Without it, differences in the smaller criteria teach a group in which all were wrong.
    """
    reached = {key for row, key in zip(scores, keys, strict=True) if (row[outcome] or 0) >= 1}
    return [
        row if key in reached else {name: s if name == outcome else None for name, s in row.items()}
        for row, key in zip(scores, keys, strict=True)
    ]


def shaped(
    rewards: Sequence[float | None], config: RubricConfig, spread: RunningStd
) -> list[float | None]:
    """Rewards divided by the spread, then clipped, each if the rubric asks for it; null stays null."""
    scale = spread.std if config.scale else 1.0
    low, high = (
        (config.clip_low if config.clip_low is not None else -math.inf),
        (config.clip_high if config.clip_high is not None else math.inf),
    )
    return [None if r is None else min(max(r / scale, low), high) for r in rewards]
