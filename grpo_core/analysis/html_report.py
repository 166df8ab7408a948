"""A run in one HTML file that needs nothing else: curves, verdicts, what the advisor says, best and worst groups, settings. Opens offline."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, TextIO

from grpo_core.analysis.advisor import advise
from grpo_core.analysis.text import esc, number
from grpo_core.rubric.verdict import VERDICTS
from grpo_core.store import GroupRow, RunRow, Store
from grpo_core.store.downsample import min_max
from grpo_core.types import StepMetrics

POINTS = 600  # of a curve
CURVES = (
    "reward_mean",
    "loss",
    "kl",
    "completion_tokens_mean",
    "entropy",
    "grad_norm",
    "tied_group_frac",
    "truncated_frac",
)
SHOWN = 4  # groups at each end
MAX_CHARS = 2_000  # of a completion
WIDTH, HEIGHT, LEFT = 420, 130, 48

METRICS = {f.name: f.metadata for f in fields(StepMetrics)}


def write_report(store: Store, run_id: str, out: TextIO) -> None:
    """NotFound for a run that is not there. Every foreign text goes through esc; there is no script in the file."""
    run = store.run(run_id)
    steps, metrics = (
        store.steps(run_id, max_points=20_000),
        store.metrics(run_id, max_points=20_000),
    )
    out.write(
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\"><title>{esc(run.name)}</title><style>{STYLE}</style></head><body>"
    )
    out.write(_head(run))
    out.write("<h2>Curves</h2><div class=curves>")
    for name in CURVES:
        out.write(
            _curve(
                METRICS[name]["title"],
                METRICS[name]["reading"],
                [(row["step"], row.get(name)) for row in steps],
            )
        )
    for name, points in metrics.items():
        if name.startswith("score/") or name in ("heldout/accuracy", "second/accuracy"):
            out.write(
                _curve(
                    name.replace("score/", "score: ")
                    .replace("heldout/", "held-out ")
                    .replace("second/", "second task "),
                    "",
                    points,
                )
            )
    out.write("</div>")
    out.write(_verdicts(store.verdict_counts(run_id)))
    notices = advise(store, run_id)
    out.write(
        "<h2>Advisor</h2>"
        + (
            "".join(
                f"<p><b>{esc(n.code)}</b> ({esc(n.severity)}, step {n.step:,}): {esc(n.message)} <em>Try: {esc(n.advice)}</em></p>"
                for n in notices
            )
            or "<p>Nothing to say.</p>"
        )
    )
    for title, descending in (("Best groups", True), ("Worst groups", False)):
        out.write(f"<h2>{title}</h2>")
        for summary in store.groups(
            run_id, sort="reward_mean", descending=descending, limit=SHOWN
        ).rows:
            out.write(_group(store.group(summary.id)))
    out.write(_settings(run.config))
    out.write(
        f"<p class=small>Made {time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC by GRPO Studio.</p></body></html>\n"
    )


def _head(run: RunRow) -> str:
    facts = {
        "status": run.status,
        "model": run.model,
        "task": run.task,
        "rubric": run.rubric,
        "algorithm": (run.config.get("algorithm") or {}).get("preset", ""),
        "steps": f"{run.steps_done:,} of {run.num_steps or 0:,}",
        "reward": f"{number(run.reward_first, 3)} → {number(run.reward_last, 3)}",
        "held-out": f"{number(run.heldout_before, 3)} → {number(run.heldout_after, 3)}",
        "run": run.id,
    }
    return (
        f"<h1>{esc(run.name)}</h1><dl>"
        + "".join(f"<div><dt>{esc(k)}</dt><dd>{esc(v)}</dd></div>" for k, v in facts.items())
        + "</dl>"
    )


def _curve(title: str, reading: str, points: Sequence[tuple[int, float | None]]) -> str:
    """An SVG line, broken where nothing was measured; thinned so that no spike is lost."""
    points = min_max(points, [v for _, v in points], POINTS)
    known = [(s, v) for s, v in points if v is not None]
    if not known:
        return ""
    low, high = min(v for _, v in known), max(v for _, v in known)
    first, last = points[0][0], points[-1][0]
    x = lambda s: LEFT + (WIDTH - LEFT - 6) * (s - first) / max(last - first, 1)  # noqa: E731
    y = lambda v: HEIGHT - 20 - (HEIGHT - 30) * (v - low) / ((high - low) or 1.0)  # noqa: E731
    lines, line = [], []
    for s, v in [*points, (last, None)]:
        if v is None:
            lines += [line] if line else []
            line = []
        else:
            line.append(f"{x(s):.1f},{y(v):.1f}")
    drawn = "".join(
        f'<polyline points="{" ".join(p)}"/>'
        if len(p) > 1
        else f'<circle cx="{p[0].split(",")[0]}" cy="{p[0].split(",")[1]}" r="2"/>'
        for p in lines
    )
    marks = (
        f'<text x="{LEFT - 6}" y="{y(high) + 4:.0f}" text-anchor="end">{number(high, 3)}</text><text x="{LEFT - 6}" y="{y(low) + 4:.0f}" text-anchor="end">'
        f'{number(low, 3) if high > low else ""}</text><text x="{LEFT}" y="{HEIGHT - 4}">{first:,}</text><text x="{WIDTH - 6}" y="{HEIGHT - 4}" text-anchor="end">step {last:,}</text>'
    )
    return (
        f'<figure><figcaption>{esc(title)} <b>{number(known[-1][1], 3)}</b></figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{esc(title)}, from {number(known[0][1], 3)} to {number(known[-1][1], 3)}">{drawn}{marks}</svg><p class=small>{esc(reading)}</p></figure>'
    )


def _verdicts(counts: Mapping[str, int]) -> str:
    total = sum(counts.values()) or 1
    rows = "".join(
        f'<tr><th scope=row>{esc(VERDICTS.get(c, (c, ""))[0])}</th><td>{n:,}</td><td>{100 * n / total:.0f} %</td><td class=bar><i style="width:{100 * n / total:.1f}%"></i></td></tr>'
        for c, n in sorted(counts.items(), key=lambda item: -item[1])
    )
    return f"<h2>Verdicts</h2><table>{rows}</table>"


def _group(group: GroupRow) -> str:
    rows = "".join(
        f"<tr><td>#{r.position + 1}</td><td>{number(r.reward, 3)}</td><td>{_signed(r.advantage)}</td><td>{r.num_tokens:,}</td>"
        f"<td><pre>{esc(r.text[:MAX_CHARS])}{'…' if len(r.text) > MAX_CHARS else ''}</pre></td></tr>"
        for r in group.rollouts
    )
    return (
        f"<details><summary>step {group.step:,}, group {group.position + 1} · <code>{esc(group.prompt[:120])}</code> · mean {number(group.reward_mean, 3)} · "
        f"{esc(VERDICTS.get(group.verdict, (group.verdict, ''))[0])}</summary><pre>{esc(group.prompt[:MAX_CHARS])}</pre><table><tr><th>#</th><th>reward</th><th>A</th><th>tokens</th><th>text</th></tr>{rows}</table></details>"
    )


def _settings(config: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><th scope=row><code>{esc(name)}</code></th><td>{esc(value)}</td></tr>"
        for name, value in _leaves(config)
    )
    return (
        f"<h2>Settings</h2><details><summary>every field</summary><table>{rows}</table></details>"
    )


def _leaves(config: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    for section, values in config.items():
        for name, value in values.items() if isinstance(values, Mapping) else [("", values)]:
            yield f"{section}.{name}", value


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.2f}"


STYLE = """
:root{color-scheme:light dark;--ink:#1b2130;--mute:#59627a;--line:#e2e5ec;--page:#fff;--accent:#4150d6;--field:#f6f7f9}
@media(prefers-color-scheme:dark){:root{--ink:#e7e9f0;--mute:#a2aaba;--line:#2a303c;--page:#14171d;--accent:#939eff;--field:#1b2029}}
body{font:14px/1.45 system-ui,sans-serif;font-variant-numeric:tabular-nums;color:var(--ink);background:var(--page);max-width:1180px;margin:24px auto;padding:0 16px}
h1{font-size:20px}h2{font-size:12px;text-transform:uppercase;letter-spacing:.06em;color:var(--mute);margin:28px 0 8px}
dl{display:flex;flex-wrap:wrap;gap:6px 24px}dt{color:var(--mute);font-size:12px}dd{margin:0;font-weight:600}
.curves{display:grid;grid-template-columns:repeat(auto-fill,minmax(320px,1fr));gap:14px}figure{margin:0;border:1px solid var(--line);border-radius:10px;padding:10px 12px}
svg{width:100%;height:auto}polyline{fill:none;stroke:var(--accent);stroke-width:1.6}circle{fill:var(--accent)}svg text{font-size:10px;fill:var(--mute)}
.small{font-size:11.5px;color:var(--mute);margin:4px 0 0}table{border-collapse:collapse;width:100%}th,td{text-align:left;vertical-align:top;padding:4px 8px;border-bottom:1px solid var(--line);font-weight:400}
.bar{width:50%}.bar i{display:block;height:9px;border-radius:9px;background:var(--accent);margin-top:5px}pre,code{font:12.5px/1.5 ui-monospace,monospace;white-space:pre-wrap;overflow-wrap:anywhere;margin:0}
details{border:1px solid var(--line);border-radius:10px;padding:8px 12px;margin-bottom:8px}summary{cursor:pointer}details pre{background:var(--field);border-radius:6px;padding:3px 8px}
"""
