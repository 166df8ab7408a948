"""A group as a person reads it: prompt, arithmetic, and completions as cards.

Rows -> escaped HTML; pure.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from grpo_core.store import GroupRow, RolloutRow
from ui.render import provenance
from ui.render.arithmetic import (
    arithmetic,
    one_formula,
    reward_digits,
    score_text,
    side_of,
    times_weight,
)
from ui.render.recorded_config import Config, advantage_scale, criteria_of
from ui.render.siblings import (
    MANY,
    Cause,
    cause_of,
    histogram,
    marked_texts,
    merge_equal,
    positions,
)
from ui.render.text import esc, format_number, is_number, signed, whole
from ui.render.turns import body, has_calls, num_turns, observed, texts_of

# If most completions are longer, all cards get more lines. All have the same number of lines, so
# that nothing moves when another group is shown.
LONG_CHARS = 300
# A text that scrolls in its card; the keyboard must be able to reach it.
LONG = re.compile(r"(?s).{240}|(?:[^\n]*\n){5}")
ONE_ROW = 4  # cards that stand beside each other on a wide screen
ENDS = {"length": "cut at the limit", "stop": "ended"}


def in_order(rollouts: Sequence[RolloutRow], order: str) -> list[RolloutRow]:
    """Best advantage first, ties by reward and position; or as sampled."""
    if order == "sampled":
        return sorted(rollouts, key=lambda r: r.position)

    def rank(r: RolloutRow) -> tuple[float, float, int]:
        advantage = r.advantage if is_number(r.advantage) else 0.0
        reward = r.reward if is_number(r.reward) else -math.inf
        return -advantage, -reward, r.position

    return sorted(rollouts, key=rank)


def group_view(group: GroupRow, num_groups: int, config: Config, order: str = "best") -> str:
    """The group on the Train tab: prompt, arithmetic and every distinct completion."""
    rollouts = in_order(group.rollouts, order)
    head = group_head(group, num_groups, order) + provenance.of_config(config)
    head += arithmetic(group, rollouts[0] if rollouts else None, config)
    chart = histogram(group) if len(rollouts) > MANY else ""
    return f"{head}{chart}{card_grid(group, rollouts, config, choose=True)}"


def group_head(group: GroupRow, num_groups: int, order: str) -> str:
    """Prompt, position and buttons. html_panel.py turns a button's `data-do` into an event."""
    answer = ""
    if group.answer != "":
        whole = esc(group.answer)
        answer = f'<span class="fact cut" title="{whole}">answer <b>{whole}</b></span>'
    is_best_first = order == "best"
    other = "sampled" if is_best_first else "best"
    scrolls = ' tabindex="0" role="region"' if LONG.match(group.prompt) else ""
    walk = f'<button type="button" class="icon" data-do="walk" data-groups="{num_groups}"'
    return (
        '<div class="group-head">'
        f'<pre class="prompt" aria-label="Prompt"{scrolls}>\n{esc(group.prompt)}</pre>{answer}'
        f'<span class="fact">step <b>{group.step:,}</b> · '
        f"group <b>{group.position + 1}</b> of {num_groups}</span>"
        f'<span class="tools">{walk} data-by="-1" aria-label="Previous group">‹</button>'
        f'{walk} data-by="1" aria-label="Next group">›</button>'
        f'<button type="button" data-do="order" data-order="{other}" '
        f'aria-pressed="{str(is_best_first).lower()}" '
        'title="Off: in the order in which they were sampled">Best first</button>'
        '<button type="button" data-toggle="texts" aria-pressed="false">Full texts</button>'
        "</span></div>"
    )


def card_grid(
    group: GroupRow, rollouts: Sequence[RolloutRow], config: Config, choose: bool = False
) -> str:
    """A card for each distinct completion; words that differ from the best one are marked.

    choose: a press on a card puts its arithmetic into the formula line; group.js does it.
    """
    scale = advantage_scale(config, len(rollouts))
    digits = reward_digits(group)
    merged = merge_equal(rollouts)
    texts = []
    if merged:
        best = in_order(group.rollouts, "best")[0]
        texts = marked_texts([equal[0] for equal in merged], best)
    cards = ""
    for i, (equal, marked) in enumerate(zip(merged, texts, strict=True)):
        formula, cause = "", None
        if choose:
            formula = one_formula(group, equal[0], config)
            cause = cause_of(group, equal[0], config)
        more = Extras(equal, marked, formula, cause, choose and i == 0)
        cards += completion_card(equal[0], config, scale, digits, more)
    lengths = [len(equal[0].text) > LONG_CHARS for equal in merged]
    long = " long" if sum(lengths) * 2 > len(lengths) else ""
    few = " few" if len(group.rollouts) <= ONE_ROW else ""
    return f'<div class="cards{long}{few}">{cards}</div>'


