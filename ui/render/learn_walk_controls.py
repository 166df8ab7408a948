"""The control of each screen of the walk, and what a person changed with it. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from grpo_core.analysis.walk import Change, Walk
from grpo_core.config.options import ADVANTAGES, AGGREGATIONS, GROUPINGS
from ui.render.text import esc, is_number, plain

MAX_CHARS = 40
MOST = 1e6  # of a reward or a weight that a person types
# screen -> the fields of the configuration that it changes
FIELDS = {
    "prompt": ("grouping",),
    "advantages": ("advantage",),
    "ratio": ("clip_eps_low", "clip_eps_high"),
    "kl": ("kl_coef",),
    "loss": ("aggregation",),
}
CHOICES = {
    "grouping": tuple(GROUPINGS),
    "advantage": tuple(name for name in ADVANTAGES if name != "value"),
    "aggregation": tuple(AGGREGATIONS),
}
LABELS = {
    "grouping": "Compare with",
    "advantage": "Advantage",
    "clip_eps_low": "Clip range ε, low",
    "clip_eps_high": "Clip range ε, high",
    "kl_coef": "KL coefficient",
    "aggregation": "Aggregation",
    "size": "Group size G",
    "token": "Tokens of",
}


def own_values(screen: str, was: Walk) -> dict[str, str]:
    """The form of a screen for the group as it was: name -> text."""
    algorithm = was.config.algorithm
    if screen in FIELDS:
        values = {name: getattr(algorithm, name) for name in FIELDS[screen]}
        if screen == "kl":
            values = {"kl_coef": was.kl_coef}
        return {n: plain(v) if is_number(v) else str(v) for n, v in values.items()}
    if screen == "completions":
        return {"size": str(len(was.rows))}
    if screen == "scores":
        return {f"w:{c.name}": plain(c.weight) for c in was.config.rubric.criteria}
    if screen == "rewards":
        return {f"r:{row.rollout.position}": _reward(row.reward) for row in was.rows}
    return {"token": "0"}


def _reward(value: float | None) -> str:
    return plain(round(value, 6)) if is_number(value) else ""


def controls(screen: str, was: Walk, options: Any) -> str:
    """The form of a screen, with what a person changed on it."""
    own = own_values(screen, was)
    said = changed_texts(screen, was, options)
    knobs = "".join(_knob(name, said.get(name, value), was) for name, value in own.items())
    hint = "Change it, and every later number follows."
    if screen == "update":
        hint = "These numbers were measured; nothing on this screen can be changed."
    return (
        f'<form class="walk-form" onsubmit="return false" data-screen="{screen}" '
        'aria-label="Change one thing"><h4>Change one thing</h4>'
        f'<div class="knobs">{knobs}</div><p class="note">{hint}</p></form>'
    )


def _knob(name: str, value: str, was: Walk) -> str:
    if name in CHOICES:
        # A critic's advantage is no choice, but it may be the run's own.
        names = dict.fromkeys((getattr(was.config.algorithm, name), *CHOICES[name]))
        return _select(name, LABELS[name], [(n, n) for n in names], value)
    if name == "token":
        places = [(str(r.rollout.position), f"#{r.rollout.position + 1}") for r in was.rows]
        return _select(name, LABELS[name], places, value)
    if name == "size":
        field = f'type="number" min="1" max="{len(was.rows)}" step="1"'
    else:
        field = 'type="text" inputmode="decimal"'
    return (
        f'<label class="knob"><span>{esc(_label(name))}</span>'
        f'<input {field} name="{esc(name)}" value="{esc(value)}"></label>'
    )


def _label(name: str) -> str:
    if name.startswith("w:"):
        return f"Weight of {name.removeprefix('w:')}"
    if name.startswith("r:"):
        return f"Reward of #{int(name.removeprefix('r:')) + 1}"
    return LABELS[name]


def _select(name: str, label: str, choices: list[tuple[str, str]], value: str) -> str:
    options = "".join(
        f'<option value="{esc(key)}"{" selected" if key == value else ""}>{esc(text)}</option>'
        for key, text in choices
    )
    return (
        f'<label class="knob"><span>{esc(label)}</span>'
        f'<select name="{name}">{options}</select></label>'
    )


# ---- reading ---------------------------------------------------------------------------------


def changed_texts(screen: str, was: Walk, options: Any) -> dict[str, str]:
    """What the form of a screen says that differs from the group as it was. Anything may arrive."""
    form = options.get(screen) if isinstance(options, Mapping) else None
    if not isinstance(form, Mapping):
        return {}
    own = own_values(screen, was)
    return {
        name: value
        for name, value in form.items()
        if name in own and isinstance(value, str) and len(value) < MAX_CHARS and value != own[name]
    }


def read_change(was: Walk, options: Any) -> Change:
    """Everything that a person changed on any screen. Raises ValueError with the reason."""
    said = {
        name: value
        for screen in ("completions", "scores", "rewards", *FIELDS)
        for name, value in changed_texts(screen, was, options).items()
    }
    fields: dict[str, Any] = {}
    rewards: dict[int, float] = {}
    weights: dict[str, float] = {}
    size = None
    for name, value in said.items():
        if name in CHOICES:
            if value in CHOICES[name]:
                fields[f"algorithm.{name}"] = value
        elif name == "size":
            size = int(_number(name, value, 1, len(was.rows)))
        elif name.startswith("w:"):
            weights[name.removeprefix("w:")] = _number(name, value, 0, MOST)
        elif name.startswith("r:"):
            rewards[int(name.removeprefix("r:"))] = _number(name, value, -MOST, MOST)
        else:
            fields[f"algorithm.{name}"] = _number(name, value, 0, MOST)
    return Change(rewards, weights, fields, None if size == len(was.rows) else size)


def _number(name: str, text: str, low: float, high: float) -> float:
    try:
        value = float(text.strip().replace("\N{MINUS SIGN}", "-").replace(",", "."))
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise ValueError(
            f"{_label(name)}: write a number from {plain(low)} to {plain(high)}, not “{text}”."
        )
    return value


def read_token(was: Walk, options: Any) -> int:
    """The completion whose tokens the last screen lists."""
    text = changed_texts("update", was, options).get("token", "0")
    place = int(text) if text.isascii() and text.isdigit() else 0
    return place if place < len(was.rows) else 0


def summary(was: Walk, change: Change) -> str:
    """What is changed, in words, and Reset; empty if nothing is."""
    algorithm = was.config.algorithm
    own = {c.name: c.weight for c in was.config.rubric.criteria}
    parts = []
    if change.size is not None:
        parts.append(f"G {len(was.rows)} → {change.size}")
    parts += [
        f"weight of {n} {plain(own.get(n, 0))} → {plain(w)}" for n, w in change.weights.items()
    ]
    for position, reward in change.rewards.items():
        before = _reward(was.rows[position].reward) or "null"
        parts.append(f"reward of #{position + 1} {before} → {plain(reward)}")
    for name, value in change.fields.items():
        short = name.removeprefix("algorithm.")
        before = was.kl_coef if short == "kl_coef" else getattr(algorithm, short)
        parts.append(f"{LABELS[short]} {_text(before)} → {_text(value)}")
    if not parts:
        return ""
    return (
        f'<p class="walk-changed" role="status"><b>Changed</b> {esc("; ".join(parts))} '
        '<button type="button" data-do="reset">Reset</button></p>'
    )


def _text(value: Any) -> str:
    return plain(value) if is_number(value) else str(value)
