"""The rows that the diagnoses read, and the statistics that they share. Standard library only."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grpo_core.store import GroupRow, Source

START = 10  # steps that count as the start of a run
RECENT = 20  # steps that count as its present state


@dataclass(frozen=True, slots=True)
class Facts:
    """What the advisor reads of a run.

    steps: rows of the table `steps`, in order; metrics: name -> (step, value) points;
    groups: the newest groups, newest first; error: the text with which the run failed.
    judged: scores by criterion of the preferred and of the other completion of each judged pair.
    source: of a run that another trainer made.
    """

    config: Mapping[str, Any]
    steps: Sequence[Mapping[str, Any]]
    metrics: Mapping[str, Sequence[tuple[int, float | None]]]
    groups: Sequence[GroupRow]
    error: str | None = None
    judged: Sequence[tuple[Mapping[str, float | None], Mapping[str, float | None]]] = ()
    source: Source | None = None

    # ---- settings ----------------------------------------------------------------------------

    def setting(self, dotted: str, default: Any = None) -> Any:
        """The value of a field such as `train.steps`."""
        section, _, name = dotted.partition(".")
        return (self.config.get(section) or {}).get(name, default)

    @property
    def criteria(self) -> list[Mapping[str, Any]]:
        criteria = self.setting("rubric.criteria", ()) or ()
        return [c for c in criteria if isinstance(c, Mapping) and "name" in c]

    @property
    def weights(self) -> dict[str, float]:
        return {str(c["name"]): float(c.get("weight") or 0.0) for c in self.criteria}

    @property
    def outcome(self) -> str | None:
        """Name of the outcome criterion."""
        return next((str(c["name"]) for c in self.criteria if c.get("outcome")), None)

    @property
    def max_reward(self) -> float:
        """The reward of a completion that scores 1 on every criterion."""
        return sum(self.weights.values()) or 1.0

    # ---- series ------------------------------------------------------------------------------

    @property
    def last_step(self) -> int:
        return int(self.steps[-1]["step"]) if self.steps else 0

    def series(self, name: str) -> list[float]:
        """The finite values of a metric or of a column of `steps`, in order of step."""
        if name in self.metrics:
            values = [value for _, value in self.metrics[name]]
        else:
            values = [row.get(name) for row in self.steps]
        return [v for v in values if isinstance(v, (int, float)) and math.isfinite(v)]

    def first(self, name: str, n: int = START) -> list[float]:
        return self.series(name)[:n]

    def recent(self, name: str, n: int = RECENT) -> list[float]:
        return self.series(name)[-n:]

    @property
    def outcome_metric(self) -> str | None:
        """The metric that holds the mean score of the outcome criterion; None if not recorded."""
        name = f"score/{self.outcome}"
        return name if self.outcome and name in self.metrics else None

    def example(self, *verdicts: str) -> int | None:
        """Id of the newest group with one of these verdicts."""
        return next((g.id for g in self.groups if g.verdict in verdicts), None)


def known_rewards(group: GroupRow) -> list[float]:
    """Rewards of the completions that could be scored."""
    return [r.reward for r in group.rollouts if r.reward is not None]


def mean(values: Sequence[float]) -> float:
    """0.0 for an empty sequence."""
    return sum(values) / len(values) if values else 0.0


def gain(before: Sequence[float], after: Sequence[float]) -> tuple[float, float]:
    """Difference of the means, and that difference in standard errors.

        t = (mean(after) - mean(before)) / sqrt(var(before)/n + var(after)/m)     Welch's t

    Each step's mean is one observation. (0, 0) when either side has fewer than two.
    """
    if len(before) < 2 or len(after) < 2:
        return 0.0, 0.0
    variance = statistics.variance(before) / len(before) + statistics.variance(after) / len(after)
    error = math.sqrt(variance)
    difference = mean(after) - mean(before)
    return difference, difference / max(error, 1e-9)


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def short(value: float) -> str:
    """Three significant digits."""
    return f"{value:.3g}"
