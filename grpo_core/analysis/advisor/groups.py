"""Diagnoses of the reward within groups: no differences, tied groups, phantom advantages, noise.

Each is a pure function from Facts to a Notice, or None. benchmarks/advisor.py measures the
thresholds on healthy runs and on runs with one deliberate fault.
"""

from __future__ import annotations

import math
import statistics

from grpo_core.analysis.advisor.facts import Facts, gain, known_rewards, mean, percent, short
from grpo_core.rubric.verdict import TIE_TOLERANCE
from grpo_core.store import GroupRow
from grpo_core.types import Notice

ADD_CRITERION = "Add a criterion that tells these completions apart"
WITHOUT_ADVANTAGES = ("all_right", "all_wrong", "tied", "gated", "unscored")  # verdicts


def flat_reward(f: Facts) -> Notice | None:
    """Every advantage is 0 for five steps, and not because every completion is right."""
    spreads = f.recent("advantage_std", 5)
    uses_critic = f.setting("algorithm.advantage") == "value"
    if len(spreads) < 5 or max(spreads) > TIE_TOLERANCE or uses_critic:
        return None
    right = mean(f.recent(f.outcome_metric, 5)) if f.outcome_metric else None
    if right is not None and right > 0.99:
        return None
    cause, advice = _cause_of_flat_reward(f, right)
    return Notice(
        "flat_reward",
        "error",
        f.last_step,
        f"For {len(spreads)} steps every advantage was 0: {cause}.",
        {
            "spread of advantages": max(spreads),
            "threshold": TIE_TOLERANCE,
            "reward": round(mean(f.recent("reward_mean", 5)), 4),
        },
        f.groups[0].id if f.groups else None,
        advice,
    )


def _cause_of_flat_reward(f: Facts, right: float | None) -> tuple[str, str]:
    """Cause and advice. right: share of completions that reach the outcome; None if unknown."""
    rollouts = [r for g in f.groups for r in g.rollouts]
    temperature = f.setting("train.temperature")
    copies = mean(f.recent("unique_frac", 5)) <= 1.5 / (f.setting("train.group_size") or 8)
    if (temperature or 1.0) < 0.1 or copies:
        return (
            "all siblings are copies of each other",
            f"Raise the temperature ({temperature}); 1 is usual.",
        )
    if mean([r.finish_reason == "length" for r in rollouts]) > 0.95:
        return (
            "every completion is cut at the token limit",
            f"Raise Max new tokens ({f.setting('train.max_new_tokens')}).",
        )
    needs_tag = any(c.get("check") == "accuracy" for c in f.criteria)
    if rollouts and needs_tag and not any("<answer>" in r.text for r in rollouts):
        return (
            "no completion has an <answer> tag, so none could be graded",
            "Ask for the tag in the template. "
            f"The newest completion begins: {rollouts[0].text[:80]!r}",
        )
    if right == 0:
        gate = ""
        if f.setting("rubric.gate"):
            gate = " and the outcome gate excludes the smaller criteria"
        return (
            f"no completion reaches {f.outcome}{gate}. The prompts are too hard",
            "Choose easier prompts or a stronger model, or raise the group size so that some "
            "completions are right.",
        )
    return "all rewards are equal", f"{ADD_CRITERION}."


def dead_groups(f: Facts) -> Notice | None:
    """Half of the groups of the last 20 steps (at least 10) are tied.

    No notice if the run has solved its task. Where most ties are all right or all wrong, the
    notice names the share that chance predicts, `chance_of_tie`.
    """
    recent = f.recent("tied_group_frac")
    tied = mean(recent)
    if len(recent) < 10 or tied < 0.5:
        return None
    best, worst = mean(f.recent("tied_best_frac")), mean(f.recent("tied_worst_frac"))
    metric = f.outcome_metric
    rise = mean(f.recent(metric, 10)) - mean(f.first(metric, 5)) if metric else 0.0
    if best > 0.5 * tied and rise > 0.1:
        return None  # most tied groups are all right, and the outcome rose: the task is solved
    evidence = {
        "tied": round(tied, 3),
        "threshold": 0.5,
        "all right": round(best, 3),
        "all wrong": round(worst, 3),
    }
    chance, advice = "", f"{ADD_CRITERION}, or choose other prompts."
    p = mean(f.recent(metric)) if metric else 0.0
    if 0 < p < 1 and best + worst > 0.5 * tied:
        size = int(f.setting("train.group_size") or 8)
        expected = chance_of_tie(p, size)
        evidence |= {"right": round(p, 3), "expected": round(expected, 3)}
        chance = (
            f" With {percent(p)} of the completions right and {size} completions per prompt, "
            f"chance alone ties {percent(expected)}."
        )
        advice = _advice_on_ties(p, size)
    shares = ((best, "right"), (worst, "wrong"))
    kinds = ", ".join(f"{percent(share)} all {word}" for share, word in shares if share >= 0.01)
    _, verdict = max((best, "all_right"), (worst, "all_wrong"), (tied - best - worst, "tied"))
    return Notice(
        "dead_groups",
        "warning",
        f.last_step,
        f"{percent(tied)} of the groups are tied{f' ({kinds})' if kinds else ''}: all their "
        f"rewards are equal{_effect_of_tie(f)}.{chance}",
        evidence,
        f.example(verdict, "no_call"),
        advice,
    )


