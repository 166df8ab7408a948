"""Your own prompts: choose a file or dataset, upload one, and preview what the model reads."""

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
from ui.components import form
from ui.components.html_panel import QUIET, html_panel
from ui.render.status import banner
from ui.render.text import count, esc
from ui.server.calls import slow
from ui.server.service import Service
from ui.tabs.form_fields import FormFields
from ui.tabs.frame import UPLOADED


@dataclass(frozen=True, slots=True)
class PromptsBox:
    own: gr.Column  # shown when the task is one's own prompts
    upload: gr.UploadButton
    preview: gr.Button
    result: gr.HTML


def build_prompts(fields: FormFields) -> PromptsBox:
    fields.add("task.name")
    source, *options = form.PROMPTS
    with gr.Column(visible=False, elem_id="own-prompts", elem_classes="stack", min_width=0) as own:
        fields.add(source)
        upload = gr.UploadButton(
            "Upload prompts", size="sm", file_types=list(SUFFIXES), elem_id="upload-prompts"
        )
        with gr.Accordion("Columns, template, limits", open=False, elem_classes="fold-box"):
            fields.add(*options)
        preview = gr.Button("Preview prompts", size="sm")
        result = html_panel(elem_id="prompt-preview")
    return PromptsBox(own, upload, preview, result)


def wire_prompts(fields: FormFields, box: PromptsBox, service: Service) -> None:
    task = fields.controls["task.name"]
    task.change(lambda name: gr.update(visible=name == FILE.name), task, box.own, **QUIET)
    path = [fields.controls["task.path"], fields.messages["task.path"]]
    box.upload.upload(slow(take_upload), box.upload, path, **UPLOADED)
    preview = slow(lambda *values: show_preview(service, values))
    box.preview.click(preview, fields.values, box.result, **QUIET)


def take_upload(path: Any) -> list[Any]:
    """Keep an uploaded file and write its path into the field, or say why it cannot be used."""
    try:
        return [str(keep_upload(Path(str(path)))), form.help_line("task.path")]
    except (StudioError, OSError, shutil.Error) as error:
        return [gr.skip(), f'<p class="problem" role="alert">{esc(error)}</p>']


def show_preview(service: Service, values: Sequence[Any]) -> str:
    """Five prompts exactly as the model reads them, and what was counted in the file."""
    config, problems = form.read(values)
    if config is None:
        return form.summary(problems)
    try:
        preview = service.preview(config)
    except InvalidConfig as error:
        return "".join(f'<p class="problem" role="alert">{esc(p)}</p>' for p in error.problems)
    except StudioError as error:
        return banner("There is no preview.", str(error))
    how = "as plain text: the model has no chat template"
    if preview.chat_template:
        how = "through the model’s chat template"
    blocks = "".join(_prompt(p) for p in preview.prompts)
    return (
        f'<div class="preview">{counted(preview.counts)}'
        f'<p class="help">Exactly as the model reads them, {how}.</p>{blocks}</div>'
    )


def _prompt(p: Any) -> str:
    """HTML for a preflight.service.PromptAsRead."""
    use = "held out" if p.heldout else "training"
    answer = esc(p.answer) if p.answer else "none"
    return (
        f'<figure class="as-read"><pre tabindex="0">{esc(p.text)}</pre><figcaption>'
        f"{count(p.num_tokens, 'token')} · {use} · answer {answer}</figcaption></figure>"
    )


# Key of Preview.counts -> a sentence with the number.
_REMARKS = {
    "duplicates": "{:,} prompts occur more than once and are used once",
    "contradictions": "{:,} of them have another answer",
    "leaks": "{:,} training prompts are also held out and are not trained on",
    "empty": "{:,} rows have no prompt",
    "unanswered": ("{:,} prompts have no answer: checks that compare with one cannot score them"),
    "too_long": "{:,} prompts are too long for the model’s context",
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
    lines += [text.format(counts[key]) for key, text in _REMARKS.items() if counts[key]]
    if counts["cut"]:
        lines.append("the source has more rows than are read")
    return '<ul class="counted">' + "".join(f"<li>{esc(line)}.</li>" for line in lines) + "</ul>"
