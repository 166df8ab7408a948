"""The rubric of a run of another trainer: its reward functions as criteria with their weights.

Recorded scores are not computed again. They are added up again, so that what-if can change weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from grpo_core.config import Criterion
from grpo_core.records.record import SourceRollout
from grpo_core.rubric import total
from grpo_core.rubric.check import MAX_SCORE
from grpo_core.store.plain import finite_or_none

CHECK = "recorded"  # the check of these criteria; it has no function
TOTAL = "reward"  # the criterion that holds a reward that is not the sum of its scores
MAX_CRITERIA = 32
SUM_TOLERANCE = 1e-5  # relative; files keep float32
# A criterion of such a name says whether a completion is right.
OUTCOME = re.compile(
    r"(^|[_.-])(acc|accuracy|correct|correctness|exact_match|solved|success|is_correct)"
    r"(_reward|_func|_reward_func)?$"
)


def criterion_name(name: str) -> str:
    """A reward function's name with the characters that a criterion may have."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name)[:64].strip("_") or "score"


class SourceRubric:
    """Criteria and weights as far as the rollouts seen until now tell them.

    given: weights by the source's own names. A criterion without a weight has weight 1 as long as
    the rewards are the sum of the scores. Once one is not, the reward becomes a criterion of its
    own with weight 1, and the others are only looked at.
    """

    def __init__(
        self, criteria: Iterable[Mapping[str, Any]] = (), given: Mapping[str, Any] | None = None
    ):
        self.weights: dict[str, float] = {
            str(c["name"]): float(c["weight"]) for c in criteria if c.get("check") == CHECK
        }
        self.outcome = next((str(c["name"]) for c in criteria if c.get("outcome")), None)
        others = [w for name, w in self.weights.items() if name != TOTAL]
        self.has_total = self.weights.get(TOTAL, 0.0) > 0 and bool(others) and not any(others)
        self.give(given or {})

    def give(self, weights: Mapping[str, Any]) -> None:
        """The source's own weights, by its own names. They may come late, with a first log."""
        self.given = {criterion_name(str(k)): bounded(v) for k, v in weights.items()}
        if not self.has_total and all(w is not None and w >= 0 for w in self.given.values()):
            self.weights |= {
                n: w for n, w in self.given.items() if n in self.weights and w is not None
            }

    @property
    def criteria(self) -> list[dict[str, Any]]:
        """As the section `rubric` has them. One weight at least is above 0."""
        weights = self.weights or {TOTAL: 1.0}
        if not any(weights.values()):
            weights = dict.fromkeys(weights, 1.0)
        return [
            Criterion(name=n, check=CHECK, weight=w, outcome=n == self.outcome).model_dump()
            for n, w in weights.items()
        ]

    def scores(self, rollout: SourceRollout) -> dict[str, float | None]:
        """Its scores under the names of the criteria; the reward too where it is one."""
        scores = {
            name: bounded(value)
            for raw, value in rollout.scores.items()
            if (name := criterion_name(raw)) in self.weights
        }
        if (self.has_total or not rollout.scores) and rollout.reward is not None:
            scores[TOTAL] = bounded(rollout.reward)
        return scores

    def learn(self, rollouts: Sequence[SourceRollout]) -> bool:
        """Add what these rollouts tell. Returns whether the reward became a criterion just now."""
        had_total = self.has_total
        for rollout in rollouts:
            names = [*rollout.scores] or ([TOTAL] if rollout.reward is not None else [])
            for raw in names:
                self._add(criterion_name(raw))
        self.has_total = self.has_total or not all(map(self._adds_up, rollouts))
        if self.has_total and not had_total:
            self.weights = dict.fromkeys(self.weights, 0.0) | {TOTAL: 1.0}
            return True
        return False

    def _add(self, name: str) -> None:
        if name in self.weights or len(self.weights) >= MAX_CRITERIA:
            return
        weight = self.given.get(name, 1.0)
        negative = weight is None or not 0 <= weight <= 1000
        self.has_total = self.has_total or negative
        self.weights[name] = 0.0 if self.has_total or weight is None else weight
        if self.outcome is None and OUTCOME.search(name.lower()):
            self.outcome = name

    def _adds_up(self, rollout: SourceRollout) -> bool:
        reward = bounded(rollout.reward)
        if reward is None or not rollout.scores:
            return True
        added = total(self.scores(rollout), self.weights)
        return added is not None and abs(added - reward) <= SUM_TOLERANCE * (1 + abs(reward))


def bounded(value: Any) -> float | None:
    """A number that can be reckoned with; None for any other. Squares of larger ones overflow."""
    try:
        value = finite_or_none(value)
    except (TypeError, ValueError, OverflowError):  # the last: a whole number above 308 digits
        return None
    return value if value is not None and abs(value) <= MAX_SCORE else None
