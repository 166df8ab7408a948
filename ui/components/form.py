"""RunConfig <-> components. What can be set, how it is called and what it may be comes from the fields themselves (config.knob)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import gradio as gr

from grpo_core.config import PRESETS, RunConfig, fields_by_name, flatten, nest, parse
from grpo_core.errors import FieldProblem, InvalidConfig
from grpo_core.rubric import CHECKS, build_rubric
from grpo_core.rubric import PRESETS as RUBRICS
from grpo_core.tasks import CHOICES as TASKS
from grpo_core.tasks import FILE, check_task
from ui.render.formula import objective_lines
from ui.render.text import esc, plain

CRITERIA = "rubric.criteria"
EMPTY = {
    "train.learning_rate": "by model size",
    "task.second": "none",
}  # what an empty field means; for others: off
LONG = ("task.template", "task.instruction", "task.system")  # written in lines
LABELS = {"algorithm.preset": "Algorithm"}  # where the page's fixed name is not the field's title
FIELDS = fields_by_name()
NAMES: tuple[str, ...] = tuple(FIELDS)  # the order in which handlers receive and return values
DEFAULTS: dict[str, Any] = flatten(RunConfig())
NUMBERS = (
    "train.steps",
    "train.seed",
    "train.prompts_per_step",
    "train.group_size",
    "train.max_new_tokens",
    "train.learning_rate",
)
ALGORITHM = tuple(n for n in NAMES if n.startswith("algorithm.") and n != "algorithm.preset")
OPTIONS: dict[str, dict[str, str]] = {
    n: x["options"] for n, i in FIELDS.items() if "options" in (x := i.json_schema_extra or {})
}
PROMPTS = tuple(
    n
    for n in NAMES
    if n.startswith("task.") and n not in ("task.name", "task.heldout_size", "task.second")
)  # of a file or dataset
MORE = tuple(
    n
    for n in NAMES
    if n
    not in (
        *NUMBERS,
        *ALGORITHM,
        *PROMPTS,
        "model.name",
        "task.name",
        "rubric.name",
        CRITERIA,
        "algorithm.preset",
    )
)


def label(name: str) -> str:
    return LABELS.get(name, FIELDS[name].title)


def component(name: str) -> gr.components.Component:
    """The control of one field. Bounds are not handed to it: the browser would correct or refuse what was typed without saying why."""
    kind, default = _kind(name), shown(name, DEFAULTS[name])
    common = {
        "value": default,
        "label": label(name),
        "elem_id": element_id(name),
        "interactive": True,
    }
    if name in CHOICES:
        return gr.Dropdown(
            CHOICES[name],
            allow_custom_value=name == "model.name",
            filterable=name == "model.name",
            **common,
        )
    if get_origin(kind) is Literal:
        return gr.Dropdown(list(get_args(kind)), filterable=False, **common)
    if kind is bool:
        return gr.Checkbox(**common)
    if kind is int:
        return gr.Number(**common)
    if name in LONG:
        return gr.Textbox(lines=2, max_lines=8, **common)
    # Text, for fractions too: 1e-4 stays as it was typed, and what is no number can be shown as such.
    return gr.Textbox(
        max_lines=1, placeholder=EMPTY.get(name, "off" if default == "" else None), **common
    )


def help_line(name: str, text: str | None = None) -> str:
    """One line of help under a control; `code` in the field's description becomes code. A problem takes its place, so nothing moves."""
    info = FIELDS[name]
    unit = (info.json_schema_extra or {}).get("unit", "")
    text = text or (info.description or "") + (f" In {unit}." if unit and name in MORE else "")
    return '<p class="help">' + re.sub("`([^`]*)`", r"<code>\1</code>", esc(text)) + "</p>"


CHOICES: dict[str, list[Any]] = {
    "model.name": [("bundled · tiny reasoner", "bundled")],
    "task.name": [(task.title, name) for name, task in TASKS.items()],
    "rubric.name": [*RUBRICS, "custom"],
    "algorithm.preset": list(PRESETS),
}


