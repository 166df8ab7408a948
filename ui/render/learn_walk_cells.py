"""Numbers and tables of the walk. A number that a change has moved is marked. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from grpo_core.analysis.walk import Walk, WalkRow
from ui.render.arithmetic import reward_digits, side_of
from ui.render.text import digits_apart, esc, format_number, is_number, short, signed

Text = Callable[[Any], str]
SAME = 1e-9  # numbers that differ by less are equal


@dataclass(frozen=True, slots=True)
class Screen:
    """What a screen is drawn from."""

    walk: Walk  # with the changes
    was: Walk  # as in the run
    href: str  # of the group in Inspect, escaped; empty: it is not there
    token_of: int = 0  # position of the completion whose tokens are listed

    @property
    def pairs(self) -> list[tuple[WalkRow, WalkRow]]:
        """Each completion with its changed numbers, and with its own."""
        return list(zip(self.walk.rows, self.was.rows, strict=False))


def number(value: float | None, was: float | None, text: Text = short) -> str:
    """A number, with its exact value, and what it was if it has changed.

    <data value="0.92534…">+0.93</data>, and after a change the old text in a <small>.
    """
    shown = esc(text(value))
    if not is_number(value):
        value_html = f"<span>{shown}</span>"
    else:
        value_html = f'<data value="{float(value)!r}" title="{float(value)!r}">{shown}</data>'
    if not _differ(value, was):
        return value_html
    return (
        f'<b class="changed">{value_html}</b><small class="was">'
        f'<span class="sr">, changed, </span>was {esc(text(was))}</small>'
    )


def _differ(value: float | None, was: float | None) -> bool:
    if is_number(value) and is_number(was):
        return abs(value - was) > SAME
    return is_number(value) != is_number(was)


def advantage(row: WalkRow, was: WalkRow, digits: int = 2) -> str:
    """The cell of an advantage; its sign is a colour too."""
    value = number(row.advantage, was.advantage, lambda a: signed(a, digits))
    return f'<td class="{side_of(row.advantage)}"><b>{value}</b></td>'


def bar(row: WalkRow, largest: float) -> str:
    """An advantage as a bar left or right of 0."""
    part = min(1.0, abs(row.advantage) / largest) if largest else 0.0
    return (
        f'<td class="bar {side_of(row.advantage)}" aria-hidden="true"><span class="axis">'
        f'<i style="--part:{part:.3f}"></i></span></td>'
    )


def cell(value: float | None, was: float | None, text: Text = short) -> str:
    return f"<td>{number(value, was, text)}</td>"


def twice(value: float | None) -> tuple[float | None, float | None]:
    """For a number that no change can move."""
    return value, value


def rewards_text(screen: Screen) -> Text:
    """How rewards of this group are written: with as few decimals as keep them apart."""
    digits = digits_apart([r.reward for r in screen.walk.rows], reward_digits(screen.was.group))
    return lambda value: format_number(value, digits) if is_number(value) else "null"


def fixed(digits: int) -> Text:
    return lambda value: format_number(value, digits)


def with_sign(digits: int) -> Text:
    return lambda value: signed(value, digits)


def row_head(screen: Screen, row: WalkRow) -> str:
    """The completion's number, which leads to its group in Inspect."""
    name = f"#{row.rollout.position + 1}"
    if not screen.href:
        return f'<th scope="row">{name}</th>'
    return (
        f'<th scope="row"><a data-place href="{screen.href}" '
        f'aria-label="{name}, open its group in Inspect">{name}</a></th>'
    )


def table(label: str, heads: Sequence[str | tuple[str, str]], rows: Sequence[str]) -> str:
    """heads: a title each, or a title with an explanation. rows: <tr> elements."""
    cells = "".join(_head(h) for h in heads)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{esc(label)}">'
        '<table class="why walk-table"><thead><tr><th scope="col">'
        f'<span class="sr">completion</span></th>{cells}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _head(head: str | tuple[str, str]) -> str:
    if isinstance(head, str):
        return f'<th scope="col">{esc(head)}</th>'
    return f'<th scope="col" title="{esc(head[1])}">{esc(head[0])}</th>'


def total_row(title: str, cells: Sequence[str]) -> str:
    return f'<tr class="total"><th scope="row">{esc(title)}</th>{"".join(cells)}</tr>'


def facts(*pairs: tuple[str, str]) -> str:
    """Short facts in one line: title, and HTML of the number."""
    items = "".join(f"<span>{esc(title)} {value}</span>" for title, value in pairs)
    return f'<p class="calc walk-facts">{items}</p>'


def note(title: str, *sentences: str) -> str:
    """An explanation beside the numbers. sentences: HTML."""
    said = "".join(f"<p>{sentence}</p>" for sentence in sentences)
    return f'<div class="walk-note"><h4>{esc(title)}</h4>{said}</div>'


def formula(*lines: str) -> str:
    return f'<pre class="walk-formula">{esc(chr(10).join(line for line in lines if line))}</pre>'


@dataclass(frozen=True, slots=True)
class Drawn:
    """A screen as HTML: the numbers, and beside them what they mean."""

    numbers: str
    notes: str


def drawn(lead: str, numbers: str, *notes: str) -> Drawn:
    """lead: what happens on this screen. All HTML."""
    return Drawn(f'<p class="walk-lead">{lead}</p>{numbers}', "".join(notes))
