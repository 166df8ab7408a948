"""Learn, "Longer thinking": does the run in view learn to reason, and does it pay?"""

from __future__ import annotations

import json
from typing import Any

import gradio as gr

from grpo_core.store import RunRow
from ui.components.html_panel import QUIET, html_panel
from ui.components.live_chart import live_chart
from ui.render import status, thinking
from ui.render.charts.thinking import lengths, reasons
from ui.server.views import Views
from ui.tabs.frame import SKIP, Frame, Tab, hidden_values, parse_tokens, token

VISITS = 3


def build_thinking(frame: Frame, views: Views, at: gr.Textbox) -> Tab:
    """Build the part and connect its events. Call it inside gr.Blocks.

    at: the hidden number of the prompt that is shown.
    """
    about = html_panel(elem_id="thinking-about")
    with gr.Row(elem_classes="curves"):
        figures = [
            live_chart(reasons([], None), elem_id="thinking-share", elem_classes="card-box"),
            live_chart(lengths([]), elem_id="thinking-length", elem_classes="card-box"),
        ]
    three = html_panel(events=("prompt",), elem_id="thinking-three")
    [seen] = hidden_values("state-thinking-", seen="{}")
    inputs, outputs = [frame.run, at, seen], [about, *figures, three, seen]
    show = ShowThinking(views)
    refresh = frame.refresh.events("thinking", show, inputs, outputs)
    refresh.after(three.prompt(None, None, at, js="() => studioPressed.at", **QUIET))
    return Tab(inputs, outputs, show)


class ShowThinking:
    """Fills the part when the run in view, its curves or the prompt have changed."""

    def __init__(self, views: Views):
        self.views = views

    def __call__(self, run_id: Any, at: Any, seen: Any) -> list[Any]:
        run, was = self.views.run(run_id), parse_tokens(seen)
        key = self.views.curves_key(run)
        now = {"curves": token(key), "three": token([key, at])}
        about = share = length = three = SKIP
        if was.get("curves") != now["curves"]:
            about, share, length = self._curves(run)
        if was.get("three") != now["three"]:
            three = self._three(run, at)
        return [about, share, length, three, json.dumps(now) if was != now else SKIP]

    def _curves(self, run: RunRow | None) -> list[Any]:
        if run is None:
            hint = "Start a run on the Train tab. Its length and accuracy appear here as it learns."
            nothing = status.empty("Does a model learn to think longer?", hint)
            return [nothing, reasons([], None), lengths([])]
        curves = self.views.curves(run)
        criterion = thinking.reasoning_criterion(run.config)
        about = thinking.about(self.views.label(run), criterion, curves.metrics)
        return [about, reasons([curves], criterion), lengths([curves])]

    def _three(self, run: RunRow | None, at: Any) -> str:
        if run is None:
            return ""
        repeated = self.views.repeated(run)
        prompts = [p for p in repeated if p.num_visits >= VISITS]
        if not prompts:
            kept = run.config["train"].get("eval_records", 0)
            return thinking.no_three(len(repeated), kept)
        number = int(at) if str(at).isascii() and str(at).isdigit() else 1
        number = min(max(1, number), len(prompts))
        groups = self.views.store.first_middle_last(run.id, prompts[number - 1].prompt_id)
        return thinking.three(
            thinking.Shown(
                groups,
                number,
                len(prompts),
                thinking.reasoning_criterion(run.config),
                thinking.outcome_criterion(run.config),
            )
        )
