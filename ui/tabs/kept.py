"""Answers that were kept in the Playground: a list, a file to download, prompts of a new run."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from grpo_core.config import flatten, parse
from grpo_core.errors import InvalidConfig, StudioError
from grpo_core.store import Store, kept
from grpo_core.tasks import FILE
from grpo_core.tasks.table import keep_upload
from ui.components import form
from ui.components.html_panel import QUIET, data_of, html_panel
from ui.render import status
from ui.render.played import kept_answers
from ui.server.calls import slow
from ui.server.views import Views
from ui.tabs.exports import export_folder
from ui.tabs.frame import SKIP, Frame, hidden_values, parse_list, parse_tokens, token
from ui.tabs.play_answers import MAX_ANSWER_CHARS, MAX_CHARS
from ui.tabs.setup import Setup
from ui.tabs.start_from import fill

MAX_KEPT = 10_000
FILE_NAME = "kept-answers.jsonl"


@dataclass(frozen=True, slots=True)
class Kept:
    """The list; a hidden value that carries an answer to the server; the hidden download."""

    panel: gr.HTML
    carried: gr.Textbox
    file: gr.DownloadButton


def build_kept() -> Kept:
    """Build the list. Call it inside gr.Blocks."""
    with gr.Column(elem_id="kept-box", elem_classes="card-box stack", min_width=0):
        panel = html_panel(events=("drop", "download", "use"), elem_id="kept-answers")
        file = gr.DownloadButton("File", visible="hidden", elem_id="kept-file")
    [carried] = hidden_values("state-play-", carried="")
    return Kept(panel, carried, file)


def wire_kept(
    box: Kept, answers: gr.HTML, frame: Frame, views: Views, new_run: tuple[Setup, gr.Tabs]
) -> None:
    """answers: the panel whose “Keep” keeps an answer. new_run: the page's form and its tabs."""
    setup, tabs = new_run

    def keep(carried: Any) -> list[Any]:
        return keep_answer(views, carried)

    def drop(event: gr.EventData) -> list[Any]:
        return drop_answer(views, data_of(event).get("id"))

    def use(run_id: Any) -> list[Any]:
        return use_kept(views, run_id)

    both = [box.panel, frame.notice]
    # Two steps: a panel's event passes no value to a function of the page.
    answers.keep(None, None, box.carried, js="studioKeepAnswer", **QUIET)
    box.carried.change(keep, box.carried, both, **QUIET)
    box.panel.drop(drop, None, both, **QUIET)
    download = "(file) => { if (file) document.querySelector('#kept-file').click(); }"
    box.panel.download(
        slow(lambda: export_kept(views.store)), None, [box.file, frame.notice], **QUIET
    ).success(None, box.file, None, js=download, **QUIET)
    box.panel.use(use, frame.run, [*setup.filled, tabs, frame.tab, frame.notice], **QUIET)


def kept_panel(views: Views, shown: Any) -> tuple[Any, str]:
    """The list, or SKIP if it is what `shown` names; and a key of it."""
    rows = kept.read(views.store)
    now = token([(row.id, row.run_id) for row in rows])
    if now == shown:
        return SKIP, now
    names = {row.run_id: run.name for row in rows if (run := views.run(row.run_id))}
    return kept_answers(rows, names), now


# ---- what a person does ----------------------------------------------------------------------


def keep_answer(views: Views, carried: Any) -> list[Any]:
    """Store the answer that the page sends as JSON; the new list, and a message."""
    said = parse_tokens(carried)
    prompt, answer = _text(said, "prompt", MAX_CHARS), _text(said, "answer", MAX_CHARS)
    step, run_id = said.get("step"), said.get("run")
    if not prompt.strip() or not isinstance(step, int) or isinstance(step, bool):
        return [SKIP, SKIP]
    try:
        if len(kept.read(views.store)) >= MAX_KEPT:
            raise StudioError(f"There are {MAX_KEPT:,} kept answers. Remove some first.")
        kept.add(
            views.store,
            kept.KeptAnswer(
                prompt=prompt,
                right=_text(said, "right", MAX_ANSWER_CHARS),
                answer=answer,
                step=step,
                created_at=time.time(),
                run_id=run_id if isinstance(run_id, str) else None,
                before=_messages(said.get("before")),
            ),
        )
    except StudioError as error:
        return [SKIP, status.banner("The answer was not kept.", str(error))]
    return [kept_panel(views, None)[0], ""]


def drop_answer(views: Views, number: Any) -> list[Any]:
    """Remove one kept answer; the new list, and a message."""
    try:
        kept.remove(views.store, [int(number)])
    except (TypeError, ValueError):
        return [SKIP, SKIP]
    except StudioError as error:
        return [SKIP, status.banner("The answer was not removed.", str(error))]
    return [kept_panel(views, None)[0], ""]


def export_kept(store: Store) -> list[Any]:
    """All kept answers as a prompt file, for the hidden download button, and a message."""
    try:
        return [str(_write(store)), ""]
    except (StudioError, OSError) as error:
        return [None, status.banner("Nothing was exported.", str(error))]


def use_kept(views: Views, run_id: Any) -> list[Any]:
    """The kept answers as prompts, and the other settings of the run in view, in the form.

    Returns the values of Setup.filled, the tabs, the name of the tab, and the notice.
    """
    run, flat = views.run(run_id), form.DEFAULTS
    try:
        path = keep_upload(_write(views.store))
        if run is not None:
            flat = flatten(parse(run.config))
    except (InvalidConfig, StudioError, OSError, shutil.Error) as error:
        unchanged = [SKIP] * (len(form.NAMES) + 3)
        return [*unchanged, status.banner("The answers cannot be used.", str(error))]
    task = {
        "task.name": FILE.name,
        "task.path": str(path),
        "task.prompt_column": "prompt",
        "task.answer_column": "answer",
    }
    notice = status.banner(
        "The set-up has your kept answers as its prompts.",
        "Check the settings and press Start training.",
        tone="good",
    )
    return [*fill({**flat, **task}), gr.update(selected="train"), "train", notice]


def _write(store: Store) -> Path:
    path = export_folder() / FILE_NAME
    with path.open("w", encoding="utf-8") as out:
        if not kept.write_jsonl(store, out):
            raise StudioError("No answer is kept. Press Keep on one first.")
    return path


def _text(said: Mapping[str, Any], name: str, most: int) -> str:
    value = said.get(name)
    return value[:most] if isinstance(value, str) else ""


def _messages(text: Any) -> list[dict[str, str]]:
    """The messages before the prompt, from JSON that a browser sent."""
    return [
        {"role": m["role"], "content": m["content"][:MAX_CHARS]}
        for m in parse_list(text)[:100]
        if isinstance(m, dict)
        and isinstance(m.get("role"), str)
        and isinstance(m.get("content"), str)
    ]
