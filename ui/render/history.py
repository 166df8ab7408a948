"""One prompt through time, in two runs, and the best beside the worst. Rows -> escaped HTML; pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher

from grpo_core.store import GroupRow, RolloutRow, RunRow
from ui.render.cards import verdict_pill
from ui.render.text import count, esc, format_number, is_number, percent, signed

WORD = re.compile(r"\s+|\w+|[^\w\s]")
MAX_WORDS = 1500  # compared; the rest of a longer text is shown as it is


def best_and_worst(group: GroupRow) -> str:
    """The two ends of a group, with what is only in one of them marked."""
    ends = _ends(group)
    if ends is None:
        return '<div class="empty"><b>Nothing to compare</b><span>Fewer than two completions of this group could be scored.</span></div>'
    best, worst = ends
    left, right = diff(worst.text, best.text)
    return f'<div class="two">{_card(best, right, "Best")}{_card(worst, left, "Worst")}</div>{_marks()}'


def through_time(visits: Sequence[GroupRow], now: GroupRow, outcome: str | None) -> str:
    """Every visit to a prompt: how often right, the best and the worst of it, and what changed since the first."""
    if len(visits) < 2:
        return (
            '<div class="empty"><b>This prompt came up once</b><span>The task has many prompts, so most are met once. '
            "The run’s other prompts are in the table on the left.</span></div>"
        )
    rows = "".join(_visit(v, v.id == now.id, outcome) for v in visits)
    first, last = _ends(visits[0]), _ends(visits[-1])
    change = ""
    if first and last:
        left, right = diff(first[0].text, last[0].text)
        change = (
            f'<h2>Best completion, step {visits[0].step:,} and step {visits[-1].step:,}</h2><div class="two">{_card(first[0], left, f"Step {visits[0].step:,}")}'
            f"{_card(last[0], right, f'Step {visits[-1].step:,}')}</div>{_marks()}"
        )
    return (
        f'<p class="calc"><span>{count(len(visits), "visit")}</span></p><div class="scroll"><table class="list"><thead><tr><th scope="col" class="num">Step</th>'
        f'<th scope="col" class="num">Right</th><th scope="col" class="num">Mean</th><th scope="col">Best</th><th scope="col">Worst</th><th scope="col">Verdict</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>{change}"
    )


def two_runs(name: str, group: GroupRow, other: RunRow, there: GroupRow | None) -> str:
    """The same prompt in two runs: the visit of the other run that is nearest in step, best completion against best completion."""
    if there is None:
        return f'<div class="empty"><b>“{esc(other.name)}” never met this prompt</b><span>Runs of one task with the same seed meet the same prompts at the same steps.</span></div>'
    mine, theirs = _ends(group), _ends(there)
    if mine is None or theirs is None:
        return '<div class="empty"><b>Nothing to compare</b><span>In one of the runs fewer than two completions could be scored.</span></div>'
    left, right = diff(mine[0].text, theirs[0].text)
    facts = (
        f'<div class="two"><p class="calc"><span><b>{esc(name)}</b></span><span>step <b>{group.step:,}</b></span><span>mean <b>{format_number(group.reward_mean, 3)}</b></span>{verdict_pill(group.verdict)}</p>'
        f'<p class="calc"><span><b>{esc(other.name)}</b></span><span>step <b>{there.step:,}</b></span><span>mean <b>{format_number(there.reward_mean, 3)}</b></span>{verdict_pill(there.verdict)}</p></div>'
    )
    worst = diff(mine[1].text, theirs[1].text)
    return f'{facts}<div class="two">{_card(mine[0], left, "Best")}{_card(theirs[0], right, "Best")}{_card(mine[1], worst[0], "Worst")}{_card(theirs[1], worst[1], "Worst")}</div>{_marks()}'


def choose_run(runs: Sequence[tuple[str, str]], chosen: str | None) -> str:
    """runs: (label, id) of the runs that met the prompt, the one in view left out."""
    if not runs:
        return '<p class="note">No other run of this file met this prompt. Runs of one task with the same seed meet the same prompts.</p>'
    options = "".join(
        f'<option value="{esc(i)}"{" selected" if i == chosen else ""}>{esc(label)}</option>'
        for label, i in runs
    )
    return f'<form class="whatif" onsubmit="return false"><label class="knob"><span>Compare with</span><select name="other">{options}</select></label></form>'


def nearest(visits: Sequence[GroupRow], step: int) -> GroupRow | None:
    return min(visits, key=lambda v: abs(v.step - step), default=None)


def diff(before: str, after: str) -> tuple[str, str]:
    """Two texts as HTML with what only one of them has marked; word by word, in linear space, and bounded."""
    a, b = WORD.findall(before), WORD.findall(after)
    left, right = [], []
    for kind, i, j, k, m in SequenceMatcher(
        None, a[:MAX_WORDS], b[:MAX_WORDS], autojunk=len(a) > 400
    ).get_opcodes():
        old, new = esc("".join(a[i:j])), esc("".join(b[k:m]))
        left.append(old if kind == "equal" or not old else f"<del>{old}</del>")
        right.append(new if kind == "equal" or not new else f"<ins>{new}</ins>")
    return "".join(left) + esc("".join(a[MAX_WORDS:])), "".join(right) + esc("".join(b[MAX_WORDS:]))


def _ends(group: GroupRow) -> tuple[RolloutRow, RolloutRow] | None:
    """Best and worst by reward, the first sampled of equals."""
    scored = [r for r in group.rollouts if is_number(r.reward)]
    return (
        (
            max(scored, key=lambda r: (r.reward, -r.position)),
            min(scored, key=lambda r: (r.reward, r.position)),
        )
        if len(scored) > 1
        else None
    )


def _visit(group: GroupRow, here: bool, outcome: str | None) -> str:
    scores = [s for r in group.rollouts if outcome and (s := r.scores.get(outcome)) is not None]
    right = percent(sum(s >= 1 for s in scores) / len(scores)) if scores else "–"
    ends = _ends(group)
    best, worst = (esc(ends[0].text[:120]), esc(ends[1].text[:120])) if ends else ("", "")
    chosen = ' class="chosen" aria-current="true"' if here else ""
    return (
        f'<tr{chosen}><td class="num"><button type="button" class="link" data-do="open" data-at="{group.step}/{group.position}">{group.step:,}</button></td><td class="num">{right}</td>'
        f'<td class="num">{format_number(group.reward_mean)}</td><td class="excerpt"><code>{best}</code></td><td class="excerpt"><code>{worst}</code></td><td>{verdict_pill(group.verdict)}</td></tr>'
    )


def _card(rollout: RolloutRow, text: str, title: str) -> str:
    side = (
        "zero"
        if not is_number(rollout.advantage) or abs(rollout.advantage) < 5e-7
        else "up"
        if rollout.advantage > 0
        else "down"
    )
    shown = (
        f'<pre tabindex="0" role="region" aria-label="{esc(title)}, text">\n{text}</pre>'
        if text
        else '<pre class="nothing">(empty)</pre>'
    )
    return (
        f'<article class="card {side}" aria-label="{esc(title)}"><div class="adv"><b title="advantage">{signed(rollout.advantage)}</b><span class="fact">{esc(title)} · reward '
        f'<b>{format_number(rollout.reward, 3)}</b> · {rollout.num_tokens:,} tok</span><span class="place">#{rollout.position + 1}</span></div>{shown}</article>'
    )


def _marks() -> str:
    return '<p class="note">Marked words stand in one of the two texts only.</p>'
