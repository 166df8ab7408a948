"""Escaped HTML whose buttons trigger events.

The page uses gr.HTML only through this module, live_chart.py and the rubric table.
"""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path
from typing import Any

import gradio as gr

HERE = Path(__file__).parent

# A button's `data-do` names its event. Its other data attributes are the event's data, which every
# handler validates.
_CLICKS = """
const events = new Set([%s]);
element.addEventListener('click', event => {
  const button = event.target.closest('[data-do]');
  if (!button || !element.contains(button)) return;
  const disabled = button.disabled || button.getAttribute('aria-disabled') === 'true';
  if (!disabled && events.has(button.dataset.do)) {
    window.studioPressed = {...button.dataset};
    trigger(button.dataset.do, window.studioPressed);
  }
});
"""

# The script of a panel with results of the set-up: it marks those for earlier settings.
MARK = """
const mark = () => requestAnimationFrame(() => window.studioMark?.());
watch('value', mark);
mark();
"""


def html_panel(
    value: str = "", events: tuple[str, ...] = (), script: str = "", **options: Any
) -> gr.HTML:
    """gr.HTML with the default template, which never evaluates its value.

    value: HTML in which all foreign text went through text.esc.
    events: names of listeners, e.g. html_panel(events=("walk",)).walk(…).
    script: JavaScript that runs when the component is loaded.
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
    """The text of a JavaScript or CSS file of this package."""
    return (HERE / name).read_text("utf-8")


def styles() -> str:
    """The style sheets of the page. Their order matters: later rules override earlier ones."""
    names = (
        "theme",
        "page",
        "setup",
        "live",
        "charts",
        "group",
        "inspect",
        "turns",
        "pairs",
        "runs",
        "rewards",
        "learn",
        "learn_walk",
        "narrow",
        "reports",
    )
    return "".join(script(f"{name}.css") for name in names)


def typing(control: Any) -> Any:
    """The event for a person's change of a control.

    A Textbox has no `input` event for deleting and pasting, so its `change` event is used.
    """
    return control.change if isinstance(control, gr.Textbox) else control.input


def data_of(event: gr.EventData) -> dict[str, Any]:
    """The data of an event of a panel or a chart: a mapping whose values are not validated."""
    return event._data if isinstance(event._data, dict) else {}


def one_of(value: Any, known: Container[str], otherwise: str) -> str:
    """`value` if it is one of the known words. A browser can send anything, lists too."""
    return value if isinstance(value, str) and value in known else otherwise


# Options of every event of this page. Without the queue an event is one short request and holds no
# connection. preprocess=False passes values as the browser sent them, and each handler validates
# its own: otherwise a restarted server would refuse values that it offered before the restart.
QUIET: dict[str, Any] = {
    "queue": False,
    "show_progress": "hidden",
    "api_visibility": "private",
    "preprocess": False,
}
