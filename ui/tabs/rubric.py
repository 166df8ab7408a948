"""The rubric's section: the criteria, saving and loading them, and the workbench beside them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from ui.components import form
from ui.components.html_panel import html_panel
from ui.render.text import esc
from ui.server.service import Service
from ui.tabs.form_fields import FormFields
from ui.tabs.frame import LATEST, SKIP, UPLOADED
from ui.tabs.workbench import Workbench, build_workbench, wire_workbench

MAX_RUBRIC_BYTES = 100_000
MAX_CRITERIA = 32

SAVE_JS = """(rows) => {
  const criteria = (rows || []).map(r => {
    let params = r.params;
    try { params = JSON.parse(r.params || '{}'); } catch (error) { /* not JSON: saved as text */ }
    const weight = r.weight === '' || Number.isNaN(Number(r.weight)) ? r.weight : Number(r.weight);
    return {name: r.name, check: r.check, weight, params, outcome: !!r.outcome};
  });
  const text = JSON.stringify({criteria}, null, 2) + '\\n';
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([text], {type: 'application/json'}));
  link.download = 'rubric.json';
  link.click();
  URL.revokeObjectURL(link.href);
}"""


@dataclass(frozen=True, slots=True)
class RubricBox:
    save: gr.Button
    load: gr.UploadButton
    bench: Workbench


def build_rubric_section(fields: FormFields) -> RubricBox:
    """The section "Rubric". Call it inside gr.Blocks."""
    html_panel("<h2>Rubric</h2>")
    with gr.Row(elem_classes="wide-first"):
        fields.add("rubric.name")
        load = gr.UploadButton("Load rubric", size="sm", file_types=[".json"], scale=0)
        save = gr.Button("Save rubric", size="sm", scale=0)
    with gr.Row(elem_classes="two-sides"):
        with gr.Column(elem_classes="stack", min_width=0):
            fields.add(form.CRITERIA)
            with gr.Accordion("Limits, scaling and gate", open=False, elem_classes="fold-box"):
                fields.add_group("", *form.REWARD)
        with gr.Column(elem_classes="stack", min_width=0):
            bench = build_workbench()
    return RubricBox(save, load, bench)


def wire_rubric(fields: FormFields, box: RubricBox, service: Service) -> None:
    table, name = fields.controls[form.CRITERIA], fields.controls["rubric.name"]
    box.save.click(None, table, None, js=SAVE_JS)
    box.load.upload(
        load_rubric, box.load, [table, name, fields.messages[form.CRITERIA]], **UPLOADED
    )
    name.input(choose_rubric, name, table, **LATEST)
    table.edit(name_rubric, table, name, **LATEST)
    wire_workbench(fields, box.bench, service)


def choose_rubric(name: Any) -> Any:
    rows = form.preset_rows(name) if isinstance(name, str) else None
    return SKIP if rows is None else rows


def name_rubric(rows: Any) -> str:
    return form.rubric_name(rows if isinstance(rows, list) else [])


def load_rubric(path: Any) -> list[Any]:
    """Load a saved rubric into the table; a wrong file is reported beside the table."""
    try:
        criteria = _criteria_in(Path(str(path)))
    except ValueError as error:
        return [SKIP, SKIP, f'<p class="problem" role="alert">{esc(error)}</p>']
    rows = [form.row_of(c) for c in criteria]
    return [rows, form.rubric_name(rows), ""]


def _criteria_in(path: Path) -> list[dict[str, Any]]:
    if path.stat().st_size > MAX_RUBRIC_BYTES:
        raise ValueError(
            f"This file has more than {MAX_RUBRIC_BYTES:,} bytes, so it is not a rubric. "
            "Choose one that was saved here."
        )
    try:
        data = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"This file cannot be read as JSON: {error}. Choose one that was saved here."
        ) from None
    criteria = data.get("criteria") if isinstance(data, dict) else data
    criteria = criteria[:MAX_CRITERIA] if isinstance(criteria, list) else []
    if not criteria or not all(isinstance(c, dict) for c in criteria):
        raise ValueError(
            "This file holds no rubric. "
            'It needs {"criteria": [{"name": …, "check": …, "weight": …}]}.'
        )
    return criteria
