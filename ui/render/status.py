"""A run's state: status line, pills, banners and empty states. Rows -> escaped HTML; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from grpo_core.config.devices import kind_of
from grpo_core.store import RunRow
from grpo_core.types import Phase, RunStatus
from ui.render.provenance import badge
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

HEADLINES = {
    RunStatus.QUEUED: "Queued",
    RunStatus.PAUSED: "Paused",
    RunStatus.STOPPED: "Stopped",
    RunStatus.FINISHED: "Finished",
    RunStatus.FAILED: "Failed",
    RunStatus.INTERRUPTED: "Interrupted",
}

# column of `steps` -> part of the time bar
SPENT = {
    "sampling_seconds": "sampling",
    "scoring_seconds": "scoring",
    "update_seconds": "update",
    "evaluation_seconds": "evaluation",
    "writing_seconds": "writing",
}

# Time left and speed are means over these steps: early steps are slower, and lengths change.
RECENT_STEPS = 10


def pill(status: RunStatus) -> str:
    tone = TONES.get(status, "plain")
    return f'<span class="pill {tone}"><i aria-hidden="true">●</i> {esc(str(status))}</span>'


def run_pill(run: RunRow | None) -> str:
    if run is None:
        return '<span class="pill plain">no run yet</span>'
    if run.source is not None:
        return badge(run) + pill(run.status)
    device = device_of(run)
    return (
        f'<span title="on {esc(device)}">{pill(run.status)}</span>' if device else pill(run.status)
    )


def device_of(run: RunRow) -> str:
    """What the run trains on, or did: "cuda:1", or "4 × cuda, 2 nodes"; "" in older files."""
    env = run.env or {}
    device, workers, nodes = str(env.get("device_name") or ""), env.get("workers"), env.get("nodes")
    if not (device and is_number(workers) and workers > 1):
        return device
    where = f", {nodes:,.0f} nodes" if is_number(nodes) and nodes > 1 else ""
    return f"{workers:,.0f} × {kind_of(device)}{where}"


def workers_of(run: RunRow) -> int:
    """How many workers the run asks for; 1 in older files and for other trainers' runs."""
    workers = (run.config.get("train") or {}).get("workers")
    return int(workers) if is_number(workers) else 1


def _device_fact(run: RunRow) -> list[str]:
    """Devices and precision, with their names and the reason as a title; empty in older files."""
    if not (device := device_of(run)):
        return []
    env = run.env or {}
    dtype = str(env.get("dtype") or "")
    why = ". ".join(str(env[key]) for key in ("devices", "precision") if env.get(key))
    return [f'<span title="{esc(why)}">on {esc(device)} in {esc(dtype)}</span>']


def example_pill() -> str:
    """The mark of the recorded example run."""
    title = "recorded elsewhere, to look at"
    return f'<span class="pill plain" title="{title}">example</span>'


def brand(device: str, details: str) -> str:
    return (
        '<div class="brand"><h1>GRPO Studio</h1>'
        f'<span class="chip" title="{esc(details)}">{esc(device)}</span>'
        '<button type="button" class="icon" data-toggle="theme" '
        'aria-label="Light or dark">◐</button></div>'
    )


def storage_note(text: str) -> str:
    """Where runs are stored, and whether they survive a restart of the machine."""
    return f'<p class="help storage">{esc(text)}</p>'


def status_line(
    run: RunRow | None,
    recent: Sequence[Mapping[str, Any]],
    num_queued: int,
    blocking: RunRow | None,
    now: float,
) -> str:
    """Phase, step k of n, a progress bar, elapsed time, time left, tokens per second.

    recent: the latest rows of `steps`. blocking: the run that a queued run waits for.
    now: seconds since 1970. status.js advances the clock from `data-elapsed`, so a long step
    needs no requests.
    """
    if run is None:
        return (
            '<div class="status"><b>No run yet</b>'
            '<span class="fact">Press <b>Start training</b>: '
            "the bundled model learns on this machine within a minute.</span></div>"
        )
    live = run.status.is_live and run.status is not RunStatus.QUEUED
    facts = _live_facts(run, recent, now) if live else _ended_facts(run, blocking)
    if num_queued:
        facts.append(f"{count(num_queued, 'run')} queued")
    return (
        f'<div class="status{" live" if live else ""}">'
        f'<b class="phase">{esc(_headline(run))}</b>'
        f"{example_pill() if run.example else badge(run)}"
        f'<span class="fact">{_progress(run)}</span>{_progress_bar(run)}'
        f'<span class="fact facts">{" · ".join(facts)}</span>{time_bar(recent) if live else ""}'
        "</div>"
    )


