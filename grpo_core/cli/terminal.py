"""What all commands share: how one is added to the parser, and how foreign text and runs are printed."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from grpo_core.analysis.text import format_number
from grpo_core.store import RunRow

DEFAULT_DB = "runs/grpo.sqlite"

AddCommand = Callable[
    ..., argparse.ArgumentParser
]  # (name, run, help, **of add_parser) -> the command's own parser


def adder(commands: Any) -> AddCommand:
    def add(
        name: str, run: Callable[[argparse.Namespace], int], help: str, **options: Any
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=help,
            description=help,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **options,
        )
        sub.add_argument("--db", default=DEFAULT_DB, help=f"the SQLite file (default {DEFAULT_DB})")
        sub.add_argument(
            "--json",
            action="store_true",
            help="machine-readable output; the last line is one JSON value",
        )
        sub.set_defaults(run=run)
        return sub

    return add


def printable(text: str) -> str:
    """Text from models, files and people without the control characters that a terminal would obey."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", "�", text)


def run_line(row: RunRow) -> str:
    heldout = f"held-out {format_number(row.heldout_before)} → {format_number(row.heldout_after)}"
    seconds = "" if row.duration_seconds is None else f"  {row.duration_seconds:.0f} s"
    return (
        f"{row.id}  {row.status:<11}  {printable(row.name)}  {row.steps_done} steps  "
        f"reward {format_number(row.reward_first)} → {format_number(row.reward_last)}  {heldout}{seconds}"
    )


def plain(row: RunRow) -> Mapping[str, Any]:
    return {**asdict(row), "duration_seconds": row.duration_seconds}
