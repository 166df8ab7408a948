"""What the Train tab shows of the run in view."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import gradio as gr

from grpo_core.store import RunRow
from ui.components.html_panel import one_of
from ui.render import charts, status
from ui.server import group_ref
from ui.server.group_ref import GroupRef
from ui.server.views import CURVES, Views
from ui.tabs import reward_edit
from ui.tabs import run_control as control
from ui.tabs.frame import SKIP, parse_tokens, token

NUM_BUTTONS = 4
NUM_CONTROLS = control.NUM_LIVE + control.NUM_REWARDING
NUM_OUTPUTS = 11 + NUM_BUTTONS + len(CURVES) + NUM_CONTROLS  # as build_train lists them


@dataclass(frozen=True, slots=True)
class TrainInputs:
    """The tab's inputs: components on the page, in a request their values."""

    run: Any
    pin: Any  # the group a person chose, "37/2"; empty while following the run
    order: Any
    x: Any
    smoothing: Any
    log: Any
    overlay: Any
    detail: Any
    seen: Any  # a token for each region that the browser shows


@dataclass(frozen=True, slots=True)
class _Shown:
    """What the inputs ask for, checked."""

    run_id: str | None
    run: RunRow | None
    overlay: list[str]  # ids of other runs
    view: charts.View
    follow: bool
    ref: GroupRef | None
    last: int  # the newest step that has groups; 0 for none
    order: str


class ShowTrain:
    """Fills every output that is out of date and skips the rest.

    One handler serves the poll and every choice. `seen` travels with the request instead of being
    kept in a session, so the next poll corrects an answer that another one has overtaken.
    """

    def __init__(self, views: Views):
        self.views = views

    def __call__(self, *values: Any) -> list[Any]:
        given = TrainInputs(*values)
        views, was = self.views, parse_tokens(given.seen)
        shown = self._read(given)
        choices, advice = views.choices(), views.advice(shown.run)
        parts = self._parts(shown) | {
            "runs": choices,
            "run": [shown.run_id, shown.run_id != given.run],
            "advice": advice,
        }
        now = {key: token(value) for key, value in parts.items()}
        new = {key for key in now if now[key] != was.get(key)}
        if not new:
            return [SKIP] * NUM_OUTPUTS
        picker = overlay = pill = line = trouble = SKIP
        live: list[Any] = [SKIP] * control.NUM_LIVE
        if "ended" in new:
            live = control.live_states(parts["ended"])
        rewarding: list[Any] = [SKIP] * control.NUM_REWARDING
        if "refusal" in new:
            rewarding = control.reward_states(parts["refusal"])
        buttons: list[Any] = [SKIP] * NUM_BUTTONS
        if new & {"runs", "run"}:
            chosen: dict[str, Any] = {}
            if shown.run_id != given.run:
                chosen["value"] = shown.run_id
            picker = gr.update(choices=choices, **chosen)
            overlay = gr.update(choices=[(n, r) for n, r in choices if r != shown.run_id])
        if "line" in new:
            pill = status.run_pill(shown.run)
            trouble = status.store_banner(views.store.trouble) + views.run_banner(shown.run)
            line, buttons = views.status_line(shown.run), control.states(shown.run)
        return [
            picker,
            pill,
            overlay,
            line,
            trouble,
            *buttons,
            *self._curves(shown, new),
            _slider(shown) if "steps" in new else SKIP,
            shown.follow if "follow" in new else SKIP,
            self._group(shown) if "group" in new else SKIP,
            advice if "advice" in new else SKIP,
            group_ref.text(shown.ref),
            json.dumps(now),
            *live,
            *rewarding,
        ]

    def _read(self, given: TrainInputs) -> _Shown:
        views = self.views
        run_id = given.run if views.cursor(given.run) else views.default_run()
        run = views.run(run_id)
        overlay = given.overlay if isinstance(given.overlay, list) else []
        newest = views.newest_group(run) if run else None
        pinned = group_ref.parse(given.pin)
        ref = (pinned or newest) if run else None
        return _Shown(
            run_id=run_id,
            run=run,
            overlay=[r for r in overlay if isinstance(r, str) and r != run_id],
            view=_curve_view(given),
            follow=pinned is None,
            ref=ref,
            last=newest[0] if newest else 0,
            order=one_of(given.order, ("best", "sampled"), "best"),
        )

    def _parts(self, shown: _Shown) -> dict[str, Any]:
        """Region of the page -> what its content depends on."""
        views, run, ref, view = self.views, shown.run, shown.ref, shown.view
        overlay_keys = [views.curves_key(views.run(r)) for r in shown.overlay]
        edited = views.store.edited(run.id, ref[0]) if run and ref else None
        return {
            "line": [
                shown.run_id,
                run and run.revision,
                [r.revision for r in views.runs() if r.status.is_live],
                views.store.trouble,
            ],
            "ended": control.ended(run),
            "curves": [views.curves_key(run), overlay_keys, view.x, view.smoothing, view.log],
            "detail": view.detail,
            "turns": self._acting(shown),
            "steps": [shown.run_id, shown.last, ref and ref[0]],
            "follow": shown.follow,
            "refusal": reward_edit.refusal(views, run, ref),
            "group": [shown.run_id, ref, shown.order, edited],
        }

    def _run_ids(self, shown: _Shown) -> list[str]:
        return [shown.run_id, *shown.overlay] if shown.run_id and shown.run else []

    def _acting(self, shown: _Shown) -> list[str]:
        """Of the drawn runs those in an environment."""
        runs = [run for run_id in self._run_ids(shown) if (run := self.views.run(run_id))]
        return [run.id for run in runs if self.views.acts(run)]

    def _curves(self, shown: _Shown, new: set[str]) -> list[Any]:
        run_ids, acting = self._run_ids(shown), self._acting(shown)

        def is_due(name: str) -> bool:
            if name in charts.OF_TURNS and not acting:
                return "turns" in new
            return "curves" in new or (name == "detail" and "detail" in new)

        return [
            self.views.figure(name, run_ids, shown.view) if is_due(name) else SKIP
            for name in CURVES
        ]

    def _group(self, shown: _Shown) -> str:
        if shown.run is None or shown.ref is None:
            return no_group(shown.run)
        step, position = shown.ref
        html = self.views.group(shown.run, step, position, shown.order)
        return html or status.empty(
            f"Step {step:,} has no group {position + 1}.", "Move the slider or turn Follow on."
        )


def _slider(shown: _Shown) -> dict[str, Any]:
    step = shown.ref[0] if shown.ref else 1
    return gr.update(maximum=max(2, shown.last), value=step, interactive=shown.last > 0)


def no_group(run: RunRow | None) -> str:
    """What the page shows while there is no group."""
    if run is None or run.status.is_live:
        how = "Press Start training to make them." if run is None else "The first step makes them."
        return status.empty(
            "The groups of each step appear here",
            f"Every prompt with all its completions, their rewards and advantages. {how}",
        )
    return status.empty(
        "This run has no groups",
        "It ended before its first step. Press Start training to run its settings again.",
    )


def _curve_view(given: TrainInputs) -> charts.View:
    weight = float(given.smoothing) if isinstance(given.smoothing, (int, float)) else 0.0
    return charts.View(
        one_of(given.x, charts.AXES, "step"),
        round(min(0.95, max(0.0, weight)), 2),
        given.log is True,
        one_of(given.detail, charts.DETAILS, "entropy"),
    )


def breakpoints_of(views: Views, run_id: Any) -> str:
    """The run's breakpoints for “Pause when”, also after a restart of the server."""
    run = views.run(run_id)
    return (run.breakpoints or "") if run else ""
