"""One word per group: what can be learned from it, and why. Standard library only."""

from __future__ import annotations

from collections.abc import Sequence

TIE_TOLERANCE = 1e-8  # rewards closer than this are equal: their difference is rounding

# code -> (label, sentence). {n} rollouts, {right} reached the outcome, {cut} were truncated, {null} could not be scored.
VERDICTS: dict[str, tuple[str, str]] = {
    "healthy": ("healthy", "{right} of {n} right: the group tells good from bad."),
    "graded": ("graded", "Rewards differ by {spread:.3g}: the group tells better from worse."),
    "polish": ("all right, graded", "All {n} are right; only the smaller criteria tell them apart."),
    "all_right": ("tied: all right", "All {n} are right and equal: every advantage is 0, no gradient."),
    "all_wrong": ("tied: all wrong", "All {n} are wrong and equal: every advantage is 0, no gradient."),
    "tied": ("tied", "All {n} rewards are equal: every advantage is 0, no gradient."),
    "phantom": ("phantom", "Nobody was right, yet advantages are not 0: differences of {spread:.3g} in the smaller criteria, scaled to full size."),
    "gated": ("gated", "Nobody was right, so the smaller criteria (spread {spread:.3g}) did not count: every advantage is 0, no gradient."),
    "truncated": ("truncated", "{cut} of {n} were cut at the token limit, so their end was never judged."),
    "unscored": ("unscored", "{null} of {n} could not be scored: too few to compare."),
}


def verdict(rewards: Sequence[float | None], outcomes: Sequence[float | None], finish_reasons: Sequence[str]) -> str:
    """The code for one group.

    rewards: G totals; outcomes: G scores of the outcome criterion, empty if the rubric has none; finish_reasons: "stop" or "length".
    Reaching the outcome means a score of 1.
    """
    scored = [r for r in rewards if r is not None]
    if len(scored) < 2:
        return "unscored"
    tied = max(scored) - min(scored) <= TIE_TOLERANCE
    known = [o for o in outcomes if o is not None]
    right = sum(o >= 1 for o in known)
    if tied:
        if known and right == len(known):
            return "all_right"
        return "all_wrong" if known and right == 0 else "tied"
    if 2 * sum(f == "length" for f in finish_reasons) >= len(finish_reasons):
        return "truncated"
    if not known:
        return "graded"
    if right == 0:
        return "phantom"
    return "polish" if right == len(known) else "healthy"


def explain(code: str, rewards: Sequence[float | None], outcomes: Sequence[float | None], finish_reasons: Sequence[str]) -> str:
    """The sentence for a verdict, with the group's own numbers in it."""
    scored = [r for r in rewards if r is not None]
    return VERDICTS[code][1].format(
        n=len(rewards), right=sum(o is not None and o >= 1 for o in outcomes), cut=sum(f == "length" for f in finish_reasons),
        null=len(rewards) - len(scored), spread=max(scored) - min(scored) if scored else 0.0,
    )
