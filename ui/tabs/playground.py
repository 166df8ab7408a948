"""The Playground tab: one prompt, answered side by side by two states of a run's model.

The states are before training and the saved steps. The run's rubric scores the answers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import gradio as gr

from grpo_core.errors import StudioError
from grpo_core.exporting.play_request import PlayRequest
from grpo_core.store import RunRow
from ui.components.html_panel import QUIET, html_panel
from ui.render import status
from ui.render.text import count, esc, format_number
from ui.server.calls import slow
from ui.server.service import Service
from ui.server.views import Views
from ui.tabs.frame import SKIP, Frame, Tab, components_of, hidden_values, parse_tokens, token

MAX_ANSWERS = 16  # on each side
MAX_CHARS = 20_000
MAX_ANSWER_CHARS = 2_000


@dataclass(frozen=True, slots=True)
class PlayInputs:
    """What “Answer” reads: components on the page, in a request their values."""

    run: Any
    text: Any
    answer: Any
    left: Any
    right: Any
    num: Any
    temperature: Any
    at: Any = ""  # the number after the held-out prompt that was taken last


@dataclass(frozen=True, slots=True)
class _Tools:
    left: gr.Dropdown
    right: gr.Dropdown
    num: gr.Number
    temperature: gr.Textbox
    take: gr.Button
    go: gr.Button


def build_playground(frame: Frame, views: Views, service: Service) -> Tab:
    """Build the tab and connect its events. Call it inside gr.Blocks."""
    with gr.Column(elem_id="playground-box", elem_classes="card-box stack", min_width=0):
        about = html_panel(_about(None, []), elem_id="play-about")
        text = gr.Textbox(
            label="Prompt",
            lines=3,
            max_lines=10,
            max_length=MAX_CHARS,
            placeholder="Type a prompt, or take a held-out one",
            elem_id="play-prompt",
            interactive=True,
        )
        answer = gr.Textbox(
            label="Right answer",
            max_lines=1,
            max_length=MAX_ANSWER_CHARS,
            placeholder="for checks that compare with one; may stay empty",
            elem_id="play-answer",
            interactive=True,
        )
        tools = _build_tools()
        answers = html_panel(elem_id="play-answers")
    at, seen = hidden_values("state-play-", at="0", seen="{}")
    tools.take.click(
        slow(lambda run_id, number: take_prompt(views, service, run_id, number)),
        [frame.run, at],
        [text, answer, at, answers],
        **QUIET,
    )
    inputs = PlayInputs(
        run=frame.run,
        text=text,
        answer=answer,
        left=tools.left,
        right=tools.right,
        num=tools.num,
        temperature=tools.temperature,
        at=at,
    )
    tools.go.click(
        slow(lambda *values: play(views, service, PlayInputs(*values))),
        components_of(inputs),
        answers,
        **QUIET,
    )
    outputs = [about, tools.left, tools.right, seen]
    return Tab([frame.run, seen], outputs, ShowPlayground(views))


def _build_tools() -> _Tools:
    with gr.Row(elem_id="play-tools"):
        left, right = (
            gr.Dropdown(
                [("before training", 0)],
                value=0,
                label=label,
                elem_id=f"play-{label.lower()}",
                interactive=True,
                scale=0,
                min_width=160,
            )
            for label in ("Left", "Right")
        )
        return _Tools(
            left=left,
            right=right,
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
            take=gr.Button("Take a held-out prompt", size="sm", scale=0, min_width=160),
            go=gr.Button("Answer", variant="primary", scale=0, min_width=100, elem_id="play-go"),
        )


# ---- what a person does ----------------------------------------------------------------------


def take_prompt(views: Views, service: Service, run_id: Any, number: Any) -> list[Any]:
    """The run's next held-out prompt: its text, answer, the number after it, and a message."""
    if views.run(run_id) is None:
        return [SKIP, SKIP, SKIP, _no_run()]
    index = _number(number)
    try:
        prompt = service.run_prompt(run_id, index)
    except StudioError as error:
        return [SKIP, SKIP, SKIP, status.banner("No prompt was taken.", str(error))]
    return [prompt.text, prompt.answer, str(index + 1), ""]