def _effect_of_tie(f: Facts) -> str:
    """What a tie means for the gradient, as a clause; empty where a tied group has advantages."""
    uses_critic = f.setting("algorithm.advantage") == "value"
    if uses_critic or f.setting("algorithm.grouping", "prompt") != "prompt":
        return ""
    other_terms = []
    if f.setting("algorithm.kl_coef"):
        other_terms.append("KL")
    if f.setting("algorithm.entropy_coef") or f.setting("algorithm.entropy_target") is not None:
        other_terms.append("the entropy bonus")
    if other_terms:
        return f", so their only gradient is that of {' and '.join(other_terms)}"
    return ", so they have no gradient"


def _advice_on_ties(p: float, size: int) -> str:
    if p > 0.8:
        return (
            "These prompts are too easy for this model: choose harder ones, "
            "or switch dynamic sampling on."
        )
    for larger in (4, 8, 16, 32, 64):
        if larger > size and chance_of_tie(p, larger) < 0.3:
            share = percent(chance_of_tie(p, larger))
            return f"Raise the group size: with {larger} completions {share} would tie."
    return (
        "These prompts are too hard for this model: choose easier ones, "
        "or switch dynamic sampling on."
    )


def chance_of_tie(p: float, size: int) -> float:
    """Probability that a group of G = size completions is all right or all wrong.

    p^G + (1 − p)^G      p: probability that one completion is right
    """
    return p**size + (1 - p) ** size


def phantom(f: Facts) -> Notice | None:
    """In a third of the informative groups (at least five) no completion is right.

    Their advantages come from small differences in the smaller criteria, scaled to full size.
    """
    informative = [g for g in f.groups if _is_informative(g)]
    phantoms = [g for g in informative if g.verdict == "phantom"]
    if len(phantoms) < 5 or len(phantoms) < 0.33 * len(informative):
        return None
    rewards = [known for g in phantoms if (known := known_rewards(g))]
    spread = mean([max(known) - min(known) for known in rewards])
    return Notice(
        "phantom",
        "warning",
        f.last_step,
        f"In {len(phantoms)} of the {len(informative)} newest informative groups no completion "
        f"reached {f.outcome}. Differences of {short(spread)} in the smaller criteria are scaled "
        "to full size, so the policy learns from noise.",
        {
            "phantom groups": round(len(phantoms) / len(informative), 3),
            "threshold": 0.33,
            "mean spread": round(spread, 4),
        },
        phantoms[0].id,
        "Switch on Outcome gate under Rubric: the smaller criteria then count only in groups with "
        "a right completion. Or choose easier prompts.",
    )


def _is_informative(group: GroupRow) -> bool:
    if group.verdict == "no_call":  # whatever its rewards are
        return any(r.advantage for r in group.rollouts)
    return group.verdict not in WITHOUT_ADVANTAGES


def noise(f: Facts) -> Notice | None:
    """30 steps without a trend, whose variation is what the choice of prompts alone explains.

    The range must be at least 10 % of the highest reward. The standard deviation over steps is
    compared with the standard error of a step's mean, sd(group means)/√P.
    """
    reward = f.recent("reward_mean", 30)
    group_means = [g.reward_mean for g in f.groups if g.reward_mean is not None]
    prompts = f.setting("train.prompts_per_step") or 8
    if len(reward) < 30 or len(group_means) < 16 or mean(reward) > 0.8 * f.max_reward:
        return None
    _, errors = gain(reward[:15], reward[15:])
    swing = statistics.stdev(reward)
    error = statistics.stdev(group_means) / math.sqrt(prompts)
    value_range = max(reward) - min(reward)
    if abs(errors) > 1.5 or value_range < 0.1 * f.max_reward or swing > 1.5 * error:
        return None
    return Notice(
        "noise",
        "info",
        f.last_step,
        f"The reward varies by ±{short(swing)} from step to step because each step draws other "
        f"prompts: with {prompts} prompts per step the standard error is {short(error)}. "
        "The last 30 steps show no trend.",
        {"swing": round(swing, 4), "standard error": round(error, 4)},
        None,
        "Judge by the held-out accuracy or a smoothed curve. More prompts per step make the curve "
        "smoother.",
    )
