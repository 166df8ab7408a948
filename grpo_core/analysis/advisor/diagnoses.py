"""Diagnoses of runs that cannot teach what they should. Each is a pure function: facts -> a notice, or None.

Thresholds were set on runs made ill and healthy ones, benchmarks/advisor.py; none is a law of nature.
"""

from __future__ import annotations

import re

from grpo_core.analysis.advisor.facts import Facts, gain, mean, percent, short
from grpo_core.rubric.verdict import TIE_TOLERANCE
from grpo_core.types import Notice

# How chat models end a turn; in a text that was cut at the limit it means that generation did not know it was over.
END_OF_TURN = re.compile(
    r"<\|im_end\|>|<\|endoftext\|>|<\|eot_id\|>|<\|end\|>|<end_of_turn>|</s>|<\|user\|>|<\|im_start\|>|</answer>\s*\S"
)


def non_finite(f: Facts) -> Notice | None:
    """The loss or the gradient was nan or infinite: told by the error that ended the run, or by a step with updates and no loss."""
    holes = [row["step"] for row in f.steps if row.get("num_updates") and row.get("loss") is None]
    broke = (
        f.error is not None
        and re.search(r"NonFinite|not finite|\bnan\b|\binf\b", f.error) is not None
    )
    if not broke and not holes:
        return None
    at = int(holes[0]) if holes else f.last + 1
    reason = (
        f.error.splitlines()[0][:200]
        if broke and f.error
        else f"the loss of step {at} is not a number"
    )
    return Notice(
        "non_finite",
        "error",
        at,
        f"Numbers stopped being finite at step {at}: {reason}",
        {"steps without a loss": len(holes)},
        None,
        f"Lower the learning rate ({_rate(f)}) or the gradient clip, and use float32 if the model runs in half precision.",
    )


def lr_too_high(f: Facts) -> Notice | None:
    """The policy left its reference by far and the reward fell with it: KL ≥ 0.3 nats/token, and 30 % of the best reward lost."""
    reward, kl = f.series("reward_mean"), f.recent("kl")
    if len(reward) < 6 or not kl or max(kl) < 0.3:
        return None
    best, now = max(mean(reward[i : i + 2]) for i in range(len(reward) - 1)), mean(reward[-5:])
    if best - now < max(0.3 * abs(best), 0.1 * f.highest):
        return None
    return Notice(
        "lr_too_high",
        "error",
        f.last,
        f"The reward fell from {short(best)} to {short(now)} while the policy ran {short(max(kl))} nats a token away from its reference: the steps are too large.",
        {
            "best reward": round(best, 4),
            "reward now": round(now, 4),
            "kl": round(max(kl), 4),
            "kl threshold": 0.3,
        },
        f.groups[0].id if f.groups else None,
        f"Divide the learning rate ({_rate(f)}) by 10 and start again; a larger KL coefficient or smaller gradient clip only slows it.",
    )


def lr_too_low(f: Facts) -> Notice | None:
    """Groups teach, but after 20 steps past warm-up the policy has hardly moved (KL < 3e-5 nats/token) and the reward has not."""
    kl = f.recent("kl", 5)
    if (
        f.last < 20 + (f.setting("train.warmup_steps") or 0)
        or not kl
        or f.setting("algorithm.ref_every")
        or f.setting("algorithm.objective") == "trust_region"
    ):
        return None
    moved, dead = mean(kl), mean(f.series("tied_group_frac"))
    rose, errors = gain(f.first("reward_mean"), f.recent("reward_mean", 10))
    if moved >= 3e-5 or dead > 0.8 or errors >= 3:
        return None
    return Notice(
        "lr_too_low",
        "warning",
        f.last,
        f"{percent(1 - dead)} of the groups have something to teach, yet after {f.last} steps the policy is only {short(moved)} nats a token from where it began.",
        {
            "kl": moved,
            "kl threshold": 3e-5,
            "informative groups": round(1 - dead, 3),
            "reward change": round(rose, 4),
        },
        f.example("healthy", "graded"),
        f"Raise the learning rate ({_rate(f)}) tenfold. In bfloat16 small updates are rounded away: use float32.",
    )


