"""The questions of the Runs tab: delete, branch, push to the Hub.

A question is about the runs that it names: their ids are kept with it. It closes when other runs
are selected.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from ui.components.html_panel import QUIET, html_panel
from ui.server.calls import slow
from ui.server.refresh import RefreshEvents
from ui.server.service import Service
from ui.server.views import Runs, Views
from ui.tabs.exports import push_run
from ui.tabs.frame import hidden_values
from ui.tabs.run_actions import ask_branch, ask_delete, ask_push, branch_run, delete_runs

# The question stands above the table, which may be scrolled: show it, and take the focus there.
SHOW_JS = """() => requestAnimationFrame(() => {
  const question = document.querySelector('#confirm, #branch, #push');
  const heading = question?.querySelector('[tabindex]');
  heading?.focus({preventScroll: true});
  question?.scrollIntoView({block: 'nearest'});
})"""


@dataclass(frozen=True, slots=True)
class _Delete:
    box: gr.Row
    question: gr.HTML
    confirm: gr.Button
    cancel: gr.Button


@dataclass(frozen=True, slots=True)
class _Branch:
    box: gr.Column
    question: gr.HTML
    step: gr.Dropdown
    until: gr.Textbox
    learning_rate: gr.Textbox
    changes: gr.Textbox
    start: gr.Button
    cancel: gr.Button


@dataclass(frozen=True, slots=True)
class _Push:
    box: gr.Column
    question: gr.HTML
    repository: gr.Textbox
    confirm: gr.Button
    cancel: gr.Button


@dataclass(frozen=True, slots=True)
class Dialogs:
    delete: _Delete
    branch: _Branch
    push: _Push
    asked: gr.Textbox  # hidden: the ids of the runs that the open question is about

    @property
    def boxes(self) -> list[Any]:
        return [self.delete.box, self.branch.box, self.push.box]


@dataclass(frozen=True, slots=True)
class Around:
    """What the questions need of the tab around them."""

    bar: gr.HTML
    message: gr.HTML
    selected: gr.Textbox
    in_view: list[Any]  # the run picker, the tabs, the name of the tab
    refresh: RefreshEvents


def build_dialogs() -> Dialogs:
    [asked] = hidden_values("state-runs-", asked="[]")
    return Dialogs(_build_delete(), _build_branch(), _build_push(), asked)


def _small_button(label: str, min_width: int = 72, **options: Any) -> gr.Button:
    return gr.Button(label, size="sm", scale=0, min_width=min_width, **options)


def _build_delete() -> _Delete:
    with gr.Row(visible=False, elem_id="confirm", elem_classes="banner warn") as box:
        return _Delete(
            box,
            question=html_panel(elem_id="confirm-question"),
            confirm=_small_button("Delete for good", variant="stop", min_width=120),
            cancel=_small_button("Keep"),
        )


def _build_branch() -> _Branch:
    with gr.Column(visible=False, elem_id="branch", elem_classes="banner warn stack") as box:
        question = html_panel(elem_id="branch-question")
        with gr.Row(elem_classes="dialog-fields"):
            step = gr.Dropdown(
                [], label="From step", filterable=False, elem_id="branch-step", interactive=True
            )
            until = _text("Train until step", "branch-until")
            learning_rate = _text("New learning rate", "branch-rate")
            changes = _text(
                "Changed settings",
                "branch-changes",
                placeholder="algorithm.kl_coef=0.1 train.seed=3",
                max_length=2000,
            )
        with gr.Row(elem_classes="dialog-buttons"):
            start = _small_button("Start branch", variant="primary", min_width=110)
            cancel = _small_button("Cancel")
    return _Branch(box, question, step, until, learning_rate, changes, start, cancel)


def _text(label: str, elem_id: str, placeholder: str = "", max_length: int = 40) -> gr.Textbox:
    return gr.Textbox(
        label=label,
        placeholder=placeholder,
        max_lines=1,
        max_length=max_length,
        elem_id=elem_id,
        interactive=True,
    )


def _build_push() -> _Push:
    with gr.Column(visible=False, elem_id="push", elem_classes="banner warn stack") as box:
        question = html_panel(elem_id="push-question")
        with gr.Row(elem_classes="dialog-fields"):
            repository = _text(
                "Repository on the Hub", "push-repository", "owner/name", max_length=200
            )
        with gr.Row(elem_classes="dialog-buttons"):
            confirm = _small_button("Push model to Hub", variant="primary", min_width=140)
            cancel = _small_button("Cancel")
    return _Push(box, question, repository, confirm, cancel)


# ---- events ----------------------------------------------------------------------------------


def wire_dialogs(
    dialogs: Dialogs, around: Around, views: Views, runs: Runs, service: Service
) -> None:
    _wire_delete(dialogs, around, views)
    _wire_branch(dialogs, around, views, runs)
    _wire_push(dialogs, around, views, service)
    for dialog in (dialogs.delete, dialogs.branch, dialogs.push):
        dialog.cancel.click(_hide, None, dialog.box, **QUIET)


def _hide() -> dict[str, Any]:
    return gr.update(visible=False)


def _opened(dialogs: Dialogs, box: Any, answer: list[Any]) -> list[Any]:
    """Show one question and close the others; show none if it would be about no run.

    answer: the values of the question's parts, then the ids of its runs. The message is emptied.
    """
    shown = box if answer[-1] != "[]" else None
    return [*answer, "", *(gr.update(visible=other is shown) for other in dialogs.boxes)]


def _wire_delete(dialogs: Dialogs, around: Around, views: Views) -> None:
    delete = dialogs.delete

    def deletion_of(selected: Any) -> list[Any]:
        return _opened(dialogs, delete.box, ask_delete(views, selected))

    outputs = [delete.question, dialogs.asked, around.message, *dialogs.boxes]
    around.bar.delete(deletion_of, around.selected, outputs, **QUIET).success(None, js=SHOW_JS)
    deleted = [around.message, delete.box, around.selected]
    confirm = delete.confirm.click(
        partial(delete_runs, views), [dialogs.asked, around.selected], deleted, **QUIET
    )
    around.refresh.after(confirm)


def _wire_branch(dialogs: Dialogs, around: Around, views: Views, runs: Runs) -> None:
    branch = dialogs.branch

    def branch_of(selected: Any) -> list[Any]:
        return _opened(dialogs, branch.box, ask_branch(views, selected))

    def start(asked: Any, step: Any, until: Any, rate: Any, changes: Any) -> list[Any]:
        typed = {"train.steps": until, "train.learning_rate": rate, "": changes}
        return branch_run(runs, views, asked, step, typed)

    fields = [branch.step, branch.until, branch.learning_rate, branch.changes]
    outputs = [branch.question, *fields, dialogs.asked, around.message, *dialogs.boxes]
    around.bar.branch(branch_of, around.selected, outputs, **QUIET).success(None, js=SHOW_JS)
    started = [*around.in_view, branch.box, around.message]
    branch.start.click(start, [dialogs.asked, *fields], started, **QUIET)


def _wire_push(dialogs: Dialogs, around: Around, views: Views, service: Service) -> None:
    push = dialogs.push

    def push_of(selected: Any) -> list[Any]:
        return _opened(dialogs, push.box, ask_push(views, selected))

    outputs = [push.question, dialogs.asked, around.message, *dialogs.boxes]
    around.bar.push(push_of, around.selected, outputs, **QUIET).success(None, js=SHOW_JS)
    push.confirm.click(
        slow(partial(push_run, views, service)),
        [push.repository, dialogs.asked],
        [around.message, push.box],
        **QUIET,
    )
