"""What can be done with the selected runs, as buttons. Rows -> escaped HTML; pure.

A button whose action would be refused says why: in its tooltip, and below the bar once it has the
focus or is pressed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ui.render.text import count, esc


@dataclass(frozen=True, slots=True)
class Action:
    """A button. do: its event. refusal: why the action would be refused; empty if it would not."""

    do: str
    label: str
    refusal: str = ""
    kind: str = ""  # which export


@dataclass(frozen=True, slots=True)
class Bar:
    names: Sequence[str]  # of the selected runs
    num_hidden: int  # selected runs that the search leaves out
    actions: Sequence[Action]
    exports: Sequence[Action]
    more: Sequence[Action]


NOTHING = '<p class="note">Select runs to open, continue, compare or export them.</p>'


def run_bar(bar: Bar) -> str:
    if not bar.names:
        return NOTHING
    hidden = f" · {bar.num_hidden} not in the list" if bar.num_hidden else ""
    return (
        '<div class="run-bar" role="group" aria-label="Selected runs">'
        f'<span class="fact cut"><b>{count(len(bar.names), "run")} selected{hidden}</b> '
        f"{esc(', '.join(bar.names))}</span>"
        f"{''.join(_button(action) for action in bar.actions)}"
        f"{_menu('export-menu', 'Export', 'Export ▾', bar.exports)}"
        f"{_menu('more-menu', 'More', '⋯', bar.more)}"
        '<button type="button" class="icon" data-do="clear" aria-label="Clear the selection">✕'
        '</button></div><p class="note why" role="status"></p>'
    )


def _button(action: Action, menu: str = "") -> str:
    kind = f' data-kind="{esc(action.kind)}"' if action.kind else ""
    label = esc(action.label)
    if action.refusal:
        why = esc(action.refusal)
        more = f' aria-disabled="true" title="{why}" data-why="{label}: {why}"'
    elif menu:
        more = f' popovertarget="{menu}" popovertargetaction="hide"'
    else:
        more = ""
    return f'<button type="button" data-do="{action.do}"{kind}{more}>{label}</button>'


def _menu(menu: str, label: str, shown: str, actions: Sequence[Action]) -> str:
    """A button that opens further buttons. It is disabled if all are, for the same reason."""
    reasons = {action.refusal for action in actions}
    if len(reasons) == 1 and "" not in reasons:
        why = esc(reasons.pop())
        opens = f'aria-disabled="true" title="{why}" data-why="{label}: {why}"'
    else:
        opens = f'popovertarget="{menu}"'
    items = "".join(_button(action, menu) for action in actions)
    return (
        f'<button type="button" class="quiet" aria-label="{label}" {opens}>{shown}</button>'
        f'<div id="{menu}" class="menu" popover role="group" aria-label="{label}">{items}</div>'
    )
