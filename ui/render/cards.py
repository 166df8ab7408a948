"""A group as a person reads it: the prompt, the arithmetic, and its completions as cards. Rows -> escaped HTML; pure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from grpo_core.config.options import ADVANTAGES, GROUPINGS
from grpo_core.rubric.verdict import VERDICTS, explain, variance_shares
from grpo_core.store import GroupRow, RolloutRow
from ui.render.text import digits_apart, esc, format_number, is_number, plain, signed

# estimator -> its formula with one completion's numbers in it, where the group's own rewards are all it takes.
WORKED: dict[str, str] = {
    "group_std": "({r} − {mean})/({std} + 1e-4) = {a}",
    "group_mean": "{r} − {mean} = {a}",
    "leave_one_out": "{r} − {siblings} = {a}",
}

# Which verdicts are good news, and which ask for a look. The rest is neutral. Tone is only a second signal: the label says it.
TONES = {
    "healthy": "good",
    "graded": "good",
    "polish": "good",
    "phantom": "warn",
    "truncated": "warn",
    "unscored": "warn",
    "dominated": "warn",
}

LONG_CHARS = 300  # where most completions are longer, cards get more lines: all the same number, so that nothing moves from group to group
LONG = re.compile(
    r"(?s).{240}|(?:[^\n]*\n){5}"
)  # a text that scrolls in its card, so the keyboard must reach it


def criteria_of(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rubric's criteria as recorded with the run: name, weight, outcome."""
    return [
        dict(c)
        for c in (config.get("rubric") or {}).get("criteria") or []
        if isinstance(c, Mapping) and "name" in c
    ]


def estimator_of(config: Mapping[str, Any]) -> str:
    return str((config.get("algorithm") or {}).get("advantage", "group_std"))


def compared_otherwise(config: Mapping[str, Any]) -> str:
    """What stands between a group's rewards and its advantages beside the estimator; empty if nothing does."""
    rubric, grouping = (
        config.get("rubric") or {},
        str((config.get("algorithm") or {}).get("grouping", "prompt")),
    )
    over = (
        ""
        if grouping == "prompt" or grouping not in GROUPINGS
        else f", {GROUPINGS[grouping].formula}"
    )
    parts = [
        word
        for name, word in (
            ("gate", "gate"),
            ("scale", "scale"),
            ("clip_low", "clip"),
            ("clip_high", "clip"),
        )
        if rubric.get(name) not in (None, False)
    ]
    return over + (f", r after {' and '.join(dict.fromkeys(parts))}" if parts else "")


def highest_reward(config: Mapping[str, Any]) -> float:
    """The reward of a completion with every score at 1: the full length of a reward bar."""
    return sum(float(c.get("weight") or 0) for c in criteria_of(config)) or 1.0


def advantage_scale(config: Mapping[str, Any], group_size: int) -> float:
    """The advantage that fills a bar.

    Fixed for a run, so that bars of different groups can be compared: the largest value the estimator can give, but at most 3.
    In a group of G the largest (r − mean)/std is (G − 1)/√G, when one completion stands against all others.
    """
    if estimator_of(config) == "value":
        return 3.0  # whitened over the step's tokens: nothing bounds it, and a mean over tokens beyond 3 deviations is rare
    if estimator_of(config) in ("group_std", "batch_std", "rank", "per_criterion"):
        return min(3.0, max(1.0, (group_size - 1) / math.sqrt(max(1, group_size))))
    return min(3.0, highest_reward(config))


def verdict_pill(code: str) -> str:
    label = VERDICTS.get(code, (code, ""))[0]
    return f'<span class="verdict {TONES.get(code, "plain")}">{esc(label)}</span>'


def verdict_sentence(group: GroupRow, config: Mapping[str, Any]) -> str:
    """What can be learned from the group, with its own numbers."""
    if group.verdict not in VERDICTS:
        return ""
    outcome = next((c["name"] for c in criteria_of(config) if c.get("outcome")), None)
    outcomes = [r.scores.get(outcome) for r in group.rollouts] if outcome else []
    return explain(
        group.verdict,
        [r.reward for r in group.rollouts],
        outcomes,
        [r.finish_reason for r in group.rollouts],
        shares_of(group, config),
        compared_beyond_the_prompt(config),
    )


