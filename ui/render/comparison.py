"""Two or more runs compared: held-out results, and where settings differ. Escaped HTML; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grpo_core.analysis.heldout import Difference, Estimate, Heldout
from ui.render.changed import setting
from ui.render.charts.frame import DASHES
from ui.render.text import MINUS, NONE, count, esc, percent


@dataclass(frozen=True, slots=True)
class Result:
    """The held-out result of a run.

    difference: of its last accuracy to that of the first run; None for the first one, and where
    there is nothing to compare, which `why_not` explains. paired: of the answers to the prompts
    that both runs recorded. colour: the run's, as the name of a CSS variable.
    """

    label: str
    colour: str
    heldout: Heldout
    difference: Difference | None = None
    paired: Difference | None = None
    why_not: str = ""


def results(rows: Sequence[Result]) -> str:
    """Accuracy before and after training, with 95 % intervals, and differences to the first run."""
    first = esc(rows[0].label)
    body = "".join(
        f'<tr><th scope="row">{_name(row.label, row.colour, n)}</th>'
        f"<td>{_estimate(row.heldout.before)}</td><td>{_estimate(row.heldout.after)}</td>"
        f"<td>{_difference(row) if n else NONE}</td></tr>"
        for n, row in enumerate(rows)
    )
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Held-out accuracy by run">'
        '<table class="list diff"><thead><tr><th scope="col">run</th>'
        '<th scope="col">before</th><th scope="col">after</th>'
        f'<th scope="col"><span class="cut">after, less that of {first}</span></th></tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
        '<p class="note">In brackets: 95 % intervals.</p>'
    )


def _name(label: str, colour: str, index: int) -> str:
    """A run's name after a piece of its line in the charts above, in its colour and dash."""
    mark = ""
    if index < len(DASHES):  # as many runs are drawn
        mark = f'<i class="mark {DASHES[index]}" style="--mark:var({colour})"></i>'
    return f'<span class="of-run">{mark}<span class="cut">{esc(label)}</span></span>'


def _estimate(estimate: Estimate | None) -> str:
    if estimate is None:
        return NONE
    if estimate.low is None or estimate.high is None:
        return percent(estimate.value)
    bounds = f"{100 * estimate.low:.0f} to {100 * estimate.high:.0f}"
    return f'{percent(estimate.value)} <span class="by">[{bounds}]</span>'


def _difference(row: Result) -> str:
    if row.difference is None:
        return f'<span class="by">{esc(row.why_not)}</span>'
    line = _with_interval(row.difference)
    if row.paired is None:
        return line
    prompts = count(row.paired.num_prompts, "recorded prompt")
    return f'{line}<br><span class="by">pair by pair on {prompts}:</span> ' + _with_interval(
        row.paired
    )


def _with_interval(d: Difference) -> str:
    told = "shows no difference" if d.low <= 0 <= d.high else "a difference"
    return (
        f'<b>{_points(d.value)}</b> points <span class="by">[{_points(d.low)} to {_points(d.high)}]'
        f" · {told}</span>"
    )


def _points(share: float) -> str:
    text = f"{100 * share:+.0f}"
    return "0" if text in ("+0", "-0") else text.replace("-", MINUS)


def differences(configs: Mapping[str, Mapping[str, Any]], colours: Sequence[str]) -> str:
    """The settings in which the runs differ.

    configs: run name -> dotted field -> value. colours: of the same runs, as in Result.
    """
    fields = dict.fromkeys(field for values in configs.values() for field in values)
    body = ""
    for field in fields:
        values = [config.get(field) for config in configs.values()]
        if any(value != values[0] for value in values):
            cells = "".join(f"<td>{esc(setting(value))}</td>" for value in values)
            body += f'<tr><th scope="row"><code>{esc(field)}</code></th>{cells}</tr>'
    if not body:
        return '<p class="note">All settings are the same, seed included.</p>'
    head = "".join(
        f'<th scope="col">{_name(name, colour, n)}</th>'
        for n, (name, colour) in enumerate(zip(configs, colours, strict=True))
    )
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Settings that differ, by run">'
        '<table class="list diff"><thead><tr><th scope="col">setting</th>'
        f"{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )
