"""Tables: the groups of a run, all runs, and where their settings differ. Rows -> escaped HTML; pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from grpo_core.rubric.verdict import VERDICTS
from grpo_core.store import GroupPage, GroupSummary, RunRow
from ui.render.cards import verdict_pill
from ui.render.status import pill
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

# key of store.groups(sort=…) -> (title, whether the column is one of numbers)
GROUP_COLUMNS = {
    "step": ("Step", True),
    None: ("Prompt", False),
    "rewards": ("Rewards", False),
    "reward_mean": ("Mean", True),
    "reward_std": ("RunningStd", True),
    "verdict": ("Verdict", False),
}
SORTS = ("step", "reward_mean", "reward_std", "verdict")

RUN_COLUMNS: dict[str, str] = {
    "name": "Name",
    "status": "Status",
    "model": "Model",
    "task": "Task",
    "rubric": "Rubric",
    "algorithm": "Algorithm",
    "steps": "Steps",
    "reward": "Reward",
    "heldout": "Held-out",
    "duration": "Duration",
    "created": "When",
}


def verdict_chips(
    counts: Mapping[str, int], chosen: str | None, steps: Sequence[int] | None = None
) -> str:
    """One button for all groups and one for each verdict that occurs, with how often; and one that lifts a choice of steps."""
    chips = [("", "all", sum(counts.values()))] + [
        (code, VERDICTS[code][0], counts[code]) for code in VERDICTS if counts.get(code)
    ]
    buttons = "".join(
        f'<button type="button" class="chip" data-do="verdict" data-code="{esc(code)}" aria-pressed="{str(code == (chosen or "")).lower()}">'
        f"{esc(label)} <b>{n:,}</b></button>"
        for code, label, n in chips
    )
    if steps:
        span = f"step {steps[0]:,}" if steps[0] == steps[1] else f"steps {steps[0]:,}–{steps[1]:,}"
        buttons += f'<button type="button" class="chip" data-do="allsteps" aria-pressed="true" aria-label="Only {span}. Show all steps">only {span} ✕</button>'
    return f'<div class="chips" role="group" aria-label="Filter by verdict">{buttons}</div>'


def reward_strip(rewards: Sequence[float | None], highest: float) -> str:
    """A group's rewards as a row of bars, best first, with the numbers for those who do not see them."""
    ordered = sorted((r for r in rewards if is_number(r)), reverse=True)
    bars = "".join(f'<i style="--part:{min(1.0, max(0.0, r / highest)):.3f}"></i>' for r in ordered)
    nulls = len(rewards) - len(ordered)
    bars += '<i class="null"></i>' * nulls
    digits = digits_apart(ordered)
    spoken = ", ".join(format_number(r, digits) for r in ordered) + (
        f", {nulls} could not be scored" if nulls else ""
    )
    return f'<span class="strip" role="img" aria-label="{esc(spoken)}" title="{esc(spoken)}">{bars}</span>'


def group_table(
    page: GroupPage,
    highest: float,
    offset: int,
    limit: int,
    sort: str,
    descending: bool,
    opened: tuple[int, int] | None,
) -> str:
    """One page of groups. The prompt is a button that opens the group; headings sort."""
    rows = "".join(_group_row(g, highest, opened == (g.step, g.position)) for g in page.rows)
    head = "".join(
        _heading(key, title, sort, descending, key in SORTS, numeric)
        for key, (title, numeric) in GROUP_COLUMNS.items()
    )
    last = min(offset + limit, page.total)
    pager = (
        f'<div class="pager"><span class="fact">{offset + 1:,}–{last:,} of {"more than " if page.more else ""}{count(page.total, "group")}</span>'
        f'<button type="button" class="icon" data-do="turn" data-by="-1" aria-label="Previous page"{_off(offset == 0)}>‹</button>'
        f'<button type="button" class="icon" data-do="turn" data-by="1" aria-label="Next page"{_off(not page.more and last >= page.total)}>›</button></div>'
    )
    return f'{indexing(page.unsearched)}<div class="scroll"><table class="list groups"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>{pager}'


def _group_row(group: GroupSummary, highest: float, selected: bool) -> str:
    chosen = ' class="chosen" aria-current="true"' if selected else ""
    where = f"{group.step}/{group.position}"
    return (
        f'<tr{chosen}><td class="num">{group.step:,}</td>'
        f'<td class="prompt-cell"><button type="button" class="row-button" data-do="open" data-at="{where}" '
        f'aria-label="Open group {group.position + 1} of step {group.step}: {esc(group.prompt[:80])}">{esc(group.prompt[:200])}</button></td>'
        f'<td>{reward_strip(group.rewards, highest)}</td><td class="num">{format_number(group.reward_mean)}</td>'
        f'<td class="num">{format_number(group.reward_std)}</td><td>{verdict_pill(group.verdict)}</td></tr>'
    )


def _heading(
    key: str | None, title: str, sort: str, descending: bool, sortable: bool, numeric: bool = False
) -> str:
    kind = ' class="num"' if numeric else ""
    if not sortable:
        return f'<th scope="col"{kind}>{esc(title)}</th>'
    now = key == sort
    state = f' aria-sort="{"descending" if descending else "ascending"}"' if now else ""
    arrow = ("↓" if descending else "↑") if now else ""
    return (
        f'<th scope="col"{kind}{state}><button type="button" data-do="sort" data-key="{esc(key)}">{esc(title)}'
        f'<i aria-hidden="true">{arrow}</i></button></th>'
    )