def truncation(f: Facts) -> Notice | None:
    """Many completions are cut at the limit (20 % over the last 20 steps), or at first (30 %) when the model then learned to be brief instead."""
    now, began = mean(f.recent("truncated_frac")), mean(f.first("truncated_frac", 5))
    if f.last < 3 or (now <= 0.2 and not (began > 0.3 and f.last <= 100)):
        return None
    cut, whole = _rewards(f, "length"), _rewards(f, "stop")
    limit = f.setting("train.max_new_tokens")
    apart = (
        f" Cut ones earn {short(mean(cut))}, whole ones {short(mean(whole))}."
        if cut and whole
        else ""
    )
    brief = (
        f" At first it was {percent(began)}: the model learns to be brief rather than right."
        if began > now + 0.1
        else ""
    )
    return Notice(
        "truncation",
        "warning",
        f.last,
        f"{percent(now)} of the completions are cut at {limit} tokens before they end.{apart}{brief}",
        {"truncated now": round(now, 3), "truncated at first": round(began, 3), "threshold": 0.2},
        f.example("truncated") or _with_cut(f),
        f"Raise Max new tokens above {limit}; if it must stay, mask truncated completions, or add a length criterion that fades early.",
    )


def end_token(f: Facts) -> Notice | None:
    """Completions run to the limit although they had finished: 9 in 10 are cut, and half of those hold an end of turn, or text after the answer."""
    cut = [r for g in f.groups for r in g.rollouts if r.finish_reason == "length"]
    share = mean(f.recent("truncated_frac"))
    if not cut or share < 0.9:
        return None
    ended = [r for r in cut if END_OF_TURN.search(r.text)]
    if len(ended) < 0.5 * len(cut):
        return None
    return Notice(
        "end_token",
        "error",
        f.last,
        f"{percent(share)} of the completions reach the token limit, but {len(ended)} of {len(cut)} had already finished: "
        "the token that ends a turn does not stop generation.",
        {
            "truncated": round(share, 3),
            "finished and went on": round(len(ended) / len(cut), 3),
            "threshold": 0.5,
        },
        ended[0].group_id,
        "Check that the chat template's end-of-turn token is among the model's end tokens (generation_config.json, eos_token_id).",
    )


def flat_reward(f: Facts) -> Notice | None:
    """No advantage differs from 0 for five steps or more, and not because everything is right."""
    recent = f.recent("advantage_std", 5)
    if (
        len(recent) < 5
        or max(recent) > TIE_TOLERANCE
        or f.setting("algorithm.advantage") == "value"
    ):
        return None
    right = mean(f.recent(f.right, 5)) if f.right else None
    if right is not None and right > 0.99:
        return None
    rollouts = [r for g in f.groups for r in g.rollouts]
    cut = mean([r.finish_reason == "length" for r in rollouts])
    copies = mean(f.recent("unique_frac", 5)) <= 1.5 / (f.setting("train.group_size") or 8)
    why, advice = "", "Add a criterion that tells these completions apart."
    if (f.setting("train.temperature") or 1.0) < 0.1 or copies:
        why, advice = (
            "all siblings are copies of each other",
            f"Raise the temperature ({f.setting('train.temperature')}); 1 is usual.",
        )
    elif cut > 0.95:
        why, advice = (
            "every completion is cut at the token limit",
            f"Raise Max new tokens ({f.setting('train.max_new_tokens')}).",
        )
    elif (
        rollouts
        and not any("<answer>" in r.text for r in rollouts)
        and any(c.get("check") == "accuracy" for c in f.criteria)
    ):
        why, advice = (
            "no completion has an <answer> tag, so nothing could be graded",
            f"Ask for it in the template. The newest completion begins: {rollouts[0].text[:80]!r}",
        )
    elif right == 0:
        gated = (
            " and the outcome gate keeps the smaller criteria out"
            if f.setting("rubric.gate")
            else ""
        )
        why, advice = (
            f"nobody reaches {f.outcome}{gated}: the prompts are too hard",
            "Choose easier prompts or a stronger model, or raise the group size so that somebody is right sometimes.",
        )
    return Notice(
        "flat_reward",
        "error",
        f.last,
        f"For {len(recent)} steps no completion had an advantage"
        + (f": {why}." if why else ": all rewards are equal."),
        {
            "spread of advantages": max(recent),
            "threshold": TIE_TOLERANCE,
            "reward": round(mean(f.recent("reward_mean", 5)), 4),
        },
        f.groups[0].id if f.groups else None,
        advice,
    )


