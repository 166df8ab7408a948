"""“Check model”: size, memory against what is free, end tokens, and a sampled answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from grpo_core.errors import StudioError
from ui.components import form, form_help
from ui.components.html_panel import MARK, QUIET, html_panel
from ui.render.text import count, esc, size
from ui.server.calls import slow
from ui.server.service import Service
from ui.tabs.form_fields import FormFields
from ui.tabs.setup_cards import dated


@dataclass(frozen=True, slots=True)
class ModelBox:
    check: gr.Button
    answer: gr.HTML


def build_model(fields: FormFields) -> ModelBox:
    """The section "Model". Call it inside gr.Blocks."""
    html_panel("<h2>Model</h2>")
    with gr.Row(elem_classes="wide-first"):
        fields.add("model.name")
        check = gr.Button("Check model", size="sm", scale=0)
    answer = html_panel(script=MARK, elem_id="model-answer")
    fields.add_group("", *form.MODEL)
    return ModelBox(check, answer)


def wire_model(fields: FormFields, box: ModelBox, service: Service) -> None:
    check = slow(lambda *values: show_model(service, values))
    box.check.click(check, fields.values, box.answer, **QUIET)


def show_model(service: Service, values: Sequence[Any]) -> str:
    """The report on the model in the form, or which fields are wrong."""
    config, problems = form.read(values)
    if config is None:
        return form_help.summary(problems)
    try:
        answer = model_card(*service.check_model(config))
    except StudioError as error:
        answer = f'<p class="problem" role="alert">{esc(error)}</p>'
    return dated(answer, values, "model", "prompts", "run")


def model_card(report: Any, sample: str) -> str:
    """HTML for a preflight.model_report.ModelReport and a sampled answer."""
    trained = "all of them trained"
    if report.trained_parameters != report.parameters:
        trained = f"{report.trained_parameters:,} trained"
    parameters = count(report.parameters, "parameter")
    ends = "; ".join(
        f"{source}: {', '.join(tokens) or 'none'}" for source, tokens in report.end_tokens.items()
    )
    parts = ", ".join(f"{name} {size(n)}" for name, n in report.bytes_by_part.items() if n)
    memory = f"about {size(report.needed_bytes)} of {size(report.free_bytes)} free: {parts}"
    fits = "" if report.problems else "✓ "
    several = report.workers > 1
    on, each = (f"{report.workers} × ", " on each worker") if several else ("", "")
    chips = [
        report.architecture,
        f"{parameters}, {trained}",
        f"{report.dtype} on {on}{report.device}",
        f"context {report.context:,} tokens" if report.context else "context not given",
        "chat template" if report.chat_template else "no chat template: prompts are plain text",
        f"{fits}{size(report.needed_bytes)} of {size(report.free_bytes)} free{each}",
    ]
    rows = [
        ("End tokens", ends + (" (they agree)" if report.ends_agree else " (they differ)")),
        ("Memory of each worker" if several else "Memory", memory),
        ("Micro-batch that fits", f"about {count(report.fitting_micro_batch, 'token')}"),
    ]
    if not report.problems:
        rows.append(("It answers", sample or "(nothing)"))
    body = "".join(f'<tr><th scope="row">{esc(k)}</th><td>{esc(v)}</td></tr>' for k, v in rows)
    problems = "".join(f'<p class="problem" role="alert">{esc(p)}</p>' for p in report.problems)
    remarks = "".join(f'<p class="help">{esc(p)}</p>' for p in report.remarks)
    line = "".join(f"<li>{esc(chip)}</li>" for chip in chips)
    return (
        f'<ul class="chips-line">{line}</ul>{problems}{remarks}'
        f'<table class="scored checked"><tbody>{body}</tbody></table>'
        '<p class="help">Memory is an estimate; the first step measures it.</p>'
    )
