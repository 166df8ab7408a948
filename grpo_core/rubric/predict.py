"""Estimates from sampled groups: share of tied groups at other sizes, pass@k, intervals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import comb, sqrt

GROUP_SIZES = (2, 4, 8, 16, 32)


def tied_share(rewards: Sequence[Sequence[float | None]], group_size: int) -> float | None:
    """Expected share of tied groups at group size g, from the rewards of sampled groups.

        Σ_v C(n_v, g)/C(n, g) for g <= n (unbiased);  Σ_v (n_v/n)^g for g > n

    n_v: how often the reward v occurs among the n rewards of a prompt. None without rewards.
    """
    shares = []
    for group in rewards:
        known = [round(r, 6) for r in group if r is not None]
        n = len(known)
        if n:
            counts = Counter(known).values()
            if group_size <= n:
                share = sum(comb(c, group_size) for c in counts) / comb(n, group_size)
            else:
                share = sum((c / n) ** group_size for c in counts)
            shares.append(share)
    return sum(shares) / len(shares) if shares else None


def pass_at(k: int, right: int, tries: int) -> float:
    """Probability that at least one of k tries is right, given c = `right` of n = `tries`.

    1 - C(n-c, k)/C(n, k)      Chen 2021, arXiv:2107.03374 eq. 1
    """
    assert 1 <= k <= tries
    return 1.0 - comb(tries - right, k) / comb(tries, k)


def mean_interval(values: Sequence[float], z: float = 1.96) -> tuple[float, float, float]:
    """Mean over P prompts with its 95 % interval: mean ± z·s/√P, limited to [0, 1].

    values: one per prompt, because the tries of a prompt are not independent.
    """
    n = len(values)
    mean = sum(values) / n
    half = z * sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n) if n > 1 else 1.0
    return mean, max(0.0, mean - half), min(1.0, mean + half)


def wilson_interval(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a proportion      Wilson 1927

    (p + z²/2n ± z·√(p(1-p)/n + z²/4n²)) / (1 + z²/n)
    """
    p, n = successes / trials, trials
    centre, half = p + z * z / (2 * n), z * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)
