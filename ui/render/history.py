"""A prompt over time, a prompt in two runs, and the best beside the worst completion.

Rows -> escaped HTML; pure.
"""

from __future__ import annotations

from collections.abc import Sequence

from grpo_core.store import GroupRow, PromptVisits, RolloutRow, RunRow
from ui.render.arithmetic import side_of
from ui.render.differences import marked
from ui.render.place import Place
from ui.render.status import empty
from ui.render.text import count, esc, format_number, is_number, percent, shorten, signed, whole
from ui.render.turns import body, has_calls, num_turns, texts_of
from ui.render.verdicts import verdict_pill

MAX_WORDS = 1500  # compared; the rest of a longer text is shown without marks
ONCE = "The open group’s prompt came up once. This is one that came up again."
MARKS = '<p class="note">Marked words are in only one of the two texts.</p>'


def best_and_worst(group: GroupRow) -> str:
    """The best and the worst completion of a group; words of only one of them are marked."""
    best, worst = _best(group), _worst(group)
    if best is None or worst is None:
        return empty(
            "Nothing to compare", "Fewer than two completions of this group could be scored."
        )
    left, right = diff(texts_of(worst), texts_of(best))
    return (
        f'<div class="two">{_card(best, right, "Best")}{_card(worst, left, "Worst")}</div>{MARKS}'
    )


def choose_prompt(
    group: GroupRow, prompts: Sequence[PromptVisits], chosen: str, has_own: bool
) -> str:
    """A menu of prompts that have something to show.

    chosen: the id of a prompt. has_own: the open group's prompt has something to show.
    """
    options = ""
    if has_own:
        own = "selected" if group.prompt_id == chosen else ""
        options = f'<option value="{esc(group.prompt_id)}" {own}>the open group’s</option>'
    for p in prompts:
        if p.prompt_id == group.prompt_id:
            continue
        marked = " selected" if p.prompt_id == chosen else ""
        kind = "held-out, " if p.is_heldout else ""
        text = f"{' '.join(p.prompt.split())[:60]} ({kind}{count(p.num_visits, 'visit')})"
        options += f'<option value="{esc(p.prompt_id)}"{marked}>{esc(text)}</option>'
    if not options:
        return ""
    note = "" if has_own else f'<span class="note">{ONCE}</span>'
    return (
        f'<label class="knob"><span>Prompt</span><select name="prompt">{options}</select></label>'
        f"{note}"
    )


def through_time(visits: Sequence[GroupRow], now: GroupRow, outcome: str | None) -> str:
    """Every visit to a prompt with its best and worst completion, and what changed since the first.

    outcome: the name of the criterion that decides what is right.
    """
    if len(visits) < 2:
        return empty(
            "No prompt of this run came up twice",
            "Held-out prompts come up at every evaluation. Held-out groups kept, a setting, says "
            "how many of them are recorded.",
        )
    # A held-out prompt is mostly answered once an evaluation: that answer is best and worst.
    once = all(_worst(v) is None for v in visits)
    rows = "".join(_visit(v, v.id == now.id, outcome, once) for v in visits)
    ends = ("Answer",) if once else ("Best", "Worst")
    heads = "".join(f'<th scope="col">{end}</th>' for end in ends)
    return (
        f'<p class="calc"><span>{esc(visits[0].prompt[:200])}</span>'
        f"<span>{count(len(visits), 'visit')}</span></p>"
        '<div class="scroll"><table class="list"><thead><tr>'
        '<th scope="col" class="num">Step</th><th scope="col" class="num">Right</th>'
        '<th scope="col" class="num">Mean</th>'
        f'{heads}<th scope="col">Verdict</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
        f"{_change(visits[0], visits[-1], 'Answer' if once else 'Best completion')}"
    )


def _change(first: GroupRow, last: GroupRow, what: str) -> str:
    """The best completions of two visits to a prompt; empty if one has nothing to compare."""
    first_best, last_best = _best(first), _best(last)
    if first_best is None or last_best is None:
        return ""
    left, right = diff(texts_of(first_best), texts_of(last_best))
    return (
        f"<h2>{what}, step {first.step:,} and step {last.step:,}</h2>"
        f'<div class="two">{_card(first_best, left, f"Step {first.step:,}")}'
        f"{_card(last_best, right, f'Step {last.step:,}')}</div>{MARKS}"
    )


def two_runs(name: str, group: GroupRow, other: RunRow, other_group: GroupRow | None) -> str:
    """The same prompt in two runs: best beside best, worst beside worst.

    other_group: the other run's visit to the prompt that is nearest in step; None if it has none.
    """
    if other_group is None:
        return empty(
            f"“{other.name}” never met this prompt",
            "Runs of one task with the same seed meet the same prompts at the same steps.",
        )
    best, other_best = _best(group), _best(other_group)
    if best is None or other_best is None:
        return empty("Nothing to compare", "In one of the runs no completion could be scored.")
    names = name, other.name
    cards = _pair((best, other_best), names, "Best")
    worst, other_worst = _worst(group), _worst(other_group)
    if worst is not None and other_worst is not None:
        cards += _pair((worst, other_worst), names, "Worst")
    return (
        f'<p class="calc"><span>{esc(group.prompt[:200])}</span></p>'
        f'<div class="two">{_facts(name, group)}{_facts(other.name, other_group)}</div>'
        f'<div class="two">{cards}</div>{MARKS}'
    )


