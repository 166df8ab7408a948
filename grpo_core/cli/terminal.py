"""What all commands share: adding a command to the parser, common options, printing safely."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from grpo_core.analysis.text import format_number
from grpo_core.store import RunRow

DEFAULT_DB = "runs/grpo.sqlite"
CONSOLE_SCRIPT = "grpo-studio"

Run = Callable[[argparse.Namespace], int]


class AddCommand(Protocol):
    """Adds a command to the parser and returns the parser of its arguments.

    takes_rest: the command has no options of its own. All arguments, `--help` included, are in
    `arguments.rest`, for the program that the command starts.
    """

    def __call__(
        self, name: str, run: Run, help: str, *, takes_rest: bool = False, epilog: str | None = None
    ) -> argparse.ArgumentParser: ...


def program() -> str:
    """What a user types before a command: the console script, or the module."""
    name = Path(sys.argv[0]).name
    return CONSOLE_SCRIPT if name == CONSOLE_SCRIPT else "python -m grpo_core"


def command_adder(commands: Any) -> AddCommand:
    """A function that adds a command. `commands` is what add_subparsers() returns."""

    def add(
        name: str, run: Run, help: str, *, takes_rest: bool = False, epilog: str | None = None
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=help,
            description=help,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            add_help=not takes_rest,
        )
        sub.set_defaults(run=run, takes_rest=takes_rest)
        if takes_rest:
            return sub
        sub.add_argument("--db", default=DEFAULT_DB, help=f"the SQLite file (default {DEFAULT_DB})")
        sub.add_argument(
            "--json", action="store_true", help="print JSON; the last line is one JSON value"
        )
        return sub

    return add


def add_config_options(parser: argparse.ArgumentParser, example: str = "") -> None:
    """`--config` and `--set`, from which request.build_config makes a configuration.

    And `--environments`, whose classes it may name.
    """
    parser.add_argument("--config", metavar="FILE", help="a configuration file, as `export` writes")
    add_set_option(parser, f"set one field{example}; may be repeated")
    add_environments_option(parser)


def add_environments_option(parser: argparse.ArgumentParser) -> None:
    """`--environments`; the program adds the files before it runs the command."""
    parser.add_argument(
        "--environments",
        metavar="FILE.py",
        action="append",
        default=[],
        help="a file whose classes are environments with tools, for task.environment; may be "
        "repeated. It runs in a sandbox, but load only files that you trust",
    )


def add_set_option(parser: argparse.ArgumentParser, help: str) -> None:
    parser.add_argument(
        "--set", metavar="section.field=value", action="append", default=[], help=help
    )


def add_run_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_id", metavar="RUN", help="id, the beginning of one, or `last`")


def printable(text: str) -> str:
    """Replace control characters: a terminal would execute those in foreign text."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", "�", text)


def run_line(row: RunRow) -> str:
    """A run on one line, for people."""
    heldout = f"held-out {format_number(row.heldout_before)} → {format_number(row.heldout_after)}"
    reward = f"reward {format_number(row.reward_first)} → {format_number(row.reward_last)}"
    seconds = "" if row.duration_seconds is None else f"  {row.duration_seconds:.0f} s"
    name = printable(row.name) + (" (example)" if row.example else "")
    return (
        f"{row.id}  {row.status:<11}  {name}  {row.steps_done} steps  {reward}  {heldout}{seconds}"
    )


def plain(row: RunRow) -> Mapping[str, Any]:
    """A run as data for JSON."""
    return {**asdict(row), "duration_seconds": row.duration_seconds}
