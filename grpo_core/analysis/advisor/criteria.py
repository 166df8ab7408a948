"""Diagnoses of the rubric: a reward that is not the goal, a criterion without effect.

Each is a pure function from Facts to a Notice, or None. benchmarks/advisor.py measures the
thresholds on healthy runs and on runs with one deliberate fault.
"""

from __future__ import annotations

from collections.abc import Sequence

from grpo_core.analysis.advisor.facts import Facts, gain, known_rewards, mean, percent, short
from grpo_core.rubric.verdict import TIE_TOLERANCE, variance_shares
from grpo_core.store import GroupRow
from grpo_core.types import Notice


def hacking(f: Facts) -> Notice | None:
    """The reward rose, or is near its maximum, but a measure of the goal did not rise.

    Rose: by 5 % of the highest reward and by three standard errors. `lagging` defines the
    measures of the goal.
    """
    before, after = f.first("reward_mean"), f.recent("reward_mean", 10)
    if f.last_step < 2 * len(before) or f.last_step < 20:
        return None
    rise, errors = gain(before, after)
    rose = rise > 0.05 * f.max_reward and errors > 3
    behind = lagging(f)
    name = next(iter(behind), None)
    if name is None:
        return None
    was, now = behind[name]
    outcome_has_no_weight = f.weights.get(f.outcome or "", 1.0) == 0
    near_maximum = mean(after) > 0.85 * f.max_reward and outcome_has_no_weight and now < 0.5
    if not (rose or near_maximum):
        return None
    if rose:
        reward = f"The reward rose from {short(mean(before))} to {short(mean(after))}"
    else:
        reward = f"The reward is at {percent(mean(after) / f.max_reward)} of its maximum"
    rewards = [(r.reward, r.group_id) for g in f.groups for r in g.rollouts if r.reward is not None]
    _, top_group = max(rewards, key=lambda pair: pair[0], default=(None, None))
    return Notice(
        "hacking",
        "warning",
        f.last_step,
        f"{reward}, but {name} went from {short(was)} to {short(now)}: "
        "the rubric rewards something else.",
        {
            "reward change": round(rise, 4),
            "standard errors": round(errors, 1),
            f"{name} before": round(was, 4),
            f"{name} now": round(now, 4),
        },
        top_group,
        "Read the completions with the highest rewards in this group. Then lower the weight of "
        "the criterion that they satisfy, or raise the weight of "
        f"{name.removeprefix('held-out ')}.",
    )


def lagging(f: Facts) -> dict[str, tuple[float, float]]:
    """Measures of the goal that did not rise: name -> (before, now), the largest fall first.

    Held-out accuracy: at most the upper 95 % bound of its first evaluation. Outcome: below 0.9
    and risen by at most two standard errors. Criteria of weight 0: fell by 0.05 and by three.
    """
    behind: dict[str, tuple[float, float]] = {}
    heldout, upper_bounds = f.series("heldout/accuracy"), f.series("heldout/accuracy_high")
    metric = f.outcome_metric
    outcome_rose = metric is not None and gain(f.first(metric), f.recent(metric, 10))[1] > 2
    evaluated = len(heldout) >= 2
    if evaluated and upper_bounds and heldout[-1] <= upper_bounds[0] and not outcome_rose:
        behind["held-out accuracy"] = heldout[0], heldout[-1]
    for name, weight in f.weights.items():
        before, after = f.first(f"score/{name}"), f.recent(f"score/{name}", 10)
        change, errors = gain(before, after)
        if name == f.outcome:
            lags = not outcome_rose and mean(after) < 0.9 and not evaluated
        else:
            lags = weight == 0 and change < -0.05 and errors < -3
        if lags:
            behind[name] = mean(before), mean(after)
    return dict(sorted(behind.items(), key=lambda item: item[1][1] - item[1][0]))


def mute_criterion(f: Facts) -> Notice | None:
    """A criterion with a weight, far from satisfied, explains under 5 % of the variance in groups.

    Far from satisfied: the mean score is below 0.8.
    """
    groups = [g for g in f.groups if _spread(g) > TIE_TOLERANCE]
    if len(groups) < 10 or f.last_step < 10 or len(f.weights) < 2:
        return None
    shares = _pooled_variance_shares(groups, f.weights)
    for name, weight in sorted(f.weights.items(), key=lambda item: -item[1]):
        scores = [s for g in f.groups for r in g.rollouts if (s := r.scores.get(name)) is not None]
        if weight <= 0 or not scores or mean(scores) >= 0.8 or abs(shares[name]) >= 0.05:
            continue
        if max(scores) - min(scores) <= TIE_TOLERANCE:
            why = f"it gives every completion {short(scores[0])}"
            advice = "Check that it can recognise anything in these completions."
        else:
            why = (
                f"it explains {percent(max(shares[name], 0.0))} of the reward differences "
                "between siblings"
            )
            advice = (
                "Raise its weight, or choose the advantage per_criterion, which scales each "
                "criterion before adding them up. The what-if below a group shows both."
            )
        return Notice(
            "mute_criterion",
            "info",
            f.last_step,
            f"The criterion {name} (weight {short(weight)}, mean score {short(mean(scores))}) has "
            f"almost no effect: {why}.",
            {
                "share of variance": round(shares[name], 4),
                "threshold": 0.05,
                "mean score": round(mean(scores), 3),
            },
            groups[0].id,
            advice,
        )
    return None


def _spread(group: GroupRow) -> float:
    rewards = known_rewards(group)
    return max(rewards) - min(rewards) if rewards else 0.0


def _pooled_variance_shares(
    groups: Sequence[GroupRow], weights: dict[str, float]
) -> dict[str, float]:
    """Each criterion's share of the within-group variance; groups weigh by their own variance."""
    pooled = dict.fromkeys(weights, 0.0)
    total = 0.0
    for group in groups:
        rewards = known_rewards(group)
        squares = sum((r - mean(rewards)) ** 2 for r in rewards)
        total += squares
        for name, share in variance_shares([r.scores for r in group.rollouts], weights).items():
            pooled[name] += share * squares
    return {name: amount / total for name, amount in pooled.items()}
