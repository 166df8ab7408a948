"""The Playground tab: one prompt, answered side by side by two states, of one run or of two.

The states are before training and the saved steps. The rubric of the run in view scores the
answers, which appear while they are written. A run that comes into view gets a held-out prompt and
its answers, unless something is training.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import gradio as gr

from grpo_core.config import TaskConfig
from grpo_core.store import RunRow
from grpo_core.tasks import environment_named
from ui.components.html_panel import QUIET, html_panel
from ui.render import provenance, status
from ui.render.played import state_name
from ui.render.text import count, esc
from ui.server.calls import slow
from ui.server.refresh import apart
from ui.server.service import Service
from ui.server.views import Views
from ui.tabs.frame import (
    LATEST,
    SKIP,
    Frame,
    Tab,
    components_of,
    hidden_values,
    parse_tokens,
    token,
)
from ui.tabs.kept import Kept, build_kept, kept_panel, wire_kept
from ui.tabs.play_answers import (
    FIRST,
    MAX_ANSWER_CHARS,
    MAX_CHARS,
    NEXT,
    NO_RUN,
    PlayInputs,
    look,
    reply_to,
    side_run,
)
from ui.tabs.setup import Setup

STREAM_SECONDS = 0.5
SIDES = ("left", "right")


@dataclass(frozen=True, slots=True)
class _Tools:
    left_run: gr.Dropdown
    left: gr.Dropdown
    right_run: gr.Dropdown
    right: gr.Dropdown
    num: gr.Number
    temperature: gr.Textbox
    take: gr.Button
    go: gr.Button
    turn: gr.Button
    stop: gr.Button


@dataclass(frozen=True, slots=True)
class _Box:
    """The components of the tab. ask, reply, taken and seen are hidden."""

    about: gr.HTML
    tools: _Tools
    inputs: PlayInputs
    answers: gr.HTML
    kept: Kept
    ask: gr.Textbox
    reply: gr.Textbox
    seen: gr.Textbox


def build_playground(
    frame: Frame, views: Views, service: Service, setup: Setup, tabs: gr.Tabs
) -> Tab:
    """Build the tab and connect its events. Call it inside gr.Blocks.

    setup, tabs: the form and the tabs of the page, for a new run on the kept answers.
    """
    box = _build()
    _wire_questions(box, frame, views, service)
    _wire_stream(box, frame, views, service)
    wire_kept(box.kept, box.answers, frame, views, (setup, tabs))
    tools, inputs = box.tools, box.inputs
    show = ShowPlayground(views, service)
    shown = [frame.run, box.seen, box.ask, inputs.taken, tools.left_run, tools.right_run]
    sides = [tools.left_run, tools.left, tools.right_run, tools.right]
    outputs = [box.about, *sides, box.kept.panel, box.seen, box.ask]
    fill = frame.refresh.js("playground", show, shown)
    # Each new `seen` refreshes the tab once more, and that refresh may ask the first question.
    box.seen.change(None, shown, outputs, js=fill, **QUIET)
    for chosen in (tools.left_run, tools.right_run):
        chosen.input(None, shown, outputs, js=fill, **QUIET)
    in_view = f"(tab, ...given) => tab === 'playground' ? ({fill})(...given) : []"
    apart(frame.run.change)(None, [frame.tab, *shown], outputs, js=in_view, **QUIET)
    return Tab(shown, outputs, show)


def _build() -> _Box:
    with gr.Column(elem_id="playground-box", elem_classes="card-box stack", min_width=0):
        about = html_panel(_about(None, []), elem_id="play-about")
        text, answer = _build_prompt()
        tools = _build_tools()
        answers = html_panel(events=("keep",), elem_id="play-answers")
    kept = build_kept()
    ask, reply, taken, seen = hidden_values("state-play-", ask="", reply="", taken="{}", seen="{}")
    inputs = PlayInputs(
        text=text,
        answer=answer,
        left_run=tools.left_run,
        left=tools.left,
        right_run=tools.right_run,
        right=tools.right,
        num=tools.num,
        temperature=tools.temperature,
        taken=taken,
    )
    return _Box(about, tools, inputs, answers, kept, ask, reply, seen)


def _wire_questions(box: _Box, frame: Frame, views: Views, service: Service) -> None:
    """From a press to the whole answers."""
    inputs, answers, ask, reply = box.inputs, box.answers, box.ask, box.reply
    for button, take in ((box.tools.go, ""), (box.tools.take, NEXT)):
        button.click(None, frame.run, ask, js=f"run => studioAsk(run, {take!r})", **QUIET)
    values = [c for c in components_of(inputs) if c is not inputs.taken]
    box.tools.turn.click(None, [frame.run, *values], ask, js="studioNextTurn", **QUIET)
    frame.run.change(None, [frame.run, ask], [ask, answers], js="studioOtherRun", **QUIET)
    ask.change(None, ask, answers, js="studioWaits", **QUIET)
    answered = ask.change(
        slow(lambda *values: reply_to(views, service, values[0], PlayInputs(*values[1:]))),
        [ask, *components_of(inputs)],
        reply,
        **LATEST,
    )
    answered.success(
        None,
        [reply, ask, inputs.taken, frame.run],
        [inputs.text, inputs.answer, inputs.taken, ask, answers],
        js="studioAnswered",
        **QUIET,
    )
    answered.failure(None, None, answers, js="studioNoAnswer", **QUIET)


def _wire_stream(box: _Box, frame: Frame, views: Views, service: Service) -> None:
    """Show the answers while they are written; Stop."""

    def look_now(*values: Any) -> list[Any]:
        return look(views, service, *values)

    shown = [box.ask, *components_of(box.inputs)]
    fill = frame.refresh.js("play-look", look_now, shown, first="studioPlaying.wanted()")
    js = f"(...given) => studioStreams(() => ({fill})(...given))"
    gr.Timer(STREAM_SECONDS).tick(None, shown, box.answers, js=js, **QUIET)
    box.tools.stop.click(None, None, None, js="() => studioPlaying.end()", **QUIET)


def _build_prompt() -> tuple[gr.Textbox, gr.Textbox]:
    with gr.Row(elem_id="play-ask"):
        text = gr.Textbox(
            label="Prompt",
            lines=2,
            max_lines=10,
            max_length=MAX_CHARS,
            placeholder="Type a prompt, or take another one",
            elem_id="play-prompt",
            interactive=True,
            scale=3,
        )
        answer = gr.Textbox(
            label="Right answer",
            max_lines=1,
            max_length=MAX_ANSWER_CHARS,
            placeholder="for checks that compare with one",
            elem_id="play-answer",
            interactive=True,
            scale=1,
        )
    return text, answer


def _build_tools() -> _Tools:
    with gr.Row(elem_id="play-sides"):
        sides = [c for label in ("Left", "Right") for c in _build_side(label)]
    with gr.Row(elem_id="play-tools"):
        return _Tools(
            *sides,
            num=gr.Number(
                4, label="Answers", elem_id="play-count", interactive=True, scale=0, min_width=90
            ),
            temperature=gr.Textbox(
                "1",
                label="Temperature",
                max_lines=1,
                elem_id="play-temperature",
                interactive=True,
                scale=0,
                min_width=90,
            ),
            take=gr.Button("Another prompt", scale=0, min_width=130),
            go=gr.Button("Answer", variant="primary", scale=0, min_width=100, elem_id="play-go"),
            turn=gr.Button("Next turn", scale=0, min_width=100, elem_id="play-turn"),
            stop=gr.Button("Stop", scale=0, min_width=90, elem_id="play-stop"),
        )


def _build_side(label: str) -> tuple[gr.Dropdown, gr.Dropdown]:
    """The run of one side, and its state."""
    name = f"play-{label.lower()}"
    run = gr.Dropdown([], label=f"{label} run", elem_id=f"{name}-run", interactive=True)
    state = gr.Dropdown(
        [(state_name(0), 0)], value=0, label=label, elem_id=name, interactive=True, min_width=160
    )
    return run, state


# ---- what is shown ---------------------------------------------------------------------------


def _about(run: RunRow | None, steps: list[int]) -> str:
    if run is None:
        return status.empty("Ask a model before and after its training", NO_RUN)
    return _states(run, steps) + _in_turns(run)


def _in_turns(run: RunRow) -> str:
    """What is different in an environment. Its class shows the button Next turn."""
    task = run.config.get("task")
    name = ""
    if isinstance(task, dict) and run.source is None:  # the model of a foreign run is not here
        name = environment_named(TaskConfig.model_construct(**task))
    if not name:
        return ""
    return (
        f'<p class="help in-turns">It acts in the environment {esc(name)}. Answer plays to the '
        "end; Next turn stops after each turn: action, tool call, observation.</p>"
    )


def _states(run: RunRow, steps: list[int]) -> str:
    if run.source is not None:
        return status.empty("This run has no model here", provenance.why_not_here(run))
    if run.example:
        return (
            '<p class="help">This is the recorded example. Its trained weights are not shipped, '
            "so only the model before training answers. Start a run on the Train tab to compare "
            "before with after.</p>"
        )
    if not steps:
        return (
            f'<p class="help">“{esc(run.name)}” has no saved state yet, so there is only the '
            "model before training. States are saved every few steps (Checkpoint every) and at "
            "the end.</p>"
        )
    return (
        f'<p class="help">“{esc(run.name)}”: {count(len(steps), "saved state")}. '
        "The greedy answer takes the likeliest token each time. The others are sampled, with the "
        "same random numbers on both sides. Each side may be another run; the rubric of the run "
        "in view scores both.</p>"
    )


class ShowPlayground:
    """Keeps the states on offer equal to the saved ones, and asks a first question of each run."""

    def __init__(self, views: Views, service: Service):
        self.views, self.service = views, service

    def __call__(
        self, run_id: Any, seen: Any, ask: Any, taken: Any, left_run: Any, right_run: Any
    ) -> list[Any]:
        run, was = self.views.run(run_id), parse_tokens(seen)
        # Another run in view: both sides show it again.
        is_other = was.get("run") != (run and run.id)
        chosen = dict(zip(SIDES, (None, None) if is_other else (left_run, right_run), strict=True))
        of = {side: side_run(self.views, chosen[side], run) if run else None for side in SIDES}
        steps = {side: self._steps(of[side]) for side in SIDES}
        ids = {side: found.id if (found := of[side]) else None for side in SIDES}
        now = {
            "run": run and run.id,
            "states": token([run and run.id, self._steps(run)]),
            "runs": token(self.views.choices()),
            **ids,
            **{f"{side}_steps": token(steps[side]) for side in SIDES},
        }
        panel, now["kept"] = kept_panel(self.views, was.get("kept"))
        waits = parse_tokens(taken).get("waits") is True
        if now == was:
            return [SKIP] * 7 + [self._question(run, self._steps(run), ask, waits)]
        sides: list[Any] = []
        for side in SIDES:
            state: dict[str, Any] = {}
            # A new state of the same run leaves the choice as it is, once there was an answer.
            if was.get(side) != now[side] or (side == "right" and waits):
                is_first = side == "left" and is_other
                state["value"] = 0 if is_first or not steps[side] else steps[side][-1]
            elif (
                side == "right"
                and len(steps[side]) == 1
                and was.get("right_steps") != token(steps[side])
            ):
                state["value"] = steps[side][0]
            found = of[side]
            choices = [(state_name(s), s) for s in [0, *steps[side]]]
            if found is not None and found.source is not None:
                choices, state = [], {"value": None}  # not even the model before training is here
            sides += [
                gr.update(choices=self.views.choices(), value=now[side]),
                gr.update(choices=choices, **state),
            ]
        return [_about(run, self._steps(run)), *sides, panel, json.dumps(now), SKIP]

    def _steps(self, run: RunRow | None) -> list[int]:
        if run is None or run.source is not None:
            return []
        return [row.step for row in self.views.store.checkpoints(run.id)]

    def _question(self, run: RunRow | None, steps: list[int], ask: Any, waits: bool) -> Any:
        """The first question of a run that has a saved state, or the one that waited."""
        if run is None or not steps:
            return SKIP
        if parse_tokens(ask).get("run") != run.id:
            take = FIRST
        elif waits and not self.service.reason_to_wait(run.id):
            take = ""
        else:
            return SKIP
        return json.dumps({"run": run.id, "id": token([run.id, steps, take]), "take": take})
