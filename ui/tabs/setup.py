"""The set-up of a run: the left side of the Train tab, in the order in which a person thinks."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from grpo_core.config import PRESETS, RubricConfig
from grpo_core.errors import FieldProblem, InvalidConfig
from grpo_core.rubric import Rubric, build_rubric
from grpo_core.tasks import FILE, TASKS, Task, load_task, train_prompts
from grpo_core.tasks.source import SUFFIXES
from grpo_core.types import Completion
from ui.components import form
from ui.components.html_panel import QUIET, html_panel, script, typing
from ui.render.status import banner
from ui.render.text import esc, format_number, is_number, plain
from ui.server.refresh import Shows
from ui.server.service import Desk
from ui.tabs.model import wire_model
from ui.tabs.prompts import wire_prompts
from ui.tabs.workbench import wire_workbench

MAX_RUBRIC_BYTES = 100_000
MAX_CHARS = 20_000
ON_DEMAND = (
    "judge",
    "reward_model",
)  # cost money or seconds: asked by “Score as group”, never at every key
# A stand-in for a tokenizer, which the page does not load: tags, words, digits and signs count one each.
TOKENS = re.compile(r"</?\w+>|\d|[^\W\d]+|[^\w\s]")

SAVE_JS = """(rows) => {
  const criteria = (rows || []).map(r => {
    let params = r.params;
    try { params = JSON.parse(r.params || '{}'); } catch (error) { /* what is no JSON is saved as it stands */ }
    const weight = Number(r.weight);
    return {name: r.name, check: r.check, weight: r.weight === '' || Number.isNaN(weight) ? r.weight : weight, params, outcome: !!r.outcome};
  });
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([JSON.stringify({criteria}, null, 2) + '\\n'], {type: 'application/json'}));
  link.download = 'rubric.json';
  link.click();
  URL.revokeObjectURL(link.href);
}"""


@dataclass(frozen=True)
class Setup:
    """The components of the set-up that the rest of the page listens to or writes."""

    fields: dict[str, Any]
    errors: dict[str, gr.HTML]
    formula: gr.HTML
    summary: gr.HTML
    name: gr.Textbox
    anyway: gr.Checkbox  # shown when Preflight asks or stops
    start: gr.Button

    @property
    def values(self) -> list[Any]:
        """The inputs of every handler that reads the form, in the order of form.NAMES."""
        return [self.fields[n] for n in form.NAMES]

    @property
    def complaints(self) -> list[gr.HTML]:
        """The outputs that `complain` fills."""
        return [*(self.errors[n] for n in form.NAMES), self.summary]


def build_setup(desk: Desk, shows: Shows) -> Setup:
    """Lay the form out and make it answer. Must be called inside gr.Blocks."""
    fields: dict[str, Any] = {}
    errors: dict[str, gr.HTML] = {}

    def field(name: str) -> None:
        with gr.Column(elem_classes="field", min_width=0):
            fields[name] = _rubric_table() if name == form.CRITERIA else form.component(name)
            errors[name] = html_panel(form.notes(_defaults()).get(name, ""), elem_classes="beside")

    with gr.Column(elem_id="setup", elem_classes="card-box", scale=0, min_width=300):
        html_panel(
            '<div class="setup-head"><h2>Set-up</h2><button type="button" class="fold" data-toggle="setup" aria-pressed="false">Show</button></div>'
        )
        with gr.Column(elem_id="setup-body", elem_classes="stack", min_width=0):
            field("model.name")
            check_model = gr.Button("Check model", size="sm")
            model_answer = html_panel(elem_id="model-answer")
            field("task.name")
            with gr.Column(
                visible=False, elem_id="own-prompts", elem_classes="stack", min_width=0
            ) as own:
                for name in form.PROMPTS[:1]:
                    field(name)
                upload = gr.UploadButton(
                    "Upload prompts", size="sm", file_types=list(SUFFIXES), elem_id="upload-prompts"
                )
                with gr.Accordion("Columns, template, limits", open=False, elem_classes="fold-box"):
                    for name in form.PROMPTS[1:]:
                        field(name)
                look = gr.Button("Preview prompts", size="sm")
                preview = html_panel(elem_id="prompt-preview")
            for name in ("rubric.name", form.CRITERIA):
                field(name)
            text = gr.Textbox(
                label="Score this text",
                placeholder="Paste or type a completion",
                lines=2,
                max_lines=6,
                elem_id="score-text",
            )
            scores = html_panel(elem_id="score-result")
            with gr.Row(elem_classes="buttons"):
                sample, paste, probe = (
                    gr.Button(n, size="sm", min_width=90)
                    for n in ("Preview groups", "Score as group", "Probe rubric")
                )
            bench = html_panel(elem_id="workbench")
            with gr.Row(elem_classes="buttons"):
                save = gr.Button("Save rubric", size="sm")
                load = gr.UploadButton("Load rubric", size="sm", file_types=[".json"])
            field("algorithm.preset")
            formula = html_panel(form.formula(_defaults()), elem_id="objective")
            with gr.Accordion("Algorithm fields", open=False, elem_classes="fold-box"):
                for name in form.ALGORITHM:
                    field(name)
            with gr.Row(elem_classes="pairs"):
                for name in form.NUMBERS:
                    field(name)
            with gr.Accordion("More fields", open=False, elem_classes="fold-box"):
                for name in form.MORE:
                    field(name)
            name = gr.Textbox(
                label="Name",
                placeholder="made from the settings",
                max_lines=1,
                max_length=200,
                elem_id="run-name",
            )
        with gr.Column(elem_id="start-bar", min_width=0):
            summary = html_panel(elem_id="start-problems")
            outlook = html_panel(elem_id="outlook")
            preflight_report = html_panel(elem_id="preflight-report")
            preflight = gr.Button("Preflight", size="sm")
            anyway = gr.Checkbox(
                False,
                label="Start anyway",
                info="Preflight found something.",
                visible=False,
                elem_id="start-anyway",
                interactive=True,
            )
            start = gr.Button("Start training", variant="primary", elem_id="start")

    setup = Setup(fields, errors, formula, summary, name, anyway, start)
    _wire(setup, text, scores, save, load, shows)
    wire_workbench(
        setup.fields, text, sample, paste, probe, bench, preflight, preflight_report, desk
    )
    if desk.lease_seconds is not None:
        outlook.value = foreseen(desk, _defaults())
        gr.on(
            [typing(fields[n]) for n in form.NAMES if n != form.CRITERIA],
            lambda *given: foreseen(desk, given),
            setup.values,
            outlook,
            **{**QUIET, "trigger_mode": "always_last"},
        )
    wire_model(setup.fields, check_model, model_answer, desk)
    wire_prompts(setup.fields, setup.errors, own, upload, look, preview, desk)
    return setup


def _rubric_table() -> gr.HTML:
    return gr.HTML(
        _default_rows(),
        html_template='<div class="criteria"></div>',
        js_on_load=script("rubric_table.js"),
        apply_default_css=False,
        padding=False,
        elem_id=form.element_id(form.CRITERIA),
        checks=form.check_help(),
    )


def _default_rows() -> list[dict[str, Any]]:
    return form.preset_rows(form.DEFAULTS["rubric.name"]) or []


def _defaults() -> list[Any]:
    """The form's first values."""
    return [
        _default_rows() if n == form.CRITERIA else form.shown(n, form.DEFAULTS[n])
        for n in form.NAMES
    ]