def element_id(name: str) -> str:
    return "field-" + name.replace(".", "-").replace("_", "-")


def _kind(name: str) -> Any:
    """The type of a field, None aside: float | None is a float that may be left empty."""
    kinds = [k for k in get_args(FIELDS[name].annotation) if k is not NoneType]
    return kinds[0] if NoneType in get_args(FIELDS[name].annotation) else FIELDS[name].annotation


def shown(name: str, value: Any) -> Any:
    """A field's value as its control shows it."""
    if name == CRITERIA:
        return [row_of(c) for c in value]
    if _kind(name) is float:
        return "" if value is None else plain(value)
    return value


def row_of(criterion: Mapping[str, Any]) -> dict[str, Any]:
    """A criterion as a row of the rubric table: weight and parameters as text, so that wrong input can stand there."""
    return {
        "name": str(criterion.get("name", "")),
        "check": str(criterion.get("check", "")),
        "weight": _weight_text(criterion.get("weight", 1)),
        "params": json.dumps(criterion.get("params") or {}, ensure_ascii=False),
        "outcome": bool(criterion.get("outcome", False)),
    }


def _weight_text(weight: Any) -> str:
    return (
        plain(weight)
        if isinstance(weight, (int, float)) and not isinstance(weight, bool)
        else str(weight)
    )


def preset_rows(name: str) -> list[dict[str, Any]] | None:
    """The rows of a rubric preset; None if it is none."""
    return [row_of(c.model_dump(mode="json")) for c in RUBRICS[name]] if name in RUBRICS else None


def rubric_name(rows: Sequence[Mapping[str, Any]]) -> str:
    """The preset that these rows are, or custom."""
    return next((name for name in RUBRICS if preset_rows(name) == list(rows)), "custom")


# ---- reading -----------------------------------------------------------------------------------------------------------


def read(values: Sequence[Any]) -> tuple[RunConfig | None, list[FieldProblem]]:
    """Control values, in the order of NAMES -> the configuration, or every problem found. Values come from a browser: anything is possible."""
    flat = dict(zip(NAMES, values, strict=True))
    problems: list[FieldProblem] = []
    flat[CRITERIA], bad_rows = read_rows(flat[CRITERIA])
    for name in NAMES:
        if isinstance(flat[name], str) and name != CRITERIA:
            flat[name] = flat[name].strip()
        if flat[name] == "" and NoneType in get_args(FIELDS[name].annotation):
            flat[name] = None
    if (
        flat["task.name"] != FILE.name
    ):  # hidden then, so what stands there can be neither seen nor mended
        flat |= {n: DEFAULTS[n] for n in PROMPTS}
    try:
        config = parse(nest(flat))
    except InvalidConfig as error:
        return None, bad_rows + [_readable(p) for p in error.problems]
    try:
        check_task(config.task)
    except InvalidConfig as error:
        problems += error.problems
    try:
        build_rubric(config.rubric)
    except InvalidConfig as error:
        problems += error.problems
    if config.algorithm.preset not in PRESETS:
        problems.append(
            FieldProblem(
                "algorithm.preset",
                config.algorithm.preset,
                "there is no such preset",
                f"Known: {', '.join(PRESETS)}.",
            )
        )
    problems = bad_rows + problems
    return (None if problems else config), problems


def _readable(problem: FieldProblem) -> FieldProblem:
    """An empty control arrives as None or ''; say so in the words of a form."""
    if problem.value in (None, ""):
        return FieldProblem(problem.field, problem.value, "must not be empty", problem.hint)
    return problem


def read_rows(rows: Any) -> tuple[list[dict[str, Any]], list[FieldProblem]]:
    """Rows of the rubric table -> criteria for RunConfig; what is no JSON object among the parameters is a problem of that row."""
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
        problems.append(
            FieldProblem(
                CRITERIA,
                [],
                "a rubric needs at least one criterion",
                "Add one, or choose a preset.",
            )
        )
    return criteria, problems


