"""A diagnosis of learned rewards: the reward model's score rose, and nothing else did.

A pure function from Facts to a Notice, or None. benchmarks/preferences.py makes runs for it.
"""

from __future__ import annotations

from grpo_core.analysis.advisor.criteria import lagging
from grpo_core.analysis.advisor.facts import Facts, gain, mean, percent, short
from grpo_core.rubric.predict import wilson_interval
from grpo_core.types import Notice

MIN_FRESH = 20  # judgements of a run's own completions


def over_optimisation(f: Facts) -> Notice | None:
    """A reward model's score rose by three standard errors, but the goal did not.

    The goal: a measure of `lagging`, another criterion that fell by 0.05 and three standard errors,
    or fresh judgements, of which the model agrees with significantly less than half. More reward
    of a learned model is then its own error: Gao et al. 2023, arXiv:2210.10760.
    """
    models = [str(c["name"]) for c in f.criteria if c.get("check") == "reward_model"]
    paid = [name for name in models if f.weights[name] > 0]
    if not paid or f.last_step < 20:
        return None
    name = max(paid, key=lambda n: f.weights[n])
    before, after = f.first(f"score/{name}"), f.recent(f"score/{name}", 10)
    if f.last_step < 2 * len(before):
        return None
    rise, errors = gain(before, after)
    if errors <= 3:
        return None
    goal, evidence = _goal_missed(f, name)
    if not goal:
        return None
    best = max(
        ((s, g.id) for g in f.groups for r in g.rollouts if (s := r.scores.get(name)) is not None),
        default=(None, None),
    )
    return Notice(
        "over_optimisation",
        "warning",
        f.last_step,
        f"The reward model {name} scores the completions {short(mean(after))}, at first "
        f"{short(mean(before))}, but {goal}: the policy learns the model's mistakes.",
        {"score change": round(rise, 4), "standard errors": round(errors, 1), **evidence},
        best[1],
        "Stop, and go back to an earlier checkpoint. Compare answers of this run on Inspect and "
        "train the reward model again with them. A larger KL coefficient, or a criterion that can "
        "be checked beside the model, also holds the policy back.",
    )


def _goal_missed(f: Facts, model: str) -> tuple[str, dict[str, float]]:
    """What did not rise with the model's score, in words and numbers; ("", {}) if all did."""
    fresh = [
        (a, b)
        for chosen, rejected in f.judged
        if (a := chosen.get(model)) is not None and (b := rejected.get(model)) is not None
    ]
    if len(fresh) >= MIN_FRESH:
        right = sum(a > b for a, b in fresh)
        if wilson_interval(right, len(fresh))[1] < 0.5:
            words = (
                f"of {len(fresh)} judgements of this run's completions it agrees with only "
                f"{percent(right / len(fresh))}"
            )
            return words, {"agreement": round(right / len(fresh), 3), "judgements": len(fresh)}
    missed = lagging(f)
    for name in f.weights:
        before, after = f.first(f"score/{name}"), f.recent(f"score/{name}", 10)
        change, errors = gain(before, after)
        if change < -0.05 and errors < -3:
            missed.setdefault(name, (mean(before), mean(after)))
    missed.pop(model, None)
    if not missed:
        return "", {}
    name, (was, now) = min(missed.items(), key=lambda item: item[1][1] - item[1][0])
    words = f"{name} went from {short(was)} to {short(now)}"
    return words, {f"{name} before": round(was, 4), f"{name} now": round(now, 4)}
