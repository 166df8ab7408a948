"""Python values -> what SQLite can keep and give back: clean text, finite numbers, valid JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def text(value: Any) -> str:
    """Any string as valid UTF-8 without NUL: a lone surrogate becomes "?", a NUL U+FFFD.

    Neither can be shown. SQLite refuses the first; behind the second its own functions, LIKE among
    them, are blind.
    """
    return str(value).encode("utf-8", "replace").decode().replace("\0", "\ufffd")


def finite_or_none(value: Any) -> float | None:
    """A finite float, or None.

    SQLite would silently turn NaN into NULL, but keep infinities, which break JSON and charts.
    """
    if value is None:
        return None
    value = float(value)
    return value if math.isfinite(value) else None


def integer(value: Any) -> int:
    """A number from outside as one that SQLite can hold.

    What is out of its range is as far as it goes.
    """
    return max(-(2**63), min(2**63 - 1, int(value)))


def to_json(value: Any) -> str:
    """Compact JSON that any parser accepts.

    What JSON does not know (paths, dtypes) is kept as its text.
    """
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
