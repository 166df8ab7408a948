"""Which group of a run, as text between browser and server: "37/2" is step 37, third group.

The text comes from a browser, so anything may arrive.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_TEXT = re.compile(r"([0-9]{1,9})/([0-9]{1,6})")

GroupRef = tuple[int, int]  # the step, and the group's position in it, from 0


def parse(text: Any) -> GroupRef | None:
    match = _TEXT.fullmatch(text) if isinstance(text, str) else None
    return (int(match[1]), int(match[2])) if match else None


def text(ref: GroupRef | None) -> str:
    return "" if ref is None else f"{ref[0]}/{ref[1]}"


def from_query(query: Mapping[str, Any]) -> GroupRef | None:
    """The group in ?step=37&group=3, where groups count from 1, as on the page."""
    step, group = str(query.get("step", "")), str(query.get("group", "1"))
    if not (step.isascii() and step.isdigit() and len(step) < 10):
        return None
    valid = group.isascii() and group.isdigit() and len(group) < 7 and int(group) > 0
    return (int(step), int(group) - 1 if valid else 0)
