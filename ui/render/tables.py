"""Tables: the groups of a run, all runs, and where their settings differ.

Rows -> escaped HTML; pure.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grpo_core.rubric.verdict import VERDICTS
from grpo_core.store import GroupPage, GroupSummary, RunRow
from ui.render.status import device_of, pill
from ui.render.text import (
    NONE,
    count,
    digits_apart,
    duration,
    esc,
    format_number,
    indexing,
    is_number,
    percent,
    plain,
    when,
)
from ui.render.verdicts import verdict_pill


@dataclass(frozen=True, slots=True)
class Sort:
    """By which column a table is sorted, and in which direction."""

    key: str
    descending: bool


@dataclass(frozen=True, slots=True)
class Column:
    """A heading. numeric: aligned right. sortable: a button that sorts by the column's key."""

    title: str
    numeric: bool = False
    sortable: bool = True


# key of store.groups(sort=…), or a name where the store cannot sort -> column
GROUP_COLUMNS = {
    "step": Column("Step", numeric=True),
    "prompt": Column("Prompt", sortable=False),
    "rewards": Column("Rewards", sortable=False),
    "reward_mean": Column("Mean", numeric=True),
    "reward_std": Column("Spread", numeric=True),
    "verdict": Column("Verdict"),
}
SORTS = tuple(key for key, column in GROUP_COLUMNS.items() if column.sortable)

RUN_COLUMNS = {
    "name": Column("Name"),
    "status": Column("Status"),
    "model": Column("Model"),
    "task": Column("Task"),
    "rubric": Column("Rubric"),
    "algorithm": Column("Algorithm"),
    "steps": Column("Steps", numeric=True),
    "reward": Column("Reward", numeric=True),
    "heldout": Column("Held-out", numeric=True),
    "duration": Column("Duration", numeric=True),
    "created": Column("When"),
}


def verdict_chips(
    counts: Mapping[str, int], chosen: str | None, steps: Sequence[int] | None = None
) -> str:
    """A filter button for all groups and for each verdict, with counts.

    steps: first and last step of a filter by steps; a further button removes it.
    """
    chips = [("", "all", sum(counts.values()))]
    chips += [(code, VERDICTS[code][0], counts[code]) for code in VERDICTS if counts.get(code)]
    buttons = ""
    for code, label, n in chips:
        pressed = "true" if code == (chosen or "") else "false"
        buttons += (
            f'<button type="button" class="chip" data-do="verdict" data-code="{esc(code)}" '
            f'aria-pressed="{pressed}">{esc(label)} <b>{n:,}</b></button>'
        )
    if steps:
        span = f"step {steps[0]:,}" if steps[0] == steps[1] else f"steps {steps[0]:,}–{steps[1]:,}"
        buttons += (
            '<button type="button" class="chip" data-do="allsteps" aria-pressed="true" '
            f'aria-label="Only {span}. Show all steps">only {span} ✕</button>'
        )
    return f'<div class="chips" role="group" aria-label="Filter by verdict">{buttons}</div>'


def reward_strip(rewards: Sequence[float | None], highest: float) -> str:
    """A group's rewards as bars, best first; the numbers are in the label and the tooltip.

    highest: the reward of a full bar.
    """
    ordered = sorted((r for r in rewards if is_number(r)), reverse=True)
    num_unscored = len(rewards) - len(ordered)
    bars = "".join(f'<i style="--part:{min(1.0, max(0.0, r / highest)):.3f}"></i>' for r in ordered)
    bars += '<i class="null"></i>' * num_unscored
    digits = digits_apart(ordered)
    numbers = ", ".join(format_number(r, digits) for r in ordered)
    if num_unscored:
        numbers += f", {num_unscored} could not be scored"
    label = esc(numbers)
    return f'<span class="strip" role="img" aria-label="{label}" title="{label}">{bars}</span>'


def group_table(
    page: GroupPage,
    highest: float,
    offset: int,
    sort: Sort,
    selected: tuple[int, int] | None,
) -> str:
    """One page of groups. The prompt is a button that opens the group; headings sort.

    highest: the reward of a full bar. offset: groups on the pages before.
    selected: (step, position) of the group that is open.
    """
    head = "".join(_heading(key, column, sort) for key, column in GROUP_COLUMNS.items())
    rows = "".join(_group_row(g, highest, selected == (g.step, g.position)) for g in page.rows)
    total = f"{'more than ' if page.more else ''}{count(page.total, 'group')}"
    last = offset + len(page.rows)
    at_end = not page.more and last >= page.total
    return (
        f'{indexing(page.unsearched)}<div class="scroll"><table class="list groups">'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
        f"{pager(offset, last, total, at_end)}"
    )


def pager(offset: int, last: int, total: str, at_end: bool) -> str:
    """Which rows are shown, and buttons to the previous and the next page."""
    return (
        f'<div class="pager"><span class="fact">{offset + 1:,}–{last:,} of {total}</span>'
        '<button type="button" class="icon" data-do="turn" data-by="-1" '
        f'aria-label="Previous page"{_disabled(offset == 0)}>‹</button>'
        '<button type="button" class="icon" data-do="turn" data-by="1" '
        f'aria-label="Next page"{_disabled(at_end)}>›</button></div>'
    )


def _disabled(disabled: bool) -> str:
    return " disabled" if disabled else ""


