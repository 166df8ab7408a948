"""Controls of the run in view: pause, step, resume, stop, settings, breakpoints, edits and the log.

The handlers check what the browser sent and pass it on to RunManager.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr

from grpo_core.config import fields_by_name
from grpo_core.errors import StudioError
from grpo_core.runs.run_log import tail
from grpo_core.store import RunRow
from grpo_core.training.control import KNOBS
from grpo_core.types import RunStatus
from ui.components.html_panel import QUIET, html_panel, one_of
from ui.render import status
from ui.render.text import esc, plain, size
from ui.server import group_ref
from ui.server.refresh import RefreshEvents
from ui.server.views import Runs, Views
from ui.tabs.frame import Frame

STRIDES = [("one step", "step"), ("one phase", "phase")]
KNOB_CHOICES = [(fields_by_name()[name].title, name) for name in KNOBS]
ENDED = (RunStatus.STOPPED, RunStatus.FAILED, RunStatus.INTERRUPTED)
LOG_LINES = 200
NUM_LIVE, NUM_REWARDING = 8, 4  # outputs of `live_states` and of `reward_states`


@dataclass(frozen=True, slots=True)
class Buttons:
    """The buttons in the status line, in the order of `states`."""

    pause: gr.Button
    step: gr.Button
    resume: gr.Button
    stop: gr.Button

    @property
    def all(self) -> list[gr.Button]:
        return [self.pause, self.step, self.resume, self.stop]


@dataclass(frozen=True, slots=True)
class More:
    """The controls that “Run control” shows below the status line."""

    why: gr.HTML
    stride: gr.Radio
    checkpoint: gr.Button
    knob: gr.Dropdown
    value: gr.Textbox
    turn: gr.Button
    conditions: gr.Textbox
    arm: gr.Button
    completion: gr.Number
    reward: gr.Textbox
    edit: gr.Button
    edit_refusal: gr.HTML  # why a reward cannot be set now
    show_log: gr.Button
    message: gr.HTML
    log: gr.HTML

    @property
    def live(self) -> list[gr.Component]:
        """What `live_states` fills, in its order."""
        knobs = [self.knob, self.value, self.turn]
        return [self.why, self.stride, self.checkpoint, *knobs, self.conditions, self.arm]

    @property
    def rewarding(self) -> list[gr.Component]:
        """What `reward_states` fills, in its order."""
        return [self.edit_refusal, self.completion, self.reward, self.edit]


@dataclass(frozen=True, slots=True)
class Controls:
    buttons: Buttons
    more: More


def build_buttons() -> Buttons:
    return Buttons(
        *(
            gr.Button(name, interactive=False, elem_id=name.lower(), scale=0, min_width=72)
            for name in ("Pause", "Step", "Resume", "Stop")
        )
    )


def build_more() -> More:
    with gr.Column(elem_id="control", elem_classes="card-box", min_width=0):
        why = html_panel(elem_id="control-why")
        with gr.Row(elem_classes="control-row"):
            stride = gr.Radio(STRIDES, value="step", label="Step goes", elem_id="stride")
            checkpoint = gr.Button("Checkpoint now", size="sm", scale=0, min_width=140)
            show_log = gr.Button("Show log", size="sm", scale=0, min_width=100)
        with gr.Row(elem_classes="control-row"):
            knob = gr.Dropdown(
                KNOB_CHOICES, value=KNOBS[0], label="Setting", filterable=False, elem_id="knob"
            )
            value = gr.Textbox(
                label="New value",
                max_lines=1,
                max_length=40,
                placeholder="from the next step on",
                elem_id="knob-value",
            )
            turn = gr.Button("Change", size="sm", scale=0, min_width=100)
        with gr.Row(elem_classes="control-row"):
            conditions = gr.Textbox(
                label="Pause when",
                max_lines=1,
                max_length=1000,
                placeholder="kl > 0.2, verdict = phantom, step = 40",
                elem_id="conditions",
            )
            arm = gr.Button("Set breakpoints", size="sm", scale=0, min_width=140)
        with gr.Row(elem_classes="control-row"):
            completion = gr.Number(
                label="Completion of the group in view", value=1, elem_id="edit-completion"
            )
            reward = gr.Textbox(
                label="New reward",
                max_lines=1,
                max_length=40,
                elem_id="edit-reward",
            )
            edit = gr.Button(
                "Set reward",
                size="sm",
                scale=0,
                min_width=120,
                interactive=False,
                elem_id="set-reward",
            )
        edit_refusal = html_panel(elem_id="edit-refusal")
        message = html_panel(elem_id="control-said")
        log = html_panel(elem_id="run-log")
    return More(
        why=why,
        stride=stride,
        checkpoint=checkpoint,
        knob=knob,
        value=value,
        turn=turn,
        conditions=conditions,
        arm=arm,
        completion=completion,
        reward=reward,
        edit=edit,
        edit_refusal=edit_refusal,
        show_log=show_log,
        message=message,
        log=log,
    )


def build_asks() -> None:
    """Buttons that show what most people do not need; live.css reads data-control and so on."""
    html_panel(
        '<div class="asks"><button type="button" data-toggle="control" aria-pressed="false">'
        'Run control</button><button type="button" data-toggle="tools" aria-pressed="false">'
        "Chart tools</button></div>",
        elem_id="asks",
    )


def ended(run: RunRow | None) -> str:
    """Why a run takes no commands, as a sentence; empty if it takes them."""
    if run is None:
        return "There is no run yet."
    if run.source is not None:
        return "This run was not trained here, so it takes no commands."
    return "" if run.status.is_live else f"This run is {run.status}, so nothing can be changed."


def states(run: RunRow | None) -> list[dict[str, Any]]:
    """Updates of pause, step, resume and stop: a button is enabled where it has an effect."""
    can = [False] * 4
    if run is not None and run.source is None:
        live, paused = run.status.is_live, run.status is RunStatus.PAUSED
        can = [
            live and not paused,
            live and run.status is not RunStatus.QUEUED,
            paused or run.status in ENDED,
            live,
        ]
    return [gr.update(interactive=yes) for yes in can]


def live_states(ended: str) -> list[Any]:
    """Updates of More.live. ended: why the run takes no commands."""
    return _refused(ended, NUM_LIVE)


def reward_states(refusal: str) -> list[Any]:
    """Updates of More.rewarding. refusal: why no reward can be set."""
    return _refused(refusal, NUM_REWARDING)


def _refused(why: str, num_outputs: int) -> list[Any]:
    """A line that says why the controls after it are disabled; empty if they are enabled."""
    note = f'<p class="note">{esc(why)}</p>' if why else ""
    return [note, *[gr.update(interactive=not why)] * (num_outputs - 1)]


def wire(
    commands: RunCommands,
    controls: Controls,
    frame: Frame,
    at: gr.Textbox,
    refresh: RefreshEvents,
) -> None:
    """Connect the controls. at: the group in view.

    Errors of the four buttons go to the page's notice, those of the others beside them.
    """
    buttons, more, run, notice = controls.buttons, controls.more, frame.run, frame.notice
    refresh.after(buttons.pause.click(commands.pause, run, notice, **QUIET))
    refresh.after(buttons.step.click(commands.step, [run, more.stride], notice, **QUIET))
    refresh.after(buttons.resume.click(commands.resume, run, notice, **QUIET))
    refresh.after(buttons.stop.click(commands.stop, run, notice, **QUIET))
    more.checkpoint.click(commands.checkpoint, run, more.message, **QUIET)
    more.show_log.click(commands.log, run, more.log, **QUIET)
    for event in (more.turn.click, more.value.submit):
        event(commands.turn, [run, more.knob, more.value], more.message, **QUIET)
    for event in (more.arm.click, more.conditions.submit):
        event(commands.arm, [run, more.conditions], more.message, **QUIET)
    edit_inputs = [run, at, more.completion, more.reward]
    for event in (more.edit.click, more.reward.submit):
        refresh.after(event(commands.edit, edit_inputs, more.message, **QUIET))


class RunCommands:
    """Handlers that check what the browser sent, pass it to the run, and return a message."""

    def __init__(self, runs: Runs, views: Views):
        self.runs, self.views = runs, views

    def _send(self, run_id: Any, failed: str, command: Callable[[str], Any], done: str = "") -> str:
        """The message: `failed` with the reason, or `done`."""
        if self.views.cursor(run_id) is None:
            return status.banner(failed, "Choose a run first.")
        try:
            command(run_id)
        except StudioError as error:
            return status.banner(failed, str(error))
        return status.banner(done, "", tone="good") if done else ""

    def pause(self, run_id: Any) -> str:
        return self._send(run_id, "The run was not paused.", self.runs.pause)

    def step(self, run_id: Any, stride: Any) -> str:
        return self._send(
            run_id,
            "The run did not go on.",
            lambda r: self.runs.step(r, one_of(stride, ("step", "phase"), "step")),
        )

    def resume(self, run_id: Any) -> str:
        return self._send(run_id, "The run was not resumed.", self.runs.resume)

    def stop(self, run_id: Any) -> str:
        return self._send(run_id, "The run was not stopped.", self.runs.stop)

    def checkpoint(self, run_id: Any) -> str:
        return self._send(
            run_id,
            "No checkpoint is saved.",
            self.runs.checkpoint,
            "Saving at the end of this step.",
        )

    def turn(self, run_id: Any, name: Any, value: Any) -> str:
        number, name = _finite(value), one_of(name, KNOBS, KNOBS[0])
        if number is None:
            return status.banner(
                "Nothing was changed.",
                f"New value = {str(value)!r:.60}: this is not a number. Write one, e.g. 1e-4.",
            )
        return self._send(
            run_id,
            "Nothing was changed.",
            lambda r: self.runs.set_knob(r, name, number),
            f"{fields_by_name()[name].title} is {plain(number)} from the next step on.",
        )

    def arm(self, run_id: Any, conditions: Any) -> str:
        text = conditions.strip() if isinstance(conditions, str) else ""
        return self._send(
            run_id,
            "The breakpoints stay as they were.",
            lambda r: self.runs.set_breakpoints(r, text),
            f"The run will pause when {text}." if text else "Breakpoints cleared.",
        )

    def edit(self, run_id: Any, at: Any, completion: Any, reward: Any) -> str:
        ref, number, which = group_ref.parse(at), _finite(reward), _finite(completion)
        if ref is None:
            return status.banner(
                "No reward was changed.", "Show a group of the waiting step first."
            )
        if number is None or which is None or which != int(which):
            return status.banner(
                "No reward was changed.",
                "Write the number of a completion (its # on the card) and its new reward.",
            )
        return self._send(
            run_id,
            "No reward was changed.",
            lambda r: self.runs.edit_reward(r, *ref, int(which) - 1, number),
            f"Completion {int(which)} of group {ref[1] + 1} has reward {plain(number)}; "
            "the advantages follow.",
        )

    def log(self, run_id: Any) -> str:
        """Checkpoints with their sizes, and the newest lines of the run's log."""
        if self.views.cursor(run_id) is None:
            return status.empty("No run in view", "Choose a run first.")
        saved = self.views.store.checkpoints(run_id)
        steps = ", ".join(f"step {c.step:,} ({size(c.bytes)})" for c in saved)
        head = f"{len(saved)} checkpoints: {steps}" if saved else "No checkpoint yet."
        entries = tail(self.views.store.log_file(run_id), LOG_LINES)
        lines = "\n".join(_line(entry) for entry in entries) or "Nothing was logged."
        return (
            f'<p class="note">{esc(head)}</p>'
            f'<pre class="log" tabindex="0" role="region" aria-label="Log">\n{esc(lines)}</pre>'
        )


def _line(entry: dict[str, Any]) -> str:
    more = " ".join(f"{k}={v}" for k, v in entry.items() if k not in ("time", "level", "what"))
    return f"{entry.get('time', '')} {entry.get('level', '')} {entry.get('what', '')} {more}"[:2000]


def _finite(value: Any) -> float | None:
    """The value as a number; None for nan, infinity, and anything from 1e12."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if abs(number) < 1e12 else None
