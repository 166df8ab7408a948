"""Which group of a run, as text between browser and server: "37/2" is step 37, third group.

The text comes from a browser, so anything may arrive.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from grpo_core.types import GroupKind
from ui.render.place import Place

_TEXT = re.compile(r"(e?)([0-9]{1,9})/([0-9]{1,6})")

GroupRef = tuple[int, int]  # the step, and the group's position in it, from 0


def parse_place(text: Any) -> Place | None:
    match = _TEXT.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        return None
    kind = GroupKind.EVALUATION if match[1] else GroupKind.TRAINING
    return Place(int(match[2]), int(match[3]), kind)


def parse(text: Any) -> GroupRef | None:
    """A group of a step, with which the run trains."""
    place = parse_place(text)
    return place[:2] if place and not place.is_evaluation else None


def text(ref: GroupRef | None) -> str:
    return "" if ref is None else str(Place(*ref))


def from_query(query: Mapping[str, Any]) -> Place | None:
    """The group in ?step=37&group=3, where groups count from 1, as on the page.

    With &kind=evaluation it is one of the evaluation after that step.
    """
    step, group = str(query.get("step", "")), str(query.get("group", "1"))
    if not (step.isascii() and step.isdigit() and len(step) < 10):
        return None
    valid = group.isascii() and group.isdigit() and len(group) < 7 and int(group) > 0
    known = query.get("kind") == GroupKind.EVALUATION
    kind = GroupKind.EVALUATION if known else GroupKind.TRAINING
    return Place(int(step), int(group) - 1 if valid else 0, kind)
