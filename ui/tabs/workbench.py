"""The rubric workbench: what a text, sampled completions and cheats earn."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from grpo_core.config import RunConfig
from grpo_core.errors import StudioError
from ui.components import form, form_help
from ui.components.html_panel import MARK, QUIET, html_panel
from ui.render.arithmetic import score_text, side_of
from ui.render.text import esc, format_number, percent, signed
from ui.render.turns import body as in_turns
from ui.render.turns import has_calls, texts_of
from ui.server.calls import slow
from ui.server.service import Service
from ui.tabs.form_fields import FormFields
from ui.tabs.frame import LATEST, hidden_values
from ui.tabs.setup_cards import dated

MAX_TEXTS = 64
MAX_CHARS = 20_000
SHOWN_CHARS = 400
SAMPLED_HELP = (
    "Samples and scores groups of three prompts, without training. A changed weight is applied to "
    "them at once."
)
PASTED_HELP = "Write several completions with a line of --- between them to compare them."
PROBE_HELP = "Scores texts that deserve nothing: an empty one, a loop, the prompt itself."
_SEPARATOR = re.compile(r"^-{3,}\s*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Groups:
    """Tried groups on show, and the key with which a changed weight is applied to them."""

    button: gr.Button
    result: gr.HTML
    key: gr.Textbox


@dataclass(frozen=True, slots=True)
class Workbench:
    text: gr.Textbox
    scores: gr.HTML  # of the text
    pasted: Groups
    sampled: Groups
    probe: gr.Button
    probed: gr.HTML


def build_workbench() -> Workbench:
    """Three tabs beside the criteria: a text, sampled groups, cheats. Call it inside gr.Blocks."""
    keys = hidden_values("state-", pasted="", sampled="")
    with gr.Tabs(elem_id="bench-tabs"):
        with gr.Tab("Score a text", id="score"):
            text = gr.Textbox(
                label="Score this text",
                placeholder="Paste or type a completion",
                lines=3,
                max_lines=10,
                elem_id="score-text",
            )
            scores = html_panel(elem_id="score-result")
            pasted = _build_groups("Score as group", PASTED_HELP, "pasted-groups", keys[0])
        with gr.Tab("Preview groups", id="preview"):
            sampled = _build_groups("Preview groups", SAMPLED_HELP, "workbench", keys[1])
        with gr.Tab("Probe", id="probe"):
            html_panel(f'<p class="help">{PROBE_HELP}</p>')
            probe = gr.Button("Probe rubric", size="sm", elem_classes="narrow-button")
            probed = html_panel(script=MARK, elem_id="probe-result")
    return Workbench(text, scores, pasted, sampled, probe, probed)


def _build_groups(label: str, text: str, name: str, key: gr.Textbox) -> Groups:
    html_panel(f'<p class="help">{text}</p>')
    button = gr.Button(label, size="sm", elem_classes="narrow-button")
    return Groups(button, html_panel(script=MARK, elem_id=name), key)


def wire_workbench(fields: FormFields, bench: Workbench, service: Service) -> None:
    values, table = fields.values, fields.controls[form.CRITERIA]

    def sample(*values: Any) -> list[str]:
        return try_groups(values, service.try_rubric)

    def paste(*values: Any) -> list[str]:
        *form_values, text = values
        return try_groups(form_values, lambda config: service.score_texts(config, pasted(text)))

    def probe(*values: Any) -> str:
        html = answer_for(values, lambda config: probes(service.probe(config)))
        return dated(html, values, "model", "prompts", "rubric", "run")

    def reweigh(*values: Any) -> list[Any]:
        *form_values, pasted_key, sampled_key = values
        return [reweighed(service, form_values, key) for key in (pasted_key, sampled_key)]

    typed, drawn = bench.pasted, bench.sampled
    drawn.button.click(slow(sample), values, [drawn.result, drawn.key], **QUIET)
    typed.button.click(slow(paste), [*values, bench.text], [typed.result, typed.key], **QUIET)
    bench.probe.click(slow(probe), values, bench.probed, **QUIET)
    keys, results = [typed.key, drawn.key], [typed.result, drawn.result]
    table.change(slow(reweigh), [*values, *keys], results, **LATEST)


def answer_for(values: Sequence[Any], answer: Callable[[RunConfig], str]) -> str:
    """The answer for the settings in the form, or what is wrong with them, as HTML."""
    config, problems = form.read(values)
    if config is None:
        return form_help.summary(problems)
    try:
        return answer(config)
    except StudioError as error:
        return f'<p class="problem" role="alert">{esc(error)}</p>'


def try_groups(values: Sequence[Any], try_rubric: Callable[[RunConfig], Any]) -> list[str]:
    """The tried groups as HTML, and the key with which `reweighed` finds them again."""
    key = ""

    def answer(config: RunConfig) -> str:
        nonlocal key
        result = try_rubric(config)
        key = str(result.key)
        return tried(result)

    html = answer_for(values, answer)
    return [dated(html, values), key]


def reweighed(service: Service, values: Sequence[Any], key: Any) -> Any:
    """The same groups with the weights in the table.

    Rewards, advantages and ties are computed again; nothing is sampled or scored again.
    """
    if not isinstance(key, str) or not key:
        return gr.skip()
    config, _ = form.read(values)
    if config is None:
        return gr.skip()
    try:
        result = service.reweigh(config, key)
    except StudioError:
        return gr.skip()
    return gr.skip() if result is None else dated(tried(result), values)


def pasted(text: Any) -> list[str]:
    """The completions in a text, separated by lines of dashes.

    Raises StudioError when there are fewer than two.
    """
    texts: list[str] = []
    if isinstance(text, str) and text.strip():
        texts = [t.strip("\n")[:MAX_CHARS] for t in _SEPARATOR.split(text)][:MAX_TEXTS]
    if len(texts) < 2:
        raise StudioError(
            "Write two or more completions into “Score this text”, with a line of --- between "
            "them: they are compared as one group."
        )
    return texts


def tried(result: Any) -> str:
    """HTML for a preflight.service.Trial: groups, times by criterion, expected ties."""
    names = list(result.seconds)
    tables = "".join(_group(g, names) for g in result.groups)
    num = sum(len(g.rollouts) for g in result.groups)
    ties = ", ".join(f"{size}: {percent(share)}" for size, share in result.tied.items())
    times = ", ".join(
        f"{esc(name)} {format_number(1000 * seconds / max(1, num), 2)} ms"
        for name, seconds in result.seconds.items()
    )
    notes = "".join(
        f'<p class="problem">{esc(name)}: {esc(reason)} ({n} times)</p>'
        for name, reasons in result.notes.items()
        for reason, n in reasons.items()
    )
    return (
        '<div class="bench" tabindex="0" role="region" aria-label="Groups">'
        f'{notes}<p class="help">Groups that would tie, by group size: {ties}. '
        f"Time a completion: {times}.</p>{tables}</div>"
    )


def _group(g: Any, names: Sequence[str]) -> str:
    head = "".join(f'<th scope="col" class="number">{esc(n)}</th>' for n in names)
    rows: dict[tuple[str, str], int] = {}  # equal completions share a row
    for r in sorted(g.rollouts, key=lambda r: -(r.advantage or 0.0)):
        numbers = "".join(f'<td class="number">{score_text(r.scores[n])}</td>' for n in names)
        numbers += f'<td class="number"><b>{format_number(r.reward, 3)}</b></td>'
        numbers += f'<td class="number {side_of(r.advantage)}"><b>{signed(r.advantage, 2)}</b></td>'
        row = (_said(r.completion), numbers)
        rows[row] = rows.get(row, 0) + 1
    body = "".join(
        f'<tr><td class="said">{said}</td><td class="number">{f"×{n}" if n > 1 else ""}</td>'
        f"{numbers}</tr>"
        for (said, numbers), n in rows.items()
    )
    return (
        f'<p class="tried"><b>{esc(g.prompt.text[:SHOWN_CHARS])}</b> → '
        f"{esc(g.prompt.answer[:100])}</p>"
        '<table class="bench-table"><thead><tr><th scope="col">completion</th>'
        f'<th scope="col"><span class="sr">how often</span></th>{head}'
        '<th scope="col" class="number">reward</th><th scope="col" class="number">advantage</th>'
        f"</tr></thead><tbody>{body}</tbody></table>"
    )


def _said(completion: Any) -> str:
    """A completion, in turns where it called a tool."""
    if not has_calls(completion):
        return f"<pre>{esc(completion.text[:SHOWN_CHARS])}</pre>"
    texts = [esc(text[:SHOWN_CHARS]) for text in texts_of(completion)]
    return in_turns([completion], texts, "Completion in turns")


def probes(results: Sequence[Any]) -> str:
    """HTML for rubric.probes.Probe rows; cheats are also named in a sentence."""
    cheats = [p.name for p in results if p.cheats]
    verdict = '<p class="help">Nothing here earns as much as an honest answer.</p>'
    if cheats:
        verdict = (
            '<p class="problem" role="alert">As good as an honest answer: '
            f"{esc(', '.join(cheats))}. The policy will find it.</p>"
        )
    rows = "".join(_probe(p) for p in results)
    return (
        f'<div class="bench">{verdict}'
        f'<table class="bench-table"><tbody>{rows}</tbody></table></div>'
    )


def _probe(p: Any) -> str:
    scores = ", ".join(f"{name} {format_number(score, 2)}" for name, score in p.scores.items())
    return (
        f'<tr><th scope="row">{esc(p.name)}</th><td><b>{format_number(p.reward, 3)}</b></td>'
        f"<td>{'cheats' if p.cheats else ''}</td><td>{esc(scores)}</td></tr>"
    )