def dead_groups(f: Facts) -> Notice | None:
    """Half of the groups tie over the last 20 steps (10 at least), and not because the run has learned its task.

    Told with what chance predicts: p^G + (1 − p)^G of the groups are all right or all wrong when a completion is right with probability p.
    """
    recent = f.recent("tied_group_frac")
    dead = mean(recent)
    if len(recent) < 10 or dead < 0.5:
        return None
    size, p = int(f.setting("train.group_size") or 8), mean(f.recent(f.right)) if f.right else None
    best, worst = mean(f.recent("tied_best_frac")), mean(f.recent("tied_worst_frac"))
    if (
        p is not None
        and best > 0.5 * dead
        and mean(f.recent(f.right, 10)) - mean(f.first(f.right, 5)) > 0.1
    ):
        return None  # solved: that is what success looks like
    evidence = {
        "tied": round(dead, 3),
        "threshold": 0.5,
        "all right": round(best, 3),
        "all wrong": round(worst, 3),
    }
    said, advice = (
        "",
        "Add a criterion that tells these completions apart, or choose other prompts.",
    )
    if p is not None and 0 < p < 1 and best + worst > 0.5 * dead:
        expected = chance_of_tie(p, size)
        enough = next(
            (g for g in (4, 8, 16, 32, 64) if g > size and chance_of_tie(p, g) < 0.3), None
        )
        evidence |= {"right": round(p, 3), "expected": round(expected, 3)}
        said = f" At {percent(p)} right and {size} completions a prompt, chance alone ties {percent(expected)}."
        if p > 0.8:
            advice = "These prompts are too easy for this model: choose harder ones, or switch dynamic sampling on."
        elif enough:
            advice = f"Raise the group size: with {enough} completions {percent(chance_of_tie(p, enough))} would tie."
        else:
            advice = "These prompts are too hard for this model: choose easier ones, or switch dynamic sampling on."
    kinds = [
        f"{percent(share)} all {word}"
        for share, word in ((best, "right"), (worst, "wrong"))
        if share >= 0.01
    ]
    return Notice(
        "dead_groups",
        "warning",
        f.last,
        f"{percent(dead)} of the groups teach nothing, because all their rewards are equal"
        + (f" ({', '.join(kinds)})" if kinds else "")
        + f".{said}",
        evidence,
        f.example(*_most((best, "all_right"), (worst, "all_wrong"), (dead - best - worst, "tied"))),
        advice,
    )


def chance_of_tie(p: float, size: int) -> float:
    """p^G + (1 − p)^G: all right or all wrong."""
    return p**size + (1 - p) ** size


def phantom(f: Facts) -> Notice | None:
    """Of the groups that teach over the newest 64, a third or more (five at least) have nobody right: noise in the small criteria at full size."""
    teaching = [
        g
        for g in f.groups
        if g.verdict not in ("all_right", "all_wrong", "tied", "gated", "unscored")
    ]
    ghosts = [g for g in teaching if g.verdict == "phantom"]
    if len(ghosts) < 5 or len(ghosts) < 0.33 * len(teaching):
        return None
    spread = mean(
        [
            max(known) - min(known)
            for g in ghosts
            if (known := [r.reward for r in g.rollouts if r.reward is not None])
        ]
    )
    return Notice(
        "phantom",
        "warning",
        f.last,
        f"In {len(ghosts)} of the {len(teaching)} newest groups that teach anything nobody reached {f.outcome}: differences of "
        f"{short(spread)} in the smaller criteria are scaled to full size, so the policy follows noise.",
        {
            "phantom groups": round(len(ghosts) / len(teaching), 3),
            "threshold": 0.33,
            "mean spread": round(spread, 4),
        },
        ghosts[0].id,
        "Switch on Outcome gate under Rubric: the smaller criteria then count only where somebody was right. Or choose easier prompts.",
    )


