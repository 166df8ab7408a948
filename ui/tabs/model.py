"""The answer of "Check model": size, memory against what is free, how turns end, a sampled answer. Records -> escaped HTML."""

from __future__ import annotations

from typing import Any

import gradio as gr

from grpo_core.errors import StudioError
from ui.components import form
from ui.components.html_panel import QUIET
from ui.render.text import count, esc, size
from ui.server.service import Desk


def wire_model(fields: dict[str, Any], check: gr.Button, answer: gr.HTML, desk: Desk) -> None:
    check.click(
        lambda *given: show_model(desk, given), [fields[n] for n in form.NAMES], answer, **QUIET
    )


def show_model(desk: Desk, values: Any) -> str:
    """What is known of the model for the settings in the form, or beside which field something is wrong."""
    config, problems = form.read(values)
    if config is None:
        return form.summary(problems)
    try:
        return model_card(*desk.check_model(config))
    except StudioError as error:
        return f'<p class="problem" role="alert">{esc(error)}</p>'


def model_card(r: Any, sample: str) -> str:
    """A policy.report.ModelReport and a sampled answer."""
    trained = (
        "all of them trained"
        if r.trained_parameters == r.parameters
        else f"{r.trained_parameters:,} trained"
    )
    ends = "; ".join(
        f"{who}: {', '.join(tokens) or 'none'}" for who, tokens in r.end_tokens.items()
    )
    parts = ", ".join(f"{name} {size(n)}" for name, n in r.bytes_by_part.items() if n)
    rows = [
        (
            "Model",
            f"{r.architecture}, {count(r.parameters, 'parameter')}, {trained}, {r.dtype} on {r.device}",
        ),
        ("Context", f"{r.context:,} tokens" if r.context else "not said"),
        ("Chat template", "yes" if r.chat_template else "none: prompts are read as bare text"),
        ("End tokens", ends + (" (they agree)" if r.ends_agree else " (they differ)")),
        ("Memory", f"about {size(r.needed_bytes)} of {size(r.free_bytes)} free: {parts}"),
        ("Micro-batch that fits", f"about {count(r.fitting_micro_batch, 'token')}"),
        *([("It answers", sample or "(nothing)")] if not r.problems else []),
    ]
    body = "".join(f'<tr><th scope="row">{esc(k)}</th><td>{esc(v)}</td></tr>' for k, v in rows)
    said = "".join(f'<p class="problem" role="alert">{esc(p)}</p>' for p in r.problems) + "".join(
        f'<p class="help">{esc(p)}</p>' for p in r.remarks
    )
    return f'<table class="scored checked"><tbody>{body}</tbody></table>{said}<p class="help">Memory is an estimate; the first step measures it.</p>'
