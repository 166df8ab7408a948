"""The command line: one module for each family of commands, with their arguments."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from grpo_core.cli import (
    checking,
    comparing,
    importing,
    playing,
    rating,
    reading,
    rewarding,
    scoring,
    serving,
    training,
)
from grpo_core.cli.terminal import command_adder, printable, program
from grpo_core.errors import InvalidConfig, StudioError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code.

    0: done. 1: the run did not finish, or a check found a problem. 2: the request was refused.
    """
    parser = _parser()
    arguments, arguments.rest = parser.parse_known_args(argv)
    if arguments.rest and not arguments.takes_rest:
        parser.error(f"unrecognized arguments: {' '.join(arguments.rest)}")
    try:
        if named := getattr(arguments, "environments", None):
            from grpo_core.environments.registry import add_environments

            add_environments(named)
        return arguments.run(arguments)
    except InvalidConfig as error:
        return _refuse(arguments, [str(p) for p in error.problems])
    except StudioError as error:
        return _refuse(arguments, [str(error)])
    except BrokenPipeError:  # the reader of the output, e.g. `head`, has closed it
        sys.stderr.close()
        return 0


def _refuse(arguments: argparse.Namespace, lines: list[str]) -> int:
    for line in lines:
        print(f"error: {printable(line)}", file=sys.stderr)
    if getattr(arguments, "json", False):
        print(json.dumps({"error": lines}))
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program(), description="GRPO Studio on the command line; `app` opens the page."
    )
    command = command_adder(parser.add_subparsers(required=True, metavar="COMMAND"))
    families = (
        training,
        comparing,
        checking,
        playing,
        scoring,
        rating,
        rewarding,
        reading,
        importing,
        serving,
    )
    for family in families:
        family.add_commands(command)
    return parser
