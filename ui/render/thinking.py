"""Longer thinking: what it is counted by, and one prompt at three times of a run. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from grpo_core.store import GroupRow, RolloutRow
from ui.render.glossary import address, entries, prose
from ui.render.place import Place
from ui.render.played import PILLS, RIGHT, UNKNOWN, WRONG
from ui.render.status import empty
from ui.render.text import count, esc, is_number, percent, short
from ui.render.turns import body, texts_of

TITLES = ("Beginning", "Middle", "End")
Points = Sequence[tuple[int, float | None]]


def reasoning_criterion(config: Mapping[str, Any]) -> str | None:
    """The name of the first criterion with the check `reasoning`; None if there is none."""
    return next(
        (c["name"] for c in config["rubric"]["criteria"] if c["check"] == "reasoning"), None
    )


def outcome_criterion(config: Mapping[str, Any]) -> str | None:
    return next((c["name"] for c in config["rubric"]["criteria"] if c["outcome"]), None)


def about(run_name: str, criterion: str | None, metrics: Mapping[str, Points]) -> str:
    """What the held-out evaluations say, and by what "reasons" is counted."""
    found = [
        (f"heldout/{criterion}", "share that reasons", percent),
        ("heldout/completion_tokens", "length in tokens", short),
        ("heldout/accuracy", "accuracy", percent),
    ]
    facts = "".join(
        f"<span>{title} <b>{show(ends[0])}</b> → <b>{show(ends[1])}</b></span>"
        for name, title, show in found
        if (ends := _ends(metrics.get(name, ())))
    )
    head = f'<p class="calc"><span><b class="clip">{esc(run_name)}</b></span>{facts}</p>'
    if not facts:
        head += '<p class="note">Appears after two held-out evaluations.</p>'
    return head + _counted_by(criterion)


def _counted_by(criterion: str | None) -> str:
    link = f'<a href="{esc(address("check/reasoning"))}" data-place>check reasoning</a>'
    if criterion is None:
        return (
            f'<p class="help">This run’s rubric has no criterion with the {link}, so the share '
            "that reasons was not recorded. Add one with weight 0: it rewards nothing.</p>"
        )
    check = entries()["check/reasoning"].help
    reading = entries()["heldout/completion_tokens"].reading
    return (
        f'<p class="help">A completion reasons by criterion <b>{esc(criterion)}</b>, the {link}: '
        f"{esc(check)} {prose(reading)}</p>"
    )


def _ends(points: Points) -> tuple[float, float] | None:
    known = [value for _, value in points if is_number(value)]
    return (known[0], known[-1]) if len(known) > 1 else None


@dataclass(frozen=True, slots=True)
class Shown:
    """A prompt at three times. number: of `total` prompts that came up at least three times."""

    groups: Sequence[GroupRow]
    number: int
    total: int
    criterion: str | None
    outcome: str | None


def three(shown: Shown) -> str:
    """The first sampled completion of each of three visits to a prompt."""
    first = shown.groups[0]
    answer = f' · right answer <b class="clip">{esc(first.answer)}</b>' if first.answer else ""
    cards = "".join(
        _card(title, group, shown) for title, group in zip(TITLES, shown.groups, strict=True)
    )
    return (
        f'<p class="played-of"><q class="clip" title="{esc(first.prompt[:1000])}">'
        f"{esc(first.prompt[:400])}</q>{answer}</p>"
        f'{_walk(shown.number, shown.total)}<div class="three">{cards}</div>'
        '<p class="note">Of each visit the completion that was sampled first, not the best.</p>'
    )


def _walk(number: int, total: int) -> str:
    if total < 2:
        return ""
    before, after = (number - 2) % total + 1, number % total + 1
    return (
        '<p class="tools">'
        f'<button type="button" class="icon" data-do="prompt" data-at="{before}" '
        'aria-label="Previous prompt">←</button>'
        f'<button type="button" class="icon" data-do="prompt" data-at="{after}" '
        'aria-label="Next prompt">→</button>'
        f'<span class="by">prompt {number} of {total}</span></p>'
    )


def _card(title: str, group: GroupRow, shown: Shown) -> str:
    rollout = group.rollouts[0]
    place = Place(group.step, group.position, group.kind)
    query = {"tab": "inspect", "run": group.run_id, "step": place.step, "group": place.position + 1}
    if place.is_evaluation:
        query["kind"] = group.kind
    text = body([rollout], [esc(t) for t in texts_of(rollout)], f"{title}, text")
    return (
        f'<article class="card" aria-label="{title}, {esc(place.when)}">'
        f'<div class="adv"><b>{title}</b> <a href="?{esc(urlencode(query))}" data-place>'
        f"{esc(place.when)}</a> {PILLS[_mark(rollout, shown.outcome)]}</div>"
        f'<p class="note">{count(rollout.num_tokens, "token")}'
        f"{_reasons(rollout, shown.criterion)}</p>{text}</article>"
    )


def _mark(rollout: RolloutRow, outcome: str | None) -> str:
    score = rollout.scores.get(outcome) if outcome else None
    if score is None:
        return UNKNOWN
    return RIGHT if score >= 1 else WRONG


def _reasons(rollout: RolloutRow, criterion: str | None) -> str:
    score = rollout.scores.get(criterion) if criterion else None
    if score is None:
        return ""
    return " · reasons" if score >= 1 else " · does not reason"


def no_three(num_repeated: int, heldout_groups: int) -> str:
    """Why no prompt is shown three times, and how to get one.

    heldout_groups: the run's setting `train.eval_records`.
    """
    kept = (
        "The run keeps no held-out groups: set “Held-out groups kept” above 0."
        if not heldout_groups
        else "Held-out prompts come up at every evaluation: run on, or evaluate more often."
    )
    twice = f" {count(num_repeated, 'prompt')} came up twice." if num_repeated else ""
    return empty(
        "One prompt appears here at the run’s beginning, middle and end",
        f"It needs a prompt that came up three times.{twice} {kept}",
    )
