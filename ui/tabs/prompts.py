"""Prompts of one's own: choosing a file or dataset, uploading one, and seeing prompts exactly as the model will read them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import gradio as gr

from grpo_core.errors import InvalidConfig, StudioError
from grpo_core.tasks import FILE
from grpo_core.tasks.source import check_source
from grpo_core.tasks.table import keep_upload
from ui.components import form
from ui.components.html_panel import QUIET
from ui.render.status import banner
from ui.render.text import count, esc
from ui.server.service import Desk


def wire_prompts(
    fields: dict[str, Any],
    errors: dict[str, gr.HTML],
    own: gr.Column,
    upload: gr.UploadButton,
    look: gr.Button,
    preview: gr.HTML,
    desk: Desk,
) -> None:
    """Show the fields when the task is one's own prompts; take uploads; preview."""
    fields["task.name"].change(
        lambda name: gr.update(visible=name == FILE.name), fields["task.name"], own, **QUIET
    )
    # With preprocessing: it is what keeps the path of an upload inside the upload folder.
    upload.upload(
        take_upload,
        upload,
        [fields["task.path"], errors["task.path"]],
        **(QUIET | {"preprocess": True}),
    )
    values = [fields[n] for n in form.NAMES]
    look.click(lambda *given: show_preview(desk, given), values, preview, **QUIET)


def take_upload(path: Any) -> list[Any]:
    """An uploaded file moves to a place where it stays, and its name into the field. A file that is none says why."""
    try:
        source = Path(str(path))
        check_source(str(source))
        return [str(keep_upload(source)), form.help_line("task.path")]
    except (StudioError, OSError, shutil.Error) as error:
        return [gr.skip(), f'<p class="problem" role="alert">{esc(error)}</p>']


def show_preview(desk: Desk, values: Any) -> str:
    """Five prompts as the model will read them, and what was counted in the file."""
    config, problems = form.read(values)
    if config is None:
        return form.summary(problems)
    try:
        found = desk.preview(config)
    except InvalidConfig as error:
        return "".join(f'<p class="problem" role="alert">{esc(p)}</p>' for p in error.problems)
    except StudioError as error:
        return banner("There is no preview.", str(error))
    read = (
        "through the model\u2019s chat template"
        if found.chat_template
        else "as bare text: the model has no chat template"
    )
    blocks = "".join(
        f'<figure class="as-read"><pre tabindex="0">{esc(p.text)}</pre><figcaption>{count(p.num_tokens, "token")}'
        f" · {'held out' if p.heldout else 'training'} · answer {esc(p.answer) if p.answer else 'none'}</figcaption></figure>"
        for p in found.prompts
    )
    return f'<div class="preview">{counted(found.counts)}<p class="help">Exactly as the model reads them, {read}.</p>{blocks}</div>'


def counted(c: dict[str, Any]) -> str:
    """What was found in the source, in sentences; nothing for a task that makes its own prompts."""
    if not c:
        return ""
    said = [
        f"{count(c['rows'], 'row')} read: {count(c['train'], 'prompt')} to train on, {c['heldout']:,} held out",
        f"prompts from “{c['prompt_column']}”, answers from "
        + (f"“{c['answer_column']}”" if c["answer_column"] else "no column"),
    ]
    said += [
        text
        for key, text in (
            ("duplicates", "{:,} prompts stood there more than once and are used once"),
            ("contradictions", "{:,} of them with another answer"),
            ("leaks", "{:,} training prompts are also held out and leave training"),
            ("empty", "{:,} rows ask nothing"),
            (
                "unanswered",
                "{:,} prompts have no answer: checks that compare with one cannot score them",
            ),
            ("too_long", "{:,} prompts are too long for the model’s context"),
        )
        if c[key]
        for text in [text.format(c[key])]
    ]
    said += ["the source has more rows than are read"] if c["cut"] else []
    return '<ul class="counted">' + "".join(f"<li>{esc(s)}.</li>" for s in said) + "</ul>"
