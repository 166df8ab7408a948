"""The Train tab: the set-up on the left, the run in view on the right, live."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from grpo_core.errors import StudioError
from ui.components.html_panel import QUIET, data_of, html_panel, script
from ui.components.live_chart import live_chart
from ui.render import charts, status
from ui.render.run_end import ACTS
from ui.server import group_ref
from ui.server.refresh import RefreshEvents, apart
from ui.server.service import Service
from ui.server.views import CURVES, Runs, Views
from ui.tabs import run_control as control
from ui.tabs.form_fields import FormFields
from ui.tabs.frame import LATEST, SKIP, Frame, Tab, components_of, hidden_values
from ui.tabs.setup import Setup, build_bar, build_pane, build_summary, wire_setup
from ui.tabs.setup_live import beside
from ui.tabs.start_bar import Starter
from ui.tabs.start_from import wire_start_from
from ui.tabs.train_view import ShowTrain, TrainInputs, breakpoints_of, no_group

AXES = [("step", "step"), ("time", "time"), ("tokens", "tokens")]
# Short, because the chart's title stands beside them.
DETAILS = [("entropy", "entropy"), ("clip", "clip"), ("grad", "gradient"), ("gap", "sampler")]

# A started run takes the place of the set-up.
TO_THE_RUN_JS = """() => {
  if (document.querySelector('#start-problems .problem, #start-answer .banner')) return;
  window.studioClose?.();
  document.documentElement.dataset.report = '';
  window.scrollTo({top: 0});
}"""


@dataclass(frozen=True)
class Train(Tab):
    """The Train tab, with the parts of it that other tabs use."""

    setup: Setup
    pin: gr.Textbox
    banner: gr.HTML  # what the run came to, with a button for each of ACTS


@dataclass(frozen=True, slots=True)
class _Live:
    """The components that show the run in view, by region."""

    status: _Status
    tools: _CurveTools
    group: _GroupBox
    detail: gr.Radio
    figures: dict[str, gr.HTML]  # by name, in the order of CURVES


def build_train(frame: Frame, tabs: gr.Tabs, views: Views, runs: Runs, service: Service) -> Train:
    """Build the tab and connect its events. Call it inside gr.Blocks. tabs: those of the page."""
    fields = FormFields()
    with gr.Row(elem_id="train-row", equal_height=False):
        summary, pane = build_summary(), build_pane(fields, runs.has_many_devices)
        fields.controls["model.device"].choices = [(n, n) for n in runs.devices]
        with gr.Column(elem_id="live", elem_classes="stack", min_width=0, scale=1):
            live = _build_live()
            pin, at, order, seen = hidden_values("state-", pin="", at="", order="best", seen="{}")
    setup = Setup(fields, summary, pane, *build_bar())
    wire_setup(setup, [tabs, frame.tab], service, frame.refresh)
    wire_start_from(summary.start_from, setup.filled, frame, views)
    tools = live.tools
    inputs = components_of(
        TrainInputs(
            run=frame.run,
            pin=pin,
            order=order,
            x=tools.x,
            smoothing=tools.smoothing,
            log=tools.log,
            overlay=tools.overlay,
            detail=live.detail,
            seen=seen,
        )
    )
    outputs = [
        frame.run,
        frame.pill,
        tools.overlay,
        live.status.line,
        live.status.trouble,
        *live.status.buttons.all,
        *live.figures.values(),
        live.group.step,
        live.group.follow,
        live.group.group,
        summary.advisor,
        at,
        seen,
        *live.status.more.live,
        *live.status.more.rewarding,
    ]
    show = ShowTrain(views)
    refresh = frame.refresh.events("train", show, inputs, outputs)
    _wire_breakpoints(frame, views, live.status.more)
    refresh.on_change(frame.run.change)
    for event in (
        tools.x.input,
        tools.log.input,
        tools.overlay.input,
        live.detail.input,
        tools.smoothing.release,
    ):
        refresh.on(event)
    # A choice first pins the group in the browser's own values, and is shown after that. So an
    # answer to a poll that was sent before cannot undo it.
    frame.run.input(lambda: ["", ""], None, [pin, frame.notice], **QUIET)
    _wire_pin(live, pin, at, refresh)
    refresh.after(summary.advisor.show(None, None, pin, js="() => studioPressed.at", **QUIET))
    group = live.group.group
    refresh.after(group.order(None, None, order, js="() => studioPressed.order", **QUIET))
    _wire_advisor(summary.advisor, frame, views, refresh)
    _wire_acts(live.status.trouble)

    _wire_start(setup, frame, pin, Starter(runs, views, service))
    commands = control.RunCommands(runs, views)
    control.wire(
        commands, control.Controls(live.status.buttons, live.status.more), frame, at, refresh
    )
    return Train(*beside(show, inputs, outputs, setup, views), setup, pin, live.status.trouble)


# ---- layout ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Status:
    line: gr.HTML
    buttons: control.Buttons
    trouble: gr.HTML
    more: control.More


@dataclass(frozen=True, slots=True)
class _CurveTools:
    x: gr.Radio
    smoothing: gr.Slider
    log: gr.Checkbox
    overlay: gr.Dropdown


@dataclass(frozen=True, slots=True)
class _GroupBox:
    step: gr.Slider
    follow: gr.Checkbox
    group: gr.HTML


def _build_live() -> _Live:
    """The group comes before the loss: cards are on the first screen."""
    status_parts = _build_status()
    tools = _build_curve_tools()
    with gr.Row(elem_classes="curves"):
        figures = {name: _curve(name) for name in CURVES[:3]}
    group = _build_group()
    with gr.Row(elem_classes="curves"):
        figures |= {name: _curve(name) for name in CURVES[3:5]}
        with gr.Column(elem_id="detail-box", min_width=0):
            detail = gr.Radio(
                DETAILS, value="entropy", label="Also show", elem_id="detail", show_label=False
            )
            figures["detail"] = _curve("detail")
    with gr.Row(elem_classes="curves of-turns"):
        figures |= {name: _curve(name) for name in charts.OF_TURNS}
    return _Live(status_parts, tools, group, detail, figures)


def _build_status() -> _Status:
    with gr.Row(elem_id="line", elem_classes="card-box"):
        line = html_panel(
            status.status_line(None, [], 0, None, 0), script=script("status.js"), elem_id="status"
        )
        buttons = control.build_buttons()
        control.build_asks()
    return _Status(
        line,
        buttons,
        more=control.build_more(),
        trouble=html_panel(elem_id="run-banner", events=tuple(ACTS)),
    )


def _build_curve_tools() -> _CurveTools:
    with gr.Row(elem_id="curve-tools", elem_classes="card-box"):
        return _CurveTools(
            x=gr.Radio(AXES, value="step", label="Horizontal axis", elem_id="axis", scale=0),
            smoothing=gr.Slider(
                0,
                0.95,
                value=0,
                step=0.05,
                label="Smoothing",
                elem_id="smoothing",
                buttons=[],
                scale=0,
            ),
            log=gr.Checkbox(False, label="Logarithmic", elem_id="log", container=False, scale=0),
            overlay=gr.Dropdown(
                [], value=[], multiselect=True, label="Overlay", elem_id="overlay", scale=1
            ),
        )


def _curve(name: str) -> gr.HTML:
    empty = charts.figure(name, [], charts.View())
    return live_chart(empty, elem_id=f"curve-{name}", elem_classes="card-box")


def _build_group() -> _GroupBox:
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
            no_group(None), events=("walk", "order"), script=script("group.js"), elem_id="group"
        )
    return _GroupBox(step, follow, group)


# ---- events ----------------------------------------------------------------------------------


def _wire_breakpoints(frame: Frame, views: Views, more: control.More) -> None:
    def read(run_id: Any) -> list[str]:
        return [breakpoints_of(views, run_id)]

    fill = frame.refresh.js("breakpoints", read, [frame.run])
    apart(frame.run.change)(None, frame.run, more.conditions, js=fill, **QUIET)


def _wire_pin(live: _Live, pin: gr.Textbox, at: gr.Textbox, refresh: RefreshEvents) -> None:
    """Everything that chooses a group."""
    step, follow, group = live.group.step, live.group.follow, live.group.group
    refresh.after(step.release(pinned_step, step, pin, **QUIET))
    refresh.after(step.input(pinned_step, step, pin, **LATEST))
    refresh.after(follow.input(lambda on, shown: "" if on else shown, [follow, at], pin, **QUIET))
    for figure in live.figures.values():
        refresh.after(figure.pick(pick_step, None, pin, **QUIET))
    refresh.after(
        group.walk(None, [pin, at], pin, js="(pin, at) => studioWalk(pin || at)", **QUIET)
    )


def _wire_advisor(advisor: gr.HTML, frame: Frame, views: Views, refresh: RefreshEvents) -> None:
    # Gradio passes the event to a parameter of this annotation; a partial function has none.
    def dismiss_clicked(run_id: Any, event: gr.EventData) -> Any:
        return dismiss(views, run_id, event)

    refresh.after(advisor.dismiss(dismiss_clicked, frame.run, frame.notice, **QUIET))


def _wire_acts(trouble: gr.HTML) -> None:
    """The buttons of an ended run open the tab that does it, for this run."""
    for event, tab in (("tryit", "playground"), ("export", "runs")):
        getattr(trouble, event)(None, None, None, js=f"() => studioOpenTab('{tab}')", **QUIET)


def _wire_start(setup: Setup, frame: Frame, pin: gr.Textbox, starter: Starter) -> None:
    bar = setup.bar
    inputs = [*setup.values, setup.pane.name]
    outputs = [frame.run, pin, frame.notice, bar.answer, *setup.complaints]

    # Gradio passes the event to a parameter of this annotation.
    def insist(event: gr.EventData, *values: Any) -> list[Any]:
        return starter.insist(event, *values)

    for event, start in ((bar.start.click, starter.press), (bar.answer.start, insist)):
        event(start, inputs, outputs, **QUIET).then(None, None, None, js=TO_THE_RUN_JS)
    bar.answer.close(lambda: "", None, bar.answer, **QUIET)


# ---- what a person does ----------------------------------------------------------------------


def pinned_step(step: Any) -> Any:
    """The first group of a step as text; SKIP for any other value."""
    if isinstance(step, (int, float)) and 0 < step < 1e9:
        return group_ref.text((int(step), 0))
    return SKIP


def pick_step(event: gr.EventData) -> Any:
    return pinned_step(data_of(event).get("step"))


def dismiss(views: Views, run_id: Any, event: gr.EventData) -> Any:
    """Dismiss one diagnosis of this run for good. Returns the notice."""
    code, run = data_of(event).get("code"), views.run(run_id)
    if run is None:
        return SKIP
    diagnosis = next((n for n in views.notices(run) if n.code == code), None)
    if diagnosis is None:
        return SKIP
    try:
        views.store.dismiss(run.id, diagnosis)
    except StudioError as error:
        return status.banner("The notice was not dismissed.", str(error))
    return ""
