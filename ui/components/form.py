"""RunConfig <-> components.

Titles, types, bounds and help texts come from the fields themselves (config.sections.fields).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import gradio as gr
from gradio.components import Component

from grpo_core.config import PRESETS, RunConfig, fields_by_name, flatten, nest, parse
from grpo_core.config.sections.task import MAX_DEFAULT_HELDOUT
from grpo_core.errors import FieldProblem, InvalidConfig
from grpo_core.rubric import CHECKS, build_rubric
from grpo_core.rubric import PRESETS as RUBRICS
from grpo_core.tasks import CHOICES as TASKS
from grpo_core.tasks import FILE, check_task
from ui.render.formula import objective_lines
from ui.render.text import esc, plain

CRITERIA = "rubric.criteria"
FIELDS = fields_by_name()
NAMES: tuple[str, ...] = tuple(FIELDS)  # the order in which handlers receive and return values
DEFAULTS: dict[str, Any] = flatten(RunConfig())
# Placeholders; others: off.
EMPTY = {
    "train.learning_rate": "by model size",
    "task.second": "none",
    "task.heldout_size": f"up to {MAX_DEFAULT_HELDOUT}",
}
MULTILINE = ("task.template", "task.instruction", "task.system")
LABELS = {"algorithm.preset": "Algorithm"}  # where the label is not the field's title
CHOICES: dict[str, list[Any]] = {
    "model.name": [("bundled · tiny reasoner", "bundled")],
    "task.name": [(task.title, name) for name, task in TASKS.items()],
    "rubric.name": [*RUBRICS, "custom"],
    "algorithm.preset": list(PRESETS),
}
# field -> option -> its help
OPTIONS: dict[str, dict[str, str]] = {
    name: extra["options"]
    for name, info in FIELDS.items()
    if "options" in (extra := info.json_schema_extra or {})
}

# The fields by their part of the form.
NUMBERS = (
    "train.steps",
    "train.seed",
    "train.prompts_per_step",
    "train.group_size",
    "train.max_new_tokens",
    "train.learning_rate",
)
MAIN = ("model.name", "task.name", "rubric.name", CRITERIA, "algorithm.preset")
ALGORITHM = tuple(n for n in NAMES if n.startswith("algorithm.") and n not in MAIN)
# How prompts are read from a file or a dataset.
PROMPTS = tuple(
    n
    for n in NAMES
    if n.startswith("task.") and n not in ("task.name", "task.heldout_size", "task.second")
)
MORE = tuple(n for n in NAMES if n not in (*MAIN, *NUMBERS, *ALGORITHM, *PROMPTS))


# ---- controls --------------------------------------------------------------------------------


def label(name: str) -> str:
    return LABELS.get(name) or FIELDS[name].title or name


def element_id(name: str) -> str:
    return "field-" + name.replace(".", "-").replace("_", "-")


def component(name: str) -> Component:
    """The control of one field.

    It does not get the field's bounds: a browser would correct or refuse what was typed without
    saying why.
    """
    kind, default = _kind(name), shown(name, DEFAULTS[name])
    common: dict[str, Any] = {
        "value": default,
        "label": label(name),
        "elem_id": element_id(name),
        "interactive": True,
    }
    if name in CHOICES:
        free = name == "model.name"
        return gr.Dropdown(CHOICES[name], allow_custom_value=free, filterable=free, **common)
    if get_origin(kind) is Literal:
        return gr.Dropdown(list(get_args(kind)), filterable=False, **common)
    if kind is bool:
        return gr.Checkbox(**common)
    if kind is int:
        return gr.Number(placeholder=EMPTY.get(name), **common)
    if name in MULTILINE:
        return gr.Textbox(lines=2, max_lines=8, **common)
    # Fractions are text too: 1e-4 stays as it was typed, and a message can quote invalid input.
    placeholder = EMPTY.get(name, "off" if default == "" else None)
    return gr.Textbox(max_lines=1, placeholder=placeholder, **common)


def help_line(name: str, text: str | None = None) -> str:
    """The line of help under a control; `code` in the text becomes code.

    A problem takes its place, so nothing moves. text: replaces the field's description.
    """
    info = FIELDS[name]
    unit = (info.json_schema_extra or {}).get("unit", "")
    if not text:
        text = (info.description or "") + (f" In {unit}." if unit and name in MORE else "")
    return '<p class="help">' + re.sub("`([^`]*)`", r"<code>\1</code>", esc(text)) + "</p>"


def _kind(name: str) -> Any:
    """The field's type without None: a `float | None` is a float that may be empty."""
    annotation = FIELDS[name].annotation
    if NoneType not in get_args(annotation):
        return annotation
    return next(kind for kind in get_args(annotation) if kind is not NoneType)


