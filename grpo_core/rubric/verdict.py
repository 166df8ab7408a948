"""One word per group: what can be learned from it, and why. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from grpo_core.types import TIE_TOLERANCE

CUT_SHARE = 0.25  # from this share of cut completions on, rewards say who came to an end rather than who was good
DOMINANT_SHARE = (
    0.8  # of a group's variance: what is left to all other criteria together is noise beside it
)

Scores = Mapping[str, float | None]

NO_GRADIENT = "every advantage is 0, no gradient."  # true where a completion is compared with the siblings of its prompt alone

# code -> (label, sentence). {n} rollouts, {right} reached the outcome, {cut} were truncated, {null} could not be scored; {criterion} carries
# {share} of the variance. A word that was ever stored stays here: older files show it.
VERDICTS: dict[str, tuple[str, str]] = {
    "healthy": ("healthy", "{right} of {n} right: the group tells good from bad."),
    "graded": ("graded", "Rewards differ by {spread:.3g}: the group tells better from worse."),
    "polish": (
        "all right, graded",
        "All {n} are right; only the smaller criteria tell them apart.",
    ),
    "all_right": ("tied: all right", f"All {{n}} are right and equal: {NO_GRADIENT}"),
    "all_wrong": ("tied: all wrong", f"All {{n}} are wrong and equal: {NO_GRADIENT}"),
    "tied": ("tied", f"All {{n}} rewards are equal: {NO_GRADIENT}"),
    "phantom": (
        "phantom",
        "Nobody was right, yet advantages are not 0: differences of {spread:.3g} in the smaller criteria, scaled to full size.",
    ),
    "gated": (
        "gated",
        f"Nobody was right, so the smaller criteria (spread {{spread:.3g}}) did not count: {NO_GRADIENT}",
    ),
    "truncated": (
        "partly truncated",
        "{cut} of {n} were cut at the token limit, so their end was never judged.",
    ),
    "dominated": (
        "one criterion",
        "{share:.0%} of what tells these completions apart is {criterion} alone; {right} of {n} are right.",
    ),
    "unscored": ("unscored", "{null} of {n} could not be scored: too few to compare."),
}


def verdict(
    rewards: Sequence[float | None],
    outcomes: Sequence[float | None],
    finish_reasons: Sequence[str],
    shares: Mapping[str, float] | None = None,
    outcome: str | None = None,
) -> str:
    """The code for one group.

    rewards: G totals; outcomes: G scores of the outcome criterion, empty if the rubric has none; finish_reasons: "stop" or "length";
    shares: variance_shares of the group, outcome: the name of the criterion, both only for "dominated". Reaching the outcome means a score of 1.
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
    if sum(f == "length" for f in finish_reasons) >= CUT_SHARE * len(finish_reasons):
        return "truncated"
    if known and right == 0:
        return "phantom"
    if known and right == len(known):
        return "polish"
    if dominant(shares or {}, outcome):
        return "dominated"
    return "healthy" if known else "graded"


def variance_shares(scores: Sequence[Scores], weights: Mapping[str, float]) -> dict[str, float]:
    """How much of what tells siblings apart is each criterion's doing?

        share_k = cov(w_k·s_k, r) / var(r)      over the scored rollouts, r = Σ w·s; the shares add up to 1

    A null score counts as 0, as it does in r. Below 0: the criterion pulls against the others. Criteria of weight 0 have none. Empty for a tied group.
    """
    rows = [
        row for row in scores if any(w > 0 and row.get(k) is not None for k, w in weights.items())
    ]
    parts = {k: [w * (row.get(k) or 0.0) for row in rows] for k, w in weights.items() if w > 0}
    totals = [sum(values) for values in zip(*parts.values(), strict=True)]
    if len(totals) < 2 or max(totals) - min(totals) <= TIE_TOLERANCE:
        return {}
    mean = sum(totals) / len(totals)
    variance = sum((r - mean) ** 2 for r in totals)
    return {
        k: sum(v * (r - mean) for v, r in zip(values, totals, strict=True)) / variance
        for k, values in parts.items()
    }


def dominant(shares: Mapping[str, float], outcome: str | None = None) -> str | None:
    """The criterion that leaves the others no say, though they differ too; never the outcome, whose say is the point of the rubric."""
    top = max(shares, key=shares.__getitem__, default=None)
    others_differ = any(abs(share) > 1e-9 for name, share in shares.items() if name != top)
    return (
        top
        if top is not None and top != outcome and others_differ and shares[top] >= DOMINANT_SHARE
        else None
    )


def explain(
    code: str,
    rewards: Sequence[float | None],
    outcomes: Sequence[float | None],
    finish_reasons: Sequence[str],
    shares: Mapping[str, float] | None = None,
    compared_with: str = "",
) -> str:
    """The sentence for a verdict, with the group's own numbers in it.

    compared_with: what advantages look at other than the completions of this prompt alone; a tied group may teach then.
    """
    scored = [r for r in rewards if r is not None]
    top = max(shares or {}, key=(shares or {}).__getitem__, default="")
    sentence = VERDICTS[code][1]
    if compared_with:
        sentence = sentence.replace(
            NO_GRADIENT, "they are compared with {compared_with}, so they may still be pushed."
        )
    return sentence.format(
        n=len(rewards),
        right=sum(o is not None and o >= 1 for o in outcomes),
        cut=sum(f == "length" for f in finish_reasons),
        null=len(rewards) - len(scored),
        spread=max(scored) - min(scored) if scored else 0.0,
        criterion=top,
        share=(shares or {}).get(top, 0.0),
        compared_with=compared_with,
    )
