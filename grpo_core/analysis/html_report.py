"""A run as one HTML file: curves, verdicts, advisor notices, best and worst groups, settings.

The file opens offline: it has no script and loads nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, TextIO

from grpo_core.analysis import provenance
from grpo_core.analysis.advisor import advise
from grpo_core.analysis.text import esc, format_number, whole
from grpo_core.rubric.verdict import VERDICTS
from grpo_core.store import GroupRow, RolloutRow, RunRow, Store
from grpo_core.store.downsample import min_max
from grpo_core.types import Notice, StepMetrics, TurnRole

MAX_POINTS = 600  # of a curve
CURVES = (
    "reward_mean",
    "loss",
    "kl",
    "completion_tokens_mean",
    "entropy",
    "grad_norm",
    "tied_group_frac",
    "truncated_frac",
    "turns_mean",
    "tool_calls_mean",
    "tool_error_frac",
    "observation_frac",
)
NUM_GROUPS = 4  # best groups, and as many worst groups
MAX_CHARS = 2_000  # of a completion
WIDTH, HEIGHT, LEFT = 420, 130, 48  # of a curve's SVG; LEFT is the margin for its axis labels

METRICS = {f.name: f.metadata for f in fields(StepMetrics)}


def write_report(store: Store, run_id: str, out: TextIO) -> None:
    """Write the report of a run to `out`. All untrusted text is escaped. Raises NotFound."""
    run = store.run(run_id)
    out.write(
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{esc(run.name)}</title><style>{STYLE}</style></head><body>"
    )
    out.write(_head(run) + _provenance(run))
    out.write(_curves(store, run_id))
    out.write(_verdicts(store.verdict_counts(run_id)))
    out.write(_advice(advise(store, run_id)))
    for title, descending in (("Best groups", True), ("Worst groups", False)):
        out.write(f"<h2>{title}</h2>")
        page = store.groups(run_id, sort="reward_mean", descending=descending, limit=NUM_GROUPS)
        for summary in page.rows:
            out.write(_group(store.group(summary.id)))
    out.write(_settings(run.config))
    date = time.strftime("%Y-%m-%d %H:%M", time.gmtime())
    out.write(f"<p class=small>Made {date} UTC by GRPO Studio.</p></body></html>\n")


def _head(run: RunRow) -> str:
    facts = {
        "status": run.status,
        "model": run.model,
        "task": run.task,
        "rubric": run.rubric,
        "algorithm": (run.config.get("algorithm") or {}).get("preset", ""),
        "steps": f"{run.steps_done:,} of {run.num_steps or 0:,}",
        "reward": f"{format_number(run.reward_first, 3)} → {format_number(run.reward_last, 3)}",
        "held-out": (
            f"{format_number(run.heldout_before, 3)} → {format_number(run.heldout_after, 3)}"
        ),
        "run": run.id,
    }
    items = "".join(f"<div><dt>{esc(k)}</dt><dd>{esc(v)}</dd></div>" for k, v in facts.items())
    return f"<h1>{esc(run.name)}</h1><dl>{items}</dl>"


def _provenance(run: RunRow) -> str:
    """Whose numbers these are; empty for a run of this program."""
    if (source := run.source) is None:
        return ""
    facts = {
        "recorded": provenance.recorded(source),
        "recomputed here": provenance.recomputed(source),
        "absent": provenance.absent(source),
    }
    items = "".join(f"<div><dt>{k}</dt><dd>{esc(v or '–')}</dd></div>" for k, v in facts.items())
    disagreements = provenance.disagreements(source)
    note = f"<p>{disagreements}.</p>" if disagreements else ""
    return f"<h2>Recorded by {esc(source.trainer)}</h2><dl>{items}</dl>{note}"


def _curves(store: Store, run_id: str) -> str:
    steps = store.steps(run_id, max_points=20_000)
    curves = [
        _curve(
            METRICS[name]["title"],
            METRICS[name]["reading"],
            [(row["step"], row.get(name)) for row in steps],
        )
        for name in CURVES
    ]
    for name, points in store.metrics(run_id, max_points=20_000).items():
        if name.startswith("score/") or name in ("heldout/accuracy", "second/accuracy"):
            title = name.replace("score/", "score: ").replace("heldout/", "held-out ")
            curves.append(_curve(title.replace("second/", "second task "), "", points))
    return f"<h2>Curves</h2><div class=curves>{''.join(curves)}</div>"


def _curve(title: str, reading: str, points: Sequence[tuple[int, float | None]]) -> str:
    """An SVG line chart, interrupted where no value was recorded. Downsampling keeps all spikes."""
    points = min_max(points, [value for _, value in points], MAX_POINTS)
    known = [(step, value) for step, value in points if value is not None]
    if not known:
        return ""
    low, high = min(value for _, value in known), max(value for _, value in known)
    first, last = points[0][0], points[-1][0]

    def x(step: int) -> float:
        return LEFT + (WIDTH - LEFT - 6) * (step - first) / max(last - first, 1)

    def y(value: float) -> float:
        return HEIGHT - 20 - (HEIGHT - 30) * (value - low) / ((high - low) or 1.0)

    lines: list[list[tuple[str, str]]] = [[]]  # each an uninterrupted piece of the curve
    for step, value in points:
        if value is not None:
            lines[-1].append((f"{x(step):.1f}", f"{y(value):.1f}"))
        elif lines[-1]:
            lines.append([])
    drawn = "".join(_line(line) for line in lines if line)
    lowest = format_number(low, 3) if high > low else ""
    labels = (
        f'<text x="{LEFT - 6}" y="{y(high) + 4:.0f}" text-anchor="end">{format_number(high, 3)}'
        f'</text><text x="{LEFT - 6}" y="{y(low) + 4:.0f}" text-anchor="end">{lowest}</text>'
        f'<text x="{LEFT}" y="{HEIGHT - 4}">{first:,}</text>'
        f'<text x="{WIDTH - 6}" y="{HEIGHT - 4}" text-anchor="end">step {last:,}</text>'
    )
    start, end = format_number(known[0][1], 3), format_number(known[-1][1], 3)
    return (
        f"<figure><figcaption>{esc(title)} <b>{end}</b></figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{esc(title)}, from {start} to {end}">{drawn}{labels}</svg>'
        f"<p class=small>{esc(reading)}</p></figure>"
    )


def _line(points: Sequence[tuple[str, str]]) -> str:
    if len(points) == 1:
        x, y = points[0]
        return f'<circle cx="{x}" cy="{y}" r="2"/>'
    return f'<polyline points="{" ".join(f"{x},{y}" for x, y in points)}"/>'


def _verdicts(counts: Mapping[str, int]) -> str:
    total = sum(counts.values()) or 1
    rows = "".join(
        f"<tr><th scope=row>{_verdict_label(code)}</th><td>{n:,}</td>"
        f"<td>{100 * n / total:.0f} %</td>"
        f'<td class=bar><i style="width:{100 * n / total:.1f}%"></i></td></tr>'
        for code, n in sorted(counts.items(), key=lambda item: -item[1])
    )
    return f"<h2>Verdicts</h2><table>{rows}</table>"


def _verdict_label(code: str) -> str:
    label, _ = VERDICTS.get(code, (code, ""))
    return esc(label)


def _advice(notices: Sequence[Notice]) -> str:
    paragraphs = "".join(
        f"<p><b>{esc(n.code)}</b> ({esc(n.severity)}, step {n.step:,}): {esc(n.message)} "
        f"<em>Try: {esc(n.advice)}</em></p>"
        for n in notices
    )
    return f"<h2>Advisor</h2>{paragraphs or '<p>No problem found.</p>'}"


def _group(group: GroupRow) -> str:
    rows = ""
    for r in group.rollouts:
        rows += (
            f"<tr><td>#{r.position + 1}</td><td>{format_number(r.reward, 3)}</td>"
            f"<td>{_signed(r.advantage)}</td><td>{whole(r.num_tokens)}</td>"
            f"<td>{_turns(r) if r.turns else _text(r.text)}</td></tr>"
        )
    return (
        f"<details><summary>step {group.step:,}, group {group.position + 1} · "
        f"<code>{esc(group.prompt[:120])}</code> · mean {format_number(group.reward_mean, 3)} · "
        f"{_verdict_label(group.verdict)}</summary>"
        f"<pre>{esc(group.prompt[:MAX_CHARS])}</pre>"
        "<table><tr><th>#</th><th>reward</th><th>A</th><th>tokens</th><th>text</th></tr>"
        f"{rows}</table></details>"
    )


def _text(text: str) -> str:
    return f"<pre>{esc(text[:MAX_CHARS])}{'…' if len(text) > MAX_CHARS else ''}</pre>"


def _turns(rollout: RolloutRow) -> str:
    """What the policy wrote and what its tools answered, one below the other."""
    parts = ""
    for turn in rollout.turns:
        if turn.role is TurnRole.ACTION:
            parts += _text(turn.text)
            continue
        took = "" if turn.seconds is None else f", {turn.seconds:.2f} s"
        failed = f" <b>failed: {esc(turn.error[:MAX_CHARS])}</b>" if turn.error else ""
        parts += (
            f"<div class=tool><code>{esc(turn.tool or 'no tool')}"
            f"({esc(turn.arguments[:MAX_CHARS])})</code>{took}{failed}{_text(turn.text)}</div>"
        )
    return parts


def _settings(config: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><th scope=row><code>{esc(name)}</code></th><td>{esc(value)}</td></tr>"
        for name, value in _leaves(config)
    )
    table = f"<table>{rows}</table>"
    return f"<h2>Settings</h2><details><summary>every field</summary>{table}</details>"


def _leaves(config: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    """Dotted name and value of each setting."""
    for section, values in config.items():
        for name, value in values.items() if isinstance(values, Mapping) else [("", values)]:
            yield f"{section}.{name}", value


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.2f}"


STYLE = """
:root{color-scheme:light dark;--ink:#1b2130;--mute:#59627a;--line:#e2e5ec;--page:#fff;
--accent:#4150d6;--field:#f6f7f9}
@media(prefers-color-scheme:dark){:root{--ink:#e7e9f0;--mute:#a2aaba;--line:#2a303c;--page:#14171d;
--accent:#939eff;--field:#1b2029}}
body{font:14px/1.45 system-ui,sans-serif;font-variant-numeric:tabular-nums;color:var(--ink);
background:var(--page);max-width:1180px;margin:24px auto;padding:0 16px}
h1{font-size:20px}
h2{font-size:12px;text-transform:uppercase;letter-spacing:.06em;color:var(--mute);margin:28px 0 8px}
dl{display:flex;flex-wrap:wrap;gap:6px 24px}dt{color:var(--mute);font-size:12px}
dd{margin:0;font-weight:600}
.curves{display:grid;grid-template-columns:repeat(auto-fill,minmax(320px,1fr));gap:14px}
figure{margin:0;border:1px solid var(--line);border-radius:10px;padding:10px 12px}
svg{width:100%;height:auto}polyline{fill:none;stroke:var(--accent);stroke-width:1.6}
circle{fill:var(--accent)}svg text{font-size:10px;fill:var(--mute)}
.small{font-size:11.5px;color:var(--mute);margin:4px 0 0}table{border-collapse:collapse;width:100%}
th,td{text-align:left;vertical-align:top;padding:4px 8px;border-bottom:1px solid var(--line);
font-weight:400}
.bar{width:50%}
.bar i{display:block;height:9px;border-radius:9px;background:var(--accent);margin-top:5px}
pre,code{font:12.5px/1.5 ui-monospace,monospace;white-space:pre-wrap;overflow-wrap:anywhere;
margin:0}
details{border:1px solid var(--line);border-radius:10px;padding:8px 12px;margin-bottom:8px}
.tool{border-left:3px solid var(--line);margin:4px 0 4px 10px;padding-left:8px;color:var(--mute)}
summary{cursor:pointer}details pre{background:var(--field);border-radius:6px;padding:3px 8px}
"""
