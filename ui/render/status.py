"""The state of a run in one line, pills, banners and empty states. Rows -> escaped HTML; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from grpo_core.store import RunRow
from grpo_core.types import Phase, RunStatus
from ui.render.text import count, duration, esc, is_number, percent, short

PHASES = {
    Phase.LOADING: "Loading the model",
    Phase.SAMPLING: "Sampling",
    Phase.SCORING: "Scoring",
    Phase.UPDATING: "Updating",
    Phase.EVALUATING: "Evaluating",
    Phase.SAVING: "Saving",
}

TONES = {
    RunStatus.QUEUED: "wait",
    RunStatus.LOADING: "live",
    RunStatus.RUNNING: "live",
    RunStatus.PAUSED: "wait",
    RunStatus.STOPPED: "plain",
    RunStatus.FINISHED: "good",
    RunStatus.FAILED: "bad",
    RunStatus.INTERRUPTED: "warn",
}

RECENT_STEPS = 10  # time left and speed come from these: early steps are slower, and lengths change while training


def pill(status: RunStatus) -> str:
    return f'<span class="pill {TONES.get(status, "plain")}"><i aria-hidden="true">●</i> {esc(str(status))}</span>'


def run_pill(run: RunRow | None) -> str:
    return pill(run.status) if run else '<span class="pill plain">no run yet</span>'


def brand(device: str) -> str:
    return (
        f'<div class="brand"><h1>GRPO Studio</h1><span class="chip" title="the device that trains">{esc(device)}</span>'
        '<button type="button" class="icon" data-toggle="theme" aria-label="Light or dark">◐</button></div>'
    )


def kept(where: str) -> str:
    """Whether what is recorded outlives this machine's disk."""
    return f'<p class="help storage">{esc(where)}</p>'


def status_line(
    run: RunRow | None,
    recent: Sequence[Mapping[str, Any]],
    num_queued: int,
    ahead: RunRow | None,
    now: float,
) -> str:
    """Phase, step k of n, a bar, elapsed, time left, tokens per second.

    recent: the latest rows of `steps`. ahead: the run that a queued one waits for. The clock ticks in the browser (panel.py),
    from `data-elapsed`, so that a long step costs no traffic.
    """
    if run is None:
        return (
            '<div class="status" data-live="none"><b>No run yet</b>'
            '<span class="fact">Press <b>Start training</b>: the bundled model learns on this machine within a minute.</span></div>'
        )
    total = run.num_steps or 0
    part = min(1.0, run.steps_done / total) if total else 0.0
    bar = (
        f'<div class="bar" role="progressbar" aria-label="Progress" aria-valuemin="0" aria-valuemax="{total}" aria-valuenow="{run.steps_done}">'
        f'<i style="--part:{part:.4f}"></i></div>'
    )
    live = run.status.is_live and run.status is not RunStatus.QUEUED
    facts = _live_facts(run, recent, now) if live else _ended_facts(run, ahead)
    if num_queued:
        facts.append(f"{count(num_queued, 'run')} queued")
    return (
        f'<div class="status" data-live="{int(live)}"><b class="phase">{esc(_headline(run))}</b><span class="fact">{_progress(run, total)}</span>{bar}'
        f'<span class="fact facts">{" · ".join(facts)}</span>{time_bar(recent) if live else ""}</div>'
    )


SPENT = {
    "sampling_seconds": "sampling",
    "scoring_seconds": "scoring",
    "update_seconds": "update",
    "evaluation_seconds": "evaluation",
    "writing_seconds": "writing",
}


def time_bar(recent: Sequence[Mapping[str, Any]]) -> str:
    """Where the time of the latest steps went, as one thin bar with its parts named."""
    spent = {
        name: sum(row[key] for row in recent[-RECENT_STEPS:] if is_number(row.get(key)))
        for key, name in SPENT.items()
    }
    whole = sum(spent.values())
    if whole <= 0:
        return ""
    parts = [(name, seconds / whole) for name, seconds in spent.items() if seconds]
    said = ", ".join(f"{name} {percent(part)}" for name, part in parts)
    return (
        f'<span class="spent" role="img" aria-label="Time of the latest steps: {said}" title="{said}">'
        + "".join(f'<i class="s-{name}" style="--part:{part:.4f}"></i>' for name, part in parts)
        + "</span>"
        + '<span class="fact spent-key">'
        + " ".join(
            f'<span><i class="s-{name}" aria-hidden="true"></i>{name} {percent(part)}</span>'
            for name, part in parts
        )
        + "</span>"
    )


