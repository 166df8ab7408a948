"""The Train tab: the set-up on the left, the run in view on the right, live."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import gradio as gr

from grpo_core.errors import InvalidConfig, StudioError
from grpo_core.store import RunRow
from ui.components import form
from ui.components.html_panel import QUIET, data_of, html_panel, one_of, script
from ui.components.live_chart import live_chart
from ui.render import charts, status
from ui.server import group_ref as place
from ui.server.refresh import SKIP, Shows
from ui.server.service import Desk
from ui.server.views import CURVES, Runs, Views
from ui.tabs import run_control as control
from ui.tabs import setup
from ui.tabs.setup import Setup, build_setup

AXES = [("step", "step"), ("time", "time"), ("tokens", "tokens")]
DETAILS = [("entropy", "entropy"), ("clip", "clip"), ("gradient", "gradient")]

# On a phone the run stands above the form: look at it once it has started.
TO_THE_RUN_JS = """() => {
  const row = document.querySelector('#train-row');
  if (getComputedStyle(row).flexDirection === 'column' && !document.querySelector('#start-problems .problem')) window.scrollTo({top: 0});
}"""


@dataclass(frozen=True)
class Frame:
    """What all tabs share: the run in view, hidden values that travel with every request instead of server-side state, and how they are filled."""

    run: gr.Dropdown
    pill: gr.HTML
    tab: gr.Textbox
    notice: gr.HTML
    shows: Shows


@dataclass(frozen=True)
class Train:
    """The tab's components, in the order in which `show` receives and fills them."""

    setup: Setup
    pin: gr.Textbox  # the place a person chose, "37/2"; empty while following
    inputs: list[Any]
    outputs: list[Any]
    show: Show


def build_train(frame: Frame, views: Views, runs: Runs, desk: Desk) -> Train:
    """Lay the tab out and make it answer. Must be called inside gr.Blocks."""
    with gr.Row(elem_id="train-row", equal_height=False):
        form_panel = build_setup(desk, frame.shows)
        with gr.Column(elem_id="live", elem_classes="stack", min_width=0, scale=1):
            with gr.Row(elem_id="line", elem_classes="card-box"):
                line = html_panel(
                    status.status_line(None, [], 0, None, 0),
                    script=script("status.js"),
                    elem_id="status",
                )
                buttons = control.build_buttons()
            trouble = html_panel(elem_id="run-banner")
            more = control.build_more()
            advisor = html_panel(events=("show", "dismiss"), elem_id="advisor")
            with gr.Row(elem_id="curve-tools"):
                x = gr.Radio(AXES, value="step", label="Horizontal axis", elem_id="axis", scale=0)
                smoothing = gr.Slider(
                    0,
                    0.95,
                    value=0,
                    step=0.05,
                    label="Smoothing",
                    elem_id="smoothing",
                    buttons=[],
                    scale=0,
                )
                log = gr.Checkbox(
                    False, label="Logarithmic", elem_id="log", container=False, scale=0
                )
                overlay = gr.Dropdown(
                    [], value=[], multiselect=True, label="Overlay", elem_id="overlay", scale=1
                )
            view = charts.View()
            figures = {}
            with gr.Row(elem_classes="curves"):
                for name in CURVES[:3]:
                    figures[name] = live_chart(
                        charts.figure(name, [], view),
                        elem_id=f"curve-{name}",
                        elem_classes="card-box",
                    )
            with gr.Column(elem_id="group-box", elem_classes="card-box stack", min_width=0):
                with gr.Row(elem_id="steps-row"):
                    step = gr.Slider(
                        1,
                        2,
                        value=1,
                        step=1,
                        label="Step",
                        elem_id="step",
                        buttons=[],
                        interactive=True,
                    )
                    follow = gr.Checkbox(
                        True,
                        label="Follow",
                        elem_id="follow",
                        container=False,
                        interactive=True,
                        scale=0,
                        min_width=0,
                    )
                group = html_panel(
                    _no_group(None),
                    events=("walk", "order"),
                    script=script("group.js"),
                    elem_id="group",
                )
            with gr.Row(elem_classes="curves"):
                for name in CURVES[3:5]:
                    figures[name] = live_chart(
                        charts.figure(name, [], view),
                        elem_id=f"curve-{name}",
                        elem_classes="card-box",
                    )
                with gr.Column(elem_id="detail-box", min_width=0):
                    detail = gr.Radio(
                        DETAILS,
                        value="entropy",
                        label="Also show",
                        elem_id="detail",
                        show_label=False,
                    )
                    figures["detail"] = live_chart(
                        charts.figure("detail", [], view),
                        elem_id="curve-detail",
                        elem_classes="card-box",
                    )
            pin, at, order, seen = (
                gr.Textbox(v, visible="hidden", label=n, elem_id=f"state-{n}")
                for n, v in (("pin", ""), ("at", ""), ("order", "best"), ("seen", "{}"))
            )

    inputs = [frame.run, pin, order, x, smoothing, log, overlay, detail, seen]
    outputs = [
        frame.run,
        frame.pill,
        overlay,
        line,
        trouble,
        *buttons.all,
        *figures.values(),
        step,
        follow,
        group,
        advisor,
        at,
        seen,
    ]
    show = Show(views)
    tab, fill = Train(form_panel, pin, inputs, outputs, show), frame.shows.js("train", show, inputs)

    def then_show(event: Any) -> None:
        event.then(None, inputs, outputs, js=fill, **QUIET)

    frame.run.change(
        None,
        frame.run,
        more.conditions,
        js=frame.shows.js(
            "breakpoints", lambda run_id: [breakpoints_of(views, run_id)], [frame.run]
        ),
        **QUIET,
    )
    for event in (
        frame.run.change,
        x.input,
        log.input,
        overlay.input,
        detail.input,
        smoothing.release,
    ):
        event(None, inputs, outputs, js=fill, **QUIET)
    # A choice of a person pins the place first, in the browser's own values, and is then shown: a poll that was under way cannot undo it.
    frame.run.input(lambda: ["", ""], None, [pin, frame.notice], **QUIET)
    then_show(step.release(lambda s: pinned_step(s), step, pin, **QUIET))
    then_show(
        step.input(lambda s: pinned_step(s), step, pin, **(QUIET | {"trigger_mode": "always_last"}))
    )
    then_show(follow.input(lambda on, here: "" if on else here, [follow, at], pin, **QUIET))
    for figure in figures.values():
        then_show(figure.pick(pick_step, None, pin, **QUIET))

    then_show(advisor.show(None, None, pin, js="() => studioPressed.at", **QUIET))

    def drop(run_id: Any, event: gr.EventData) -> Any:
        return dismiss(views, run_id, event)

    then_show(advisor.dismiss(drop, frame.run, frame.notice, **QUIET))

    then_show(group.walk(None, [pin, at], pin, js="(pin, at) => studioWalk(pin || at)", **QUIET))
    then_show(group.order(None, None, order, js="() => studioPressed.order", **QUIET))

    def start(*values: Any) -> list[Any]:
        *fields, name, anyway = values
        held = held_back(desk, fields, anyway is True)
        if held:
            return [SKIP, SKIP, held, *setup.complain(fields, []), gr.update(visible=True)]
        return [*start_run(runs, views, fields, name), gr.update(visible=False, value=False)]

    form_panel.start.click(
        start,
        [*form_panel.values, form_panel.name, form_panel.anyway],
        [frame.run, pin, frame.notice, *form_panel.complaints, form_panel.anyway],
        **QUIET,
    ).then(None, None, None, js=TO_THE_RUN_JS)
    control.wire(buttons, more, frame.run, at, frame.notice, runs, views, then_show)
    return tab