def shown(name: str, value: Any) -> Any:
    """A field's value as its control shows it."""
    if name == CRITERIA:
        return [row_of(criterion) for criterion in value]
    if _kind(name) is float:
        return "" if value is None else plain(value)
    return value


def row_of(criterion: Mapping[str, Any]) -> dict[str, Any]:
    """A criterion as a row of the rubric table. Weight and params are text, to keep wrong input."""
    weight = criterion.get("weight", 1)
    is_number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
    return {
        "name": str(criterion.get("name", "")),
        "check": str(criterion.get("check", "")),
        "weight": plain(weight) if is_number else str(weight),
        "params": json.dumps(criterion.get("params") or {}, ensure_ascii=False),
        "outcome": bool(criterion.get("outcome", False)),
    }


def preset_rows(name: str) -> list[dict[str, Any]] | None:
    """The rows of a rubric preset; None if there is no such preset."""
    return [row_of(c.model_dump(mode="json")) for c in RUBRICS[name]] if name in RUBRICS else None


def rubric_name(rows: Sequence[Mapping[str, Any]]) -> str:
    """The preset with these rows, or "custom"."""
    return next((name for name in RUBRICS if preset_rows(name) == list(rows)), "custom")


# ---- reading ---------------------------------------------------------------------------------


def read(values: Sequence[Any]) -> tuple[RunConfig | None, list[FieldProblem]]:
    """The configuration, or None and every problem. A browser can send anything.

    values: control values in the order of NAMES.
    """
    flat = dict(zip(NAMES, values, strict=True))
    flat[CRITERIA], problems = read_rows(flat[CRITERIA])
    for name in NAMES:
        if isinstance(flat[name], str) and name != CRITERIA:
            flat[name] = flat[name].strip()
        if flat[name] == "" and NoneType in get_args(FIELDS[name].annotation):
            flat[name] = None
    if flat["task.name"] != FILE.name:
        # These controls are hidden then, so nobody could see or correct what they hold.
        flat |= {name: DEFAULTS[name] for name in PROMPTS}
    try:
        config = parse(nest(flat))
    except InvalidConfig as error:
        return None, problems + [_readable(p) for p in error.problems]
    try:
        check_task(config.task)
    except InvalidConfig as error:
        problems += error.problems
    try:
        build_rubric(config.rubric)
    except InvalidConfig as error:
        problems += error.problems
    preset = config.algorithm.preset
    if preset not in PRESETS:
        hint = f"Known: {', '.join(PRESETS)}."
        problems.append(FieldProblem("algorithm.preset", preset, "there is no such preset", hint))
    return (None if problems else config), problems


def _readable(problem: FieldProblem) -> FieldProblem:
    """An empty control sends None or ''; the message says that it is empty."""
    if problem.value in (None, ""):
        return FieldProblem(problem.field, problem.value, "must not be empty", problem.hint)
    return problem


def read_rows(rows: Any) -> tuple[list[dict[str, Any]], list[FieldProblem]]:
    """Rows of the rubric table -> criteria for RunConfig, and a problem for each invalid JSON."""
    criteria, problems = [], []
    for i, row in enumerate(rows if isinstance(rows, list) else []):
        row = row if isinstance(row, Mapping) else {}
        try:
            params = json.loads(str(row.get("params") or "{}"))
        except (ValueError, RecursionError):
            params = None
        if not isinstance(params, dict):
            problems.append(
                FieldProblem(
                    f"{CRITERIA}.{i}.params",
                    row.get("params"),
                    "is not a JSON object",
                    'Write {} or, for example, {"max_tokens": 16}.',
                )
            )
            params = {}
        criteria.append(
            {
                "name": str(row.get("name", "")).strip(),
                "check": str(row.get("check", "")),
                "weight": str(row.get("weight", "")).strip(),
                "params": params,
                "outcome": bool(row.get("outcome")),
            }
        )
    if not criteria:
        problem = "a rubric needs at least one criterion"
        problems.append(FieldProblem(CRITERIA, [], problem, "Add one, or choose a preset."))
    return criteria, problems


