"""The row below the set-up: an estimate, what Preflight found, and the start of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from grpo_core.config import RunConfig, parse
from grpo_core.errors import FieldProblem, InvalidConfig, StudioError
from grpo_core.rubric import resolve_rubric
from grpo_core.store import RunRow
from ui.components import form, form_help
from ui.components.html_panel import MARK, QUIET, data_of, html_panel
from ui.render.status import banner
from ui.render.text import count, duration, esc, size
from ui.server.calls import slow
from ui.server.service import Service
from ui.server.views import Runs, Views
from ui.tabs.form_fields import FormFields
from ui.tabs.frame import SKIP, hidden_values
from ui.tabs.setup_cards import cards, dated

START, QUEUE = "Start training", "Queue another"
NOT_CHECKED = '<span class="by">Preflight: not run</span>'


@dataclass(frozen=True, slots=True)
class StartBar:
    """`answer` says why a run was not started, and offers to start it all the same.

    `ended` is hidden: how many runs have ended. Each may have measured what the form asks for.
    """

    summary: gr.HTML
    answer: gr.HTML
    report: gr.HTML
    outlook: gr.HTML
    state: gr.HTML  # of Preflight
    preflight: gr.Button
    start: gr.Button
    ended: gr.Textbox


def build_start_bar() -> StartBar:
    """Build the bar, and above it what it answers. Call it inside gr.Blocks."""
    with gr.Column(elem_id="start-dock", min_width=0):
        summary = html_panel(elem_id="start-problems")
        answer = html_panel(events=("start", "close"), script=MARK, elem_id="start-answer")
        report = html_panel(script=MARK, elem_id="preflight-report")
        with gr.Row(elem_id="start-bar"):
            return StartBar(
                summary,
                answer,
                report,
                outlook=html_panel(elem_id="outlook"),
                state=html_panel(NOT_CHECKED, script=MARK, elem_id="preflight-state"),
                preflight=gr.Button("Preflight", elem_id="preflight", scale=0, min_width=0),
                start=gr.Button(START, variant="primary", elem_id="start", scale=0, min_width=0),
                ended=hidden_values("state-bar-", ended="")[0],
            )


def wire_preflight(fields: FormFields, bar: StartBar, service: Service) -> None:
    def preflight(*values: Any) -> list[str]:
        return [*run_preflight(service, values), show_outlook(service, values)]

    busy = "() => { document.documentElement.dataset.preflight = 'busy'; }"
    done = (
        "() => { Object.assign(document.documentElement.dataset, {preflight: '', report: 'on'}); }"
    )
    bar.preflight.click(None, None, None, js=busy)
    asked = bar.preflight.click(
        slow(preflight), fields.values, [bar.state, bar.report, bar.answer, bar.outlook], **QUIET
    )
    asked.then(None, None, None, js=done)

    again = slow(lambda *values: show_outlook(service, values))
    bar.ended.change(again, fields.values, bar.outlook, **QUIET)


# ---- Preflight -------------------------------------------------------------------------------


def run_preflight(service: Service, values: Sequence[Any]) -> list[str]:
    """Preflight's state in the bar, its report, and an empty answer of Start."""
    config, problems = form.read(values)
    if config is None:
        return [
            _state("no result", "wrong", values),
            _report(form_help.summary(problems), values),
            "",
        ]
    try:
        results = service.preflight(config)
    except StudioError as error:
        problem = f'<p class="problem" role="alert">{esc(error)}</p>'
        return [_state("no result", "wrong", values), _report(problem, values), ""]
    return [_state(*verdict(results), values), _report(findings(results), values), ""]


def _report(html: str, values: Sequence[Any]) -> str:
    close = '<button type="button" class="quiet close" data-toggle="report">Close</button>'
    return dated(f'<div class="report">{close}{html}</div>', values)


def _state(words: str, kind: str, values: Sequence[Any]) -> str:
    """A button with Preflight's result, which opens and closes its report."""
    button = (
        f'<button type="button" class="state-{kind}" data-toggle="report" aria-pressed="false" '
        'aria-controls="preflight-report">Preflight: '
        f'<span class="now">{esc(words)}</span><span class="earlier">for earlier settings</span>'
        "</button>"
    )
    return dated(button, values, note="")


def verdict(results: Sequence[Any]) -> tuple[str, str]:
    """Preflight's findings in a few words, and their kind: "wrong", "look" or "fine"."""
    reds, ambers = _counts(results)
    if reds:
        return count(reds, "problem"), "wrong"
    if ambers:
        return count(ambers, "warning"), "look"
    return f"{len(results)} of {len(results)} pass", "fine"


def _counts(results: Sequence[Any]) -> tuple[int, int]:
    """How many findings stop the run, and how many warn."""
    levels = [finding.level for finding in results]
    return levels.count("red"), levels.count("amber")


LEVEL_WORDS = {"red": "stops", "amber": "warning", "green": "fine"}


def findings(results: Sequence[Any]) -> str:
    """HTML for preflight.Finding rows, worst first."""
    reds, ambers = _counts(results)
    head = f"All is well: press {START}."
    if reds:
        head = f"{count(reds, 'problem')} would stop this run."
    elif ambers:
        head = f"{count(ambers, 'warning')} to look at first."
    rows = "".join(
        f'<li class="{f.level}"><b>{esc(LEVEL_WORDS[f.level])} · {esc(f.title)}</b> '
        f"{esc(f.text)}</li>"
        for f in results
    )
    return f'<div class="bench"><b>{esc(head)}</b><ul class="findings">{rows}</ul></div>'


