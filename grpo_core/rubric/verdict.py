"""The verdict on a group: one word for what the policy can learn from it. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from grpo_core.types import TIE_TOLERANCE

# With at least this share of cut completions, rewards say who finished rather than who was good.
CUT_SHARE = 0.25
# With at least this share of a group's variance, one criterion hides all others.
DOMINANT_SHARE = 0.8

Scores = Mapping[str, float | None]

# explain() replaces it where a tied group can have other advantages, or where other terms of the
# loss give a gradient.
NO_GRADIENT = (
    "every advantage is 0; with neither KL nor an entropy bonus in the loss, there is no gradient."
)

# code -> (label, sentence). {n} rollouts, {right} reached the outcome, {cut} were cut, {null} could
# not be scored; {criterion} makes up {share} of the variance. Keep codes that are no longer given:
# older files contain them.
VERDICTS: dict[str, tuple[str, str]] = {
    "healthy": (
        "healthy",
        "{right} of {n} are right, so the group separates right from wrong.",
    ),
    "graded": (
        "graded",
        "Rewards differ by up to {spread:.3g}, so the group separates better from worse.",
    ),
    "polish": (
        "all right, graded",
        "All {n} are right; only the smaller criteria differ.",
    ),
    "all_right": ("tied: all right", f"All {{n}} are right and equal: {NO_GRADIENT}"),
    "all_wrong": ("tied: all wrong", f"All {{n}} are wrong and equal: {NO_GRADIENT}"),
    "tied": ("tied", f"All {{n}} rewards are equal: {NO_GRADIENT}"),
    "phantom": (
        "phantom",
        "None is right, yet advantages are not 0: they come from differences of {spread:.3g} "
        "in the smaller criteria.",
    ),
    "gated": (
        "gated",
        "None is right, so the smaller criteria (difference {spread:.3g}) did not count: "
        f"{NO_GRADIENT}",
    ),
    "truncated": (
        "partly truncated",
        "{cut} of {n} were cut at the token limit and scored without their end.",
    ),
    "dominated": (
        "one criterion",
        "{share:.0%} of the reward variance in this group comes from {criterion} alone; "
        "{right} of {n} are right.",
    ),
    "disagrees": (
        "advantages disagree",
        "The recorded advantages are not the ones that these rewards give by the run's estimator.",
    ),
    "no_call": (
        "tool never called",
        "None of {n} called a tool, so no advantage speaks for calling one.",
    ),
    "unscored": ("unscored", "{null} of {n} could not be scored: too few are left to compare."),
}
DISAGREES = "disagrees"


@dataclass(frozen=True, slots=True)
class SiblingScores:
    """The scores of a group of G completions, from which its verdict follows.

    rewards: G totals, None = could not be scored. outcomes: G scores of the outcome criterion,
    1 = reached; empty if the rubric has none. finish_reasons: G times "stop" or "length", or None
    where that is not known. shares: variance_shares of the group. called: whether any completion
    called a tool; None: the policy has no tools.
    """

    rewards: Sequence[float | None]
    outcomes: Sequence[float | None]
    finish_reasons: Sequence[str | None]
    shares: Mapping[str, float] = field(default_factory=dict)
    called: bool | None = None

    @property
    def num_right(self) -> int:
        return sum(o is not None and o >= 1 for o in self.outcomes)


def tie(siblings: SiblingScores) -> str | None:
    """ "all_right", "all_wrong" or "tied" where all rewards are equal; None where they differ."""
    scored = [r for r in siblings.rewards if r is not None]
    if len(scored) < 2 or max(scored) - min(scored) > TIE_TOLERANCE:
        return None
    known, right = sum(o is not None for o in siblings.outcomes), siblings.num_right
    if known and right == known:
        return "all_right"
    return "all_wrong" if known and right == 0 else "tied"


def verdict(siblings: SiblingScores, outcome: str | None = None) -> str:
    """The code for one group. outcome: the name of the outcome criterion, for "dominated"."""
    if sum(r is not None for r in siblings.rewards) < 2:
        return "unscored"
    known, right = sum(o is not None for o in siblings.outcomes), siblings.num_right
    solved = known and right == known
    if code := tie(siblings):
        return "no_call" if siblings.called is False and not solved else code
    num_cut = sum(reason == "length" for reason in siblings.finish_reasons)
    if num_cut >= CUT_SHARE * len(siblings.finish_reasons):
        return "truncated"
    if siblings.called is False and not solved:
        return "no_call"
    if known and right == 0:
        return "phantom"
    if solved:
        return "polish"
    if dominant(siblings.shares, outcome):
        return "dominated"
    return "healthy" if known else "graded"


def variance_shares(scores: Sequence[Scores], weights: Mapping[str, float]) -> dict[str, float]:
    """The share of each criterion in the variance of the siblings' rewards.

        share_k = cov(w_k·s_k, r) / var(r)      over the scored rollouts, r = Σ w·s

    Shares add up to 1. A null score counts as 0, as it does in r. A share below 0 means that the
    criterion works against the others. Criteria of weight 0 are left out. Empty for a tied group.
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
    """The criterion with at least DOMINANT_SHARE of the variance, while others differ too.

    Never the outcome: a rubric is meant to be decided by it.
    """
    top = max(shares, key=shares.__getitem__, default=None)
    if top is None or top == outcome or shares[top] < DOMINANT_SHARE:
        return None
    others_differ = any(abs(share) > 1e-9 for name, share in shares.items() if name != top)
    return top if others_differ else None


def explain(
    code: str, siblings: SiblingScores, compared_with: str = "", other_terms: Sequence[str] = ()
) -> str:
    """The sentence for a verdict, with the group's own numbers.

    compared_with: what advantages compare with, if not only the completions of this prompt. A tied
    group can then have advantages other than 0. other_terms: names of the terms of the loss that do
    not depend on advantages, such as "KL term".
    """
    scored = [r for r in siblings.rewards if r is not None]
    top = max(siblings.shares, key=siblings.shares.__getitem__, default="")
    sentence = VERDICTS[code][1]
    if code == "no_call" and tie(siblings):
        sentence += f" All rewards are equal: {NO_GRADIENT}"
    if compared_with:
        gradient = (
            "they are compared with {compared_with}, so their advantages may still differ from 0."
        )
        sentence = sentence.replace(NO_GRADIENT, gradient)
    elif other_terms:
        verb = "give" if len(other_terms) > 1 else "gives"
        gradient = (
            f"every advantage is 0, so only the {' and '.join(other_terms)} {verb} a gradient."
        )
        sentence = sentence.replace(NO_GRADIENT, gradient)
    return sentence.format(
        n=len(siblings.rewards),
        right=siblings.num_right,
        cut=sum(reason == "length" for reason in siblings.finish_reasons),
        null=len(siblings.rewards) - len(scored),
        spread=max(scored) - min(scored) if scored else 0.0,
        criterion=top,
        share=siblings.shares.get(top, 0.0),
        compared_with=compared_with,
    )
