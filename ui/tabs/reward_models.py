"""“Reward model” on the Runs tab: train one from people's judgements, and use it in a rubric."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import gradio as gr

from grpo_core.errors import StudioError
from grpo_core.preferences.judged_pairs import MIN_PAIRS
from grpo_core.store import preferences, reward_models
from grpo_core.store.reward_models import RewardModelRow
from grpo_core.types import RunStatus
from ui.components import form
from ui.components.html_panel import QUIET, data_of, html_panel
from ui.render import reward_models as render
from ui.render.status import banner
from ui.server.calls import slow
from ui.server.service import Service
from ui.server.views import Views
from ui.tabs.frame import SKIP, Frame, Tab, hidden_values, token
from ui.tabs.setup import Setup

MAX_BASE = 512
OPEN_RUBRIC_JS = "() => window.studioOpen?.('rubric')"


@dataclass(frozen=True, slots=True)
class _RewardBox:
    base: gr.Textbox
    train: gr.Button
    stop: gr.Button
    message: gr.HTML
    panel: gr.HTML


class ShowRewardModels:
    """Fills the list when a judgement, a step or a model is new."""

    def __init__(self, views: Views):
        self.store = views.store

    def __call__(self, tab: Any, seen: Any) -> list[Any]:
        store = self.store
        now = token((preferences.token(store), reward_models.token(store)))
        if tab != "runs" or seen == now:
            return [SKIP] * 4
        rows = reward_models.read(store)
        judged = sum(p.verdict != "skip" for p in preferences.read(store))
        goes_on = any(row.status is RunStatus.RUNNING for row in rows)
        can_train = not goes_on and judged >= MIN_PAIRS
        buttons = [gr.update(interactive=can_train), gr.update(interactive=goes_on)]
        return [render.reward_models(rows, judged), *buttons, now]


def build_reward_models(frame: Frame, views: Views, setup: Setup, service: Service) -> Tab:
    """The panel, with its events. Call it inside gr.Blocks."""
    box = _build_box()
    [seen] = hidden_values("state-reward-", seen="")
    show = ShowRewardModels(views)
    inputs, outputs = [frame.tab, seen], [box.panel, box.train, box.stop, seen]
    refresh = frame.refresh.events("reward-models", show, inputs, outputs)

    def train(base: Any) -> str:
        try:
            service.reward_models.start({"base": str(base or "").strip()[:MAX_BASE]})
        except StudioError as error:
            return banner("No reward model is trained.", str(error))
        return ""

    def stop() -> str:
        service.reward_models.stop()
        return ""

    def remove(event: gr.EventData) -> str:
        row = _named(views, event)
        if row is not None:
            reward_models.remove(views.store, row.id)
        return ""

    def use(rows: Any, event: gr.EventData) -> list[Any]:
        return use_in_rubric(_named(views, event), rows)

    refresh.after(box.train.click(slow(train), box.base, box.message, **QUIET))
    refresh.after(box.stop.click(stop, None, box.message, **QUIET))
    refresh.after(box.panel.remove(remove, None, box.message, **QUIET))
    table, name = (setup.fields.controls[n] for n in (form.CRITERIA, "rubric.name"))
    box.panel.use(use, table, [table, name, box.message], **QUIET).success(
        None, None, None, js=OPEN_RUBRIC_JS
    )
    return Tab(inputs, outputs, show)


def _build_box() -> _RewardBox:
    with gr.Column(elem_id="reward-box", elem_classes="card-box stack", min_width=0):
        html_panel("<h2>Reward model</h2>")
        with gr.Row(elem_id="reward-tools"):
            base = gr.Textbox(
                "bundled",
                label="Base model",
                info="bundled, a folder, or a Hub id: the model that learns to score answers.",
                max_lines=1,
                max_length=MAX_BASE,
                scale=1,
                min_width=200,
            )
            train = gr.Button(
                "Train reward model", size="sm", scale=0, min_width=160, interactive=False
            )
            stop = gr.Button("Stop training", size="sm", scale=0, min_width=120, interactive=False)
        message = html_panel(elem_id="reward-message")
        panel = html_panel(events=("use", "remove"), elem_id="reward-models")
    return _RewardBox(base, train, stop, message, panel)


def _named(views: Views, event: gr.EventData) -> RewardModelRow | None:
    wanted = data_of(event).get("model")
    return next((row for row in reward_models.read(views.store) if row.id == wanted), None)


def use_in_rubric(row: RewardModelRow | None, rows: Any) -> list[Any]:
    """The rows of the rubric table with the model as a further criterion, the rubric's name, and
    a message.
    """
    if row is None or not row.is_usable:
        why = "It was deleted, or has no weights. Train another one."
        return [SKIP, SKIP, banner("This reward model cannot be used.", why)]
    known = [r for r in rows if isinstance(r, dict)] if isinstance(rows, list) else []
    folder = str(row.folder.resolve())
    criterion = {"check": "reward_model", "weight": 1.0, "params": {"model": folder}}
    new = form.row_of({"name": _free_name(known), **criterion})
    if any(r.get("params") == new["params"] and r.get("check") == "reward_model" for r in known):
        return [SKIP, SKIP, ""]  # it is in the rubric already
    all_rows = [*known, new]
    return [all_rows, form.rubric_name(all_rows), ""]


def _free_name(rows: list[dict[str, Any]]) -> str:
    taken = {json.dumps(row.get("name")) for row in rows}
    names = ("preferred", *(f"preferred_{n}" for n in range(2, len(rows) + 3)))
    return next(name for name in names if json.dumps(name) not in taken)
