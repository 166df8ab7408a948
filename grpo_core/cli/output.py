"""What the commands print: foreign text made harmless to a terminal, and a run in one line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from grpo_core.number import number
from grpo_core.store import RunRow


def printable(text: str) -> str:
    """Text from models, files and people without the control characters that a terminal would obey."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", "�", text)


def run_line(row: RunRow) -> str:
    heldout = f"held-out {number(row.heldout_before)} → {number(row.heldout_after)}"
    seconds = "" if row.duration_seconds is None else f"  {row.duration_seconds:.0f} s"
    return (f"{row.id}  {row.status:<11}  {printable(row.name)}  {row.steps_done} steps  "
            f"reward {number(row.reward_first)} → {number(row.reward_last)}  {heldout}{seconds}")


def plain(row: RunRow) -> Mapping[str, Any]:
    return {**asdict(row), "duration_seconds": row.duration_seconds}