def _group_row(group: GroupSummary, highest: float, selected: bool) -> str:
    chosen = ' class="chosen" aria-current="true"' if selected else ""
    prompt = esc(group.prompt[:200])
    label = f"Open group {group.position + 1} of step {group.step}: {esc(group.prompt[:80])}"
    return (
        f'<tr{chosen}><td class="num">{group.step:,}</td>'
        '<td class="prompt-cell"><button type="button" class="row-button" data-do="open" '
        f'data-at="{group.step}/{group.position}" aria-label="{label}">{prompt}</button></td>'
        f"<td>{reward_strip(group.rewards, highest)}</td>"
        f'<td class="num" data-label="mean">{format_number(group.reward_mean)}</td>'
        f'<td class="num" data-label="spread">{format_number(group.reward_std)}</td>'
        f"<td>{verdict_pill(group.verdict)}</td></tr>"
    )


def _heading(key: str, column: Column, sort: Sort) -> str:
    kind = ' class="num"' if column.numeric else ""
    if not column.sortable:
        return f'<th scope="col"{kind}>{esc(column.title)}</th>'
    state, arrow = "", ""
    if key == sort.key:
        state = f' aria-sort="{"descending" if sort.descending else "ascending"}"'
        arrow = "↓" if sort.descending else "↑"
    return (
        f'<th scope="col"{kind}{state}><button type="button" data-do="sort" data-key="{key}">'
        f'{esc(column.title)}<i aria-hidden="true">{arrow}</i></button></th>'
    )


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
    head = "".join(_heading(key, column, sort) for key, column in RUN_COLUMNS.items())
    names = {run.id: run.name for run in runs}
    body = ""
    for run, depth in as_tree(runs):
        body += _run_row(run, depth, run.id in selected, run.id == in_view, names)
    return (
        '<div class="scroll"><table class="list runs"><thead><tr>'
        f'<th scope="col"><span class="sr">selected</span></th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _run_row(
    run: RunRow, depth: int, selected: bool, in_view: bool, names: Mapping[str, str]
) -> str:
    name = esc(run.name)
    parent = ""
    if run.parent_run_id:
        parent_name = esc(names.get(run.parent_run_id, run.parent_run_id))
        parent = f'<span class="by">↳ from “{parent_name}”, step {run.parent_step or 0:,}</span>'
    current = ' aria-current="true"' if in_view else ""
    indent = f' style="--depth:{depth}"' if depth else ""
    # A folder's path is long: show its last part, and the whole path in the tooltip.
    model = run.model.replace("\\", "/").rstrip("/").rpartition("/")[2] or run.model
    device = device_of(run)
    title = f' title="on {esc(device)}"' if device else ""
    # On a machine without a card it would be the same in every row.
    where = f'<span class="by">on {esc(device)}</span>' if device not in ("", "cpu") else ""
    cells = (
        f"<td{title}>{pill(run.status)}{where}</td>",
        f'<td title="{esc(run.model)}">{esc(model)}</td>',
        f"<td>{esc(run.task)}</td>",
        f"<td>{esc(run.rubric)}</td>",
        f"<td>{esc(algorithm_of(run))}</td>",
        f'<td class="num">{_steps(run)}</td>',
        f'<td class="num">{_arrow(format_number(run.reward_first), format_number(run.reward_last))}'
        "</td>",
        f'<td class="num">{_arrow(percent(run.heldout_before), percent(run.heldout_after))}</td>',
        f'<td class="num">{duration(run.duration_seconds)}</td>',
        f'<td class="num">{esc(when(run.created_at))}</td>',
    )
    return (
        f'<tr class="{"chosen" if selected else ""}"{current}>'
        '<td><button type="button" class="box" role="checkbox" '
        f'aria-checked="{str(selected).lower()}" aria-label="Select {name}" '
        f'data-do="select" data-run="{esc(run.id)}"></button></td>'
        f'<td class="name"{indent}><button type="button" class="link" data-do="open" '
        f'data-run="{esc(run.id)}" title="Open {name}">{name}</button>{parent}</td>'
        f"{''.join(cells)}</tr>"
    )


def _steps(run: RunRow) -> str:
    if run.steps_done == run.num_steps:
        return f"{run.steps_done:,}"
    return f"{run.steps_done:,} of {run.num_steps or 0:,}"


def _arrow(first: str, last: str) -> str:
    return first if last == NONE else f"{first} → {last}"


def differences(configs: Mapping[str, Mapping[str, Any]]) -> str:
    """The settings in which the runs differ. configs: run name -> dotted field -> value."""
    fields = dict.fromkeys(field for values in configs.values() for field in values)
    body = ""
    for field in fields:
        values = [config.get(field) for config in configs.values()]
        if any(value != values[0] for value in values):
            cells = "".join(f"<td>{esc(_setting(value))}</td>" for value in values)
            body += f'<tr><th scope="row"><code>{esc(field)}</code></th>{cells}</tr>'
    if not body:
        return '<p class="note">All settings are the same, seed included.</p>'
    head = "".join(f'<th scope="col">{esc(name)}</th>' for name in configs)
    return (
        '<div class="scroll"><table class="list diff"><thead><tr><th scope="col">setting</th>'
        f"{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _setting(value: Any) -> str:
    """A setting's value; criteria as name × weight."""
    if isinstance(value, list) and all(isinstance(v, Mapping) and "name" in v for v in value):
        return ", ".join(f"{v['name']} ×{_setting(v.get('weight'))}" for v in value)
    if isinstance(value, float):
        return plain(value)
    return NONE if value is None else str(value)