@dataclass(frozen=True, slots=True)
class Extras:
    """What a card shows because of its siblings.

    equal: the completions that share the card. texts: of its turns, HTML with marks. formula: HTML,
    shown in the formula line while the card is chosen. cause: the criterion to mark then.
    """

    equal: Sequence[RolloutRow] = ()
    texts: Sequence[str] | None = None
    formula: str = ""
    cause: Cause | None = None
    chosen: bool = False


def completion_card(
    rollout: RolloutRow, config: Config, scale: float, digits: int = 2, more: Extras | None = None
) -> str:
    """One completion: its advantage as sign, number and bar; its text; its reward and scores.

    scale: the advantage that fills the bar. digits: decimals of the reward.
    """
    more = more or Extras()
    share = min(1.0, abs(rollout.advantage) / scale) if is_number(rollout.advantage) else 0.0
    reward = provenance.absent(config, "reward") or "could not be scored"
    if is_number(rollout.reward):
        reward = format_number(rollout.reward, digits)
    made = esc(provenance.title_of(config, "advantage", rollout.advantage))
    edited = '<span class="score edited">edited</span>' if rollout.edited else ""
    number = rollout.position + 1
    times = ""
    if len(more.equal) > 1:
        title = f"{len(more.equal)} equal completions: {positions(more.equal)}"
        times = f'<b class="count" title="{title}">×{len(more.equal)}</b>'
    choice = mine = ""
    if more.formula:
        current = ' aria-current="true"' if more.chosen else ""
        choice = f' tabindex="0" data-card="{number}"{current}'
        mine = f'<div class="mine" hidden>{more.formula}</div>'
    place = f"#{number}" + (" …" if times else "")
    return (
        f'<article class="card {side_of(rollout.advantage)}" aria-label="Completion {number}"'
        f'{choice}><div class="adv"><b title="{made}">{signed(rollout.advantage)}</b>'
        f'<span class="axis" aria-hidden="true"><i style="--part:{share:.3f}"></i></span>{times}'
        f'<span class="place">{place}</span></div>{_text(rollout, more)}'
        f'<div class="scores"><span class="score total">reward <b>{reward}</b></span>'
        f"{_scores(rollout, config, more.cause)}{edited}"
        f"{_end(rollout, config)}</div>{mine}</article>"
    )


def _end(rollout: RolloutRow, config: Config) -> str:
    """How it ended, and how many tokens the policy wrote; another trainer may have said neither."""
    ended = provenance.unknown(config, "finish_reason")
    if rollout.finish_reason is not None:
        ended = ENDS.get(rollout.finish_reason, esc(rollout.finish_reason))
    own = whole(rollout.num_tokens)
    tokens = provenance.unknown(config, "token_ids") if rollout.num_tokens is None else own
    said = f"{ended} · {tokens} tok"
    if not has_calls(rollout):
        return f'<span class="score end">{said}</span>'
    title, num_read = "", len(observed(rollout.turns))
    if num_read:
        title = f' title="The policy wrote {own} tokens; it read {num_read:,}."'
    return f'<span class="score end"{title}>{num_turns(rollout)} · {said}</span>'


def _text(rollout: RolloutRow, more: Extras) -> str:
    texts = [esc(text) for text in texts_of(rollout)] if more.texts is None else more.texts
    label = f"Text of completion {rollout.position + 1}"
    if rollout.text and not (has_calls(rollout) or LONG.match(rollout.text)):
        return f"<pre>\n{texts[0]}</pre>"
    return body(more.equal or [rollout], texts, label)


def _scores(rollout: RolloutRow, config: Config, cause: Cause | None) -> str:
    """The scores with their weights, in the rubric's order; unknown criteria last."""
    weights = {c["name"]: c.get("weight") for c in criteria_of(config)}
    names = [name for name in weights if name in rollout.scores]
    names += [name for name in rollout.scores if name not in weights]
    marks = {cause.name: "earned" if cause.effect > 0 else "cost"} if cause else {}
    return "".join(
        f'<span class="score {marks.get(name, "")}">{esc(name)} '
        f"<b>{score_text(rollout.scores[name])}</b>{times_weight(weights.get(name))}</span>"
        for name in names
    )
