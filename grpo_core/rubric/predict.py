"""From a few sampled groups: how many groups would tie at another group size, and how often one of k tries is right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import comb, sqrt

GROUP_SIZES = (2, 4, 8, 16, 32)


def tied_share(rewards: Sequence[Sequence[float | None]], group_size: int) -> float | None:
    """Expected share of groups of `group_size` in which all rewards are equal, from groups of rewards of the same prompts; None without any.

    Σ_v C(n_v, g)/C(n, g) for g <= n, unbiased;  Σ_v (n_v/n)^g beyond      n_v: how often the value v came among n
    """
    shares = []
    for group in rewards:
        known = [round(r, 6) for r in group if r is not None]
        n = len(known)
        if n:
            counts = Counter(known).values()
            shares.append(
                sum(comb(c, group_size) for c in counts) / comb(n, group_size)
                if group_size <= n
                else sum((c / n) ** group_size for c in counts)
            )
    return sum(shares) / len(shares) if shares else None


def pass_at(k: int, right: int, tries: int) -> float:
    """Chance that at least one of k tries is right, from `right` of `tries`      1 - C(n-c, k)/C(n, k)      Chen 2021, arXiv:2107.03374 eq. 1"""
    assert 1 <= k <= tries
    return 1.0 - comb(tries - right, k) / comb(tries, k)


def mean_interval(values: Sequence[float], z: float = 1.96) -> tuple[float, float, float]:
    """Mean over prompts with its 95 % interval, mean ± z·s/√P, held to [0, 1]; prompts are the independent units, not their tries."""
    n = len(values)
    mean = sum(values) / n
    half = z * sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n) if n > 1 else 1.0
    return mean, max(0.0, mean - half), min(1.0, mean + half)
