"""The sections "Algorithm" and "Run": presets, the fields that a choice uses, sizes and saving."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from grpo_core.config import PRESETS
from ui.components import form, form_help
from ui.components.html_panel import html_panel, script
from ui.tabs.form_fields import FormFields, default_values

TOOLS = (
    '<div class="field-tools"><input type="search" placeholder="Search names and help" '
    'aria-label="Search the fields of the algorithm" data-among="#algorithm-fields > .field" '
    'data-noun="field fields"><button type="button" data-toggle="everything"'
    ' aria-pressed="false">Show all</button><span class="by" role="status"></span></div>'
)


@dataclass(frozen=True, slots=True)
class AlgorithmBox:
    formula: gr.HTML
    reset: gr.Button  # to the chosen preset


def build_algorithm(fields: FormFields) -> AlgorithmBox:
    """The section "Algorithm". Call it inside gr.Blocks."""
    html_panel("<h2>Algorithm</h2>")
    with gr.Row(elem_classes="two-sides"):
        with gr.Column(elem_classes="stack", min_width=0):
            fields.add("algorithm.preset")
            reset = gr.Button("Reset to preset", size="sm", elem_classes="narrow-button")
        with gr.Column(elem_classes="stack", min_width=0):
            formula = html_panel(form_help.formula(default_values()), elem_id="objective")
    html_panel(TOOLS, script=script("field_search.js"), elem_id="field-tools")
    with gr.Row(elem_classes="field-grid", elem_id="algorithm-fields"):
        fields.add(*form.ALGORITHM)
    return AlgorithmBox(formula, reset)


def choose_preset(preset: Any) -> list[Any]:
    """The values of the algorithm's fields under a preset."""
    if not isinstance(preset, str) or preset not in PRESETS:
        return [gr.skip()] * len(form.ALGORITHM)
    return list(form.preset_values(preset).values())


def build_run(fields: FormFields) -> gr.Textbox:
    """The section "Run". Returns the run's name. Call it inside gr.Blocks."""
    html_panel("<h2>Run</h2>")
    with gr.Row(elem_classes="field-grid"):
        name = gr.Textbox(
            label="Name",
            placeholder="made from the settings",
            max_lines=1,
            max_length=200,
            elem_id="run-name",
        )
    fields.add_group("", *form.NUMBERS)
    fields.add_group("Evaluation", *form.EVALUATION)
    fields.add_group("Saving", *form.SAVING)
    fields.add_group("Sampling, optimiser and memory", *form.OPTIMISER)
    fields.add_group("Completions", *form.SERVER)
    return name
