"""Cells of files and datasets: as JSON types, as text, and as the answer to a prompt."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

MISSING = object()  # the row has no such column
_UNREADABLE = "\0unreadable"  # the only key of a cell that is no text: why it is none
MAX_DIGITS = 40  # a longer whole number stays as its file writes it


class BadCell(ValueError):
    """A cell that cannot be used: the text says what it holds."""


def value_at(row: Mapping[str, Any], name: str) -> Any:
    """A column, or with dots a value inside one: reward_model.ground_truth. Else MISSING."""
    value: Any = row
    if name in row:
        return row[name]
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return MISSING
        value = value[part]
    return value


def plain(value: Any) -> Any:
    """A cell in JSON types: NaN is None, an array a list, a date its text, bytes UTF-8 text.

    Anything else, such as an image, becomes a cell that `cell_text` refuses.
    """
    if value is None or value is MISSING or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, Mapping):
        return {str(name): plain(v) for name, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, (bytes, bytearray, memoryview)):
        try:
            return bytes(value).decode()
        except UnicodeDecodeError:
            return {_UNREADABLE: "bytes that are not UTF-8 text"}
    if hasattr(value, "dtype") and hasattr(value, "tolist"):
        return _from_array(value)
    if isinstance(value, (float, Decimal, date, time, timedelta, UUID)):
        return _from_scalar(value)
    return {_UNREADABLE: f"a value of type {type(value).__name__}"}


def _from_array(value: Any) -> Any:
    """An array or one of its numbers, of numpy or any library like it."""
    if getattr(value, "ndim", 0):
        return [plain(v) for v in value.tolist()]
    if value.dtype.kind in "mM":  # as a number of nanoseconds it would mean nothing
        return None if str(value) == "NaT" else str(value)
    if value.dtype.kind == "f":  # float32 holds 0.1 as 0.10000000149011612
        return _from_scalar(float(str(value)))
    return plain(value.tolist())


def _from_scalar(value: Any) -> Any:
    if value.is_nan() if isinstance(value, Decimal) else value != value:
        return None
    if isinstance(value, float):
        return value
    if isinstance(value, Decimal) and value.is_finite() and abs(value.adjusted()) < MAX_DIGITS:
        return int(value) if value == value.to_integral_value() else format(value, "f")
    return str(value)


def cell_text(value: Any) -> str:
    """A cell as text; "" for a missing one. A whole number from a spreadsheet is "5", not "5.0".

    Lists and objects are JSON text. Raises BadCell for what is no text, such as bytes.
    """
    if isinstance(value, str):
        return value
    value = plain(value)
    if value is None or value is MISSING:
        return ""
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else str(value)
    if isinstance(value, (dict, list)):
        if reason := _reason(value):
            raise BadCell(f"it holds {reason}")
        return json.dumps(value, ensure_ascii=False)
    return str(value)


def _reason(value: Any) -> str:
    """Why a list or an object holds something that is no text; "" if it does not."""
    if isinstance(value, dict) and value.keys() == {_UNREADABLE}:
        return value[_UNREADABLE]
    children = value.values() if isinstance(value, dict) else value
    return next((r for c in children if isinstance(c, (dict, list)) and (r := _reason(c))), "")


def kind_of(value: Any) -> str:
    """What a cell holds, for messages: "a list of 2 values"."""
    if isinstance(value, dict):
        names = ", ".join(repr(name[:40]) for name in list(value)[:5])
        return value.get(_UNREADABLE) or f"an object with {names or 'nothing in it'}"
    if isinstance(value, list):
        return f"a list of {len(value)} value{'s' if len(value) != 1 else ''}"
    return f"a value of type {type(value).__name__}"


def single_text(value: Any) -> str:
    """The text of a cell that holds one answer: ["48"], 48 and 48.0 are "48", null is "".

    Raises BadCell for several different answers, and for objects.
    """
    if isinstance(value, str):
        return value
    value = plain(value)
    if isinstance(value, dict):
        raise BadCell(f"it holds {kind_of(value)}")
    if not isinstance(value, list):
        return cell_text(value)
    texts = [text for v in value if (text := single_text(v)).strip()]
    if len({text.strip() for text in texts}) > 1:
        shown = ", ".join(repr(text[:40]) for text in texts[:3])
        raise BadCell(f"it holds {len(texts)} answers ({shown})")
    return texts[0] if texts else ""
