"""What a run came to, or what happened to it: result, what is kept, what to do. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from grpo_core.analysis.heldout import Estimate
from grpo_core.analysis.provenance import whose
from grpo_core.store import RunRow
from grpo_core.types import RunStatus
from ui.render.place import Place
from ui.render.status import banner
from ui.render.text import count, esc, format_number, is_number, percent

# event of the panel -> the name of its button; each opens another tab with this run
ACTS = {"tryit": "Try it", "why": "See why", "export": "Export"}
MISSED = "No step was finished, so there is nothing to keep."

Metrics = Mapping[str, Sequence[tuple[int, float | None]]]


@dataclass(frozen=True, slots=True)
class Telling:
    """The group that “See why” opens, in which view of Inspect, and why that one."""

    place: Place
    look: str
    why: str


def accuracies(metrics: Metrics) -> list[Estimate]:
    """Before and after: the first and the last evaluation; one or none if there were no more."""
    low = dict(metrics.get("heldout/accuracy_low", ()))
    high = dict(metrics.get("heldout/accuracy_high", ()))
    known = [
        Estimate(value, low.get(step), high.get(step))
        for step, value in metrics.get("heldout/accuracy", ())
        if is_number(value)
    ]
    return known[:1] + known[1:][-1:]


def run_banner(
    run: RunRow,
    heldout: Sequence[Estimate] = (),
    can_try: bool = False,
    telling: Telling | None = None,
    num_restarts: int = 0,
) -> str:
    """The card of a run that is paused or has ended.

    can_try: the playground has a trained state of its model. telling: what “See why” opens.
    num_restarts: how often its workers were lost and started again.
    """
    acts = _restarts(num_restarts) + _acts(run, can_try, telling)
    if run.source is not None:
        return _foreign(run, acts)
    if run.status is RunStatus.FINISHED:
        return _finished(run, heldout, acts)
    if run.status is RunStatus.FAILED:
        return _failed(run, acts)
    kept = _kept(run)
    if run.status is RunStatus.INTERRUPTED:
        return banner(
            "The server stopped while this run was going.",
            f"{kept} Press Resume to go on from its last checkpoint.",
            more=acts,
        )
    # A limit and a breakpoint have a message; a person who pressed Pause or Stop needs none.
    what, _, then = (run.error or "").partition(". ")
    if run.status is RunStatus.PAUSED:
        then = then or "Press Resume to go on, or Step for one step."
        return banner(f"{(what or 'Paused').removesuffix('.')}.", then, tone="warn", more=acts)
    of = f" of {run.num_steps:,}" if run.num_steps else ""
    what = what or f"Stopped after {run.steps_done:,}{of} steps"
    then = then or f"{kept} Press Resume to go on."
    return banner(f"{what.removesuffix('.')}.", then, tone="warn", more=acts)


def _foreign(run: RunRow, acts: str) -> str:
    """The card of a run that another trainer made: how it ended there."""
    assert run.source is not None
    trainer = esc(whose(run.source))
    ended = {
        RunStatus.FAILED: f"{trainer} ended with an error.",
        RunStatus.INTERRUPTED: f"Nothing comes from {trainer} any more.",
    }.get(run.status, f"Recorded by {trainer}.")
    error = (run.error or "").strip()
    if error:
        ended += f" {esc(error.splitlines()[0])}"
    tone = "bad" if run.status is RunStatus.FAILED else "plain"
    result = f"<b>{ended}</b><span>It can be read here, but not continued.</span>"
    return f'<div class="banner {tone}" role="status">{result}{acts}</div>'


def _failed(run: RunRow, acts: str) -> str:
    # The first line is the message; the traceback follows.
    lines = (run.error or "").strip().splitlines() or ["no message was recorded"]
    return banner(
        f"The run failed: {lines[0].strip()}",
        f"{_kept(run)} Correct what the message names and press Start training. "
        "If the machine caused the failure, press Resume.",
        run.error if len(lines) > 1 else "",
        more=acts,
    )


def _kept(run: RunRow) -> str:
    if not run.steps_done:
        return MISSED
    return f"Kept: {count(run.steps_done, 'step')} with every group and curve."


def _finished(run: RunRow, heldout: Sequence[Estimate], acts: str) -> str:
    """Held-out accuracy before and after; without evaluations the reward."""
    if heldout:
        change = " → ".join(_accuracy(a) for a in heldout)
        result = f'<b>Held-out accuracy</b><span class="change">{change}</span>'
        result += f"<span>{_verdict(heldout)}</span>"
    elif is_number(run.reward_first) and is_number(run.reward_last):
        change = f"{format_number(run.reward_first)} → {format_number(run.reward_last)}"
        result = f'<b>Reward</b><span class="change">{change}</span>'
        result += "<span>Not evaluated on held-out prompts.</span>"
    else:
        result = "<b>No step was trained.</b>"
    tone = "good" if run.steps_done else "warn"
    return f'<div class="banner {tone}" role="status">{result}{acts}</div>'


def _accuracy(accuracy: Estimate) -> str:
    text = percent(accuracy.value)
    if is_number(accuracy.low) and is_number(accuracy.high):
        interval = f"{100 * accuracy.low:.0f}–{100 * accuracy.high:.0f}"
        text += f' <i title="95 % interval">({interval})</i>'
    return text


def _verdict(heldout: Sequence[Estimate]) -> str:
    if len(heldout) < 2:
        return "Evaluated once, so there is nothing to compare."
    before, after = heldout
    if is_number(before.high) and is_number(after.low) and after.low > before.high:
        return "Clearly better: the 95 % intervals do not overlap."
    if is_number(before.low) and is_number(after.high) and after.high < before.low:
        return "Clearly worse: the 95 % intervals do not overlap."
    return "No clear change: the 95 % intervals overlap."


def _restarts(number: int) -> str:
    if not number:
        return ""
    how_often = "once" if number == 1 else f"{number:,} times"
    return f"<span>Workers were lost {how_often}; it went on from its last checkpoint.</span>"


def _acts(run: RunRow, can_try: bool, telling: Telling | None) -> str:
    if not run.steps_done:
        return ""
    opens = ""
    if telling is not None:
        opens = f' data-at="{telling.place}" data-look="{telling.look}" title="{esc(telling.why)}"'
    buttons = "".join(
        f'<button type="button" data-do="{name}" data-run="{esc(run.id)}"'
        f"{opens if name == 'why' else ''}>{label}</button>"
        for name, label in ACTS.items()
        if (can_try or name != "tryit") and (telling is not None or name != "why")
    )
    return f'<span class="acts">{buttons}</span>'