def compared_beyond_the_prompt(config: Mapping[str, Any]) -> str:
    """What completions are compared with, where that is not the siblings of their prompt alone: then a tied group may teach. Empty where it cannot."""
    if estimator_of(config) == "value":
        return "what a critic foresaw"
    grouping = str((config.get("algorithm") or {}).get("grouping", "prompt"))
    return (
        ""
        if grouping == "prompt" or grouping not in GROUPINGS
        else GROUPINGS[grouping].formula.removeprefix("over ")
    )


def shares_of(group: GroupRow, config: Mapping[str, Any]) -> dict[str, float]:
    """Each criterion's share of what tells the siblings apart."""
    weights = {str(c["name"]): float(c.get("weight") or 0) for c in criteria_of(config)}
    return variance_shares([r.scores for r in group.rollouts], weights)


def in_order(rollouts: Sequence[RolloutRow], order: str) -> list[RolloutRow]:
    """Best advantage first, ties by position; or as sampled."""
    if order == "sampled":
        return sorted(rollouts, key=lambda r: r.position)
    return sorted(
        rollouts,
        key=lambda r: (
            -(r.advantage if is_number(r.advantage) else 0.0),
            -_known(r.reward),
            r.position,
        ),
    )


def _known(value: float | None) -> float:
    return value if is_number(value) else -math.inf


def group_view(
    group: GroupRow, num_groups: int, config: Mapping[str, Any], order: str = "best"
) -> str:
    """The whole panel of the Train tab: the arithmetic in a line, and every completion."""
    rollouts = in_order(group.rollouts, order)
    return f"{group_head(group, num_groups, order)}{arithmetic(group, rollouts, config)}{card_grid(group, rollouts, config)}"


def card_grid(group: GroupRow, rollouts: Sequence[RolloutRow], config: Mapping[str, Any]) -> str:
    scale = advantage_scale(config, len(rollouts))
    cards = "".join(completion_card(r, config, scale, _digits(group)) for r in rollouts)
    long = " long" if sum(len(r.text) > LONG_CHARS for r in rollouts) * 2 > len(rollouts) else ""
    return f'<div class="cards{long}">{cards}</div>'


def group_head(group: GroupRow, num_groups: int, order: str) -> str:
    """Prompt, place and the arrows. The buttons carry `data-do`, which panel.py turns into events."""
    answer = (
        f'<span class="fact">answer <b>{esc(group.answer)}</b></span>' if group.answer != "" else ""
    )
    other, label = ("sampled", "Best first") if order == "best" else ("best", "As sampled")
    return (
        f'<div class="group-head"><pre class="prompt" aria-label="Prompt">\n{esc(group.prompt)}</pre>{answer}'
        f'<span class="fact">step <b>{group.step:,}</b> · group <b>{group.position + 1}</b> of {num_groups}</span>'
        f'<span class="tools"><button type="button" class="icon" data-do="walk" data-by="-1" data-groups="{num_groups}" aria-label="Previous group">‹</button>'
        f'<button type="button" class="icon" data-do="walk" data-by="1" data-groups="{num_groups}" aria-label="Next group">›</button>'
        f'<button type="button" data-do="order" data-order="{other}" aria-label="Order of completions: {label}. Change">{label}</button>'
        '<button type="button" data-toggle="texts" aria-pressed="false">Full texts</button></span></div>'
    )


def arithmetic(group: GroupRow, rollouts: Sequence[RolloutRow], config: Mapping[str, Any]) -> str:
    """rewards → mean, std → A, with this group's numbers, and the verdict in one sentence."""
    digits = _digits(group)
    rewards = " ".join(
        format_number(r.reward, digits) if is_number(r.reward) else "null" for r in rollouts
    )
    return (
        f'<div class="sum"><span>rewards <code>{rewards}</code></span><span>mean <code>{format_number(group.reward_mean, digits + 1)}</code></span>'
        f"<span>std <code>{format_number(group.reward_std, digits + 1)}</code></span>"
        f'<span class="formula-inline"><code>{esc(_formula(group, rollouts, config))}</code></span></div>'
        f'<div class="says">{verdict_pill(group.verdict)}<span>{esc(verdict_sentence(group, config))}</span></div>'
    )


