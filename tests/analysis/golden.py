"""The settings of the golden groups: accuracy, and format with a fifth of its weight."""

from __future__ import annotations

from grpo_core.config import nest, parse

CRITERIA = (
    {"name": "accuracy", "check": "accuracy", "weight": 1.0, "outcome": True},
    {"name": "format", "check": "format", "weight": 0.2},
)


def config(**fields):
    return parse(nest({"rubric.name": "custom", "rubric.criteria": CRITERIA, **fields}))
