"""The set-up of a run: the left side of the Train tab, in the order in which a person thinks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from grpo_core.config import PRESETS
from grpo_core.errors import FieldProblem
from grpo_core.time_limit import TYPING_SECONDS, time_limit
from ui.components import form
from ui.components.html_panel import html_panel, typing
from ui.render.status import banner
from ui.render.text import esc
from ui.server.calls import slow
from ui.server.refresh import Refresh
from ui.server.service import Service
from ui.tabs.form_fields import FormFields, default_values
from ui.tabs.frame import LATEST, UPLOADED
from ui.tabs.model import build_model, wire_model
from ui.tabs.prompts import build_prompts, wire_prompts
from ui.tabs.score_text import score_text
from ui.tabs.workbench import Workbench, build_workbench, wire_preflight, wire_workbench

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
class Setup:
    """The components of the set-up that the rest of the page reads or writes."""

    fields: FormFields
    formula: gr.HTML
    summary: gr.HTML
    name: gr.Textbox
    anyway: gr.Checkbox  # shown when Preflight asks or refuses
    start: gr.Button

    @property
    def values(self) -> list[Any]:
        """The inputs of every handler that reads the form, in the order of form.NAMES."""
        return self.fields.values

    @property
    def complaints(self) -> list[gr.HTML]:
        """The outputs that `complain` fills."""
        return [*(self.fields.messages[n] for n in form.NAMES), self.summary]


@dataclass(frozen=True, slots=True)
class _RubricFiles:
    save: gr.Button
    load: gr.UploadButton


@dataclass(frozen=True, slots=True)
class _StartBar:
    summary: gr.HTML
    outlook: gr.HTML
    report: gr.HTML
    preflight: gr.Button
    anyway: gr.Checkbox
    start: gr.Button


def build_setup(service: Service, refresh: Refresh) -> Setup:
    """Build the form and connect its events. Call it inside gr.Blocks."""
    fields = FormFields()
    with gr.Column(elem_id="setup", elem_classes="card-box", scale=0, min_width=300):
        html_panel(
            '<div class="setup-head"><h2>Set-up</h2><button type="button" class="fold" '
            'data-toggle="setup" aria-pressed="false">Show</button></div>'
        )
        with gr.Column(elem_id="setup-body", elem_classes="stack", min_width=0):
            model = build_model(fields)
            prompts = build_prompts(fields)
            fields.add("rubric.name", form.CRITERIA)
            workbench = build_workbench()
            files = _build_rubric_files()
            formula = _build_algorithm(fields)
            name = gr.Textbox(
                label="Name",
                placeholder="made from the settings",
                max_lines=1,
                max_length=200,
                elem_id="run-name",
            )
        bar = _build_start_bar()
    setup = Setup(fields, formula, bar.summary, name, bar.anyway, bar.start)
    _wire_checks(setup, workbench, refresh)
    _wire_rubric_files(fields, files)
    wire_workbench(fields, workbench, service)
    wire_preflight(fields, bar.preflight, bar.report, service)
    if service.lease_seconds is not None:
        _wire_outlook(fields, bar.outlook, service)
    wire_model(fields, model, service)
    wire_prompts(fields, prompts, service)
    return setup


def _build_rubric_files() -> _RubricFiles:
    with gr.Row(elem_classes="buttons"):
        return _RubricFiles(
            save=gr.Button("Save rubric", size="sm"),
            load=gr.UploadButton("Load rubric", size="sm", file_types=[".json"]),
        )


def _build_algorithm(fields: FormFields) -> gr.HTML:
    """Every field of the algorithm and of training. Returns the objective's formula."""
    fields.add("algorithm.preset")
    formula = html_panel(form.formula(default_values()), elem_id="objective")
    with gr.Accordion("Algorithm fields", open=False, elem_classes="fold-box"):
        fields.add(*form.ALGORITHM)
    with gr.Row(elem_classes="pairs"):
        fields.add(*form.NUMBERS)
    with gr.Accordion("More fields", open=False, elem_classes="fold-box"):
        fields.add(*form.MORE)
    return formula