def _formula(group: GroupRow, rollouts: Sequence[RolloutRow], config: Mapping[str, Any]) -> str:
    """The estimator's formula and, for the best completion, the same with numbers: A = (1.60 − 0.850)/(0.598 + 1e-4) = +1.25."""
    name = estimator_of(config)
    if name not in ADVANTAGES:
        return ""
    chosen = config.get("algorithm") or {}
    formula = "A = " + re.sub(
        r"\{(\w+)\}", lambda field: str(chosen.get(field[1], "?")), ADVANTAGES[name].formula
    )
    worked = WORKED.get(name)
    if worked is None or compared_otherwise(config):
        return formula + compared_otherwise(config)
    best = next((r for r in rollouts if is_number(r.reward) and is_number(r.advantage)), None)
    scored = [r.reward for r in rollouts if is_number(r.reward)]
    if best is None or len(scored) < 2:
        return formula
    digits = _digits(group)
    return f"{formula} = " + worked.format(
        r=format_number(best.reward, digits),
        mean=format_number(group.reward_mean, digits + 1),
        std=format_number(group.reward_std, digits + 1),
        siblings=format_number((sum(scored) - best.reward) / (len(scored) - 1), digits + 1),
        a=signed(best.advantage),
    )


def why_table(
    group: GroupRow,
    rollouts: Sequence[RolloutRow],
    config: Mapping[str, Any],
    gradient: Mapping[int, float] | None = None,
) -> str:
    """Scores, reward and advantage as rows of one table, equal completions in one row: where an advantage comes from, and how much it moves.

    gradient: rollout id -> its share of the step's gradient weight, what masks took away taken away.
    """
    masked = bool((config.get("algorithm") or {}).get("mask_truncated"))
    criteria = criteria_of(config) or [
        {"name": name, "weight": None} for name in (rollouts[0].scores if rollouts else ())
    ]
    digits = _digits(group)
    head = "".join(
        f'<th scope="col">{esc(c["name"])}{_times(c.get("weight"))}</th>' for c in criteria
    )
    body = "".join(
        f'<tr><th scope="row">{_places(same)}</th>'
        + "".join(f"<td>{_score(r.scores.get(c['name']))}</td>" for c in criteria)
        + f'<td>{format_number(r.reward, digits) if is_number(r.reward) else "null"}</td><td class="{_side(r.advantage)}"><b>{signed(r.advantage, 3)}</b></td>'
        + (
            f"<td>{_share(sum(gradient.get(x.id, 0.0) for x in same))}</td>"
            if gradient is not None
            else ""
        )
        + "</tr>"
        for same in alike(rollouts)
        if (r := same[0])
    )
    moved = (
        '<th scope="col" title="share of the step’s gradient weight">gradient</th>'
        if gradient is not None
        else ""
    )
    cut = sum(r.finish_reason == "length" for r in rollouts) if masked else 0
    extra = (
        f"<span>share of this step’s gradient <b>{_share(sum(gradient.get(r.id, 0.0) for r in rollouts))}</b></span>"
        if gradient is not None
        else ""
    )
    extra += f"<span><b>{cut}</b> masked, cut at the limit</span>" if cut else ""
    total = sum(r.advantage for r in rollouts if is_number(r.advantage))
    return (
        f'<div class="says">{verdict_pill(group.verdict)}<span>{esc(verdict_sentence(group, config))}</span></div>'
        f'<h2>Why these advantages</h2><div class="scroll" tabindex="0" role="region" aria-label="Scores, reward and advantage of every completion"><table class="why"><thead><tr><th scope="col"><span class="sr">completion</span></th>{head}'
        f'<th scope="col">reward</th><th scope="col">A</th>{moved}</tr></thead><tbody>{body}</tbody></table></div>'
        f'<p class="calc"><code>{esc(_formula(group, rollouts, config))}</code>'
        f"<span>mean <b>{format_number(group.reward_mean, digits + 1)}</b></span><span>std <b>{format_number(group.reward_std, digits + 1)}</b></span>"
        f"<span>sum of A <b>{signed(total)}</b></span>{extra}</p>"
    )