# ---- what a person does ----------------------------------------------------------------------------------------------


def held_back(desk: Desk, fields: Sequence[Any], anyway: bool) -> str:
    """What Preflight has to say against these settings, if it has seen them; "" if they may start."""
    config, _ = form.read(fields)
    why = "" if config is None else desk.refusal(config, anyway)
    what, _, then = why.partition(". ")
    return status.banner(f"{what}.", then, tone="warn") if why else ""


def start_run(runs: Runs, views: Views, fields: Sequence[Any], name: Any) -> list[Any]:
    """Begin or queue a run and look at it; or say beside the fields what is wrong."""
    config, problems = form.read(fields)
    if config is not None:
        try:
            run_id = runs.start(config, str(name or "").strip()[:200] or None)
            return [views.picked(run_id), "", "", *setup.complain(fields, [])]
        except InvalidConfig as error:
            problems = error.problems
        except StudioError as error:
            return [SKIP, SKIP, setup.refused(error), *setup.complain(fields, [])]
    return [SKIP, SKIP, "", *setup.complain(fields, problems)]


def pinned_step(step: Any) -> Any:
    return place.text((int(step), 0)) if isinstance(step, (int, float)) and 0 < step < 1e9 else SKIP


def pick_step(event: gr.EventData) -> Any:
    return pinned_step(data_of(event).get("step"))


def dismiss(views: Views, run_id: Any, event: gr.EventData) -> Any:
    """Take one diagnosis of this run off the page, for good."""
    code = data_of(event).get("code")
    run = views.run(run_id)
    found = next((n for n in views.notices(run) if n.code == code), None) if run else None
    if found is None:
        return SKIP
    try:
        views.store.dismiss(run.id, found)
    except StudioError as error:
        return status.banner("The notice was not dismissed.", str(error))
    return ""


# ---- what is shown ---------------------------------------------------------------------------------------------------