# ---- saying what is wrong ----------------------------------------------------------------------------------------------


def messages(problems: Sequence[FieldProblem]) -> dict[str, str]:
    """Field -> HTML for the line under it; a problem of a criterion goes under the rubric table and says which one."""
    lines: dict[str, list[str]] = {}
    for problem in problems:
        at, where = problem.field, ""
        if at.startswith(f"{CRITERIA}."):
            index, _, rest = at.removeprefix(f"{CRITERIA}.").partition(".")
            where, at = (
                f"Criterion {int(index) + 1 if index.isdigit() else index}, {rest.replace('.', ' ')}: ",
                CRITERIA,
            )
        lines.setdefault(at, []).append(f"{where}{problem.problem}. {problem.hint}".strip())
    return {
        name: "".join(
            f'<p class="problem" role="alert">{esc(_sentence(line))}</p>' for line in found
        )
        for name, found in lines.items()
    }


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def summary(problems: Sequence[FieldProblem]) -> str:
    """Above the start button: which fields need a look, because an accordion may hide them. Problems of no field of ours in full."""
    if not problems:
        return ""
    named = list(dict.fromkeys(label(_field_of(p)) for p in problems if _field_of(p) in FIELDS))
    other = "".join(f"<br>{esc(p)}" for p in problems if _field_of(p) not in FIELDS)
    text = f"To start, mend: {esc(', '.join(named))}." if named else "This cannot be started."
    return f'<p class="problem" role="alert">{text}{other}</p>'


def _field_of(problem: FieldProblem) -> str:
    return CRITERIA if problem.field.startswith(CRITERIA) else problem.field


def notes(values: Sequence[Any]) -> dict[str, str]:
    """Field -> the quiet line under it while nothing is wrong there: its help, or something about the chosen value that says more."""
    flat = dict(zip(NAMES, values, strict=True))
    out = {name: help_line(name) for name in NAMES if name != CRITERIA}
    for name, said in OPTIONS.items():
        if isinstance(flat[name], str) and flat[name] in said:
            out[name] = help_line(
                name, f"{FIELDS[name].description} `{flat[name]}`: {said[flat[name]]}."
            )
    if isinstance(flat["task.name"], str) and flat["task.name"] in TASKS:
        out["task.name"] = help_line("task.name", TASKS[flat["task.name"]].help)
    if changed := departures(flat):
        out["algorithm.preset"] = help_line(
            "algorithm.preset", f"Changed from the preset: {', '.join(changed)}."
        )
    return out


def departures(flat: Mapping[str, Any]) -> list[str]:
    preset = str(flat["algorithm.preset"])
    if preset not in PRESETS:
        return []
    wanted = preset_values(preset)
    return [label(n) for n in ALGORITHM if str(flat[n]) != str(wanted[n])]


def preset_values(preset: str) -> dict[str, Any]:
    """Every algorithm field as its control shows it under a preset; what the preset does not name has its default."""
    named = {f"algorithm.{k}": v for k, v in PRESETS.get(preset, {}).items()}
    return {n: shown(n, named.get(n, DEFAULTS[n])) for n in ALGORITHM}


def formula(values: Sequence[Any]) -> str:
    """The objective with the chosen values in it."""
    flat = dict(zip(NAMES, values, strict=True))
    lines = objective_lines(
        {n.removeprefix("algorithm."): flat[n] for n in ALGORITHM},
        flat["train.max_new_tokens"],
        flat["rubric.gate"] is True,
        flat["rubric.scale"] is True,
    )
    return f'<pre class="formula" aria-label="Objective">\n{esc(chr(10).join(lines))}</pre>'


def check_help() -> dict[str, str]:
    """Check -> its help and the names of its parameters, plug-ins included."""
    return {
        name: check.help
        + (
            f" Parameters: {', '.join(check.params.model_fields)}."
            if check.params.model_fields
            else ""
        )
        for name, check in CHECKS.items()
    }