# ---- messages --------------------------------------------------------------------------------


def messages(problems: Sequence[FieldProblem]) -> dict[str, str]:
    """Field -> HTML for the line under its control.

    A problem of a criterion goes under the rubric table and names the criterion.
    """
    lines: dict[str, list[str]] = {}
    for problem in problems:
        where = ""
        if problem.field.startswith(f"{CRITERIA}."):
            index, _, rest = problem.field.removeprefix(f"{CRITERIA}.").partition(".")
            number = int(index) + 1 if index.isdigit() else index
            where = f"Criterion {number}, {rest.replace('.', ' ')}: "
        line = f"{where}{problem.problem}. {problem.hint}".strip()
        name = CRITERIA if where else problem.field
        lines.setdefault(name, []).append(f"{line[:1].upper()}{line[1:]}")
    return {
        name: "".join(f'<p class="problem" role="alert">{esc(line)}</p>' for line in texts)
        for name, texts in lines.items()
    }


def summary(problems: Sequence[FieldProblem]) -> str:
    """Above the start button: the fields to correct, because an accordion may hide them.

    Problems of anything but a field of the form are shown in full.
    """
    if not problems:
        return ""
    fields = [_field_of(problem) for problem in problems]
    labels = list(dict.fromkeys(label(field) for field in fields if field in FIELDS))
    text = "This cannot be started."
    if labels:
        text = f"To start, correct: {esc(', '.join(labels))}."
    for field, problem in zip(fields, problems, strict=True):
        if field not in FIELDS:
            text += f"<br>{esc(problem)}"
    return f'<p class="problem" role="alert">{text}</p>'


def _field_of(problem: FieldProblem) -> str:
    return CRITERIA if problem.field.startswith(CRITERIA) else problem.field


def notes(values: Sequence[Any]) -> dict[str, str]:
    """Field -> the line under its control while it has no problem: its help, or the choice's."""
    flat = dict(zip(NAMES, values, strict=True))
    lines = {name: help_line(name) for name in NAMES if name != CRITERIA}
    for name, options in OPTIONS.items():
        value = flat[name]
        if isinstance(value, str) and value in options:
            text = f"{FIELDS[name].description} `{value}`: {options[value]}."
            lines[name] = help_line(name, text)
    task = flat["task.name"]
    if isinstance(task, str) and task in TASKS:
        lines["task.name"] = help_line("task.name", TASKS[task].help)
    if changed := departures(flat):
        text = f"Changed from the preset: {', '.join(changed)}."
        lines["algorithm.preset"] = help_line("algorithm.preset", text)
    return lines


def departures(flat: Mapping[str, Any]) -> list[str]:
    """Labels of the algorithm fields that differ from the chosen preset."""
    preset = str(flat["algorithm.preset"])
    if preset not in PRESETS:
        return []
    wanted = preset_values(preset)
    return [label(name) for name in ALGORITHM if str(flat[name]) != str(wanted[name])]


def preset_values(preset: str) -> dict[str, Any]:
    """Every algorithm field as its control shows it under a preset; the rest has its default."""
    named = {f"algorithm.{name}": value for name, value in PRESETS.get(preset, {}).items()}
    return {name: shown(name, named.get(name, DEFAULTS[name])) for name in ALGORITHM}


def formula(values: Sequence[Any]) -> str:
    """The objective with the chosen values in it."""
    flat = dict(zip(NAMES, values, strict=True))
    lines = objective_lines(
        {name.removeprefix("algorithm."): flat[name] for name in ALGORITHM},
        flat["train.max_new_tokens"],
        gate=flat["rubric.gate"] is True,
        scale=flat["rubric.scale"] is True,
    )
    text = esc("\n".join(lines))
    return f'<pre class="formula" aria-label="Objective">\n{text}</pre>'


def check_help() -> dict[str, str]:
    """Check -> its help and the names of its parameters, plug-ins included."""
    texts = {}
    for name, check in CHECKS.items():
        params = ", ".join(check.params.model_fields)
        texts[name] = f"{check.help} Parameters: {params}." if params else check.help
    return texts
