"""Held-out accuracy of a run before and after training, and the difference between two runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from grpo_core.analysis.advisor import Facts
from grpo_core.store import RunRow, Store
from grpo_core.types import GroupKind

Z = 1.96  # of a 95 % interval


@dataclass(frozen=True, slots=True)
class Estimate:
    """An accuracy with its 95 % interval, where one was recorded."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Heldout:
    """The first and the last held-out accuracy of a run. after: None before a second one."""

    before: Estimate | None
    after: Estimate | None


@dataclass(frozen=True, slots=True)
class Difference:
    """How much higher one accuracy is than another, with a 95 % interval.

    num_prompts: over how many common prompts it is paired; 0: it is not.
    """

    value: float
    low: float
    high: float
    num_prompts: int = 0


def heldout(store: Store, run_id: str) -> Heldout:
    """Read the first and the last evaluation of a run."""
    names = [f"heldout/accuracy{end}" for end in ("", "_low", "_high")]
    accuracy, low, high = (dict(store.metrics(run_id, [n], 10**9)[n]) for n in names)
    known = [
        Estimate(value, low.get(step), high.get(step))
        for step, value in accuracy.items()
        if value is not None
    ]
    return Heldout(known[0] if known else None, known[-1] if len(known) > 1 else None)


def answers(store: Store, run: RunRow) -> dict[str, float]:
    """Prompt id -> share of right answers in the last evaluation, for the recorded prompts."""
    outcome = Facts(run.config, steps=(), metrics={}, groups=()).outcome or ""
    steps = [step for step, _ in store.metrics(run.id, ["heldout/accuracy"])["heldout/accuracy"]]
    shares: dict[str, float] = {}
    for group_id in store.group_ids(run.id, steps[-1], GroupKind.EVALUATION) if steps else ():
        group = store.group(group_id)
        scores = [score for r in group.rollouts if (score := r.scores.get(outcome)) is not None]
        if scores:
            shares[group.prompt_id] = sum(score >= 1 for score in scores) / len(scores)
    return shares


def same_prompts(a: RunRow, b: RunRow) -> bool:
    """Whether two runs are evaluated on the same held-out prompts."""
    of_a, of_b = (
        {name: value for name, value in (run.config.get("task") or {}).items() if name != "second"}
        for run in (a, b)
    )
    return of_a == of_b and (a.env or {}).get("prompts") == (b.env or {}).get("prompts")


def unpaired(first: Estimate, other: Estimate) -> Difference | None:
    """other − first as of independent samples; None without their intervals.

    Newcombe's interval for two proportions, from the interval of each: with d = q − p,
    low = d − √((q − q_low)² + (p_high − p)²) and high = d + √((q_high − q)² + (p − p_low)²).
    Source: Newcombe 1998, Statistics in Medicine 17, method 10.
    """
    if None in (first.low, first.high, other.low, other.high):
        return None
    p, p_low, p_high = first.value, first.low or 0.0, first.high or 0.0
    q, q_low, q_high = other.value, other.low or 0.0, other.high or 0.0
    return Difference(
        q - p,
        q - p - math.hypot(q - q_low, p_high - p),
        q - p + math.hypot(q_high - q, p - p_low),
    )


def paired(first: Mapping[str, float], other: Mapping[str, float]) -> Difference | None:
    """other − first over their common prompts; None without any.

    first, other: prompt id -> share of its completions that are right. For one completion a prompt
    this is the interval of Agresti and Min 2005 (Statistics in Medicine 24): half a pair is added
    to each of the four outcomes, so the sum of the n differences stays and that of their squares
    grows by 1, over n + 2 pairs.
    """
    gains = [other[prompt] - first[prompt] for prompt in first if prompt in other]
    if not gains:
        return None
    n = len(gains) + 2
    centre = sum(gains) / n
    variance = (sum(gain * gain for gain in gains) + 1) / n - centre * centre
    half = Z * math.sqrt(variance / n)
    return Difference(sum(gains) / len(gains), centre - half, centre + half, len(gains))
