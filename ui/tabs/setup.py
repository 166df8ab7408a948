"""The set-up of a run: a summary beside the run, and a pane of five sections in its place."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import gradio as gr

from grpo_core.time_limit import TYPING_SECONDS, time_limit
from ui.components import form, form_help
from ui.components.html_panel import MARK, QUIET, html_panel, script, typing
from ui.server.calls import slow
from ui.server.refresh import Refresh
from ui.server.service import Service
from ui.tabs.algorithm import AlgorithmBox, build_algorithm, build_run, choose_preset
from ui.tabs.form_fields import FormFields, default_values
from ui.tabs.frame import LATEST
from ui.tabs.model import ModelBox, build_model, wire_model
from ui.tabs.prompts import PromptsBox, build_prompts, wire_prompts
from ui.tabs.rubric import RubricBox, build_rubric_section, wire_rubric
from ui.tabs.score_text import score_text
from ui.tabs.setup_cards import cards
from ui.tabs.start_bar import StartBar, build_start_bar, complain, show_outlook, wire_preflight
from ui.tabs.start_from import StartFrom, build_start_from

# The section that is open. The empty first one is open while the run is in view: Gradio builds a
# tab's components when it is first selected.
SELECT_JS = """() => {
  const update = selected => ({selected, __type__: 'update'});
  return [update(document.documentElement.dataset.setup || 'none'), update('train'), 'train'];
}"""
# Settings that a person copied are shown; a draft is restored without a word.
SHOW_FILLED_JS = """text => { if (text.startsWith('filled')) window.studioOpen?.(''); }"""
PANE_HEAD = (
    '<p class="welcome"><b>Press Start training</b> to watch a small model learn sums on this '
    "machine, in about a minute. Every setting may stay as it is. "
    "<span>The run on the right is a recorded example.</span></p>"
    '<div class="pane-head"><button type="button" class="quiet" data-close-setup>'
    "Back to the run</button></div>"
)


@dataclass(frozen=True, slots=True)
class Summary:
    """The set-up beside a run."""

    cards: gr.HTML
    start_from: StartFrom
    advisor: gr.HTML  # what is wrong with the run: here it pushes no completion out of view


@dataclass(frozen=True, slots=True)
class Pane:
    """The sections, of which one is in view."""

    head: gr.HTML
    tabs: gr.Tabs
    model: ModelBox
    prompts: PromptsBox
    rubric: RubricBox
    algorithm: AlgorithmBox
    name: gr.Textbox


@dataclass(frozen=True, slots=True)
class Setup:
    """The components of the set-up that the rest of the page reads or writes."""

    fields: FormFields
    summary: Summary
    pane: Pane
    bar: StartBar
    was_filled: gr.Textbox  # hidden: changes when something filled the form

    @property
    def values(self) -> list[Any]:
        """The inputs of every handler that reads the form, in the order of form.NAMES."""
        return self.fields.values

    @property
    def filled(self) -> list[Any]:
        """The outputs of everything that fills the form: see start_from.fill."""
        return [*self.values, self.was_filled]

    @property
    def complaints(self) -> list[gr.HTML]:
        """The outputs that `complain` fills."""
        lines = [self.fields.messages[n] for n in form.NAMES]
        return [*lines, self.bar.summary, self.summary.cards]


def build_summary() -> Summary:
    """The cards, “Start from” and the advisor. Call it inside gr.Blocks."""
    with gr.Column(elem_id="setup", scale=0, min_width=0):
        shown = html_panel(cards(default_values()), script=MARK, elem_id="setup-cards")
        start_from = build_start_from()
        advisor = html_panel(
            events=("show", "dismiss"),
            # A refresh replaces the attributes of toggle buttons.
            script="watch('value', () => window.studioToggles?.());",
            elem_id="advisor",
        )
        return Summary(shown, start_from, advisor)


def build_pane(fields: FormFields, has_many_devices: bool) -> Pane:
    """The five sections. Call it inside gr.Blocks."""
    classes = "card-box" if has_many_devices else "card-box one-device"
    with gr.Column(elem_id="new-run-pane", elem_classes=classes, scale=1, min_width=0):
        head = html_panel(PANE_HEAD, events=("go",), script=script("setup.js"), elem_id="pane-head")
        with gr.Tabs(selected="none", elem_id="sections") as tabs:
            gr.Tab("The run", id="none")
            with gr.Tab(form.SECTIONS["model"], id="model"):
                model = build_model(fields)
            with gr.Tab(form.SECTIONS["prompts"], id="prompts"):
                prompts = build_prompts(fields)
            with gr.Tab(form.SECTIONS["rubric"], id="rubric"):
                rubric = build_rubric_section(fields)
            with gr.Tab(form.SECTIONS["algorithm"], id="algorithm"):
                algorithm = build_algorithm(fields)
            with gr.Tab(form.SECTIONS["run"], id="run"):
                name = build_run(fields)
    return Pane(head, tabs, model, prompts, rubric, algorithm, name)


def build_bar() -> tuple[StartBar, gr.Textbox]:
    """The bar below both, and the hidden value that changes when something filled the form."""
    was_filled = gr.Textbox("", visible="hidden", label="filled", elem_id="state-filled")
    return build_start_bar(), was_filled


# ---- events ----------------------------------------------------------------------------------


def wire_setup(setup: Setup, page_tabs: list[Any], service: Service, refresh: Refresh) -> None:
    """Connect the events. page_tabs: the page's tabs, and the name of the one in view."""
    fields, pane = setup.fields, setup.pane
    pane.head.go(None, None, [pane.tabs, *page_tabs], js=SELECT_JS)
    setup.was_filled.change(None, setup.was_filled, None, js=SHOW_FILLED_JS, **QUIET)
    wire_model(fields, pane.model, service)
    wire_prompts(fields, pane.prompts, service)
    wire_rubric(fields, pane.rubric, service)
    wire_preflight(fields, setup.bar, service)
    setup.bar.outlook.value = show_outlook(service, default_values())
    _wire_checks(setup, service, refresh)


