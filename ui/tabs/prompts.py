"""The prompts: a built-in set, a file or a dataset, and its rows as the model reads them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from grpo_core.errors import InvalidConfig, StudioError
from grpo_core.tasks import FILE
from grpo_core.tasks.source import SUFFIXES
from grpo_core.tasks.table import keep_upload
from ui.components import form, form_help
from ui.components.html_panel import MARK, QUIET, html_panel
from ui.render.status import banner
from ui.render.text import count, esc
from ui.server.calls import slow
from ui.server.service import Service
from ui.tabs.form_fields import FormFields
from ui.tabs.frame import SKIP, UPLOADED
from ui.tabs.setup_cards import dated

SHOWN_PROMPTS = 8
UPLOAD_HELP = "A CSV, TSV, JSONL or Parquet file. It becomes the task."
REST = tuple(n for n in form.PROMPTS if n not in form.SOURCE)


@dataclass(frozen=True, slots=True)
class PromptsBox:
    upload: gr.File
    preview: gr.Button
    result: gr.HTML


def build_prompts(fields: FormFields) -> PromptsBox:
    """The section "Prompts". Call it inside gr.Blocks."""
    html_panel("<h2>Prompts</h2>")
    with gr.Row(elem_classes="two-sides"):
        with gr.Column(elem_classes="stack", min_width=0):
            fields.add("task.name", *form.GYM, *form.HELDOUT, *form.ENVIRONMENT)
        with gr.Column(elem_classes="stack", min_width=0):
            upload = gr.File(
                label="Upload prompts",
                file_types=list(SUFFIXES),
                height=120,
                elem_id="upload-prompts",
            )
            html_panel(f'<p class="help">{UPLOAD_HELP}</p>')
            fields.add_group("", *form.SOURCE)
            preview = gr.Button("Preview prompts", size="sm", elem_classes="narrow-button")
            result = html_panel(script=MARK, elem_id="prompt-preview")
    with gr.Accordion("Template, split and limits", open=False, elem_classes="fold-box"):
        fields.add_group("", *REST)
    return PromptsBox(upload, preview, result)


def wire_prompts(fields: FormFields, box: PromptsBox, service: Service) -> None:
    columns = [fields.controls[name] for name in form.COLUMNS]
    shown = [box.result, *columns]

    def preview(*values: Any) -> list[Any]:
        return show_preview(service, values)

    box.preview.click(slow(preview), fields.values, shown, **QUIET)
    taken = box.upload.upload(
        slow(take_upload),
        box.upload,
        [
            fields.controls["task.name"],
            fields.controls["task.path"],
            *columns,
            fields.messages["task.path"],
            box.upload,
        ],
        **UPLOADED,
    )
    taken.then(slow(preview), fields.values, shown, **QUIET)


def take_upload(path: Any) -> list[Any]:
    """Keep an uploaded file and make it the task, or say why it cannot be used.

    Returns the task, its path, the two columns (empty: found again), the line below the path,
    and the upload, which is empty again.
    """
    try:
        kept = str(keep_upload(Path(str(path))))
    except (StudioError, OSError, shutil.Error) as error:
        problem = f'<p class="problem" role="alert">{esc(error)}</p>'
        return [SKIP, SKIP, SKIP, SKIP, problem, None]
    return [FILE.name, kept, "", "", form_help.path_line(kept), None]


def show_preview(service: Service, values: Sequence[Any]) -> list[Any]:
    """A table of prompts exactly as the model reads them, and the choices of the two columns."""
    config, problems = form.read(values)
    if config is None:
        return [form_help.summary(problems), SKIP, SKIP]
    columns: Sequence[str] = ()
    try:
        preview = service.preview(config, SHOWN_PROMPTS)
        html, columns = prompt_table(preview), preview.columns
    except InvalidConfig as error:
        html = "".join(f'<p class="problem" role="alert">{esc(p)}</p>' for p in error.problems)
    except StudioError as error:
        html = banner("There is no preview.", str(error))
    choices = gr.update(choices=["", *columns]) if columns else SKIP
    return [dated(html, values, "model", "prompts", "run"), choices, choices]


def prompt_table(preview: Any) -> str:
    """HTML for a preflight.service.Preview."""
    how = "as plain text: the model has no chat template"
    if preview.chat_template:
        how = "through the model’s chat template"
    rows = "".join(_prompt(p) for p in preview.prompts)
    return (
        f'<div class="preview">{counted(preview.counts)}'
        f'<p class="help">Exactly as the model reads them, {how}.</p>'
        '<div class="scroller" tabindex="0" role="region" aria-label="Prompts">'
        '<table class="bench-table"><thead><tr><th scope="col">prompt</th>'
        '<th scope="col">answer</th><th scope="col" class="number">tokens</th>'
        f'<th scope="col">use</th></tr></thead><tbody>{rows}</tbody></table></div></div>'
    )


def _prompt(p: Any) -> str:
    """HTML for a preflight.service.PromptAsRead."""
    use = "held out" if p.heldout else "training"
    answer = esc(p.answer) if p.answer else '<span class="by">none</span>'
    return (
        f'<tr><td class="said"><pre>{esc(p.text)}</pre></td><td class="said"><pre>{answer}</pre>'
        f'</td><td class="number">{p.num_tokens:,}</td><td>{use}</td></tr>'
    )


# Key of Preview.counts -> what is said of one, and of several.
_REMARKS = {
    "duplicates": ("1 duplicate removed", "{:,} duplicates removed"),
    "contradictions": ("1 of them has another answer", "{:,} of them have another answer"),
    "leaks": (
        "1 training prompt is also held out and is not trained on",
        "{:,} training prompts are also held out and are not trained on",
    ),
    "empty": ("1 row has no prompt", "{:,} rows have no prompt"),
    "unanswered": (
        "1 prompt has no answer: checks that compare with one cannot score it",
        "{:,} prompts have no answer: checks that compare with one cannot score them",
    ),
    "too_long": (
        "1 prompt is too long for the model’s context",
        "{:,} prompts are too long for the model’s context",
    ),
}


def counted(counts: dict[str, Any]) -> str:
    """What was counted in the source; empty for a task that makes its own prompts."""
    if not counts:
        return ""
    answers = f"“{counts['answer_column']}”" if counts["answer_column"] else "no column"
    lines = [
        f"{count(counts['rows'], 'row')} read: {count(counts['train'], 'prompt')} to train on, "
        f"{counts['heldout']:,} held out",
        f"prompts from “{counts['prompt_column']}”, answers from {answers}",
    ]
    lines += [
        (one if counts[key] == 1 else more).format(counts[key])
        for key, (one, more) in _REMARKS.items()
        if counts[key]
    ]
    if counts["cut"]:
        lines.append("the source has more rows than are read")
    return '<ul class="counted">' + "".join(f"<li>{esc(line)}.</li>" for line in lines) + "</ul>"
