"""Quantities of a token as colours, the same in every completion, group and run. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from grpo_core.analysis.token_loss import TokenTerms
from ui.render.text import is_number


@dataclass(frozen=True, slots=True)
class Scale:
    """How a quantity becomes a colour.

    part: value -> how strong its colour is, -1 to 1: orange below 0, none at 0, blue above 0.
    marks: values that the legend names; at the first and the last the colour is at its end.
    """

    title: str
    help: str
    part: Callable[[float], float]
    marks: Sequence[float]


def _unlikely(logprob: float) -> float:
    """1 − p, the probability of all other tokens."""
    return -math.expm1(min(0.0, logprob))


def _root(highest: float) -> Callable[[float], float]:
    """The square root, so that small values are seen beside large ones."""
    return lambda value: math.sqrt(min(1.0, max(0.0, value) / highest))


def _likelier(ratio: float) -> float:
    """The root of |log2 ratio|, with its sign: 2 and 1/2 are as far from 1."""
    log = math.log2(ratio) if ratio > 0 else -math.inf
    return math.copysign(math.sqrt(min(1.0, abs(log))), log)


def _magnitude(gradient: float) -> float:
    """The order of magnitude from 1e-6 to 1e-2, with its sign."""
    size = min(1.0, max(0.0, (math.log10(abs(gradient) or 1e-9) + 6) / 4))
    return math.copysign(size, gradient)


def _moved(change: float) -> float:
    """The root of the change in nats up to 1, with its sign."""
    return math.copysign(math.sqrt(min(1.0, abs(change))), change)


SCALES: dict[str, Scale] = {
    "logprob": Scale(
        "log-probability",
        "The darker, the less the policy expected it.",
        _unlikely,
        (0, -0.1, -0.5, -1, -2, -5),
    ),
    "ratio": Scale(
        "ratio",
        "New over old policy: blue has become likelier, orange less likely. "
        "1 in the first update of a batch.",
        _likelier,
        (0.5, 0.8, 0.95, 1, 1.05, 1.25, 2),
    ),
    "kl": Scale(
        "KL", "Distance from the reference at this token.", _root(1), (0, 0.01, 0.1, 0.3, 1)
    ),
    "entropy": Scale(
        "entropy",
        "How open the choice was. Forking tokens are dark.",
        _root(3),
        (0, 0.1, 0.5, 1, 3),
    ),
    "clip": Scale(
        "clip", "Dark where clipping removed the token's gradient.", lambda value: value, (0, 1)
    ),
    "gradient": Scale(
        "gradient",
        "The update's direction: blue is made likelier, orange less likely.",
        _magnitude,
        (-1e-2, -1e-3, -1e-4, 0, 1e-4, 1e-3, 1e-2),
    ),
    "change": Scale(
        "what the update did",
        "Log-probability after the step’s update, minus before: blue has become likelier, "
        "orange less likely.",
        _moved,
        (-1, -0.3, -0.1, -0.01, 0, 0.01, 0.1, 0.3, 1),
    ),
}


def value_of(by: str, terms: TokenTerms, i: int) -> float:
    """The quantity `by`, a key of SCALES, of token i. "gradient" is −∂loss/∂log π: the update."""
    if by == "clip":
        return float(terms.clipped[i])
    if by == "gradient":
        return -terms.gradient[i]
    return {
        "logprob": terms.logprob,
        "ratio": terms.ratio,
        "kl": terms.kl,
        "entropy": terms.entropy,
        "change": terms.change,
    }[by][i]


def colour_of(scale: Scale, value: float) -> tuple[str, str]:
    """Class and style of a value's colour; a value that is not known has none."""
    part = scale.part(value) if is_number(value) else 0.0
    return " down" if part < 0 else "", f"--v:{abs(part):.3f}"
