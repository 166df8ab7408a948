"""How a command is added to the parser: every one has --db, --json and the function that carries it out."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

DEFAULT_DB = "runs/grpo.sqlite"

AddCommand = Callable[..., argparse.ArgumentParser]  # (name, run, help, **of add_parser) -> the command's own parser


def adder(commands: Any) -> AddCommand:
    def add(name: str, run: Callable[[argparse.Namespace], int], help: str, **options: Any) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help, formatter_class=argparse.RawDescriptionHelpFormatter, **options)
        sub.add_argument("--db", default=DEFAULT_DB, help=f"the SQLite file (default {DEFAULT_DB})")
        sub.add_argument("--json", action="store_true", help="machine-readable output; the last line is one JSON value")
        sub.set_defaults(run=run)
        return sub

    return add
