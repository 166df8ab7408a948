"""The chart component: gr.HTML that owns its Plotly node.

Zoom and pan survive every refresh; gr.Plot would rebuild its node and lose them.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import gradio as gr

from ui.components.html_panel import script

# The template does not contain `value`, so Gradio never changes its content; live_chart.js draws.
_TEMPLATE = """<div class="curve-box"><figure class="curve">
<figcaption><span class="curve-head"><button type="button" class="curve-title"
title="What this shows" aria-expanded="false"></button>
<span class="curve-meaning" role="note" hidden><span></span><span></span><span></span>
<a href="?tab=learn" data-place>In the glossary</a></span></span>
<span class="curve-now"></span><button type="button" class="enlarge"></button></figcaption>
<div class="plot" role="group" tabindex="0"></div>
<button type="button" class="unzoom" hidden>Reset zoom</button>
<div class="under"><div class="legend"></div><span class="takes" hidden>
<button type="button" data-take="png" title="Save this picture">PNG</button>
<button type="button" data-take="csv"
title="Save the drawn points; every step: Runs, Export CSV">CSV</button></span></div>
<p class="curve-clipped" hidden><span></span>
<button type="button" class="whole">Show them</button></p>
<p class="curve-note"></p><p class="sr curve-at" role="status"></p></figure>
<dialog class="large-chart"></dialog></div>"""


def live_chart(figure: dict[str, Any], **options: Any) -> gr.HTML:
    """A curve. `live_chart(…).pick(…)` listens to clicks on points; the data is the point's step.

    figure: made by ui.render.charts.
    """
    return gr.HTML(
        figure,
        html_template=_TEMPLATE,
        # Gradio gives the component only those events whose quoted names this text contains.
        js_on_load="studioChart(element, props, trigger, watch); // triggers 'pick'",
        apply_default_css=False,
        padding=False,
        **options,
    )


def chart_scripts() -> str:
    """The JavaScript of all charts, for the head of the page."""
    return "".join(script(f"{name}.js") for name in ("live_chart", "chart_reading", "chart_files"))


def plotly_js() -> Path:
    """plotly.js from the plotly wheel, served locally, so that no request leaves this machine."""
    spec = importlib.util.find_spec("plotly")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "package_data" / "plotly.min.js"
