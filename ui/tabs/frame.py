"""What all tabs share: the frame around them, hidden values, and tokens of what is shown."""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, fields
from hashlib import blake2b
from typing import Any

import gradio as gr

from ui.components.html_panel import QUIET
from ui.server.refresh import SKIP, Refresh

__all__ = [
    "LATEST",
    "SKIP",
    "UPLOADED",
    "Frame",
    "InView",
    "Tab",
    "components_of",
    "hidden_values",
    "parse_tokens",
    "together",
    "token",
]

# For an event that happens faster than it is answered, as while typing: only the last one counts.
LATEST: dict[str, Any] = {**QUIET, "trigger_mode": "always_last"}
# For an upload. Gradio's preprocessing keeps the path inside its upload folder.
UPLOADED: dict[str, Any] = {**QUIET, "preprocess": True}


@dataclass(frozen=True, slots=True)
class Frame:
    """The components around the tabs, and what fills them from the store.

    Hidden values travel with every request, so the server keeps no state of a session.
    """

    run: gr.Dropdown  # the run in view
    pill: gr.HTML
    tab: gr.Textbox  # hidden: the name of the tab in view
    notice: gr.HTML
    fresh: gr.Textbox  # hidden: see Views.nothing_of_own
    refresh: Refresh


@dataclass(frozen=True)
class Tab:
    """One tab: `show` takes the values of `inputs` and returns one value for each output."""

    inputs: list[Any]
    outputs: list[Any]
    show: Callable[..., Sequence[Any]]


def together(first: Tab, second: Tab) -> Tab:
    """Two parts of one tab, filled by one request."""
    split = len(first.inputs)

    def show(*values: Any) -> list[Any]:
        return [*first.show(*values[:split]), *second.show(*values[split:])]

    return Tab([*first.inputs, *second.inputs], [*first.outputs, *second.outputs], show)


class InView:
    """One request for several tabs. It fills the tab in view, and those that are always filled.

    The other tabs are skipped until they are in view.
    """

    def __init__(self, chosen: Any, tabs: Mapping[str, Tab], always: Container[str] = ()):
        """chosen: the component that holds the name of the tab in view."""
        self.tabs, self.always = tabs, always
        self.inputs = [chosen, *(i for t in tabs.values() for i in t.inputs)]
        self.outputs = [o for t in tabs.values() for o in t.outputs]

    def __call__(self, in_view: Any, *values: Any) -> list[Any]:
        out: list[Any] = []
        rest = list(values)
        for name, tab in self.tabs.items():
            given, rest = rest[: len(tab.inputs)], rest[len(tab.inputs) :]
            if name == in_view or name in self.always:
                out += tab.show(*given)
            else:
                out += [SKIP] * len(tab.outputs)
        return out


def components_of(inputs: Any) -> list[Any]:
    """The components in a record of inputs, in the order of its fields.

    The same record is made from their values in a request: Inputs(*values).
    """
    return [getattr(inputs, field.name) for field in fields(inputs)]


def hidden_values(prefix: str, **first: str) -> list[gr.Textbox]:
    """Hidden text boxes with their first values; their element ids are prefix + name."""
    return [
        gr.Textbox(value, visible="hidden", label=name, elem_id=prefix + name)
        for name, value in first.items()
    ]


def parse_tokens(text: Any) -> dict[str, Any]:
    """The JSON object in a hidden value; empty for anything else that a browser may send."""
    data = _parsed(text)
    return data if isinstance(data, dict) else {}


def parse_list(text: Any) -> list[Any]:
    """The JSON list in a hidden value; empty for anything else that a browser may send."""
    data = _parsed(text)
    return data if isinstance(data, list) else []


def _parsed(text: Any) -> Any:
    try:
        return json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return None


def token(value: Any) -> str:
    """A short hash that is the same in every process, also after a restart of the server."""
    return blake2b(repr(value).encode("utf-8", "replace"), digest_size=6).hexdigest()