def _wire(
    setup: Setup,
    text: gr.Textbox,
    scores: gr.HTML,
    save: gr.Button,
    load: gr.UploadButton,
    shows: Shows,
) -> None:
    values, f = [*setup.values, text], setup.fields
    answers = [*setup.complaints, setup.formula, scores]
    live = {**QUIET, "trigger_mode": "always_last"}
    # Presets set other fields first. The table says `change` for a person's edit, a preset and a loaded file alike.
    typed = [
        f[n].change if n == form.CRITERIA else typing(f[n])
        for n in form.NAMES
        if n not in ("algorithm.preset", "rubric.name")
    ]
    checked = shows.js("check", check, values)
    gr.on([*typed, text.change], None, values, answers, js=checked, **live)
    f["rubric.name"].input(choose_rubric, f["rubric.name"], f[form.CRITERIA], **live)
    # Then once more: a text field that changes asks at once, when the fields after it still have their old values.
    preset = f["algorithm.preset"]
    preset.input(
        None,
        preset,
        [f[n] for n in form.ALGORITHM],
        js=shows.js("preset", choose_preset, [preset]),
        **live,
    ).then(None, values, answers, js=checked, **live)
    f[form.CRITERIA].edit(name_rubric, f[form.CRITERIA], f["rubric.name"], **live)
    save.click(None, f[form.CRITERIA], None, js=SAVE_JS)
    # The one handler with preprocessing: it is what keeps the path of an upload inside the upload folder.
    load.upload(
        load_rubric,
        load,
        [f[form.CRITERIA], f["rubric.name"], setup.errors[form.CRITERIA]],
        **(QUIET | {"preprocess": True}),
    )


# ---- handlers: read, call, show ------------------------------------------------------------------------------------------


