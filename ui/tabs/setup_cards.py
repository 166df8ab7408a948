"""The summary of the set-up: a card for each section, with its settings in one line.

It also names the settings by tokens, so that the page can tell which results belong to earlier
ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from grpo_core.errors import FieldProblem
from grpo_core.tasks import FILE
from grpo_core.tasks.source import short_name
from ui.components import form, form_help
from ui.components.form_uses import task_of
from ui.render.formula import parse_float
from ui.render.text import esc
from ui.tabs.frame import token

MAX_CHARS = 200
EARLIER = '<p class="earlier" role="status">For earlier settings.</p>'


def cards(values: Sequence[Any], problems: Sequence[FieldProblem] = ()) -> str:
    """HTML for the five cards. values: those of the form, which may be anything."""
    flat = dict(zip(form.NAMES, values, strict=True))
    changed = {form.section_of(name) for name in form_help.changes(flat)}
    wrong = {form.section_of(form_help.field_of(problem)) for problem in problems}
    body = "".join(
        _card(section, LINES[section](flat), _mark(section in changed, section in wrong))
        for section in form.SECTIONS
    )
    now = belongs_to(values, form.SECTIONS)
    return f'<nav class="setup-cards" aria-label="Set-up" data-now="{now}">{body}</nav>'


def _mark(changed: bool, wrong: bool) -> str:
    if wrong:
        return '<span class="mark-wrong">▲ fix</span>'
    return '<span class="mark-changed">changed</span>' if changed else ""


def _card(section: str, line: str, mark: str) -> str:
    return (
        f'<button type="button" class="setup-card" data-section="{section}" '
        'aria-controls="new-run-pane" aria-expanded="false">'
        f'<span class="top"><b>{form.SECTIONS[section]}</b>{mark}</span>'
        f'<span class="state">{esc(line[:MAX_CHARS])}</span></button>'
    )


# ---- a line for each section -----------------------------------------------------------------


def _model(flat: Mapping[str, Any]) -> str:
    name = str(flat["model.name"] or "no model").rstrip("/").rpartition("/")[2]
    rank = parse_float(flat["model.lora_rank"])
    trained = f"LoRA rank {rank:g}" if rank else "whole model"
    start = " · random weights" if flat["model.init"] == "random" else ""
    precision = flat["model.dtype"]
    return (
        f"{name} · {trained}{start} · {'automatic' if precision == 'auto' else precision} precision"
    )


def _prompts(flat: Mapping[str, Any]) -> str:
    name = flat["task.name"]
    task = task_of(flat)
    title = task.title if task else str(name)
    if name == FILE.name:
        title = short_name(str(flat["task.path"] or "")) or "no file yet"
    heldout = flat["task.heldout_size"]
    kept = f"up to {form.MAX_DEFAULT_HELDOUT}" if heldout in (None, "") else str(heldout)
    return f"{title} · {kept} held out"


def _rubric(flat: Mapping[str, Any]) -> str:
    rows = flat[form.CRITERIA] if isinstance(flat[form.CRITERIA], list) else []
    rows = [row for row in rows if isinstance(row, Mapping)]
    return " · ".join(f"{row.get('name', '')} {row.get('weight', '')}" for row in rows[:8])


def _algorithm(flat: Mapping[str, Any]) -> str:
    low, high = flat["algorithm.clip_eps_low"], flat["algorithm.clip_eps_high"]
    parts = [str(flat["algorithm.preset"]), f"KL {flat['algorithm.kl_coef']}"]
    if flat["algorithm.objective"] == "clip":
        parts.append(f"clip {low}" if low == high else f"clip {low} to {high}")
    elif flat["algorithm.objective"] != flat["algorithm.preset"]:
        parts.append(str(flat["algorithm.objective"]))
    return " · ".join(parts)


def _run(flat: Mapping[str, Any]) -> str:
    rate = flat["train.learning_rate"]
    parts = [
        f"{flat['train.steps']} steps",
        f"{flat['train.prompts_per_step']} × {flat['train.group_size']}",
        f"{flat['train.max_new_tokens']} tokens",
        *([f"rate {rate}"] if rate not in (None, "") else []),
        f"seed {flat['train.seed']}",
        *([f"{flat['train.workers']} workers"] if parse_float(flat["train.workers"]) != 1 else []),
    ]
    return " · ".join(parts)


LINES = {
    "model": _model,
    "prompts": _prompts,
    "rubric": _rubric,
    "algorithm": _algorithm,
    "run": _run,
}


# ---- which settings a result belongs to ------------------------------------------------------


def belongs_to(values: Sequence[Any], sections: Iterable[str]) -> str:
    """A token for the settings of each section: "model=1a2b prompts=3c4d"."""
    wanted = set(sections)
    chosen: dict[str, list[Any]] = {section: [] for section in form.SECTIONS if section in wanted}
    for name, value in zip(form.NAMES, values, strict=True):
        if form.section_of(name) in chosen:
            chosen[form.section_of(name)].append(_normal(value))
    return " ".join(f"{section}={token(of)}" for section, of in chosen.items())


def _normal(value: Any) -> Any:
    """The same for values that mean the same: "0.20" and "0.2", None and ""."""
    if value is None or isinstance(value, bool):
        return value or ""
    number = parse_float(value)
    return str(value).strip() if number is None else number


def dated(html: str, values: Sequence[Any], *sections: str, note: str = EARLIER) -> str:
    """A result, marked as one for earlier settings as soon as a setting of `sections` changes.

    note: what it shows above itself then.
    """
    if not html:
        return ""
    return (
        f'<div class="dated" data-for="{belongs_to(values, sections or form.SECTIONS)}">'
        f"{note}{html}</div>"
    )