def play(views: Views, service: Service, given: PlayInputs) -> str:
    """Both sides as cards, or a message that says which field is wrong."""
    if views.run(given.run) is None:
        return _no_run()
    steps = [step for step in (given.left, given.right) if _is_step(step)]
    is_count = isinstance(given.num, (int, float)) and 1 <= given.num <= MAX_ANSWERS
    num_answers = int(given.num) if is_count else 0
    try:
        temperature = float(given.temperature)
    except (TypeError, ValueError):
        temperature = -1.0
    if not isinstance(given.text, str) or not given.text.strip():
        return _problem("Prompt", "Type a prompt, or take a held-out one.")
    if len(steps) < 2:
        return _problem("Left and Right", "Choose two states of the model.")
    if not num_answers:
        return _problem("Answers", f"Use a number from 1 to {MAX_ANSWERS}.")
    if not 0 <= temperature <= 10:
        return _problem("Temperature", "Use a number from 0 (always the likeliest token) to 10.")
    text, answer = given.text[:MAX_CHARS], str(given.answer or "")[:MAX_ANSWER_CHARS]
    try:
        taken = _number(given.at) - 1
        request = PlayRequest(
            text, answer, steps, num_answers, temperature, taken if taken >= 0 else None
        )
        return sides(service.play(given.run, request))
    except StudioError as error:
        return status.banner("There is no answer.", str(error))


def _number(value: Any) -> int:
    valid = isinstance(value, str) and value.isdecimal() and len(value) < 8
    return int(value) if valid else 0


def _is_step(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**9


def _no_run() -> str:
    return status.banner("There is no run yet.", "Start one on the Train tab.")


def _problem(field: str, hint: str) -> str:
    return f'<p class="problem" role="alert">{esc(field)}: {esc(hint)}</p>'


# ---- what is shown ---------------------------------------------------------------------------


def sides(played: Any) -> str:
    """HTML for an exporting.trained_model.PlayResult."""
    return '<div class="sides">' + "".join(_side(s) for s in played.sides) + "</div>"


def _side(side: Any) -> str:
    rewards = [r.reward for r in side.rollouts if r.reward is not None]
    mean = "could not be scored"
    if rewards:
        mean = f"mean reward {format_number(sum(rewards) / len(rewards), 3)}"
    cards = "".join(_card(r) for r in side.rollouts)
    return f'<section><h3>{_state(side.step)}</h3><p class="help">{mean}</p>{cards}</section>'


def _card(rollout: Any) -> str:
    completion = rollout.completion
    scores = ", ".join(f"{name} {format_number(s, 2)}" for name, s in rollout.scores.items())
    cut = ", cut" if completion.finish_reason == "length" else ""
    return (
        f'<article class="played"><pre tabindex="0">{esc(completion.text) or "<i>(nothing)</i>"}'
        f'</pre><p class="help">reward <b>{format_number(rollout.reward, 3)}</b> · {esc(scores)}'
        f" · {count(completion.num_tokens, 'token')}{cut}</p></article>"
    )


def _state(step: int) -> str:
    return f"after step {step:,}" if step else "before training"


def _about(run: RunRow | None, steps: list[int]) -> str:
    if run is None:
        return status.empty(
            "Ask a model before and after its training",
            "Start a run on the Train tab; its saved states appear here.",
        )
    if not steps:
        return (
            f'<p class="help">“{esc(run.name)}” has no saved state yet, so there is only the '
            "model before training. States are saved every few steps (Checkpoint every) and at "
            "the end.</p>"
        )
    return (
        f'<p class="help">“{esc(run.name)}”: {count(len(steps), "saved state")}. '
        "Both sides get the same random numbers.</p>"
    )


class ShowPlayground:
    """Keeps the choices of states equal to the saved states of the run in view."""

    def __init__(self, views: Views):
        self.views = views

    def __call__(self, run_id: Any, seen: Any) -> list[Any]:
        run = self.views.run(run_id)
        steps = [row.step for row in self.views.store.checkpoints(run.id)] if run else []
        now = token([run and run.id, steps])
        was = parse_tokens(seen)
        if was.get("states") == now:
            return [SKIP] * 4
        choices = [(_state(s), s) for s in [0, *steps]]
        # Another run: choose its first and its last state. A new state of the same run leaves the
        # choice as it is.
        is_other = was.get("run") != (run and run.id)
        left: dict[str, Any] = {"value": 0} if is_other else {}
        right: dict[str, Any] = {}
        if is_other or len(steps) == 1:
            right["value"] = steps[-1] if steps else 0
        return [
            _about(run, steps),
            gr.update(choices=choices, **left),
            gr.update(choices=choices, **right),
            json.dumps({"states": now, "run": run and run.id}),
        ]
