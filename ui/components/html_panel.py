"""A piece of escaped HTML whose buttons speak: the one kind of gr.HTML that this page uses, besides charts and the rubric table."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path
from typing import Any

import gradio as gr

HERE = Path(__file__).parent

# Buttons say what they do in `data-do`; what belongs to it stands in further data attributes, and every handler checks it again.
_CLICKS = """
const events = new Set([%s]);
element.addEventListener('click', event => {
  const button = event.target.closest('[data-do]');
  if (button && element.contains(button) && !button.disabled && events.has(button.dataset.do)) {
    window.studioPressed = {...button.dataset};
    trigger(button.dataset.do, window.studioPressed);
  }
});
"""


def html_panel(
    value: str = "", events: tuple[str, ...] = (), script: str = "", **options: Any
) -> gr.HTML:
    """gr.HTML with the default template, which never evaluates its value; `events` become listeners: html_panel(events=("walk",)).walk(…).

    value: HTML in which every foreign text went through text.esc.
    """
    clicks = _CLICKS % ", ".join(f"'{e}'" for e in events) if events else ""
    return gr.HTML(
        value,
        js_on_load=(clicks + script) or None,
        apply_default_css=False,
        padding=False,
        **options,
    )


def script(name: str) -> str:
    """A script of this package, as text: components get theirs when they are loaded."""
    return (HERE / name).read_text("utf-8")


def typing(control: Any) -> Any:
    """The event of a person changing a control. A Textbox says `input` only for typed characters, not for deleting or pasting."""
    return control.change if isinstance(control, gr.Textbox) else control.input


def data_of(event: gr.EventData) -> dict[str, Any]:
    """What an event of a panel or a chart says of itself; whatever arrives is a mapping, and each value is to be checked."""
    return event._data if isinstance(event._data, dict) else {}


def one_of(value: Any, known: Container[str], otherwise: str) -> str:
    """`value` if it is one of the known words; browsers can send anything, lists and objects too."""
    return value if isinstance(value, str) and value in known else otherwise


# What every event of this page has in common. Unqueued: one short request, nothing held open. preprocess=False: values arrive as the
# browser sent them and each handler checks its own, so a restarted server, which has forgotten what a tab was shown, refuses nothing.
QUIET: dict[str, Any] = {
    "queue": False,
    "show_progress": "hidden",
    "api_visibility": "private",
    "preprocess": False,
}
