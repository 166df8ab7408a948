"""Diagnoses of how a run moves: KL, entropy, length, criteria without a say, and curves that only look restless. Pure functions."""

from __future__ import annotations

import math
import statistics

from grpo_core.analysis.advisor.facts import Facts, gain, mean, percent, short
from grpo_core.rubric.verdict import TIE_TOLERANCE, variance_shares
from grpo_core.types import Notice


def kl_burst(f: Facts) -> Notice | None:
    """KL of one step above ten times the median of the 20 before it, three times the largest of them, and above 0.2 nats/token; or not 0 before the first update."""
    rows = [(row["step"], row["kl"]) for row in f.steps if row.get("kl") is not None]
    if (
        rows
        and rows[0][0] == 1
        and rows[0][1] > 1e-3
        and f.setting("algorithm.updates_per_batch", 1) == 1
    ):
        return Notice(
            "kl_burst",
            "warning",
            1,
            f"KL was {short(rows[0][1])} nats a token before anything was learned: policy and reference are not the same model.",
            {"kl of step 1": rows[0][1], "threshold": 1e-3},
            None,
            "Look for dropout that is still on, an adapter on one of the two, or half precision.",
        )
    for i in range(len(rows) - 1, max(4, len(rows) - 100), -1):
        step, kl = rows[i]
        usual = statistics.median(v for _, v in rows[max(0, i - 20) : i])
        if kl > 0.2 and kl > 10 * usual and kl > 3 * max(v for _, v in rows[max(0, i - 20) : i]):
            group = next((g.id for g in f.groups if g.step == step), None)
            return Notice(
                "kl_burst",
                "warning",
                int(step),
                f"KL jumped to {short(kl)} nats a token at step {step}, {kl / max(usual, 1e-9):.0f} times what it was before.",
                {
                    "kl": round(kl, 4),
                    "median before": round(usual, 5),
                    "threshold": "10 times, and 0.2",
                },
                group,
                "Lower the learning rate or the gradient clip, or raise the KL coefficient. The token view of the group coloured by KL shows which tokens carry it.",
            )
    return None


def entropy_collapse(f: Facts) -> Notice | None:
    """Entropy fell to a quarter and distinct siblings to a half, while the run is not getting better: siblings become copies."""
    entropy, unique = (
        (f.first("entropy"), f.recent("entropy", 10)),
        (f.first("unique_frac"), f.recent("unique_frac", 10)),
    )
    if f.last < 20 or not all((*entropy, *unique)):
        return None
    left, distinct = (
        mean(entropy[1]) / max(mean(entropy[0]), 1e-9),
        mean(unique[1]) / max(mean(unique[0]), 1e-9),
    )
    if left > 0.25 or distinct > 0.5:
        return None
    series = f.right or "reward_mean"
    recent = f.recent(series, 20)
    _, errors = gain(recent[:10], recent[10:])
    if mean(recent[-10:]) > 0.8 * (1.0 if f.right else f.highest) or errors > 2:
        return None
    return Notice(
        "entropy_collapse",
        "warning",
        f.last,
        f"Entropy fell from {short(mean(entropy[0]))} to {short(mean(entropy[1]))} nats a token and only "
        f"{percent(mean(unique[1]))} of the siblings differ, but {series.removeprefix('score/')} stays at {short(mean(recent[-10:]))}: nothing new is tried any more.",
        {
            "entropy left": round(left, 3),
            "threshold": 0.25,
            "distinct siblings": round(mean(unique[1]), 3),
        },
        f.groups[0].id if f.groups else None,
        "Raise clip_eps_high to 0.28, add a small entropy bonus (0.001), raise the temperature, or go back to a higher KL coefficient.",
    )


def length_drift(f: Facts) -> Notice | None:
    """Length changed by half, longer (or shorter) siblings have the better advantages (|r| ≥ 0.3), and the outcome does not gain."""
    before, after = f.first("completion_tokens_mean"), f.recent("completion_tokens_mean", 10)
    if f.last < 20 or not before or not after:
        return None
    change = mean(after) / max(mean(before), 1e-9)
    r = length_correlation(f)
    if r is None or abs(r) < 0.3 or 2 / 3 < change < 1.5 or (change > 1) != (r > 0):
        return None
    series = f.right or "reward_mean"
    rose, errors = gain(f.first(series), f.recent(series, 10))
    if errors > 2:
        return None
    word = "longer" if change > 1 else "shorter"
    return Notice(
        "length_drift",
        "warning",
        f.last,
        f"Completions went from {mean(before):.0f} to {mean(after):.0f} tokens, {word} siblings get the better advantages, "
        f"and {series.removeprefix('score/')} did not gain ({short(rose)}).",
        {
            "length, times": round(change, 2),
            "threshold": 1.5,
            "correlation with advantage": round(r, 3),
        },
        f.groups[0].id if f.groups else None,
        "Look for a criterion that pays for length. Aggregation token_mean or constant (Dr. GRPO) weighs tokens of long and short completions alike.",
    )


