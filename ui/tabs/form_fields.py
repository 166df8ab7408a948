"""The form's controls, laid out one by one, each with a line for its help or its problem."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ui.components import form, form_help
from ui.components.html_panel import html_panel, script


class FormFields:
    """The controls and the lines below them, by the name of the field."""

    def __init__(self) -> None:
        self.controls: dict[str, Any] = {}
        self.messages: dict[str, gr.HTML] = {}
        self._notes = form_help.notes(default_values())

    def add(self, *names: str) -> None:
        """Build these controls. Call it inside gr.Blocks."""
        for name in names:
            with gr.Column(elem_classes="field", min_width=0):
                is_table = name == form.CRITERIA
                self.controls[name] = _rubric_table() if is_table else form.component(name)
                self.messages[name] = html_panel(self._notes.get(name, ""), elem_classes="beside")

    def add_group(self, title: str, *names: str) -> None:
        """Build these controls in columns below a heading."""
        if title:
            html_panel(f"<h3>{title}</h3>")
        with gr.Row(elem_classes="field-grid"):
            self.add(*names)

    @property
    def values(self) -> list[Any]:
        """The inputs of every handler that reads the form, in the order of form.NAMES."""
        return [self.controls[name] for name in form.NAMES]


def default_values() -> list[Any]:
    """The form's first values, in the order of form.NAMES."""
    return [
        _default_rows() if name == form.CRITERIA else form.shown(name, form.DEFAULTS[name])
        for name in form.NAMES
    ]


def _default_rows() -> list[dict[str, Any]]:
    return form.preset_rows(form.DEFAULTS["rubric.name"]) or []


def _rubric_table() -> gr.HTML:
    return gr.HTML(
        _default_rows(),
        html_template='<div class="criteria"></div>',
        js_on_load=script("rubric_table.js"),
        apply_default_css=False,
        padding=False,
        elem_id=form.element_id(form.CRITERIA),
        checks=form_help.check_help(),
    )
