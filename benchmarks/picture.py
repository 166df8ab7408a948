"""Draws benchmarks/results as docs/screenshots/bench.png: speed and memory beside TRL's.

python benchmarks/picture.py
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "screenshots" / "bench.png"
# Of the project: workload -> times as fast, share of the memory.
GOALS = {"speed": {"W1-kl0": 2.0, "W1-kl.02": 2.0, "W2": 6.0}, "memory": {"W2": 0.25, "W3": 0.25}}
TITLES = (
    "times TRL's steps per second (bar: median, points: pairs)",
    "share of TRL's peak memory",
)
OURS, GOAL = "#4150d6", "#ad4c0a"


def save(figure: Any, path: Path, ready: str = ".js-plotly-plot .main-svg") -> None:
    """Save a Plotly figure as PNG, through Chromium. ready: a selector that the drawing matches."""
    from playwright.sync_api import sync_playwright
    from plotly.offline import get_plotlyjs

    drawn = figure.to_html(include_plotlyjs=False, full_html=False, config={"staticPlot": True})
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(
            viewport={"width": figure.layout.width + 20, "height": figure.layout.height + 20}
        )
        page.set_content(f"<script>{get_plotlyjs()}</script>{drawn}")
        page.wait_for_selector(ready)
        page.locator(".js-plotly-plot").screenshot(path=path)
        browser.close()
    print(path)


def measured() -> list[dict[str, Any]]:
    """The rows beside TRL, in the order of the workloads."""
    rows = [
        row
        for file in sorted((ROOT / "benchmarks" / "results").glob("w*.json"))
        for row in json.loads(file.read_text("utf-8"))["results"]
    ]
    return sorted((r for r in rows if r["peer_name"] == "trl"), key=lambda r: r["workload"])


def add_column(figure: Any, rows: list[dict[str, Any]], key: str, column: int) -> None:
    """One field of the figure: bars, the pairs as points, the goals as lines."""
    at = {"row": 1, "col": column}
    names = [f"{r['workload']}<br>{r['pairs']} pair{'s' if r['pairs'] > 1 else ''}" for r in rows]
    medians = [r[f"{key}_ratio"] for r in rows]
    figure.add_bar(
        x=names,
        y=medians,
        text=[f"{median:.2f}" for median in medians],
        textposition="inside",
        insidetextanchor="start",
        textfont={"color": "white", "size": 15},
        marker={"color": OURS},
        width=0.55,
        showlegend=False,
        **at,
    )
    pairs = [(n, v) for n, r in zip(names, rows, strict=True) for v in r[f"{key}_ratios"]]
    figure.add_scatter(
        x=[name for name, _ in pairs],
        y=[value for _, value in pairs],
        mode="markers",
        marker={"color": "white", "size": 7, "line": {"color": "#1b2130", "width": 1.5}},
        showlegend=False,
        **at,
    )
    workloads = [(n, r["workload"]) for n, r in zip(names, rows, strict=True)]
    goals = [(n, GOALS[key][work]) for n, work in workloads if work in GOALS[key]]
    figure.add_scatter(
        x=[name for name, _ in goals],
        y=[value for _, value in goals],
        mode="markers",
        name="goal",
        showlegend=column == 1,
        marker={"symbol": "line-ew-open", "color": GOAL, "size": 46, "line": {"width": 3}},
        **at,
    )
    figure.add_hline(y=1, line={"color": "#646d82", "dash": "dot", "width": 1}, **at)


def main() -> None:
    from plotly.subplots import make_subplots

    rows = measured()
    figure = make_subplots(1, 2, subplot_titles=TITLES, horizontal_spacing=0.09)
    for column, key in enumerate(GOALS, 1):
        add_column(figure, rows, key, column)
    figure.update_layout(
        template="simple_white",
        width=1080,
        height=380,
        margin={"l": 45, "r": 15, "t": 45, "b": 50},
        font={"family": "sans-serif"},
        legend={"orientation": "h", "x": 0.43, "y": -0.1},
    )
    save(figure, PICTURE)


if __name__ == "__main__":
    main()
