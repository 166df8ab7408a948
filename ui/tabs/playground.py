"""The Playground tab: one prompt, answered before and after training side by side, or at any two saved steps, scored by the run's rubric."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import gradio as gr

from grpo_core.errors import StudioError
from grpo_core.store import RunRow
from ui.components.html_panel import QUIET, html_panel
from ui.render import status
from ui.render.text import count, esc, format_number
from ui.server.service import Desk
from ui.server.views import Views
from ui.tabs.train import SKIP, Frame, parse_tokens, token

MOST = 16  # answers a side
MAX_CHARS = 20_000


@dataclass(frozen=True)
class Playground:
    inputs: list[Any]
    outputs: list[Any]
    show: Any


def build_playground(frame: Frame, views: Views, desk: Desk) -> Playground:
    """Lay the tab out and make it answer. Must be called inside gr.Blocks."""
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
            max_length=2_000,
            placeholder="for checks that compare with one; may stay empty",
            elem_id="play-answer",
            interactive=True,
        )
        with gr.Row(elem_id="play-tools"):
            left = gr.Dropdown(
                [("before training", 0)],
                value=0,
                label="Left",
                elem_id="play-left",
                interactive=True,
                scale=0,
                min_width=160,
            )
            right = gr.Dropdown(
                [("before training", 0)],
                value=0,
                label="Right",
                elem_id="play-right",
                interactive=True,
                scale=0,
                min_width=160,
            )
            num = gr.Number(
                4, label="Answers", elem_id="play-count", interactive=True, scale=0, min_width=90
            )
            temperature = gr.Textbox(
                "1",
                label="Temperature",
                max_lines=1,
                elem_id="play-temperature",
                interactive=True,
                scale=0,
                min_width=90,
            )
            take = gr.Button("Take a held-out prompt", size="sm", scale=0, min_width=160)
            go = gr.Button("Answer", variant="primary", scale=0, min_width=100, elem_id="play-go")
        answers = html_panel(elem_id="play-answers")
    at, seen = (
        gr.Textbox(v, visible="hidden", label=n, elem_id=f"state-play-{n}")
        for n, v in (("at", "0"), ("seen", "{}"))
    )

    take.click(
        lambda run_id, n: take_prompt(views, desk, run_id, n),
        [frame.run, at],
        [text, answer, at, answers],
        **QUIET,
    )
    go.click(
        lambda *given: play(views, desk, *given),
        [frame.run, text, answer, left, right, num, temperature],
        answers,
        **QUIET,
    )
    inputs, outputs = [frame.run, seen], [about, left, right, seen]
    return Playground(inputs, outputs, ShowPlayground(views))


def take_prompt(views: Views, desk: Desk, run_id: Any, number_of: Any) -> list[Any]:
    if views.run(run_id) is None:
        return [
            SKIP,
            SKIP,
            SKIP,
            status.banner("There is no run yet.", "Start one on the Train tab."),
        ]
    n = (
        int(number_of)
        if isinstance(number_of, str) and number_of.isdecimal() and len(number_of) < 8
        else 0
    )
    try:
        prompt = desk.run_prompt(run_id, n)
    except StudioError as error:
        return [SKIP, SKIP, SKIP, status.banner("No prompt was taken.", str(error))]
    return [prompt.text, prompt.answer, str(n + 1), ""]


def play(
    views: Views,
    desk: Desk,
    run_id: Any,
    text: Any,
    answer: Any,
    left: Any,
    right: Any,
    num: Any,
    temperature: Any,
) -> str:
    """Both sides as cards, or one line about what has to be mended."""
    run = views.run(run_id)
    if run is None:
        return status.banner("There is no run yet.", "Start one on the Train tab.")
    steps = [
        s
        for s in (left, right)
        if isinstance(s, int) and not isinstance(s, bool) and 0 <= s < 10**9
    ]
    how_many = int(num) if isinstance(num, (int, float)) and num == num and 1 <= num <= MOST else 0
    try:
        warmth = float(temperature)
    except (TypeError, ValueError):
        warmth = -1.0
    if not isinstance(text, str) or not text.strip():
        return _mend("Prompt", "Type a prompt, or take a held-out one.")
    if len(steps) < 2:
        return _mend("Left and Right", "Choose two states of the model.")
    if not how_many:
        return _mend("Answers", f"Use a number from 1 to {MOST}.")
    if not 0 <= warmth <= 10:
        return _mend("Temperature", "Use a number from 0 (always the likeliest token) to 10.")
    try:
        return sides(
            desk.play(run_id, text[:MAX_CHARS], str(answer or "")[:2_000], steps, how_many, warmth)
        )
    except StudioError as error:
        return status.banner("There is no answer.", str(error))


def _mend(field: str, hint: str) -> str:
    return f'<p class="problem" role="alert">{esc(field)}: {esc(hint)}</p>'


def sides(played: Any) -> str:
    """A trained.Played."""
    return '<div class="sides">' + "".join(_side(s) for s in played.sides) + "</div>"


def _side(side: Any) -> str:
    rewards = [r.reward for r in side.rollouts if r.reward is not None]
    mean = (
        f"mean reward {format_number(sum(rewards) / len(rewards), 3)}"
        if rewards
        else "could not be scored"
    )
    cards = "".join(
        f'<article class="played"><pre tabindex="0">{esc(r.completion.text) or "<i>(nothing)</i>"}</pre><p class="help">reward <b>{format_number(r.reward, 3)}</b> · '
        + esc(", ".join(f"{name} {format_number(s, 2)}" for name, s in r.scores.items()))
        + f" · {count(r.completion.num_tokens, 'token')}{', cut' if r.completion.finish_reason == 'length' else ''}</p></article>"
        for r in side.rollouts
    )
    return f'<section><h3>{_state(side.step)}</h3><p class="help">{mean}</p>{cards}</section>'


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
            f'<p class="help">“{esc(run.name)}” has no saved state yet, so there is only the model before training. '
            "States are saved every few steps (Checkpoint every) and at the end.</p>"
        )
    return f'<p class="help">“{esc(run.name)}”: {count(len(steps), "saved state")}. Both sides get the same random numbers.</p>'


class ShowPlayground:
    """Keeps the choice of states in step with the run in view."""

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
        fresh = (
            was.get("run") != (run and run.id)
        )  # another run: look at its first and last; the same with a new state: leave what was chosen
        return [
            _about(run, steps),
            gr.update(choices=choices, **({"value": 0} if fresh else {})),
            gr.update(
                choices=choices,
                **({"value": steps[-1] if steps else 0} if fresh or len(steps) == 1 else {}),
            ),
            json.dumps({"states": now, "run": run and run.id}),
        ]
