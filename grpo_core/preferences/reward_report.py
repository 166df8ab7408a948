"""What held-out pairs say about a reward model: accuracy, calibration, and its bias to length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from grpo_core.preferences.judged_pairs import Pair
from grpo_core.rubric.predict import wilson_interval

BINS = 5  # of the calibration, from 50 % to 100 %


@dataclass(frozen=True, slots=True)
class Bin:
    """The decided pairs for whose likelier answer the model gives a chance in [low, high)."""

    low: float
    high: float
    num_pairs: int
    predicted: float | None  # mean chance of the likelier answer; None without pairs
    right: float | None  # share of pairs whose likelier answer the person prefers


@dataclass(frozen=True, slots=True)
class PairReport:
    """Measurements on pairs. None: there were no pairs of that kind.

    longer_preferred: share of decided pairs, of different length, whose longer answer the person
    prefers; longer_scored: whose longer answer has the higher score.
    """

    num_pairs: int  # decided ones
    num_ties: int
    accuracy: float | None
    low: float | None  # of the 95 % Wilson interval of accuracy
    high: float | None
    loss: float | None
    calibration_error: float | None
    bins: tuple[Bin, ...]
    length_share: float | None
    longer_preferred: float | None
    longer_scored: float | None


def report(pairs: Sequence[Pair], differences: Sequence[float]) -> PairReport:
    """Measurements of a reward model, from d = r_chosen - r_rejected of each pair.

    accuracy: share of decided pairs with d > 0. loss: mean of -log σ(d) over decided pairs.
    calibration_error: Σ_bins n/N |right - predicted|      Guo et al. 2017, arXiv:1706.04599 eq. 3
    """
    decided = [(p, d) for p, d in zip(pairs, differences, strict=True) if not p.is_tie]
    n = len(decided)
    right = sum(d > 0 for _, d in decided)
    low, high = wilson_interval(right, n) if n else (None, None)
    bins = calibration([d for _, d in decided])
    errors = [
        b.num_pairs * abs(b.right - b.predicted)
        for b in bins
        if b.right is not None and b.predicted is not None
    ]
    lengths = [len(p.chosen) - len(p.rejected) for p in pairs]
    unequal = [(len(p.chosen) > len(p.rejected), d) for p, d in decided if _unequal(p)]
    return PairReport(
        num_pairs=n,
        num_ties=len(pairs) - n,
        accuracy=right / n if n else None,
        low=low,
        high=high,
        loss=sum(softplus(-d) for _, d in decided) / n if n else None,
        calibration_error=sum(errors) / n if n else None,
        bins=bins,
        length_share=length_share(differences, lengths),
        longer_preferred=_share([longer for longer, _ in unequal]),
        longer_scored=_share([longer == (d > 0) for longer, d in unequal]),
    )


def calibration(differences: Sequence[float]) -> tuple[Bin, ...]:
    """Of decided pairs: how often the likelier answer is preferred, by its predicted chance σ(|d|).

    differences: r_chosen - r_rejected, so the likelier answer is preferred where it is above 0.
    """
    width = 0.5 / BINS
    found: list[list[tuple[float, bool]]] = [[] for _ in range(BINS)]
    for d in differences:
        chance = 1 / (1 + math.exp(-abs(d)))
        found[min(int((chance - 0.5) / width), BINS - 1)].append((chance, d > 0))
    return tuple(
        Bin(
            round(0.5 + i * width, 6),
            round(0.5 + (i + 1) * width, 6),
            len(pairs),
            sum(chance for chance, _ in pairs) / len(pairs) if pairs else None,
            _share([is_right for _, is_right in pairs]),
        )
        for i, pairs in enumerate(found)
    )


def length_share(differences: Sequence[float], lengths: Sequence[int]) -> float | None:
    """The share of score differences that differences of length alone explain: R² of d = b·Δ.

        R² = (Σ d·Δ)² / (Σ d² · Σ Δ²)      Δ: characters of the chosen minus of the rejected answer

    A regression through the origin, because swapping the answers of a pair changes both signs.
    None if nothing varies.
    """
    both = sum(d * x for d, x in zip(differences, lengths, strict=True))
    squares = sum(d * d for d in differences) * sum(x * x for x in lengths)
    return both * both / squares if squares > 0 else None


def softplus(x: float) -> float:
    """log(1 + e^x), without overflow: -log σ(-x)."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def _unequal(pair: Pair) -> bool:
    return len(pair.chosen) != len(pair.rejected)


def _share(truths: Sequence[bool]) -> float | None:
    return sum(truths) / len(truths) if truths else None
