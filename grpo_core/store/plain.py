"""Python values -> what SQLite can store: clean text, finite numbers, valid JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any


def text(value: Any) -> str:
    """Valid UTF-8 without NUL: a lone surrogate becomes "?", a NUL U+FFFD.

    SQLite refuses a surrogate, and its own functions, such as LIKE, stop reading at a NUL.
    """
    return str(value).encode("utf-8", "replace").decode().replace("\0", "\ufffd")


def finite_or_none(value: Any) -> float | None:
    """A finite float, or None.

    SQLite turns NaN into NULL silently, and stores infinities, which break JSON and charts.
    """
    if value is None:
        return None
    value = float(value)
    return value if math.isfinite(value) else None


def integer(value: Any) -> int:
    """A number from outside, limited to the range of a SQLite integer."""
    return max(-(2**63), min(2**63 - 1, int(value)))


def to_json(value: Any) -> str:
    """Compact JSON that any parser accepts. Other types (paths, dtypes) become text."""
    return json.dumps(_clean(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _clean(value: Any) -> Any:
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return finite_or_none(value)
    if isinstance(value, Mapping):
        return {text(k): _clean(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(v) for v in value]
    return text(value)


def insertion(table: str, names: Sequence[str]) -> str:
    """SQL that inserts a row. A run or group that was deleted meanwhile is left out of it."""
    tables = {"run_id": "runs", "group_id": "groups"}
    values = [
        f"(SELECT id FROM {tables[name]} WHERE id = :{name})" if name in tables else f":{name}"
        for name in names
    ]
    return f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join(values)})"