def show_outlook(service: Service, fields: Sequence[Any]) -> str:
    """How long the run takes and how much memory; on ZeroGPU, how much fits into one lease."""
    config, _ = form.read(fields)
    if config is None:
        return ""
    try:
        if service.lease_seconds is not None:
            text = service.outlook(config)
        else:
            text = _estimated(service.estimate(config), config)
    except StudioError:
        text = ""
    return f'<p class="help" role="status" title="{esc(text)}">{esc(text)}</p>' if text else ""


def _estimated(estimate: Any, config: RunConfig) -> str:
    """Words for a preflight.estimate.Estimate."""
    if estimate is None:
        return "Not measured yet: Preflight takes one step."
    parts = [f"About {duration(estimate.step_seconds * config.train.steps)}"]
    if estimate.memory_mib:
        parts.append(size(round(estimate.memory_mib * 2**20)))
    return " · ".join([*parts, f"measured in {estimate.source}"])


# ---- starting a run --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Starter:
    """Starts runs with the values of the form.

    Every call returns the run picker, the pinned group, the notice, Start's answer, and the
    complaints of Setup.
    """

    runs: Runs
    views: Views
    service: Service

    def press(self, *values: Any) -> list[Any]:
        """The button "Start training". values: those of the form, and the name."""
        *fields, name = values
        return self._start(fields, name, anyway=False, again=False)

    def insist(self, event: gr.EventData, *values: Any) -> list[Any]:
        """A button in the answer: start although Preflight warned, or the same run is going."""
        *fields, name = values
        data = data_of(event)
        return self._start(fields, name, bool(data.get("anyway")), bool(data.get("again")))

    def _start(self, fields: list[Any], name: Any, anyway: bool, again: bool) -> list[Any]:
        config, problems = form.read(fields)
        if config is None:
            return _not_started(fields, problems)
        answer = self._refusal(config, anyway) or self._twin(config, anyway, again)
        if answer:
            return _not_started(fields, [], dated(answer, fields))
        return start_run(self.runs, self.views, fields, name)

    def _refusal(self, config: RunConfig, anyway: bool) -> str:
        """Why Preflight refuses these settings; empty if they may start."""
        reason = self.service.refusal(config, anyway)
        if not reason:
            return ""
        what, _, then = reason.partition(". ")
        is_final = bool(self.service.refusal(config, True))
        offer = "" if is_final else _offer("Start anyway", anyway=True)
        return banner(f"{what}.", then, tone="warn", more=_acts(offer))

    def _twin(self, config: RunConfig, anyway: bool, again: bool) -> str:
        """A question if a run with the same settings waits or goes on; empty if there is none."""
        twin = None if again else same_run(self.views.runs(), config)
        if twin is None:
            return ""
        what = f"“{twin.name}” has exactly these settings."
        then = "With the same seed another run would give the same result."
        offer = _offer("Queue it again", anyway=anyway, again=True)
        return banner(what, then, tone="warn", more=_acts(offer))


def _acts(offer: str) -> str:
    """The buttons at the end of an answer."""
    return f'<span class="acts">{offer}<button type="button" data-do="close">Close</button></span>'


def _offer(words: str, **flags: bool) -> str:
    data = "".join(f' data-{name}="1"' for name, on in flags.items() if on)
    return f'<button type="button" data-do="start"{data}>{words}</button>'


def same_run(runs: Sequence[RunRow], config: RunConfig) -> RunRow | None:
    """A run that waits or goes on with exactly these settings."""
    wanted = config.model_copy(update={"rubric": resolve_rubric(config.rubric)})
    for run in runs:
        if run.trains_here:
            try:
                if parse(run.config) == wanted:
                    return run
            except InvalidConfig:  # of another version
                continue
    return None


def start_run(runs: Runs, views: Views, fields: Sequence[Any], name: Any) -> list[Any]:
    """Start or queue a run and show it; or show beside the fields what is wrong."""
    config, problems = form.read(fields)
    if config is not None:
        try:
            run_id = runs.start(config, str(name or "").strip()[:200] or None)
            return [views.picked(run_id), "", "", "", *complain(fields, [])]
        except InvalidConfig as error:
            problems = error.problems
        except StudioError as error:
            answer = banner("The run was not started.", str(error))
            return _not_started(fields, [], dated(answer, fields))
    return _not_started(fields, problems)


def _not_started(
    fields: Sequence[Any], problems: Sequence[FieldProblem], answer: str = ""
) -> list[Any]:
    return [SKIP, SKIP, "", answer, *complain(fields, problems)]


def complain(fields: Sequence[Any], problems: Sequence[FieldProblem]) -> list[str]:
    """The values of Setup.complaints: HTML for each field, the summary and the cards."""
    lines = {**form_help.notes(fields), **form_help.messages(problems)}
    return [
        *(lines.get(n, "") for n in form.NAMES),
        form_help.summary(problems),
        cards(fields, problems),
    ]


def start_label(runs: Sequence[RunRow]) -> str:
    """What the start button says: another run waits while one goes on."""
    return QUEUE if any(run.trains_here for run in runs) else START