def check(*values: Any) -> list[Any]:
    """What is wrong, field by field; the objective; and the scores of the text in the box."""
    *fields, text = values
    _, problems = form.read(fields)
    return [*complain(fields, problems), form.formula(fields), score_text(text, fields)]


def complain(fields: Sequence[Any], problems: Sequence[FieldProblem]) -> list[str]:
    """One HTML for every field, in the order of form.NAMES, and the summary: the values of Setup.complaints."""
    said = {**form.notes(fields), **form.messages(problems)}
    return [*(said.get(n, "") for n in form.NAMES), form.summary(problems)]


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
    """A saved rubric into the table. A file that is none changes nothing and says why beside the table."""
    try:
        criteria = _criteria_in(Path(str(path)))
    except ValueError as error:
        return [gr.skip(), gr.skip(), f'<p class="problem" role="alert">{esc(error)}</p>']
    rows = [form.row_of(c) for c in criteria]
    return [rows, form.rubric_name(rows), ""]


def _criteria_in(path: Path) -> list[dict[str, Any]]:
    if path.stat().st_size > MAX_RUBRIC_BYTES:
        raise ValueError(
            f"This file has more than {MAX_RUBRIC_BYTES:,} bytes, so it is no rubric. Choose one that was saved here."
        )
    try:
        data = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"This file cannot be read as JSON: {error}. Choose one that was saved here."
        ) from None
    criteria = data.get("criteria") if isinstance(data, dict) else data
    if (
        not isinstance(criteria, list)
        or not criteria
        or not all(isinstance(c, dict) for c in criteria[:32])
    ):
        raise ValueError(
            'This file holds no rubric: it needs {"criteria": [{"name": …, "check": …, "weight": …}]}.'
        )
    return criteria[:32]


def score_text(text: Any, fields: Sequence[Any]) -> str:
    """Each criterion's score for a text that a person typed, against the first prompt of the chosen task; the reward that follows."""
    if not isinstance(text, str) or not text:
        return ""
    flat = dict(zip(form.NAMES, fields, strict=True))
    task = _task_of(fields)
    if task is None:
        return '<p class="help">Choose a task first: answers are judged by it.</p>'
    criteria, problems = form.read_rows(flat[form.CRITERIA])
    try:
        rubric = build_rubric(RubricConfig(name="custom", criteria=tuple(criteria)))
    except (InvalidConfig, ValueError):
        problems = problems or [FieldProblem(form.CRITERIA, None, "mend the rubric first", "")]
    if problems:
        return '<p class="help">Mend the rubric first.</p>'
    prompt = train_prompts(task, 0, 1, 1)[0]
    completion = Completion(text[:MAX_CHARS], "stop", len(TOKENS.findall(text[:MAX_CHARS])))
    asked = [c.name for c in rubric.criteria if c.check in ON_DEMAND]
    scores, reward = Rubric(tuple(row for row in rubric.rows if row[0].name not in asked)).score(
        completion, prompt
    )
    rows = "".join(
        f'<tr><th scope="row">{esc(c.name)}</th><td>{"not while you type" if c.name in asked else _score(scores[c.name])}</td><td class="by">×{plain(c.weight)}</td></tr>'
        for c in rubric.criteria
    )
    guess = (
        " Its length is a guess: the model's tokenizer is not loaded."
        if any(c.check == "length" for c in rubric.criteria)
        else ""
    )
    total = format_number(reward, 3) if is_number(reward) else "could not be scored"
    return (
        f'<table class="scored"><tbody>{rows}<tr class="total"><th scope="row">reward</th><td colspan="2"><b>{total}</b></td></tr></tbody></table>'
        f'<p class="help">As a completion of “{esc(prompt.text)}”, whose answer is {esc(prompt.answer)}.{guess}</p>'
    )


def _task_of(fields: Sequence[Any]) -> Task | None:
    """The chosen task, if its prompts can be had."""
    config, _ = form.read(fields)
    flat = dict(zip(form.NAMES, fields, strict=True))
    if (
        config is None or config.task.name != FILE.name
    ):  # a built-in task answers while other fields are still wrong
        return TASKS.get(flat["task.name"]) if isinstance(flat["task.name"], str) else None
    try:
        return load_task(config.task)
    except InvalidConfig:
        return None


def _score(value: float | None) -> str:
    return format_number(value, 2) if is_number(value) else "could not be scored"


def foreseen(desk: Desk, fields: Sequence[Any]) -> str:
    """How much of the run a lease of the GPU holds, where GPUs are lent."""
    config, _ = form.read(fields)
    return (
        "" if config is None else f'<p class="help" role="status">{esc(desk.outlook(config))}</p>'
    )


def refused(error: Exception) -> str:
    """An error that belongs to no field."""
    return banner("The run was not started.", str(error))
