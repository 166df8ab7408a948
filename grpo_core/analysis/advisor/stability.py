"""Diagnoses of the optimisation: non-finite values, learning rate, KL, entropy.

Each is a pure function from Facts to a Notice, or None. benchmarks/advisor.py measures the
thresholds on healthy runs and on runs with one deliberate fault.
"""

from __future__ import annotations

import re
import statistics

from grpo_core.analysis.advisor.facts import Facts, gain, mean, percent, short
from grpo_core.types import Notice


def non_finite(f: Facts) -> Notice | None:
    """The loss or the gradient became NaN or infinite.

    The evidence is the error of the run, or a step that made updates and recorded no loss.
    """
    missing = [row["step"] for row in f.steps if row.get("num_updates") and row.get("loss") is None]
    pattern = r"NonFinite|not finite|\bnan\b|\binf\b"
    error = f.error if f.error is not None and re.search(pattern, f.error) else None
    if error is None and not missing:
        return None
    step = int(missing[0]) if missing else f.last_step + 1
    reason = error.splitlines()[0][:200] if error else f"the loss of step {step} is not a number"
    return Notice(
        "non_finite",
        "error",
        step,
        f"A value became NaN or infinite at step {step}: {reason}",
        {"steps without a loss": len(missing)},
        None,
        f"Lower the learning rate ({_learning_rate(f)}) or the gradient clip. "
        "Use float32 if the model runs in half precision.",
    )


def lr_too_high(f: Facts) -> Notice | None:
    """KL reached 0.3 nats per token, and the reward fell by 30 % of its best value."""
    reward, kl = f.series("reward_mean"), f.recent("kl")
    if len(reward) < 6 or not kl or max(kl) < 0.3:
        return None
    best = max(mean(reward[i : i + 2]) for i in range(len(reward) - 1))
    now = mean(reward[-5:])
    if best - now < max(0.3 * abs(best), 0.1 * f.max_reward):
        return None
    return Notice(
        "lr_too_high",
        "error",
        f.last_step,
        f"The reward fell from {short(best)} to {short(now)}, while KL to the reference reached "
        f"{short(max(kl))} nats per token. The updates are too large.",
        {
            "best reward": round(best, 4),
            "reward now": round(now, 4),
            "kl": round(max(kl), 4),
            "kl threshold": 0.3,
        },
        f.groups[0].id if f.groups else None,
        f"Divide the learning rate ({_learning_rate(f)}) by 10 and start again. "
        "A larger KL coefficient or a smaller gradient clip only slows the fall.",
    )


def lr_too_low(f: Facts) -> Notice | None:
    """Groups are informative, but 20 steps after warm-up KL is below 3e-5 nats per token.

    No notice if the reward rose by three standard errors, or if the reference moves too.
    """
    kl = f.recent("kl", 5)
    too_early = f.last_step < 20 + (f.setting("train.warmup_steps") or 0)
    kl_stays_small = (
        f.setting("algorithm.ref_every") or f.setting("algorithm.objective") == "trust_region"
    )
    if too_early or not kl or kl_stays_small:
        return None
    moved, tied = mean(kl), mean(f.series("tied_group_frac"))
    rose, errors = gain(f.first("reward_mean"), f.recent("reward_mean", 10))
    if moved >= 3e-5 or tied > 0.8 or errors >= 3:
        return None
    return Notice(
        "lr_too_low",
        "warning",
        f.last_step,
        f"{percent(1 - tied)} of the groups are informative, but after {f.last_step} steps KL to "
        f"the initial policy is only {short(moved)} nats per token.",
        {
            "kl": moved,
            "kl threshold": 3e-5,
            "informative groups": round(1 - tied, 3),
            "reward change": round(rose, 4),
        },
        f.example("healthy", "graded"),
        f"Raise the learning rate ({_learning_rate(f)}) tenfold. "
        "In bfloat16 small updates are rounded away: use float32.",
    )


def kl_burst(f: Facts) -> Notice | None:
    """KL of one step jumped, or KL was not 0 before the first update.

    A jump is above 0.2 nats per token, above ten times the median of the 20 steps before it,
    and above three times the largest of them.
    """
    points = [(row["step"], row["kl"]) for row in f.steps if row.get("kl") is not None]
    one_update = f.setting("algorithm.updates_per_batch", 1) == 1
    if points and points[0][0] == 1 and points[0][1] > 1e-3 and one_update:
        return Notice(
            "kl_burst",
            "warning",
            1,
            f"KL was {short(points[0][1])} nats per token before the first update: policy and "
            "reference are not the same model.",
            {"kl of step 1": points[0][1], "threshold": 1e-3},
            None,
            "Check for active dropout, for an adapter on only one of the two, and for half "
            "precision.",
        )
    for i in range(len(points) - 1, max(4, len(points) - 100), -1):
        step, kl = points[i]
        before = [value for _, value in points[max(0, i - 20) : i]]
        median = statistics.median(before)
        if kl > 0.2 and kl > 10 * median and kl > 3 * max(before):
            return Notice(
                "kl_burst",
                "warning",
                int(step),
                f"KL jumped to {short(kl)} nats per token at step {step}, "
                f"{kl / max(median, 1e-9):.0f} times its earlier value.",
                {
                    "kl": round(kl, 4),
                    "median before": round(median, 5),
                    "threshold": "10 times, and 0.2",
                },
                next((g.id for g in f.groups if g.step == step), None),
                "Lower the learning rate or the gradient clip, or raise the KL coefficient. "
                "Colour the tokens of the group by KL to see which tokens cause it.",
            )
    return None


def entropy_collapse(f: Facts) -> Notice | None:
    """Entropy fell to a quarter and distinct siblings to a half, and the run no longer improves."""
    entropy_first, entropy_now = f.first("entropy"), f.recent("entropy", 10)
    unique_first, unique_now = f.first("unique_frac"), f.recent("unique_frac", 10)
    measured = entropy_first and entropy_now and unique_first and unique_now
    if f.last_step < 20 or not measured:
        return None
    entropy_left = mean(entropy_now) / max(mean(entropy_first), 1e-9)
    distinct_left = mean(unique_now) / max(mean(unique_first), 1e-9)
    if entropy_left > 0.25 or distinct_left > 0.5:
        return None
    metric = f.outcome_metric or "reward_mean"
    recent = f.recent(metric, 20)
    _, errors = gain(recent[:10], recent[10:])
    highest = 1.0 if f.outcome_metric else f.max_reward
    if mean(recent[-10:]) > 0.8 * highest or errors > 2:
        return None
    return Notice(
        "entropy_collapse",
        "warning",
        f.last_step,
        f"Entropy fell from {short(mean(entropy_first))} to {short(mean(entropy_now))} nats per "
        f"token and only {percent(mean(unique_now))} of the siblings differ, but "
        f"{metric.removeprefix('score/')} stays at {short(mean(recent[-10:]))}. "
        "The policy no longer explores.",
        {
            "entropy left": round(entropy_left, 3),
            "threshold": 0.25,
            "distinct siblings": round(mean(unique_now), 3),
        },
        f.groups[0].id if f.groups else None,
        "Raise clip_eps_high to 0.28, add a small entropy bonus (0.001), raise the temperature, "
        "or go back to a higher KL coefficient.",
    )


def _learning_rate(f: Facts) -> str:
    used = f.recent("learning_rate", 1)
    return short(used[0]) if used else "automatic"