def length_correlation(f: Facts) -> float | None:
    """Correlation of length and advantage within groups, over the newest groups; None where nothing varies."""
    xy = xx = yy = 0.0
    for g in f.groups:
        rows = [(r.num_tokens, r.advantage) for r in g.rollouts if r.advantage is not None]
        centre = mean([n for n, _ in rows])
        for n, a in rows:
            xy, xx, yy = xy + (n - centre) * a, xx + (n - centre) ** 2, yy + a * a
    return xy / math.sqrt(xx * yy) if xx * yy > 0 else None


def mute_criterion(f: Facts) -> Notice | None:
    """A criterion with a weight that is far from satisfied (mean below 0.8) has less than 5 % of the variance within groups."""
    groups = [
        g
        for g in f.groups
        if (known := [r.reward for r in g.rollouts if r.reward is not None])
        and max(known) - min(known) > TIE_TOLERANCE
    ]
    if len(groups) < 10 or f.last < 10:
        return None
    pooled = dict.fromkeys(f.weights, 0.0)
    total = 0.0
    for g in groups:
        known = [r.reward for r in g.rollouts if r.reward is not None]
        size = sum((r - mean(known)) ** 2 for r in known)
        total += size
        for name, share in variance_shares([r.scores for r in g.rollouts], f.weights).items():
            pooled[name] += share * size
    for name, weight in sorted(f.weights.items(), key=lambda item: -item[1]):
        scores = [s for g in f.groups for r in g.rollouts if (s := r.scores.get(name)) is not None]
        if weight <= 0 or not scores or mean(scores) >= 0.8 or len(f.weights) < 2:
            continue
        share = pooled[name] / total
        if abs(share) >= 0.05:
            continue
        same = max(scores) - min(scores) <= TIE_TOLERANCE
        why = (
            f"it gives every completion {short(scores[0])}"
            if same
            else f"its differences are drowned: {percent(max(share, 0.0))} of what tells siblings apart"
        )
        return Notice(
            "mute_criterion",
            "info",
            f.last,
            f"The criterion {name} (weight {short(weight)}, mean score {short(mean(scores))}) has no say: {why}.",
            {
                "share of variance": round(share, 4),
                "threshold": 0.05,
                "mean score": round(mean(scores), 3),
            },
            groups[0].id,
            "Check that it can recognise anything in these completions."
            if same
            else "Raise its weight, or choose the advantage per_criterion, which scales each criterion before adding them up. The what-if below a group shows either.",
        )
    return None


def noise(f: Facts) -> Notice | None:
    """30 steps without a trend whose ups and downs (10 % of the highest reward or more) are what the drawing of prompts alone makes of it."""
    reward = f.recent("reward_mean", 30)
    means = [g.reward_mean for g in f.groups if g.reward_mean is not None]
    prompts = f.setting("train.prompts_per_step") or 8
    if len(reward) < 30 or len(means) < 16 or mean(reward) > 0.8 * f.highest:
        return None
    _, errors = gain(reward[:15], reward[15:])
    swing, error = statistics.stdev(reward), statistics.stdev(means) / math.sqrt(prompts)
    if abs(errors) > 1.5 or max(reward) - min(reward) < 0.1 * f.highest or swing > 1.5 * error:
        return None
    return Notice(
        "noise",
        "info",
        f.last,
        f"The ups and downs of the reward (±{short(swing)} from step to step) are the drawing of prompts: "
        f"with {prompts} prompts a step the standard error is {short(error)}. There is no trend in the last 30 steps.",
        {"swing": round(swing, 4), "standard error": round(error, 4)},
        None,
        "Judge by the held-out accuracy or a smoothed curve; more prompts per step make the curve calmer.",
    )
