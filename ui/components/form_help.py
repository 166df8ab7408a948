"""What the form says beside its fields: help, problems, changes, and the objective's formula."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grpo_core.config import PRESETS
from grpo_core.config.devices import shares
from grpo_core.errors import FieldProblem
from grpo_core.rubric import CHECKS
from grpo_core.tasks.source import SUFFIXES, short_name
from ui.components.form import (
    ALGORITHM,
    CRITERIA,
    DEFAULTS,
    EVALUATION,
    FIELDS,
    HELDOUT,
    MODEL,
    NAMES,
    OPTIMISER,
    OPTIONS,
    REWARD,
    SAVING,
    label,
    preset_rows,
    preset_values,
    section_of,
    shown,
)
from ui.components.form_uses import task_of, unused
from ui.render.formula import objective_lines, parse_float
from ui.render.text import esc

# Here the line of help also names the unit.
UNITS = (*MODEL, *HELDOUT, *REWARD, *EVALUATION, *SAVING, *OPTIMISER)


def help_line(name: str, text: str | None = None) -> str:
    """The line of help under a control; `code` in the text becomes code.

    A problem takes its place, so nothing moves. text: replaces the field's description.
    """
    info = FIELDS[name]
    unit = (info.json_schema_extra or {}).get("unit", "")
    if not text:
        text = (info.description or "") + (f" In {unit}." if unit and name in UNITS else "")
    return '<p class="help">' + re.sub("`([^`]*)`", r"<code>\1</code>", esc(text)) + "</p>"


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
    """Above the start button: the fields to correct, as buttons that lead to them.

    Problems of anything but a field of the form are shown in full.
    """
    if not problems:
        return ""
    fields = list(dict.fromkeys(field_of(problem) for problem in problems))
    links = " ".join(_link(field) for field in fields if field in FIELDS)
    others = "".join(f"<br>{esc(p)}" for p in problems if field_of(p) not in FIELDS)
    text = f"Fix these first: {links}" if links else "This cannot be started."
    return f'<p class="problem" role="alert">{text}{others}</p>'


def _link(field: str) -> str:
    return (
        f'<button type="button" class="link" data-do="open" data-section="{section_of(field)}" '
        f'data-field="{esc(field)}">{esc(label(field))}</button>'
    )


def field_of(problem: FieldProblem) -> str:
    return CRITERIA if problem.field.startswith(CRITERIA) else problem.field


def notes(values: Sequence[Any]) -> dict[str, str]:
    """Field -> the line under its control while it has no problem: its help, or the choice's.

    It says what was changed. The line of an unused field has the class "unused", which hides it.
    """
    flat = dict(zip(NAMES, values, strict=True))
    lines = {name: help_line(name) for name in NAMES if name != CRITERIA}
    for name, options in OPTIONS.items():
        value = flat[name]
        if isinstance(value, str) and value in options:
            text = f"{FIELDS[name].description} `{value}`: {options[value]}."
            lines[name] = help_line(name, text)
    if task := task_of(flat):
        lines["task.name"] = help_line("task.name", task.help)
    lines["task.path"] = path_line(flat["task.path"])
    if shared := shares_of(flat):
        text = f"{FIELDS['train.workers'].description} {shared}"
        lines["train.workers"] = help_line("train.workers", text)
    if changed := departures(flat):
        text = f"Changed from the preset: {', '.join(changed)}."
        lines["algorithm.preset"] = help_line("algorithm.preset", text)
    for name in changes(flat):
        lines[name] = lines.get(name, "") + _usual(name, flat)
    for name in unused(flat):
        lines[name] = lines[name].replace('class="help"', 'class="help unused"')
    return lines


def path_line(path: Any) -> str:
    """The help of the prompts' source. Of a long path the field shows only the beginning."""
    name = short_name(str(path or ""))
    is_named = name != path and Path(name).suffix.lower() in SUFFIXES
    file = f"The file `{name}`. " if is_named else ""
    return help_line("task.path", f"{file}{FIELDS['task.path'].description}")


def shares_of(flat: Mapping[str, Any]) -> str:
    """How the workers share a step's groups; "" for one worker, or while one number is wrong."""
    numbers = [parse_float(flat[f"train.{name}"]) for name in ("prompts_per_step", "workers")]
    counts = [int(n) for n in numbers if n is not None and n >= 1 and n.is_integer()]
    return shares(*counts) if len(counts) == 2 and counts[0] >= counts[1] else ""


def _usual(name: str, flat: Mapping[str, Any]) -> str:
    """What a changed field was: the preset's value, or the default."""
    if name in (CRITERIA, "algorithm.preset", "rubric.name", "task.name", "model.name"):
        return ""
    preset = str(flat["algorithm.preset"])
    usual, source = shown(name, DEFAULTS[name]), "Default"
    if name in ALGORITHM:
        usual, source = preset_values(preset)[name], preset if preset in PRESETS else "Default"
    if isinstance(usual, bool):
        usual = "on" if usual else "off"
    text = "empty" if usual in ("", None) else usual
    return f'<p class="changed">{esc(source)}: {esc(text)}</p>'


def changes(flat: Mapping[str, Any]) -> list[str]:
    """The fields that differ from their defaults; for the algorithm, from the chosen preset."""
    usual = {name: shown(name, DEFAULTS[name]) for name in NAMES} | {
        "algorithm.preset": flat["algorithm.preset"],
        **preset_values(str(flat["algorithm.preset"])),
    }
    rows = preset_rows(flat["rubric.name"]) if isinstance(flat["rubric.name"], str) else None
    usual |= {CRITERIA: rows, "rubric.name": flat["rubric.name"]}
    return [name for name in NAMES if not same(flat[name], usual[name])]


def same(a: Any, b: Any) -> bool:
    """Whether two values of a control mean the same: an empty one sends None or ''."""
    if a in (None, "") or b in (None, ""):
        return a in (None, "") and b in (None, "")
    return str(a).strip() == str(b).strip() or _equal_numbers(a, b)


def _equal_numbers(a: Any, b: Any) -> bool:
    if isinstance(a, bool) or isinstance(b, bool):
        return False
    x, y = parse_float(a), parse_float(b)
    return x is not None and x == y


def departures(flat: Mapping[str, Any]) -> list[str]:
    """Labels of the algorithm fields that differ from the chosen preset."""
    preset = str(flat["algorithm.preset"])
    if preset not in PRESETS:
        return []
    wanted = preset_values(preset)
    return [label(name) for name in ALGORITHM if not same(flat[name], wanted[name])]


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
