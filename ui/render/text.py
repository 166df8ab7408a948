"""Foreign text as HTML that shows exactly that text, and numbers as text. Pure."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import TypeGuard

from grpo_core.analysis.text import esc, visible, whole

__all__ = [
    "MINUS",
    "NONE",
    "count",
    "digits_apart",
    "duration",
    "esc",
    "format_number",
    "indexing",
    "is_number",
    "percent",
    "plain",
    "short",
    "shorten",
    "signed",
    "size",
    "visible",
    "when",
    "whole",
]

MINUS, NONE = "−", "–"
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def format_number(value: float | None, digits: int = 2) -> str:
    """A fixed number of decimals, so that columns line up; a true minus sign; a dash for None."""
    if not is_number(value):
        return NONE
    text = f"{value:.{digits}f}"
    if float(text) == 0:  # no "-0.00"
        text = text.lstrip("-")
    return text.replace("-", MINUS)


def signed(value: float | None, digits: int = 2) -> str:
    """A number that always has its sign, so that colour is not the only cue."""
    text = format_number(value, digits)
    if text == NONE or text.startswith(MINUS) or float(text) == 0:
        return text
    return f"+{text}"


def short(value: float | None) -> str:
    """Three significant digits: 1.21, 0.0421, 1.2e-06, 5,210."""
    if not is_number(value):
        return NONE
    size = abs(value)
    if size == 0:
        return "0"
    if size >= 1000:
        text = f"{value:,.0f}"
    elif size >= 0.001:
        text = f"{value:.{max(0, 2 - math.floor(math.log10(size)))}f}"
    else:
        text = f"{value:.1e}"
    return text.replace("-", MINUS, 1) if value < 0 else text


def plain(value: float) -> str:
    """A setting in its shortest form: 0.2, 1, 1e-06."""
    text = f"{value:g}"
    return text.replace("-", MINUS, 1) if value < 0 else text


def shorten(text: str, most: int = 28) -> str:
    """A long name with an ellipsis in its middle, so that its beginning and its end are seen."""
    if len(text) <= most:
        return text
    end = most // 3
    return f"{text[: most - end - 1].rstrip()}…{text[-end:].lstrip()}"


def percent(value: float | None) -> str:
    return f"{100 * value:.0f} %" if is_number(value) else NONE


def digits_apart(values: Sequence[float | None], least: int = 2, most: int = 5) -> int:
    """The fewest decimals that keep different values different: .500 and .501 are not both 0.50."""
    distinct = {v for v in values if is_number(v)}
    for digits in range(least, most):
        if len({f"{v:.{digits}f}" for v in distinct}) == len(distinct):
            return digits
    return most


def duration(seconds: float | None) -> str:
    """0:06, 12:40, 3:05:00."""
    if not is_number(seconds):
        return NONE
    total = max(0, int(seconds))
    hours, minutes, rest = total // 3600, total // 60 % 60, total % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def size(num_bytes: float) -> str:
    """812 B, 41 kB, 1.2 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(num_bytes) < 1000 or unit == "GB":
            return f"{num_bytes:.0f} {unit}" if unit in ("B", "kB") else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    raise AssertionError


def when(timestamp: float | None, now: float | None = None) -> str:
    """The date and the time of day, in the server's time zone; the year if it is another one."""
    if not is_number(timestamp):
        return NONE
    then = time.localtime(timestamp)
    year = "" if then.tm_year == time.localtime(now).tm_year else f" {then.tm_year}"
    return f"{then.tm_mday} {MONTHS[then.tm_mon - 1]}{year} {then.tm_hour:02}:{then.tm_min:02}"


def indexing(unsearched: int) -> str:
    """A paragraph with the number of completions that are not indexed yet; empty if none."""
    if not unsearched:
        return ""
    return (
        '<p class="note" role="status">The index is being built: '
        f"{count(unsearched, 'completion')} not searched yet. "
        "This list updates by itself.</p>"
    )


def count(n: int | None, noun: str) -> str:
    """1 group, 2 groups, 6,400 completions; – groups where it is not known."""
    if n is None:
        return f"{NONE} {noun}s"
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"
