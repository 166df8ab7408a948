"""Reward models as HTML: the list, the newest one's curve and calibration, and its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from grpo_core.preferences.judged_pairs import MIN_PAIRS
from grpo_core.store.reward_models import RewardModelRow
from grpo_core.types import RunStatus
from ui.render.status import empty
from ui.render.text import count, duration, esc, percent, short

WIDTH, HEIGHT, PAD = 280, 150, 36


def reward_models(rows: Sequence[RewardModelRow], num_judged: int) -> str:
    """The panel: how many judgements there are, and every reward model, newest first."""
    then = "A fifth of the prompts are held out, to measure the model."
    if num_judged < MIN_PAIRS:
        then = f"A reward model needs at least {MIN_PAIRS}."
    head = f'<p class="note">{count(num_judged, "judged pair")} in this file. {then}</p>'
    if not rows:
        how = "Compare pairs of answers on Inspect, then press “Train reward model”."
        return head + empty("Reward models appear here", how)
    return head + "".join(_model(row, i == 0) for i, row in enumerate(rows))


def _model(row: RewardModelRow, is_open: bool) -> str:
    button = (
        f'<button type="button" class="quiet" data-do="use" data-model="{esc(row.id)}">'
        "Use in rubric</button>"
        if row.is_usable
        else ""
    )
    delete = (
        ""
        if row.status is RunStatus.RUNNING
        else f'<button type="button" class="quiet" data-do="remove" data-model="{esc(row.id)}" '
        f'aria-label="Delete reward model {esc(row.id)}">Delete</button>'
    )
    curve = _curve(row.progress)
    calibration = _calibration(row.result["heldout"]["bins"]) if row.result else ""
    pictures = f'<div class="reward-pictures">{curve}{calibration}</div>' if is_open else ""
    return (
        f'<section class="reward-model" aria-label="Reward model {esc(row.id)}">'
        f'<div class="reward-head"><b class="cut">{esc(row.base)}</b>'
        f"<span>{esc(_state(row))}</span>{button}{delete}</div>"
        f"{_numbers(row)}{pictures}</section>"
    )


def _state(row: RewardModelRow) -> str:
    if row.status is RunStatus.RUNNING:
        if not row.progress:
            return "loading"
        last = row.progress[-1]
        return f"training, step {last['step']} of {last['num_steps']}"
    words = {
        RunStatus.STOPPED: "stopped",
        RunStatus.FAILED: "failed",
        RunStatus.INTERRUPTED: "interrupted: the server ended before it did",
    }
    return words.get(row.status, "finished")


def _numbers(row: RewardModelRow) -> str:
    if row.error:
        return f'<p class="note">{esc(row.error)}</p>'
    if row.result is None:
        return ""
    held, pairs = row.result["heldout"], row.result["pairs"]
    return (
        "<p>Held-out pairs right: <b>"
        f"{percent(held['accuracy'])}</b> (95 % interval {percent(held['low'])} to "
        f"{percent(held['high'])}, {count(held['num_pairs'], 'pair')}). Length alone explains "
        f"{percent(held['length_share'])} of its score.</p>"
        f'<p class="note">Learnt from {count(pairs["train"] + pairs["train_ties"], "pair")} of '
        f"{count(pairs['train_prompts'], 'prompt')} in {duration(row.result['seconds'])}. People "
        f"prefer the longer answer in {percent(held['longer_preferred'])} of the held-out pairs, "
        f"the model in {percent(held['longer_scored'])}. Calibration error "
        f"{percent(held['calibration_error'])}.</p>"
    )


def _curve(points: Sequence[Mapping[str, Any]]) -> str:
    """The loss of each step, and the share of held-out pairs that are right."""
    losses = [(p["step"], p["loss"]) for p in points if p["loss"] is not None]
    right = [
        (p["step"], p["heldout_accuracy"]) for p in points if p["heldout_accuracy"] is not None
    ]
    if not losses or not right:
        return ""
    last, top = points[-1]["num_steps"], max(1.0, *(loss for _, loss in losses))
    marks = f'<polyline class="loss" points="{_points(losses, last, top)}"/>'
    marks += f'<polyline class="right" points="{_points(right, last, top)}"/>'
    title = (
        f"Loss {short(losses[-1][1])} and held-out pairs right {percent(right[-1][1])} at step "
        f"{points[-1]['step']}"
    )
    caption = "By step: loss (thin), share of held-out pairs right (thick)"
    return _figure(title, caption, marks, ("0", str(last), "0", short(top)))


def _calibration(bins: Sequence[Mapping[str, Any]]) -> str:
    """Share of pairs whose likelier answer is preferred, by its predicted chance."""
    known = [b for b in bins if b["num_pairs"]]
    if not known:
        return ""
    low = min(0.5, *(b["right"] for b in known))

    def place(chance: float, share: float) -> tuple[float, float]:
        return chance - 0.5, share - low

    line = [place(0.5, 0.5), place(1.0, 1.0)]
    marks = f'<polyline class="ideal" points="{_points(line, 0.5, 1 - low)}"/>'
    for b in known:
        x, y = _place(*place(b["predicted"], b["right"]), 0.5, 1 - low)
        marks += (
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{3 + min(6, b["num_pairs"] ** 0.5):.1f}"><title>'
            f"predicted {percent(b['predicted'])}, right {percent(b['right'])}, "
            f"{count(b['num_pairs'], 'pair')}</title></circle>"
        )
    said = ", ".join(f"{percent(b['predicted'])} → {percent(b['right'])}" for b in known)
    caption = "Predicted chance (across) against share right (up)"
    ends = (percent(0.5), percent(1), percent(low), percent(1))
    return _figure(f"Predicted → right: {said}", caption, marks, ends)


def _points(points: Sequence[tuple[float, float]], most_x: float, most_y: float) -> str:
    places = (_place(x, y, most_x, most_y) for x, y in points)
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)


def _place(x: float, y: float, most_x: float, most_y: float) -> tuple[float, float]:
    wide, high = WIDTH - 2 * PAD, HEIGHT - 2 * PAD
    return PAD + wide * x / (most_x or 1), HEIGHT - PAD - high * y / (most_y or 1)


def _figure(title: str, caption: str, marks: str, ends: tuple[str, str, str, str]) -> str:
    """ends: what stands at the left, the right, the bottom and the top of the axes."""
    left, right, low, high = map(esc, ends)
    bottom = HEIGHT - PAD
    return (
        f'<figure><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{esc(title)}">'
        f'<path class="axes" d="M{PAD},{PAD} V{bottom} H{WIDTH - PAD}"/>{marks}'
        f'<text x="{PAD}" y="{bottom + 14}">{left}</text>'
        f'<text class="end" x="{WIDTH - PAD}" y="{bottom + 14}">{right}</text>'
        f'<text class="end" x="{PAD - 4}" y="{bottom}">{low}</text>'
        f'<text class="end" x="{PAD - 4}" y="{PAD + 4}">{high}</text></svg>'
        f"<figcaption>{esc(caption)}</figcaption></figure>"
    )
