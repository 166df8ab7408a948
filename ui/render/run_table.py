"""The table of all runs; on a phone CSS shows its rows as cards. Rows -> escaped HTML; pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from grpo_core.analysis.provenance import is_absent, whose
from grpo_core.records.settings import map_settings
from grpo_core.store import RunRow, Source
from grpo_core.tasks import FILE
from grpo_core.tasks.source import short_name
from ui.render.changed import changed, chips
from ui.render.provenance import badge, empty_place
from ui.render.recorded_config import criteria_of, estimator_of
from ui.render.status import device_of, example_pill, pill, run_pill
from ui.render.tables import Column, Sort, heading
from ui.render.text import NONE, duration, esc, format_number, percent, when

RUN_COLUMNS = {
    "name": Column("Name"),
    "status": Column("Status"),
    "model": Column("Model"),
    "task": Column("Task"),
    "rubric": Column("Rubric"),
    "algorithm": Column("Algorithm"),
    "changed": Column("Changed", sortable=False),
    "steps": Column("Steps", numeric=True),
    "reward": Column("Reward", numeric=True),
    "heldout": Column("Held-out", numeric=True),
    "duration": Column("Duration", numeric=True),
    "created": Column("When", numeric=True),
}
RUN_SORTS = tuple(key for key, column in RUN_COLUMNS.items() if column.sortable)


def run_values(run: RunRow) -> dict[str, Any]:
    """The values by which the table of runs is sorted, by column."""
    return {
        "name": run.name.casefold(),
        "status": str(run.status),
        "model": run.model,
        "task": run.task,
        "rubric": run.rubric,
        "algorithm": algorithm_of(run),
        "steps": run.steps_done,
        "reward": run.reward_last,
        "heldout": run.heldout_after or run.heldout_before,
        "duration": run.duration_seconds,
        "created": run.created_at,
    }


def algorithm_of(run: RunRow) -> str:
    return str((run.config.get("algorithm") or {}).get("preset", NONE))


def words_of(run: RunRow) -> str:
    """Everything about a run that a search looks through, in lower case."""
    settings = " ".join(change.short for change in changed(run))
    words = (run.name, run.model, run.task, run.rubric, algorithm_of(run), run.status, settings)
    if run.source is not None:
        words += (run.source.trainer, run.source.format)
    return " ".join((*words, device_of(run), *(f"#{tag}" for tag in run.tags), run.note)).casefold()


def as_tree(runs: Sequence[RunRow]) -> list[tuple[RunRow, int]]:
    """(run, depth): every branch below its parent; siblings keep their order.

    A run whose parent is not among `runs` is at the top, with depth 0.
    """
    listed = {run.id for run in runs}
    children: dict[str | None, list[RunRow]] = {}
    for run in runs:
        parent = run.parent_run_id if run.parent_run_id in listed else None
        children.setdefault(parent, []).append(run)
    tree: list[tuple[RunRow, int]] = []
    remaining = [(run, 0) for run in reversed(children.get(None, []))]
    while remaining:
        run, depth = remaining.pop()
        tree.append((run, depth))
        remaining += [(child, depth + 1) for child in reversed(children.get(run.id, []))]
    return tree


def run_table(
    runs: Sequence[RunRow], selected: Collection[str], in_view: str | None, sort: Sort
) -> str:
    """All runs, branches below their parents. A row's box selects it; its name opens it."""
    head = "".join(heading(key, column, sort) for key, column in RUN_COLUMNS.items())
    names = {run.id: run.name for run in runs}
    body = ""
    for run, depth in as_tree(runs):
        body += _row(run, depth, run.id in selected, run.id == in_view, names)
    return (
        f'{_sort_menu(sort)}<div class="scroll"><table class="list runs"><thead><tr>'
        f'<th scope="col"><span class="sr">selected</span></th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _sort_menu(sort: Sort) -> str:
    """On a phone, where rows are cards, it sorts in place of the headings."""
    options = "".join(
        f'<option value="{key}"{" selected" if key == sort.key else ""}>{column.title}</option>'
        for key, column in RUN_COLUMNS.items()
        if column.sortable
    )
    arrow, way = ("↓", "descending") if sort.descending else ("↑", "ascending")
    return (
        f'<div class="sort-menu"><label class="knob">Sort by <select>{options}</select></label>'
        f'<button type="button" class="icon" data-do="sort" data-key="{sort.key}" '
        f'aria-label="Reverse the order, now {way}">{arrow}</button></div>'
    )


def _row(run: RunRow, depth: int, selected: bool, in_view: bool, names: Mapping[str, str]) -> str:
    name, run_id = esc(run.name), esc(run.id)
    current = ' aria-current="true"' if in_view else ""
    return (
        f'<tr class="{"chosen" if selected else ""}"{current}>'
        '<td class="c-select"><button type="button" class="box" role="checkbox" '
        f'aria-checked="{str(selected).lower()}" aria-label="Select {name}" '
        f'data-do="select" data-run="{run_id}"></button></td>'
        f"{_name_cell(run, depth, names)}{_cells(run)}</tr>"
    )


def _name_cell(run: RunRow, depth: int, names: Mapping[str, str]) -> str:
    """The name, and what a person wrote about the run."""
    name, run_id = esc(run.name), esc(run.id)
    indent = f' style="--depth:{depth}"' if depth else ""
    below = example_pill() if run.example else badge(run)
    if run.parent_run_id:
        parent = names.get(run.parent_run_id, run.parent_run_id)
        line = esc(f"↳ from “{parent}”, step {run.parent_step or 0:,}")
        below += f'<span class="by cut">{line}</span>'
    below += "".join(
        f'<button type="button" class="tag cut" data-do="tag" data-tag="{esc(tag)}" '
        f'aria-label="Show runs with the tag {esc(tag)}">#{esc(tag)}</button>'
        for tag in run.tags
    )
    if run.note:
        below += f'<span class="by cut">{esc(run.note)}</span>'
    below = f'<div class="below">{below}</div>' if below else ""
    return (
        f'<td class="name"{indent}><button type="button" class="link cut" data-do="open" '
        f'data-run="{run_id}">{name}</button>'
        f'<button type="button" class="edit" data-edit="{run_id}" data-name="{name}" '
        f'data-tags="{esc(", ".join(run.tags))}" data-note="{esc(run.note)}" '
        f'aria-label="Rename {name}" title="Name, tags and note">✎</button>{below}</td>'
    )


def _cells(run: RunRow) -> str:
    # A path is long: show its last part, and the whole path in the tooltip.
    task = (run.config.get("task") or {}).get("path") if run.task == FILE.name else None
    task = str(task or run.task)
    cells = {
        "status": _status(run),
        "model": _cut(short_name(run.model) or run.model, run.model),
        "task": _cut(short_name(task), task),
        "rubric": _cut(run.rubric),
        "algorithm": _cut(algorithm_of(run)),
        "changed": chips(run),
        "steps": _steps(run),
        "reward": _arrow(format_number(run.reward_first), format_number(run.reward_last)),
        "heldout": _arrow(percent(run.heldout_before), percent(run.heldout_after)),
        "duration": duration(run.duration_seconds),
        "created": esc(when(run.created_at)),
    }
    if run.source is not None:
        cells |= _foreign_cells(run, run.source)
    return "".join(
        f'<td class="c-{key}{" num" if RUN_COLUMNS[key].numeric else ""}" '
        f'data-label="{RUN_COLUMNS[key].title}">{cell}</td>'
        for key, cell in cells.items()
    )


def _status(run: RunRow) -> str:
    """The state, and the device where it is not the one that every machine has."""
    device = device_of(run)
    where = f'<span class="by">on {esc(device)}</span>' if device not in ("", "cpu") else ""
    return (run_pill(run) if run.source is None else pill(run.status)) + where


def _foreign_cells(run: RunRow, source: Source) -> dict[str, str]:
    """What is known of another trainer's run; the rest are empty places with their reasons."""

    def unknown(what: str) -> str:
        return empty_place(f"Not known: the records of {whose(source)} have no {what}.")

    named = map_settings(source.settings).fields
    names = ", ".join(str(c["name"]) for c in criteria_of(run.config))
    cells = {
        "task": unknown("name of its prompts"),
        "rubric": unknown("scores") if is_absent(source, "reward") else _cut(names, names),
        "algorithm": _cut(estimator_of(run.config)),
        "changed": chips(run, named),
    }
    if "model.name" not in named:
        cells["model"] = unknown("name of its model")
    if is_absent(source, "reward"):
        cells["reward"] = unknown("rewards")
    if run.heldout_before is None:
        cells["heldout"] = unknown("evaluation")
    if run.duration_seconds is None:
        cells["duration"] = unknown("times")
    return cells


def _cut(text: str, whole: str = "") -> str:
    title = f' title="{esc(whole)}"' if whole and whole != text else ""
    return f'<span class="cut"{title}>{esc(text)}</span>'


def _steps(run: RunRow) -> str:
    if run.steps_done == run.num_steps or not run.num_steps:
        return f"{run.steps_done:,}"
    return f"{run.steps_done:,} of {run.num_steps:,}"


def _arrow(first: str, last: str) -> str:
    return first if last == NONE else f"{first} → {last}"