def breakpoints_of(views: Views, run_id: Any) -> str:
    """For “Wait when”: what is in force in the run in view, also after a restart of the server."""
    run = views.run(run_id)
    return (run.breakpoints or "") if run else ""


class Show:
    """Fills every output that is out of date and skips the rest: the one handler behind the poll and behind every choice.

    `seen` is what the browser shows now, as one token for each region. It travels with the request, so that no session is kept, and
    whatever overtook whatever, the next poll puts it right.
    """

    def __init__(self, views: Views):
        self.views = views

    def __call__(
        self,
        run_id: Any,
        pin: Any,
        order: Any,
        x: Any,
        smoothing: Any,
        log: Any,
        overlay: Any,
        detail: Any,
        seen: Any,
    ) -> list[Any]:
        views, was = self.views, parse_tokens(seen)
        chosen = run_id if views.cursor(run_id) else views.default_run()
        run = views.run(chosen)
        view = _view(x, smoothing, log, detail)
        others = (
            [r for r in overlay if isinstance(r, str) and r != chosen]
            if isinstance(overlay, list)
            else []
        )
        at = self._place(run, pin)
        last = (views.store.last_step_with_groups(run.id) if run else None) or 0
        choices = views.choices()
        now = {
            "runs": choices,
            "run": [chosen, chosen != run_id],
            "line": [
                chosen,
                run and run.revision,
                [r.revision for r in views.runs() if r.status.is_live],
            ],
            "curves": [
                views.curves_key(run),
                [views.curves_key(views.run(r)) for r in others],
                view.x,
                view.smoothing,
                view.log,
            ],
            "detail": view.detail,
            "steps": [chosen, last, at and at[0]],
            "follow": not place.parse(pin),
            "group": [chosen, at, order, at and views.store.edited(chosen, at[0])],
        }
        advice = views.advice(run)
        now = {key: token(value) for key, value in (now | {"advice": advice}).items()}
        new = {key for key in now if now[key] != was.get(key)}
        if not new:
            return [SKIP] * (15 + len(CURVES))
        curves = ["curves" in new or (name == "detail" and "detail" in new) for name in CURVES]
        return [
            gr.update(choices=choices, **({"value": chosen} if chosen != run_id else {}))
            if new & {"runs", "run"}
            else SKIP,
            status.run_pill(run) if "line" in new else SKIP,
            gr.update(choices=[(n, r) for n, r in choices if r != chosen])
            if new & {"runs", "run"}
            else SKIP,
            views.status_line(run) if "line" in new else SKIP,
            status.run_banner(run) if "line" in new else SKIP,
            *(control.states(run) if "line" in new else [SKIP] * 4),
            *(
                views.figure(name, [chosen, *others] if run else [], view) if fresh else SKIP
                for name, fresh in zip(CURVES, curves, strict=True)
            ),
            gr.update(maximum=max(2, last), value=at[0] if at else 1, interactive=last > 0)
            if "steps" in new
            else SKIP,
            not place.parse(pin) if "follow" in new else SKIP,
            self._group(run, at, order) if "group" in new else SKIP,
            advice if "advice" in new else SKIP,
            place.text(at),
            json.dumps(now),
        ]

    def _place(self, run: RunRow | None, pin: Any) -> place.GroupRef | None:
        """The pinned place, or the newest step that has groups."""
        if run is None:
            return None
        last = self.views.store.last_step_with_groups(run.id)
        return place.parse(pin) or ((last, 0) if last is not None else None)

    def _group(self, run: RunRow | None, at: place.GroupRef | None, order: Any) -> str:
        if run is None or at is None:
            return _no_group(run)
        found = self.views.group(run, *at, "sampled" if order == "sampled" else "best")
        return found or status.empty(
            f"Step {at[0]:,} has no group {at[1] + 1}.", "Move the slider or turn Follow on."
        )


def _no_group(run: RunRow | None) -> str:
    if run is None or run.status.is_live:
        return status.empty(
            "The groups of each step appear here",
            "Every prompt with all its completions, their rewards and advantages. Press Start training to make them.",
        )
    return status.empty(
        "This run has no groups",
        "It ended before its first step. Press Start training to run its settings again.",
    )


def _view(x: Any, smoothing: Any, log: Any, detail: Any) -> charts.View:
    weight = float(smoothing) if isinstance(smoothing, (int, float)) else 0.0
    return charts.View(
        one_of(x, charts.AXES, "step"),
        round(min(0.95, max(0.0, weight)), 2),
        log is True,
        one_of(detail, charts.DETAILS, "entropy"),
    )


def parse_tokens(seen: Any) -> dict[str, str]:
    try:
        data = json.loads(seen)
    except (TypeError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def token(value: Any) -> str:
    """Short and the same in every process, so that it also holds across a restart of the server."""
    return blake2b(repr(value).encode("utf-8", "replace"), digest_size=6).hexdigest()