def _share(value: float) -> str:
    return "0" if value == 0 else f"{100 * value:.1f} %"


def alike(rollouts: Sequence[RolloutRow]) -> list[list[RolloutRow]]:
    """Completions with the same scores, reward and advantage, together: they are one line of arithmetic."""
    found: dict[Any, list[RolloutRow]] = {}
    for r in rollouts:
        found.setdefault((tuple(sorted(r.scores.items())), r.reward, r.advantage), []).append(r)
    return list(found.values())


def _places(rollouts: Sequence[RolloutRow]) -> str:
    """#1, #4–#6: neighbours as a range."""
    spans: list[list[int]] = []
    for n in sorted(r.position + 1 for r in rollouts):
        if spans and n == spans[-1][1] + 1:
            spans[-1][1] = n
        else:
            spans.append([n, n])
    return ", ".join(
        f"#{a}" if a == b else f"#{a}, #{b}" if b == a + 1 else f"#{a}–#{b}" for a, b in spans
    )


def completion_card(
    rollout: RolloutRow, config: Mapping[str, Any], scale: float, digits: int = 2
) -> str:
    """One completion: its advantage as sign, number and bar; what was written; where its reward comes from."""
    weights = {c["name"]: c.get("weight") for c in criteria_of(config)}
    names = [
        *[n for n in weights if n in rollout.scores],
        *[n for n in rollout.scores if n not in weights],
    ]
    scores = "".join(
        f'<span class="score">{esc(name)} <b>{_score(rollout.scores[name])}</b>{_times(weights.get(name))}</span>'
        for name in names
    )
    reward = (
        f"<b>{format_number(rollout.reward, digits)}</b>"
        if is_number(rollout.reward)
        else "<b>could not be scored</b>"
    )
    share = min(1.0, abs(rollout.advantage) / scale) if is_number(rollout.advantage) else 0.0
    text = (
        f"<pre{_reachable(rollout)}>\n{esc(rollout.text)}</pre>"
        if rollout.text
        else '<pre class="nothing">(empty)</pre>'
    )
    ended = (
        "cut at the limit"
        if rollout.finish_reason == "length"
        else "ended"
        if rollout.finish_reason == "stop"
        else esc(rollout.finish_reason)
    )
    edited = '<span class="score edited">edited</span>' if rollout.edited else ""
    return (
        f'<article class="card {_side(rollout.advantage)}" aria-label="Completion {rollout.position + 1}">'
        f'<div class="adv"><b title="advantage">{signed(rollout.advantage)}</b><span class="axis" aria-hidden="true"><i style="--part:{share:.3f}"></i></span>'
        f'<span class="place">#{rollout.position + 1}</span></div>{text}'
        f'<div class="scores"><span class="score total">reward {reward}</span>{scores}{edited}'
        f'<span class="score end">{ended} · {rollout.num_tokens:,} tok</span></div></article>'
    )


def _reachable(rollout: RolloutRow) -> str:
    if not LONG.match(rollout.text):
        return ""
    return f' tabindex="0" role="region" aria-label="Text of completion {rollout.position + 1}"'


def _side(advantage: float | None) -> str:
    if not is_number(advantage) or abs(advantage) < 5e-7:
        return "zero"
    return "up" if advantage > 0 else "down"


def _score(value: float | None) -> str:
    return plain(round(value, 3)) if is_number(value) else '<i class="null">could not be scored</i>'


def _times(weight: float | None) -> str:
    return f'<i class="times">×{plain(float(weight))}</i>' if is_number(weight) else ""


def _digits(group: GroupRow) -> int:
    return digits_apart([r.reward for r in group.rollouts])
