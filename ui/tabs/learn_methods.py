"""Learn, "Beside PPO": what each method needs, and a comparison measured on this machine."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import gradio as gr

from grpo_core.errors import StudioError
from grpo_core.runs.compare import measure
from grpo_core.runs.comparisons import METHODS, Comparison, newest, plan, preset_of
from grpo_core.types import RunStatus
from ui.components.html_panel import QUIET, data_of, html_panel
from ui.render import methods
from ui.render.status import banner
from ui.render.text import count, when
from ui.server.views import Runs, Views
from ui.tabs.frame import SKIP, Frame, Tab, hidden_values, parse_tokens, token

SEEDS = (1, 3)
# Seconds of a whole run, loading and evaluations included: `compare` with these presets, one seed,
# 2026-11-28, 2 shared CPU cores.
RUN_SECONDS = {"GRPO": 27.0, "PPO (critic)": 29.0, "Trust-region GRPO": 115.0, "RLOO": 19.0}
TAKEN_FROM = "The time was measured on 2 shared CPU cores on 28 November 2026."


def build_methods(frame: Frame, views: Views, runs: Runs) -> Tab:
    """Build the part and connect its events. Call it inside gr.Blocks."""
    html_panel(methods.needs(), elem_id="methods-needs")
    table = html_panel(elem_id="methods-results")
    offers = html_panel(events=("compare",), elem_id="methods-offers")
    answer = html_panel(elem_id="methods-answer")
    [seen] = hidden_values("state-methods-", seen="{}")
    inputs, outputs = [seen], [table, offers, seen]
    show = ShowMethods(views, runs)
    refresh = frame.refresh.events("methods", show, inputs, outputs)

    # Gradio passes the event to a parameter of this annotation.
    def compare(event: gr.EventData) -> str:
        return start_comparison(views, runs, data_of(event).get("seeds"))

    refresh.after(offers.compare(compare, None, answer, **QUIET))
    return Tab(inputs, outputs, show)


def start_comparison(views: Views, runs: Runs, seeds: Any) -> str:
    """Queue the runs of a comparison. Returns a message; nothing is started if one is refused."""
    num_seeds = next((n for n in SEEDS if str(n) == str(seeds)), None)
    if num_seeds is None:
        return ""
    planned = plan(num_seeds)
    if reason := refusal(newest(views.runs()), runs, num_seeds):
        return banner("The comparison was not started.", reason)
    started = 0
    try:
        for config, name in planned:
            runs.start(config, name)
            started += 1
    except StudioError as error:
        left = f"{count(started, 'run')} of {len(planned)} started. " if started else ""
        return banner("The comparison was not started whole.", left + str(error))
    return (
        f'<p class="note" role="status">{count(started, "run")} started or queued: one after '
        "another on each device. The Runs tab stops or deletes them.</p>"
    )


def refusal(comparison: Comparison | None, runs: Runs, num_seeds: int) -> str:
    """Why a comparison would not start now; "" if it would."""
    if comparison is not None and comparison.live:
        return "A comparison is going on. Wait for its end, or stop its runs on the Runs tab."
    return runs.refusal([config for config, _ in plan(num_seeds)])


class ShowMethods:
    """Fills the table and the buttons when a run of the comparison or a limit has changed."""

    def __init__(self, views: Views, runs: Runs):
        self.views, self.runs = views, runs
        self._measure = lru_cache(maxsize=64)(lambda run_id, _: measure(views.store, run_id))

    def __call__(self, seen: Any) -> list[Any]:
        comparison = newest(self.views.runs())
        reasons = [refusal(comparison, self.runs, n) for n in SEEDS]
        states = [
            (r.id, r.status, r.revision if r.status.is_live else 0) for r in _runs(comparison)
        ]
        was, now = parse_tokens(seen), {"table": token(states), "offers": token([states, reasons])}
        table = offers = SKIP
        if was.get("table") != now["table"]:
            table = self._table(comparison)
        if was.get("offers") != now["offers"]:
            offers = self._offers(comparison, reasons)
        return [table, offers, json.dumps(now) if was != now else SKIP]

    def _table(self, comparison: Comparison | None) -> str:
        head = "<h3>Measured</h3>"
        if comparison is None:
            return head + methods.results(methods.RECORDED, methods.RECORDED_NOTE)
        ended = [run for run in comparison.runs if not run.status.is_live]
        now = next((r for r in comparison.live if r.status is not RunStatus.QUEUED), None)
        done = ""
        if comparison.live:
            name = now.name if now else ""
            done = methods.progress(len(ended), len(comparison.runs), name)
        finished = [r for r in comparison.runs if r.status is RunStatus.FINISHED]
        found = [self._measure(r.id, r.revision) for r in finished]
        if not found:
            recorded = methods.results(methods.RECORDED, methods.RECORDED_NOTE)
            return head + done + recorded
        return head + done + methods.results(methods.lines(found), _note(comparison))

    def _offers(self, comparison: Comparison | None, reasons: Sequence[str]) -> str:
        seconds, source = _run_seconds(comparison)
        rows = [
            methods.Offer(n, n * sum(seconds.values()) / 60, reason)
            for n, reason in zip(SEEDS, reasons, strict=True)
        ]
        return methods.offers(rows, source)


def _runs(comparison: Comparison | None) -> Sequence[Any]:
    return comparison.runs if comparison is not None else ()


def _run_seconds(comparison: Comparison | None) -> tuple[dict[str, float], str]:
    """Seconds of a whole run of each method, and where they are from."""
    found: dict[str, list[float]] = {}
    for run in _runs(comparison):
        if run.status is RunStatus.FINISHED and run.duration_seconds:
            found.setdefault(preset_of(run), []).append(run.duration_seconds)
    if set(METHODS) <= set(found):
        return {
            m: statistics.fmean(found[m]) for m in METHODS
        }, "The time is that of the runs above."
    return RUN_SECONDS, TAKEN_FROM


def _note(comparison: Comparison) -> str:
    """What was compared, on what and when. Parts are foreign text; the table escapes it."""
    last = comparison.runs[-1]
    env = last.env or {}
    on = f" on {env['device']}" if env.get("device") else ""
    failed = [r for r in comparison.runs if not r.status.is_live and r.status != RunStatus.FINISHED]
    seeds = {run.config["train"]["seed"] for run in comparison.runs}
    said = methods.MEASURED_NOTE if len(seeds) > 1 else methods.ONE_SEED_NOTE
    left_out = f" Left out: {count(len(failed), 'run')} that did not finish." if failed else ""
    return (
        f"{last.model}, {last.task}, {last.num_steps or 0} steps{on}, {when(last.created_at)}. "
        f"{said}{left_out}"
    )