def _headline(run: RunRow) -> str:
    if run.status in (RunStatus.LOADING, RunStatus.RUNNING):
        return PHASES.get(run.phase, "Starting")
    return {
        RunStatus.QUEUED: "Queued",
        RunStatus.PAUSED: "Paused",
        RunStatus.STOPPED: "Stopped",
        RunStatus.FINISHED: "Finished",
        RunStatus.FAILED: "Failed",
        RunStatus.INTERRUPTED: "Interrupted",
    }[run.status]


def _progress(run: RunRow, total: int) -> str:
    if not total:
        return "not started"
    at = (run.step or run.steps_done) if run.status.is_live else run.steps_done
    if at == 0:
        return f"before the first of {total:,} steps"
    return f"step <b>{at:,}</b> of {total:,}"


def _live_facts(run: RunRow, recent: Sequence[Mapping[str, Any]], now: float) -> list[str]:
    elapsed = run.elapsed_seconds(now) or 0.0
    ticks = f' class="clock" data-elapsed="{elapsed:.1f}"' if run.waiting_since is None else ""
    facts = [f"<span{ticks}>{duration(elapsed)}</span> elapsed"]
    seconds = [
        row["step_seconds"] for row in recent[-RECENT_STEPS:] if is_number(row.get("step_seconds"))
    ]
    tokens = [row["tokens"] for row in recent[-RECENT_STEPS:] if is_number(row.get("tokens"))]
    if seconds and sum(seconds) > 0:
        left = sum(seconds) / len(seconds) * max(0, (run.num_steps or 0) - run.steps_done)
        facts.append(f"{duration(left)} left")
        facts.append(f"{short(sum(tokens) / sum(seconds))} tokens/s")
    else:
        facts.append("time left is known after the first step")
    if run.breakpoints:
        facts.append(f"waits when {esc(run.breakpoints)}")
    return facts


def _ended_facts(run: RunRow, ahead: RunRow | None) -> list[str]:
    if run.status is RunStatus.QUEUED:
        return [
            f"waits for “{esc(ahead.name)}”, then starts by itself"
            if ahead
            else "starts as soon as the device is free"
        ]
    facts = [f"{duration(run.duration_seconds)} in all"] if is_number(run.duration_seconds) else []
    if is_number(run.heldout_before):
        after = f" → {percent(run.heldout_after)}" if is_number(run.heldout_after) else ""
        facts.append(f"held-out {percent(run.heldout_before)}{after}")
    return facts


def run_banner(run: RunRow | None) -> str:
    """For a run that waits, or ended otherwise than planned: what happened, what was kept, what to do, in that order."""
    if run is None or run.status not in (
        RunStatus.FAILED,
        RunStatus.INTERRUPTED,
        RunStatus.PAUSED,
        RunStatus.STOPPED,
    ):
        return ""
    if (
        run.status is RunStatus.STOPPED
    ):  # by a person there is nothing to explain; by a limit there is
        what, _, then = (run.error or "").partition(". ")
        return banner(f"{what.removesuffix('.')}.", then, tone="warn") if what else ""
    if run.status is RunStatus.PAUSED:
        what, _, then = (run.error or "Paused.").partition(". ")
        return banner(f"{what.removesuffix('.')}.", then, tone="warn")
    kept = (
        f"Kept: {count(run.steps_done, 'step')} with every group and curve."
        if run.steps_done
        else "No step was finished, so there is nothing to keep."
    )
    if run.status is RunStatus.INTERRUPTED:
        return banner(
            "The server stopped while this run was going.",
            f"{kept} Press Resume to go on from its last checkpoint.",
        )
    lines = (run.error or "").strip().splitlines() or [
        "no message was recorded"
    ]  # the first line is the message, then the traceback
    return banner(
        f"The run failed: {lines[0].strip()}",
        f"{kept} Change what the message names and press Start training, or Resume if it was the machine.",
        run.error if len(lines) > 1 else "",
    )


def banner(what: str, then: str, detail: str | None = "", tone: str = "bad") -> str:
    """A message with a headline, what follows from it, and perhaps a text that scrolls (a traceback)."""
    more = (
        f'<pre tabindex="0" role="region" aria-label="Details">\n{esc(detail)}</pre>'
        if detail
        else ""
    )
    return f'<div class="banner {tone}" role="alert"><b>{esc(what)}</b> <span>{esc(then)}</span>{more}</div>'


def empty(what: str, how: str) -> str:
    """What will appear here, and how to make it."""
    return f'<div class="empty"><b>{esc(what)}</b><span>{esc(how)}</span></div>'