def _pair(pair: tuple[RolloutRow, RolloutRow], runs: tuple[str, str], title: str) -> str:
    texts = diff(texts_of(pair[0]), texts_of(pair[1]))
    return "".join(
        _card(rollout, text, title, run)
        for rollout, text, run in zip(pair, texts, runs, strict=True)
    )


def _facts(run_name: str, group: GroupRow) -> str:
    return (
        f'<p class="calc"><span><b>{esc(run_name)}</b></span>'
        f"<span>step <b>{group.step:,}</b></span>"
        f"<span>mean <b>{format_number(group.reward_mean, 3)}</b></span>"
        f"{verdict_pill(group.verdict)}</p>"
    )


def choose_run(runs: Sequence[tuple[str, str]], chosen: str | None) -> str:
    """A menu of the other runs that met the prompt. runs: (label, id)."""
    if not runs:
        return (
            '<p class="note">No other run of this file met a prompt of this run. '
            "Runs of one task have the same held-out prompts.</p>"
        )
    options = "".join(
        f'<option value="{esc(i)}"{" selected" if i == chosen else ""}>{esc(label)}</option>'
        for label, i in runs
    )
    return (
        '<label class="knob"><span>Compare with</span>'
        f'<select name="other">{options}</select></label>'
    )


def nearest(visits: Sequence[GroupRow], step: int) -> GroupRow | None:
    return min(visits, key=lambda v: abs(v.step - step), default=None)


def diff(before: Sequence[str], after: Sequence[str]) -> tuple[list[str], list[str]]:
    """Both as HTML; words of only one of them are marked. At most MAX_WORDS are compared."""
    return marked(before, after, MAX_WORDS, ("del", "ins"))


def _best(group: GroupRow) -> RolloutRow | None:
    """Best by reward, the first sampled of equals; None if nothing was scored."""
    scored = [(r.reward, -r.position, r) for r in group.rollouts if is_number(r.reward)]
    return max(scored, key=lambda row: row[:2])[2] if scored else None


def _worst(group: GroupRow) -> RolloutRow | None:
    """Worst by reward, the first sampled of equals; None with fewer than two scored."""
    scored = [(r.reward, r.position, r) for r in group.rollouts if is_number(r.reward)]
    return min(scored, key=lambda row: row[:2])[2] if len(scored) > 1 else None


def _visit(group: GroupRow, current: bool, outcome: str | None, once: bool) -> str:
    """A row of the table. once: no visit has more than one scored completion."""
    scores = [s for r in group.rollouts if outcome and (s := r.scores.get(outcome)) is not None]
    right = percent(sum(s >= 1 for s in scores) / len(scores)) if scores else "–"
    best, worst = _best(group), _worst(group)
    texts = [f"<code>{esc(best.text[:120])}</code>" if best else _none("none could be scored")]
    if not once:
        only = _none("one could be scored" if len(group.rollouts) > 1 else "answered once")
        texts.append(f"<code>{esc(worst.text[:120])}</code>" if worst else only)
    cells = "".join(f'<td class="excerpt">{text}</td>' for text in texts)
    chosen = ' class="chosen" aria-current="true"' if current else ""
    place = Place(group.step, group.position, group.kind)
    return (
        f'<tr{chosen}><td class="num"><button type="button" class="link" data-do="open" '
        f'data-at="{place}">{group.step:,}</button></td>'
        f'<td class="num">{right}</td><td class="num">{format_number(group.reward_mean)}</td>'
        f"{cells}<td>{verdict_pill(group.verdict)}</td></tr>"
    )


def _none(why: str) -> str:
    return f'<span class="by">{why}</span>'


def _card(rollout: RolloutRow, texts: Sequence[str], title: str, run: str = "") -> str:
    """texts: of the completion's turns as HTML, with marks.

    run: its run's name, shown where the cards stand below each other.
    """
    title = esc(title)
    text = body([rollout], texts, f"{title}, text")
    tokens = f"{num_turns(rollout)} · " if has_calls(rollout) else ""
    tokens += f"{whole(rollout.num_tokens)} tok"
    made = f'<b title="advantage">{signed(rollout.advantage)}</b>'
    made = made if is_number(rollout.advantage) else ""  # an evaluation has none
    of = f'<span class="of-state">{esc(shorten(run, 40))} · </span>' if run else ""
    return (
        f'<article class="card {side_of(rollout.advantage)}" aria-label="{title}">'
        f'<div class="adv">{made}<span class="fact">{of}{title} · reward '
        f"<b>{format_number(rollout.reward, 3)}</b> · {tokens}</span>"
        f'<span class="place">#{rollout.position + 1}</span>'
        f"</div>{text}</article>"
    )
