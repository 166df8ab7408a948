"""The measured pairs of benchmarks/results as a picture, docs/screenshots/bench.png: how many times as fast, and what share of the memory.

python benchmarks/picture.py
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "screenshots" / "bench.png"
SPEED_GOALS = {"W1-kl0": 2.0, "W1-kl.02": 2.0, "W2": 6.0}  # of the project
MEMORY_GOALS = {"W2": 0.25, "W3": 0.25}
OURS, GOAL = "#4150d6", "#ad4c0a"


def save(figure: Any, path: Path, ready: str = ".js-plotly-plot .main-svg") -> None:
    """A Plotly figure as PNG, through Chromium. ready: what the drawn figure has."""
    from playwright.sync_api import sync_playwright
    from plotly.offline import get_plotlyjs

    text = f"<script>{get_plotlyjs()}</script>{figure.to_html(include_plotlyjs=False, full_html=False, config={'staticPlot': True})}"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(
            viewport={"width": figure.layout.width + 20, "height": figure.layout.height + 20}
        )
        page.set_content(text)
        page.wait_for_selector(ready)
        page.locator(".js-plotly-plot").screenshot(path=path)
        browser.close()
    print(path)


def measured() -> list[dict[str, Any]]:
    """The rows with a peer, in the order of the workloads."""
    rows = [
        row
        for file in sorted((ROOT / "benchmarks" / "results").glob("w*.json"))
        for row in json.loads(file.read_text("utf-8"))["results"]
    ]
    return sorted((r for r in rows if r["peer_name"] == "trl"), key=lambda r: r["workload"])


def main() -> None:
    from plotly.subplots import make_subplots

    rows = measured()
    figure = make_subplots(
        1,
        2,
        subplot_titles=[
            "times TRL's steps per second (bar: median, points: pairs)",
            "share of TRL's peak memory",
        ],
        horizontal_spacing=0.09,
    )
    for column, (key, goals, digits) in enumerate(
        (("speed", SPEED_GOALS, 2), ("memory", MEMORY_GOALS, 2)), 1
    ):
        names = [
            f"{r['workload']}<br>{r['pairs']} pair{'s' if r['pairs'] > 1 else ''}" for r in rows
        ]
        figure.add_bar(
            x=names,
            y=[r[f"{key}_ratio"] for r in rows],
            text=[f"{r[f'{key}_ratio']:.{digits}f}" for r in rows],
            textposition="inside",
            insidetextanchor="start",
            textfont={"color": "white", "size": 15},
            marker={"color": OURS},
            width=0.55,
            showlegend=False,
            row=1,
            col=column,
        )
        points = [(n, v) for n, r in zip(names, rows, strict=True) for v in r[f"{key}_ratios"]]
        figure.add_scatter(
            x=[n for n, _ in points],
            y=[v for _, v in points],
            mode="markers",
            marker={"color": "white", "size": 7, "line": {"color": "#1b2130", "width": 1.5}},
            showlegend=False,
            row=1,
            col=column,
        )
        wanted = [
            (n, goals[r["workload"]])
            for n, r in zip(names, rows, strict=True)
            if r["workload"] in goals
        ]
        figure.add_scatter(
            x=[n for n, _ in wanted],
            y=[v for _, v in wanted],
            mode="markers",
            name="goal",
            showlegend=column == 1,
            marker={"symbol": "line-ew-open", "color": GOAL, "size": 46, "line": {"width": 3}},
            row=1,
            col=column,
        )
        figure.add_hline(
            y=1, line={"color": "#646d82", "dash": "dot", "width": 1}, row=1, col=column
        )
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