def _build_start_bar() -> _StartBar:
    with gr.Column(elem_id="start-bar", min_width=0):
        return _StartBar(
            summary=html_panel(elem_id="start-problems"),
            outlook=html_panel(elem_id="outlook"),
            report=html_panel(elem_id="preflight-report"),
            preflight=gr.Button("Preflight", size="sm"),
            anyway=gr.Checkbox(
                False,
                label="Start anyway",
                info="Preflight found something.",
                visible=False,
                elem_id="start-anyway",
                interactive=True,
            ),
            start=gr.Button("Start training", variant="primary", elem_id="start"),
        )


# ---- events ----------------------------------------------------------------------------------


def _wire_checks(setup: Setup, workbench: Workbench, refresh: Refresh) -> None:
    """Check the form while a person types, and fill in presets."""
    f, values = setup.fields.controls, [*setup.values, workbench.text]
    answers = [*setup.complaints, setup.formula, workbench.scores]
    # Presets set other fields first. The table's `change` covers edits, presets and loaded files.
    typed = [
        f[n].change if n == form.CRITERIA else typing(f[n])
        for n in form.NAMES
        if n not in ("algorithm.preset", "rubric.name")
    ]
    checked = refresh.js("check", slow(check), values)
    gr.on([*typed, workbench.text.change], None, values, answers, js=checked, **LATEST)
    f["rubric.name"].input(choose_rubric, f["rubric.name"], f[form.CRITERIA], **LATEST)
    # Check once more afterwards: each text field that changes sends a check at once, when the
    # fields after it still have their old values.
    preset = f["algorithm.preset"]
    preset.input(
        None,
        preset,
        [f[n] for n in form.ALGORITHM],
        js=refresh.js("preset", choose_preset, [preset]),
        **LATEST,
    ).then(None, values, answers, js=checked, **LATEST)
    f[form.CRITERIA].edit(name_rubric, f[form.CRITERIA], f["rubric.name"], **LATEST)


def _wire_rubric_files(fields: FormFields, files: _RubricFiles) -> None:
    table, name = fields.controls[form.CRITERIA], fields.controls["rubric.name"]
    files.save.click(None, table, None, js=SAVE_JS)
    files.load.upload(
        load_rubric, files.load, [table, name, fields.messages[form.CRITERIA]], **UPLOADED
    )


def _wire_outlook(fields: FormFields, outlook: gr.HTML, service: Service) -> None:
    outlook.value = show_outlook(service, default_values())
    gr.on(
        [typing(fields.controls[n]) for n in form.NAMES if n != form.CRITERIA],
        lambda *values: show_outlook(service, values),
        fields.values,
        outlook,
        **LATEST,
    )


# ---- handlers --------------------------------------------------------------------------------


def check(*values: Any) -> list[Any]:
    """The problems beside the fields, the objective, and the scores of the text in the box."""
    *fields, text = values
    with time_limit(TYPING_SECONDS):
        _, problems = form.read(fields)
        return [*complain(fields, problems), form.formula(fields), score_text(text, fields)]


def complain(fields: Sequence[Any], problems: Sequence[FieldProblem]) -> list[str]:
    """The values of Setup.complaints: HTML for each field, and the summary."""
    lines = {**form.notes(fields), **form.messages(problems)}
    return [*(lines.get(n, "") for n in form.NAMES), form.summary(problems)]


def choose_preset(preset: Any) -> list[Any]:
    if not isinstance(preset, str) or preset not in PRESETS:
        return [gr.skip()] * len(form.ALGORITHM)
    return list(form.preset_values(preset).values())


def choose_rubric(name: Any) -> Any:
    rows = form.preset_rows(name) if isinstance(name, str) else None
    return gr.skip() if rows is None else rows


def name_rubric(rows: Any) -> str:
    return form.rubric_name(rows if isinstance(rows, list) else [])


def load_rubric(path: Any) -> list[Any]:
    """Load a saved rubric into the table; a wrong file is reported beside the table."""
    try:
        criteria = _criteria_in(Path(str(path)))
    except ValueError as error:
        return [gr.skip(), gr.skip(), f'<p class="problem" role="alert">{esc(error)}</p>']
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


def show_outlook(service: Service, fields: Sequence[Any]) -> str:
    """On ZeroGPU: how many steps of the run fit into one lease of the GPU."""
    config, _ = form.read(fields)
    if config is None:
        return ""
    return f'<p class="help" role="status">{esc(service.outlook(config))}</p>'


def refused(error: Exception) -> str:
    """A banner for an error that belongs to no field."""
    return banner("The run was not started.", str(error))
