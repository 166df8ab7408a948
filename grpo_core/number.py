"""A number as a person reads it in running text, on a terminal and in a report."""

from __future__ import annotations


def number(value: float | None, digits: int = 4) -> str:
    """So many significant digits; a dash for what was not measured."""
    return "–" if value is None else f"{value:.{digits}g}"