def _wire_checks(setup: Setup, service: Service, refresh: Refresh) -> None:
    """Check the form while a person types, and fill in presets."""
    f, bench = setup.fields.controls, setup.pane.rubric.bench
    values = [*setup.values, bench.text]

    def check_all(*values: Any) -> list[Any]:
        return [*check(*values), show_outlook(service, values[:-1])]

    answers = [
        *setup.complaints,
        setup.pane.algorithm.formula,
        bench.scores,
        setup.bar.outlook,
    ]
    checked = refresh.js("check", slow(check_all), values)
    checked = f"(...given) => {{ studioKeep(given); return ({checked})(...given); }}"
    # Presets set other fields first. The table's `change` covers edits, presets and loaded files.
    typed = [
        f[n].change if n == form.CRITERIA else typing(f[n])
        for n in form.NAMES
        if n not in ("algorithm.preset", "rubric.name")
    ]
    events = [*typed, bench.text.change, setup.was_filled.change]
    gr.on(events, None, values, answers, js=checked, **LATEST)
    # Check once more afterwards: each text field that changes sends a check at once, when the
    # fields after it still have their old values.
    preset, reset = f["algorithm.preset"], setup.pane.algorithm.reset
    for event in (preset.input, reset.click):
        event(
            None,
            preset,
            [f[n] for n in form.ALGORITHM],
            js=refresh.js("preset", choose_preset, [preset]),
            **LATEST,
        ).then(None, values, answers, js=checked, **LATEST)


def restore_draft(setup: Setup) -> dict[str, Any]:
    """Arguments of an event that restores what a person had typed before a reload."""
    defaults = json.dumps(dict(zip(form.NAMES, default_values(), strict=True)))
    return {
        "fn": None,
        "inputs": None,
        "outputs": setup.filled,
        "js": f"() => studioRestore({defaults})",
    }


def check(*values: Any) -> list[Any]:
    """The problems beside the fields, the cards, the objective, and the scores of the text."""
    *fields, text = values
    with time_limit(TYPING_SECONDS):
        _, problems = form.read(fields)
        return [*complain(fields, problems), form_help.formula(fields), score_text(text, fields)]
