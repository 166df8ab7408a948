"""The rubric workbench and preflight: what completions would earn, what a cheat would earn, and one report before step 1. Records -> escaped HTML."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from grpo_core.config import RunConfig
from grpo_core.errors import StudioError
from ui.components import form
from ui.components.html_panel import QUIET
from ui.render.text import count, esc, format_number, percent, signed
from ui.server.service import Desk

MAX_TEXTS = 64
MAX_CHARS = 20_000
_BETWEEN = re.compile(r"^-{3,}\s*$", re.MULTILINE)
SHOWN_CHARS = 400


def wire_workbench(
    fields: dict[str, Any],
    text: gr.Textbox,
    sample: gr.Button,
    paste: gr.Button,
    probe: gr.Button,
    bench: gr.HTML,
    preflight: gr.Button,
    report: gr.HTML,
    desk: Desk,
) -> None:
    values = [fields[n] for n in form.NAMES]
    key = gr.Textbox(
        "", visible="hidden", label="tried", elem_id="state-tried"
    )  # of the groups in the bench, which weights that change are applied to
    sample.click(lambda *given: keyed(given, desk.try_rubric), values, [bench, key], **QUIET)
    paste.click(
        lambda *given: keyed(given[:-1], lambda c: desk.score_texts(c, pasted(given[-1]))),
        [*values, text],
        [bench, key],
        **QUIET,
    )
    probe.click(
        lambda *given: [asked(given, lambda c: probes(desk.probe(c))), ""],
        values,
        [bench, key],
        **QUIET,
    )
    fields[form.CRITERIA].change(
        lambda *given: reweighed(desk, given[:-1], given[-1]),
        [*values, key],
        bench,
        **{**QUIET, "trigger_mode": "always_last"},
    )
    preflight.click(
        lambda *given: asked(given, lambda c: findings(desk.preflight(c))), values, report, **QUIET
    )


def asked(values: Sequence[Any], answer: Callable[[RunConfig], str]) -> str:
    """The answer for the settings in the form, or what has to be mended first."""
    config, problems = form.read(values)
    if config is None:
        return form.summary(problems)
    try:
        return answer(config)
    except StudioError as error:
        return f'<p class="problem" role="alert">{esc(error)}</p>'


def keyed(values: Sequence[Any], ask: Callable[[RunConfig], Any]) -> list[str]:
    """Groups that were tried, as HTML, and the key under which their weights can be changed."""
    found: list[Any] = []

    def answer(config: RunConfig) -> str:
        found.append(ask(config))
        return tried(found[0])

    page = asked(values, answer)
    return [page, str(found[0].key) if found else ""]


def reweighed(desk: Desk, values: Sequence[Any], key: Any) -> Any:
    """The same groups with the weights of the table: rewards, advantages and ties at once, nothing sampled or scored again."""
    config, _ = form.read(values)
    if config is None or not isinstance(key, str) or not key:
        return gr.skip()
    try:
        again = desk.reweigh(config, key)
    except StudioError:
        return gr.skip()
    return gr.skip() if again is None else tried(again)


def pasted(text: Any) -> list[str]:
    """The completions in a text, with lines of dashes between them. Raises StudioError when there are fewer than two."""
    texts = (
        [t.strip("\n")[:MAX_CHARS] for t in _BETWEEN.split(text)][:MAX_TEXTS]
        if isinstance(text, str) and text.strip()
        else []
    )
    if len(texts) < 2:
        raise StudioError(
            "Write two or more completions into “Score this text”, with a line of --- between them: they are compared as one group."
        )
    return texts


def tried(t: Any) -> str:
    """A desk.Tried: groups with scores, rewards and advantages; time by criterion; expected ties."""
    names = list(t.seconds)
    tables = "".join(_group(g, names) for g in t.groups)
    num = sum(len(g.rollouts) for g in t.groups)
    ties = ", ".join(f"{size}: {percent(share)}" for size, share in t.tied.items())
    times = ", ".join(
        f"{esc(name)} {format_number(1000 * s / max(1, num), 2)} ms"
        for name, s in t.seconds.items()
    )
    notes = "".join(
        f'<p class="problem">{esc(name)}: {esc(why)} ({n} times)</p>'
        for name, whys in t.notes.items()
        for why, n in whys.items()
    )
    return f'<div class="bench">{notes}<p class="help">Groups that would tie, by group size: {ties}. Time a completion: {times}.</p>{tables}</div>'


def _group(g: Any, names: Sequence[str]) -> str:
    head = "".join(f'<th scope="col">{esc(n)}</th>' for n in names)
    rows = "".join(
        f'<tr><td class="said"><pre>{esc(r.completion.text[:SHOWN_CHARS])}</pre></td>'
        + "".join(f"<td>{format_number(r.scores[n], 2)}</td>" for n in names)
        + f"<td><b>{format_number(r.reward, 3)}</b></td><td>{signed(r.advantage, 2)}</td></tr>"
        for r in g.rollouts
    )
    return (
        f'<p class="help">{esc(g.prompt.text[:SHOWN_CHARS])} → {esc(g.prompt.answer[:100])}</p><table class="bench-table"><thead><tr><th scope="col">completion</th>{head}'
        f'<th scope="col">reward</th><th scope="col">advantage</th></tr></thead><tbody>{rows}</tbody></table>'
    )


def probes(found: Sequence[Any]) -> str:
    """rubric.probes.Probe rows; what earns as much as an honest answer is called a cheat in words."""
    cheats = [p.name for p in found if p.cheats]
    said = (
        f'<p class="problem" role="alert">As good as an honest answer: {esc(", ".join(cheats))}. The policy will find it.</p>'
        if cheats
        else '<p class="help">Nothing here earns as much as an honest answer.</p>'
    )
    rows = "".join(
        f'<tr><th scope="row">{esc(p.name)}</th><td><b>{format_number(p.reward, 3)}</b></td><td>{"cheats" if p.cheats else ""}</td>'
        f"<td>{esc(', '.join(f'{n} {format_number(s, 2)}' for n, s in p.scores.items()))}</td></tr>"
        for p in found
    )
    return (
        f'<div class="bench">{said}<table class="bench-table"><tbody>{rows}</tbody></table></div>'
    )


def findings(found: Sequence[Any]) -> str:
    """preflight.Finding rows, worst first."""
    reds, ambers = (sum(f.level == level for f in found) for level in ("red", "amber"))
    head = (
        f"{count(reds, 'thing')} would stop this run."
        if reds
        else f"{count(ambers, 'thing')} to look at first."
        if ambers
        else "All is well: press Start training."
    )
    rows = "".join(
        f'<li class="{f.level}"><b>{esc(WORDS[f.level])} · {esc(f.title)}</b> {esc(f.text)}</li>'
        for f in found
    )
    return f'<div class="bench"><b>{esc(head)}</b><ul class="findings">{rows}</ul></div>'


WORDS = {"red": "stops", "amber": "look", "green": "fine"}
