"""Rows -> figures for live_chart.js: plain data in Plotly's own vocabulary. Pure.

Figures name CSS variables instead of colours and sizes, so a chart follows the page's theme.
"""

from __future__ import annotations

from ui.render.charts.curves import DRAWN, Axis, Curves, View, smoothed
from ui.render.charts.frame import AXES
from ui.render.charts.live import DETAILS, FIGURES, OF_TURNS, SPIKED, figure
from ui.render.charts.verdict_shares import verdicts

__all__ = [
    "AXES",
    "DETAILS",
    "DRAWN",
    "FIGURES",
    "OF_TURNS",
    "SPIKED",
    "Axis",
    "Curves",
    "View",
    "figure",
    "smoothed",
    "verdicts",
]
