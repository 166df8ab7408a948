"""The table of a run's groups, and headings of sorted tables. Rows -> escaped HTML; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from grpo_core.rubric.verdict import VERDICTS
from grpo_core.store import GroupPage, GroupSummary
from grpo_core.types import GroupKind
from ui.render.place import Place
from ui.render.text import count, digits_apart, esc, format_number, indexing, is_number
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


def verdict_chips(
    counts: Mapping[str, int],
    num_evaluation: int,
    chosen: str | None,
    steps: Sequence[int] | None = None,
) -> str:
    """A filter button for all groups and for each verdict, with counts.

    num_evaluation: groups of evaluations, which have a button of their own: they are in no other.
    steps: first and last step of a filter by steps; a further button removes it.
    """
    chips = [("", "all", sum(counts.values()))]
    chips += [(code, VERDICTS[code][0], counts[code]) for code in VERDICTS if counts.get(code)]
    if num_evaluation or chosen == GroupKind.EVALUATION:
        chips.append((GroupKind.EVALUATION, "evaluation", num_evaluation))
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
    selected: Place | None,
) -> str:
    """One page of groups. The prompt is a button that opens the group; headings sort.

    highest: the reward of a full bar. offset: groups on the pages before.
    selected: the group that is open.
    """
    head = "".join(heading(key, column, sort) for key, column in GROUP_COLUMNS.items())
    rows = "".join(_group_row(g, highest, selected) for g in page.rows)
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


def _group_row(group: GroupSummary, highest: float, selected: Place | None) -> str:
    place = Place(group.step, group.position, group.kind)
    chosen = ' class="chosen" aria-current="true"' if place == selected else ""
    prompt = esc(group.prompt[:200])
    label = f"Open group {place.position + 1} of {place.when}: {esc(group.prompt[:80])}"
    return (
        f'<tr{chosen}><td class="num">{group.step:,}</td>'
        '<td class="prompt-cell"><button type="button" class="row-button" data-do="open" '
        f'data-at="{place}" aria-label="{label}">{prompt}</button></td>'
        f"<td>{reward_strip(group.rewards, highest)}</td>"
        f'<td class="num" data-label="mean">{format_number(group.reward_mean)}</td>'
        f'<td class="num" data-label="spread">{format_number(group.reward_std)}</td>'
        f"<td>{verdict_pill(group.verdict)}</td></tr>"
    )


def heading(key: str, column: Column, sort: Sort) -> str:
    kind = f' class="c-{key}{" num" if column.numeric else ""}"'
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