def run_values(run: RunRow) -> dict[str, Any]:
    """What the runs table sorts by and searches in."""
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
    """Every branch below the run that it branched from, with its depth; siblings keep their order. Whose parent is not among them stands at the top."""
    listed = {run.id for run in runs}
    children: dict[str | None, list[RunRow]] = {}
    for run in runs:
        children.setdefault(run.parent_run_id if run.parent_run_id in listed else None, []).append(
            run
        )
    tree: list[tuple[RunRow, int]] = []
    left = [(run, 0) for run in reversed(children.get(None, []))]
    while left:
        run, depth = left.pop()
        tree.append((run, depth))
        left += [(child, depth + 1) for child in reversed(children.get(run.id, []))]
    return tree


def run_table(
    runs: Sequence[RunRow],
    selected: Collection[str],
    in_view: str | None,
    sort: str,
    descending: bool,
) -> str:
    """All runs, branches below their parents. A row's box selects it; the name opens it."""
    numeric = {"steps", "reward", "heldout", "duration"}
    head = '<th scope="col"><span class="sr">selected</span></th>' + "".join(
        _heading(key, title, sort, descending, True, key in numeric)
        for key, title in RUN_COLUMNS.items()
    )
    names = {run.id: run.name for run in runs}
    body = "".join(
        _run_row(run, depth, run.id in selected, run.id == in_view, names)
        for run, depth in as_tree(runs)
    )
    return f'<div class="scroll"><table class="list runs"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _run_row(
    run: RunRow, depth: int, selected: bool, in_view: bool, names: Mapping[str, str]
) -> str:
    name = esc(run.name)
    parent = (
        f'<span class="by">↳ from “{esc(names.get(run.parent_run_id, run.parent_run_id))}”, step {run.parent_step or 0:,}</span>'
        if run.parent_run_id
        else ""
    )
    here, indent = (
        ' aria-current="true"' if in_view else "",
        f' style="--depth:{depth}"' if depth else "",
    )
    model = (
        run.model.replace("\\", "/").rstrip("/").rpartition("/")[2] or run.model
    )  # a folder's path is long; the whole is in the title
    return (
        f'<tr class="{"chosen" if selected else ""}"{here}>'
        f'<td><button type="button" class="box" role="checkbox" aria-checked="{str(selected).lower()}" aria-label="Select {name}" '
        f'data-do="select" data-run="{esc(run.id)}"></button></td>'
        f'<td class="name"{indent}><button type="button" class="link" data-do="open" data-run="{esc(run.id)}" title="Open {name}">{name}</button>{parent}</td>'
        f'<td>{pill(run.status)}</td><td title="{esc(run.model)}">{esc(model)}</td><td>{esc(run.task)}</td><td>{esc(run.rubric)}</td>'
        f'<td>{esc(algorithm_of(run))}</td><td class="num">{_steps(run)}</td>'
        f'<td class="num">{_arrow(format_number(run.reward_first), format_number(run.reward_last))}</td>'
        f'<td class="num">{_arrow(percent(run.heldout_before), percent(run.heldout_after))}</td>'
        f'<td class="num">{duration(run.duration_seconds)}</td><td class="num">{esc(when(run.created_at))}</td></tr>'
    )


def _steps(run: RunRow) -> str:
    return (
        f"{run.steps_done:,}"
        if run.steps_done == run.num_steps
        else f"{run.steps_done:,} of {run.num_steps or 0:,}"
    )


def _arrow(first: str, last: str) -> str:
    return first if last == NONE else f"{first} → {last}"


def differences(configs: Mapping[str, Mapping[str, Any]]) -> str:
    """Only the settings in which the runs differ. configs: run name -> dotted name -> value."""
    names = list(configs)
    fields = list(dict.fromkeys(field for values in configs.values() for field in values))
    rows = [(field, [configs[name].get(field) for name in names]) for field in fields]
    rows = [(field, values) for field, values in rows if any(v != values[0] for v in values)]
    if not rows:
        return '<p class="note">The same settings throughout, seed included.</p>'
    head = "".join(f'<th scope="col">{esc(name)}</th>' for name in names)
    body = "".join(
        f'<tr><th scope="row"><code>{esc(field)}</code></th>'
        + "".join(f"<td>{esc(_shown(v))}</td>" for v in values)
        + "</tr>"
        for field, values in rows
    )
    return f'<div class="scroll"><table class="list diff"><thead><tr><th scope="col">setting</th>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _shown(value: Any) -> str:
    """A setting's value; a list of criteria as name × weight."""
    if isinstance(value, list) and all(isinstance(v, Mapping) and "name" in v for v in value):
        return ", ".join(f"{v['name']} ×{_shown(v.get('weight'))}" for v in value)
    if isinstance(value, float):
        return plain(value)
    return NONE if value is None else str(value)


def _off(disabled: bool) -> str:
    return " disabled" if disabled else ""
