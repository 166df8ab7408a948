"""Clipping and a trust region side by side, over the ratio of a token, as SVG. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from grpo_core.analysis.walk_picture import RatioPicture
from ui.render.text import plain, short

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 420, 210, 34, 12, 14, 34
MOST_TOKENS = 160  # drawn; a dot more would hide others


@dataclass(frozen=True, slots=True)
class _Plane:
    """Where numbers are in a picture."""

    x0: float
    x1: float
    y0: float
    y1: float

    def x(self, value: float) -> float:
        part = (min(max(value, self.x0), self.x1) - self.x0) / (self.x1 - self.x0)
        return LEFT + part * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        part = (min(max(value, self.y0), self.y1) - self.y0) / (self.y1 - self.y0)
        return HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM)

    def line(self, xs: Sequence[float], ys: Sequence[float], kind: str) -> str:
        points = " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in zip(xs, ys, strict=True))
        return f'<polyline class="{kind}" points="{points}"/>'

    def dot(self, x: float, y: float, kind: str) -> str:
        return f'<circle class="dot {kind}" cx="{self.x(x):.1f}" cy="{self.y(y):.1f}" r="2.6"/>'

    def text(self, x: float, y: float, words: str, anchor: str = "middle") -> str:
        return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{words}</text>'

    def axis(self, ticks: Sequence[float]) -> str:
        marks = "".join(
            self.text(self.x(t), HEIGHT - BOTTOM + 14, plain(round(t, 3))) for t in ticks
        )
        base = self.y(max(self.y0, min(0.0, self.y1)))
        return (
            f'<line class="base" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base:.1f}" y2="{base:.1f}"/>'
            f'<line class="one" x1="{self.x(1):.1f}" x2="{self.x(1):.1f}" y1="{TOP}" '
            f'y2="{HEIGHT - BOTTOM}"/>{marks}'
            + self.text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, "ratio w = p / p_old")
        )


def pictures(p: RatioPicture) -> str:
    """Both pictures; each also says in words what it shows."""
    step = max(1, math.ceil(len(p.tokens) / MOST_TOKENS))
    return f'<div class="walk-pictures">{_clipping(p, step)}{_trust_region(p, step)}</div>'


def _clipping(p: RatioPicture, step: int) -> str:
    values = [*p.push_up, *p.push_down]
    plane = _Plane(p.ratios[0], p.ratios[-1], min(values) * 1.1, max(values) * 1.1)
    limited = p.high < math.inf
    low, high = max(p.low, p.ratios[0]), min(p.high, p.ratios[-1])
    band = (
        f'<rect class="band" x="{plane.x(low):.1f}" y="{TOP}" '
        f'width="{plane.x(high) - plane.x(low):.1f}" height="{HEIGHT - TOP - BOTTOM}"/>'
        if limited
        else ""
    )
    dots = "".join(
        plane.dot(t.ratio, _at(p, t.ratio, t.advantage > 0), "up" if t.advantage > 0 else "down")
        for t in p.tokens[::step]
        if t.advantage
    )
    ticks = [1.0, *([p.low] if p.low > p.ratios[0] else []), *([p.high] if limited else [])]
    outside = sum(
        (t.ratio > p.high and t.advantage > 0) or (t.ratio < p.low and t.advantage < 0)
        for t in p.tokens
    )
    said = (
        f"The push on a token by its ratio. Range {plain(round(p.low, 4))} to "
        f"{plain(round(p.high, 4))}; {outside} of {len(p.tokens)} tokens get no more push."
        if limited
        else "The push on a token by its ratio. This objective does not limit it."
    )
    drawn = (
        f"{band}{plane.axis(ticks)}{plane.line(p.ratios, p.push_up, 'curve up')}"
        f"{plane.line(p.ratios, p.push_down, 'curve down')}{dots}"
        f"{plane.text(WIDTH - RIGHT, TOP + 10, 'A &gt; 0: push up', 'end')}"
        f"{plane.text(LEFT, HEIGHT - BOTTOM - 6, 'A &lt; 0: push down', 'start')}"
    )
    return _figure("Clipping: each token for itself", drawn, said)


def _at(p: RatioPicture, ratio: float, up: bool) -> float:
    """The curve's value at a ratio: at the nearest drawn point."""
    values = p.push_up if up else p.push_down
    span = p.ratios[-1] - p.ratios[0]
    place = round((ratio - p.ratios[0]) / span * (len(values) - 1))
    return values[min(max(place, 0), len(values) - 1)]


def _trust_region(p: RatioPicture, step: int) -> str:
    mean = sum(p.tokens_moved) / len(p.tokens_moved) if p.tokens_moved else 0.0
    top = max(*p.moved, p.delta * 1.6, mean * 1.2)
    plane = _Plane(p.ratios[0], p.ratios[-1], 0.0, top)
    dots = "".join(
        plane.dot(t.ratio, m, "up" if t.advantage > 0 else "down" if t.advantage else "none")
        for t, m in list(zip(p.tokens, p.tokens_moved, strict=True))[::step]
    )
    y, at = plane.y(p.delta), plane.y(mean)
    lines = (
        f'<line class="limit" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        + plane.text(WIDTH - RIGHT, TOP + 10, f"– – limit of the mean, δ = {plain(p.delta)}", "end")
    )
    said = "What a token adds to KL(old ‖ new)."
    if p.tokens:
        lines += (
            f'<line class="mean" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
        )
        when = "after the step" if p.after else "in the update"
        verdict = "inside" if mean <= p.delta else "beyond"
        said += (
            f" The mean of this group’s {len(p.tokens)} tokens {when} is {short(mean)}: "
            f"{verdict} a trust region of δ = {plain(p.delta)}."
        )
    drawn = f"{plane.axis([1.0])}{plane.line(p.ratios, p.moved, 'curve')}{lines}{dots}"
    return _figure("Trust region: all tokens together", drawn, said)


def _figure(title: str, drawn: str, said: str) -> str:
    return (
        f"<figure><figcaption><b>{title}</b></figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}. {said}">{drawn}</svg>'
        f"<p>{said}</p></figure>"
    )
