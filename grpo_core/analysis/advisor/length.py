"""Diagnoses of completion length: truncation, a missing end token, drift.

Each is a pure function from Facts to a Notice, or None. benchmarks/advisor.py measures the
thresholds on healthy runs and on runs with one deliberate fault.
"""

from __future__ import annotations

import math
import re

from grpo_core.analysis.advisor.facts import Facts, gain, mean, percent, short
from grpo_core.types import Notice

# Marks with which chat models end a turn, or text after the answer. In a truncated completion
# they show that generation went on after the model had finished.
END_OF_TURN = re.compile(
    r"<\|im_end\|>|<\|endoftext\|>|<\|eot_id\|>|<\|end\|>|<end_of_turn>|</s>|<\|user\|>"
    r"|<\|im_start\|>|</answer>\s*\S"
)


def truncation(f: Facts) -> Notice | None:
    """Over 20 % of the completions of the last 20 steps are truncated.

    In the first 100 steps also if over 30 % were truncated at the start: a model that then
    learned to write less shows no truncation any more.
    """
    now, at_start = mean(f.recent("truncated_frac")), mean(f.first("truncated_frac", 5))
    shortened = at_start > 0.3 and f.last_step <= 100
    if f.last_step < 3 or (now <= 0.2 and not shortened):
        return None
    truncated, complete = _rewards(f, "length"), _rewards(f, "stop")
    limit = f.setting("train.max_new_tokens")
    message = f"{percent(now)} of the completions are cut at {limit} tokens before they end."
    if truncated and complete:
        message += (
            f" Truncated completions earn {short(mean(truncated))} on average, "
            f"complete ones {short(mean(complete))}."
        )
    if at_start > now + 0.1:
        message += (
            f" At the start it was {percent(at_start)}: a part of the gain may come from shorter "
            "answers alone."
        )
    return Notice(
        "truncation",
        "warning",
        f.last_step,
        message,
        {
            "truncated now": round(now, 3),
            "truncated at first": round(at_start, 3),
            "threshold": 0.2,
        },
        f.example("truncated") or _group_with_truncation(f),
        f"Raise Max new tokens above {limit}. If the limit must stay, mask truncated completions, "
        "or add a length criterion whose score falls well before the limit.",
    )


def end_token(f: Facts) -> Notice | None:
    """90 % of the completions are truncated, and half of those had already finished.

    A finished completion contains an end-of-turn mark, or text after its answer.
    """
    truncated = [r for g in f.groups for r in g.rollouts if r.finish_reason == "length"]
    share = mean(f.recent("truncated_frac"))
    if not truncated or share < 0.9:
        return None
    finished = [r for r in truncated if END_OF_TURN.search(r.text)]
    if len(finished) < 0.5 * len(truncated):
        return None
    return Notice(
        "end_token",
        "error",
        f.last_step,
        f"{percent(share)} of the completions reach the token limit, but {len(finished)} of "
        f"{len(truncated)} had already finished: the end-of-turn token does not stop generation.",
        {
            "truncated": round(share, 3),
            "finished and went on": round(len(finished) / len(truncated), 3),
            "threshold": 0.5,
        },
        finished[0].group_id,
        "Check that the chat template's end-of-turn token is among the model's end tokens "
        "(generation_config.json, eos_token_id).",
    )


def length_drift(f: Facts) -> Notice | None:
    """Length changed by half, length correlates with the advantage, and the outcome stays.

    Threshold: |r| ≥ 0.3 within groups, with the sign of the change.
    """
    before, after = f.first("completion_tokens_mean"), f.recent("completion_tokens_mean", 10)
    if f.last_step < 20 or not before or not after:
        return None
    change = mean(after) / max(mean(before), 1e-9)
    r = length_correlation(f)
    if r is None or abs(r) < 0.3 or 2 / 3 < change < 1.5 or (change > 1) != (r > 0):
        return None
    metric = f.outcome_metric or "reward_mean"
    rose, errors = gain(f.first(metric), f.recent(metric, 10))
    if errors > 2:
        return None
    word = "longer" if change > 1 else "shorter"
    return Notice(
        "length_drift",
        "warning",
        f.last_step,
        f"The mean length went from {mean(before):.0f} to {mean(after):.0f} tokens, {word} "
        f"siblings get the better advantages, and {metric.removeprefix('score/')} did not "
        f"improve (change {short(rose)}).",
        {
            "length, times": round(change, 2),
            "threshold": 1.5,
            "correlation with advantage": round(r, 3),
        },
        f.groups[0].id if f.groups else None,
        "Look for a criterion that rewards length. With aggregation token_mean or constant "
        "(Dr. GRPO), a token has the same weight in long and in short completions.",
    )


def length_correlation(f: Facts) -> float | None:
    """Pearson correlation of length and advantage within groups, pooled over the newest groups.

    Lengths are centred within each group. None where nothing varies.
    """
    xy = xx = yy = 0.0
    for group in f.groups:
        rows = [
            (r.num_tokens, r.advantage)
            for r in group.rollouts
            if r.advantage is not None and r.num_tokens is not None
        ]
        centre = mean([tokens for tokens, _ in rows])
        for tokens, advantage in rows:
            xy += (tokens - centre) * advantage
            xx += (tokens - centre) ** 2
            yy += advantage * advantage
    return xy / math.sqrt(xx * yy) if xx * yy > 0 else None


def _rewards(f: Facts, finish_reason: str) -> list[float]:
    rollouts = [r for g in f.groups for r in g.rollouts if r.finish_reason == finish_reason]
    return [r.reward for r in rollouts if r.reward is not None]


def _group_with_truncation(f: Facts) -> int | None:
    for group in f.groups:
        if any(r.finish_reason == "length" for r in group.rollouts):
            return group.id
    return None