def _progress_bar(run: RunRow) -> str:
    total = run.num_steps or 0
    part = min(1.0, run.steps_done / total) if total else 0.0
    return (
        '<div class="bar" role="progressbar" aria-label="Progress" aria-valuemin="0" '
        f'aria-valuemax="{total}" aria-valuenow="{run.steps_done}">'
        f'<i style="--part:{part:.4f}"></i></div>'
    )


def time_bar(recent: Sequence[Mapping[str, Any]]) -> str:
    """How the latest steps spent their time: a thin bar and its key. Empty if not measured."""
    spent = {
        name: sum(row[key] for row in recent[-RECENT_STEPS:] if is_number(row.get(key)))
        for key, name in SPENT.items()
    }
    total = sum(spent.values())
    if total <= 0:
        return ""
    parts = [(name, seconds / total) for name, seconds in spent.items() if seconds]
    summary = ", ".join(f"{name} {percent(part)}" for name, part in parts)
    bars = "".join(f'<i class="s-{name}" style="--part:{part:.4f}"></i>' for name, part in parts)
    key = " ".join(
        f'<span><i class="s-{name}" aria-hidden="true"></i>{name} {percent(part)}</span>'
        for name, part in parts
    )
    return (
        f'<span class="spent" role="img" aria-label="Time of the latest steps: {summary}" '
        f'title="{summary}">{bars}</span><span class="fact spent-key">{key}</span>'
    )


def _headline(run: RunRow) -> str:
    if run.status in (RunStatus.LOADING, RunStatus.RUNNING):
        if run.source is not None:
            return "Training"
        return PHASES.get(run.phase, "Starting") if run.phase else "Starting"
    return HEADLINES[run.status]


def _progress(run: RunRow) -> str:
    total = run.num_steps or 0
    if not total and run.source is not None:
        return f"step <b>{run.steps_done:,}</b>"  # how many it will be was not recorded
    if not total:
        return "not started"
    at = (run.step or run.steps_done) if run.status.is_live else run.steps_done
    if at == 0:
        return f"before the first of {total:,} steps"
    return f"step <b>{at:,}</b> of {total:,}"


def _live_facts(run: RunRow, recent: Sequence[Mapping[str, Any]], now: float) -> list[str]:
    elapsed = run.elapsed_seconds(now) or 0.0
    clock = f' class="clock" data-elapsed="{elapsed:.1f}"' if run.waiting_since is None else ""
    facts = [f"<span{clock}>{duration(elapsed)}</span> elapsed"]
    rows = recent[-RECENT_STEPS:]
    seconds = [row["step_seconds"] for row in rows if is_number(row.get("step_seconds"))]
    tokens = [row["tokens"] for row in rows if is_number(row.get("tokens"))]
    if seconds and sum(seconds) > 0 and run.num_steps:
        num_left = max(0, run.num_steps - run.steps_done)
        facts.append(f"{duration(sum(seconds) / len(seconds) * num_left)} left")
        facts.append(f"{short(sum(tokens) / sum(seconds))} tokens/s")
    elif run.source is None:
        facts.append("time left is known after the first step")
    if run.breakpoints:
        facts.append(f"pauses when {esc(run.breakpoints)}")
    return facts + _device_fact(run)


def _ended_facts(run: RunRow, blocking: RunRow | None) -> list[str]:
    if run.status is RunStatus.QUEUED:
        if blocking is None:
            workers = workers_of(run)
            what = f"{workers:,} devices" if workers > 1 else "a device"
            return [f"starts as soon as {what} for it {'are' if workers > 1 else 'is'} free"]
        return [f"waits for “{esc(blocking.name)}”, then starts by itself"]
    facts = []
    if is_number(run.duration_seconds):
        facts.append(f"{duration(run.duration_seconds)} in all")
    if run.example:
        return [*facts, "press <b>Start training</b> for a run of your own"]
    return facts + _device_fact(run)


def store_banner(trouble: str) -> str:
    """Why this server cannot write to its file at present; empty if it can."""
    return banner("Nothing can be recorded at present.", trouble) if trouble else ""


def banner(what: str, then: str, detail: str | None = "", tone: str = "bad", more: str = "") -> str:
    """A message: what happened, what to do then, and optionally a text that scrolls.

    more: HTML after the message, such as buttons.
    """
    scrolled = ""
    if detail:
        scrolled = f'<pre tabindex="0" role="region" aria-label="Details">\n{esc(detail)}</pre>'
    return (
        f'<div class="banner {tone}" role="alert"><b>{esc(what)}</b> '
        f"<span>{esc(then)}</span>{more}{scrolled}</div>"
    )


def empty(what: str, how: str) -> str:
    """A placeholder: what will appear here, and how to get it."""
    return f'<div class="empty"><b>{esc(what)}</b><span>{esc(how)}</span></div>'