def hacking(f: Facts) -> Notice | None:
    """The reward is up, or near its highest, and what it should stand for is not.

    Up: 5 % of the highest reward and 3 standard errors above the start. What it should stand for: the outcome, watched (weight 0) criteria,
    held-out accuracy; "not up": within the first evaluation's 95 % interval and no 2 standard errors for held-out and outcome, a fall of 0.05 and
    3 errors for the others.
    """
    before, after = f.first("reward_mean"), f.recent("reward_mean", 10)
    if f.last < 2 * len(before) or f.last < 20:
        return None
    rose, errors = gain(before, after)
    up = rose > 0.05 * f.highest and errors > 3
    stuck = _not_following(f)
    name = next(iter(stuck), None)
    near_top = (
        mean(after) > 0.85 * f.highest
        and name is not None
        and f.weights.get(f.outcome or "", 1.0) == 0
        and stuck[name][1] < 0.5
    )
    if name is None or not (up or near_top):
        return None
    was, now = stuck[name]
    said = (
        f"The reward rose from {short(mean(before))} to {short(mean(after))}"
        if up
        else f"The reward is at {percent(mean(after) / f.highest)} of its highest"
    )
    top = max(
        (r for g in f.groups for r in g.rollouts if r.reward is not None),
        key=lambda r: r.reward,
        default=None,
    )
    return Notice(
        "hacking",
        "warning",
        f.last,
        f"{said}, but {name} went from {short(was)} to {short(now)}: the rubric pays for something else.",
        {
            "reward change": round(rose, 4),
            "standard errors": round(errors, 1),
            f"{name} before": round(was, 4),
            f"{name} now": round(now, 4),
        },
        top.group_id if top else None,
        "Read the best-paid completions of this group, then take weight from the criterion that they satisfy, or give weight to "
        f"{name.removeprefix('held-out ')}.",
    )


def _not_following(f: Facts) -> dict[str, tuple[float, float]]:
    """Name -> before and now, of what did not go up with the reward; the worst first."""
    out: dict[str, tuple[float, float]] = {}
    held, high = f.series("heldout/accuracy"), f.series("heldout/accuracy_high")
    outcome_rose = f.right is not None and gain(f.first(f.right), f.recent(f.right, 10))[1] > 2
    if len(held) >= 2 and high and held[-1] <= high[0] and not outcome_rose:
        out["held-out accuracy"] = held[0], held[-1]
    for name, weight in f.weights.items():
        before, after = f.first(f"score/{name}"), f.recent(f"score/{name}", 10)
        change, errors = gain(before, after)
        if (name == f.outcome and not outcome_rose and mean(after) < 0.9 and len(held) < 2) or (
            name != f.outcome and weight == 0 and change < -0.05 and errors < -3
        ):
            out[name] = mean(before), mean(after)
    return dict(sorted(out.items(), key=lambda item: item[1][1] - item[1][0]))


def _rate(f: Facts) -> str:
    used = f.recent("learning_rate", 1)
    return short(used[0]) if used else "automatic"


def _rewards(f: Facts, reason: str) -> list[float]:
    return [
        r.reward
        for g in f.groups
        for r in g.rollouts
        if r.finish_reason == reason and r.reward is not None
    ]


def _with_cut(f: Facts) -> int | None:
    return next(
        (g.id for g in f.groups if any(r.finish_reason == "length" for r in g.rollouts)), None
    )


def _most(*shares: tuple[float, str]) -> tuple[str, ...]:
    """Verdicts, the most frequent first."""
    return tuple(v for _, v in sorted(shares, reverse=True))[:1]
