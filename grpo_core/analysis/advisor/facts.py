"""The rows that diagnoses look at, and the few sums over them that several need. Standard library only."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grpo_core.store import GroupRow

START, RECENT = 10, 20  # steps: what a run began with, and what it does now


@dataclass(frozen=True, slots=True)
class Facts:
    """A run as the advisor sees it. `steps`: rows of `steps` in order; `groups`: its newest groups, newest first."""

    config: Mapping[str, Any]
    steps: Sequence[Mapping[str, Any]]
    metrics: Mapping[str, Sequence[tuple[int, float | None]]]
    groups: Sequence[GroupRow]
    error: str | None = None

    # ---- settings ------------------------------------------------------------------------------------------------------

    def setting(self, dotted: str, default: Any = None) -> Any:
        section, _, name = dotted.partition(".")
        return (self.config.get(section) or {}).get(name, default)

    @property
    def criteria(self) -> list[Mapping[str, Any]]:
        return [
            c
            for c in self.setting("rubric.criteria", ()) or ()
            if isinstance(c, Mapping) and "name" in c
        ]

    @property
    def weights(self) -> dict[str, float]:
        return {str(c["name"]): float(c.get("weight") or 0.0) for c in self.criteria}

    @property
    def outcome(self) -> str | None:
        return next((str(c["name"]) for c in self.criteria if c.get("outcome")), None)

    @property
    def highest(self) -> float:
        """The reward of a completion with every score at 1."""
        return sum(self.weights.values()) or 1.0

    # ---- series --------------------------------------------------------------------------------------------------------

    @property
    def last(self) -> int:
        return int(self.steps[-1]["step"]) if self.steps else 0

    def series(self, name: str) -> list[float]:
        """A column of `steps`, or an open metric, in order and without gaps."""
        values = (
            [v for _, v in self.metrics[name]]
            if name in self.metrics
            else [row.get(name) for row in self.steps]
        )
        return [v for v in values if isinstance(v, (int, float)) and math.isfinite(v)]

    def first(self, name: str, n: int = START) -> list[float]:
        return self.series(name)[:n]

    def recent(self, name: str, n: int = RECENT) -> list[float]:
        return self.series(name)[-n:]

    @property
    def right(self) -> str | None:
        """The series that says how often the outcome is reached."""
        return (
            f"score/{self.outcome}"
            if self.outcome and f"score/{self.outcome}" in self.metrics
            else None
        )

    def example(self, *verdicts: str) -> int | None:
        """The newest group with one of these verdicts."""
        return next((g.id for g in self.groups if g.verdict in verdicts), None)


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def gain(before: Sequence[float], after: Sequence[float]) -> tuple[float, float]:
    """after less before, in means, and how many standard errors that is      Welch's t, each step's mean one observation"""
    if len(before) < 2 or len(after) < 2:
        return 0.0, 0.0
    error = math.sqrt(
        statistics.variance(before) / len(before) + statistics.variance(after) / len(after)
    )
    difference = mean(after) - mean(before)
    return difference, difference / max(error, 1e-9)


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def short(value: float) -> str:
    return f"{value:.3g}"
