"""The same without a browser: one file for each family of commands, each with its arguments and what it does."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from grpo_core.cli import checking, reading, serving, training
from grpo_core.cli.terminal import adder, printable
from grpo_core.errors import InvalidConfig, StudioError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 the run did not finish, 2 the request cannot be carried out."""
    parser = _parser()
    arguments, arguments.rest = parser.parse_known_args(argv)
    if arguments.rest and not getattr(arguments, "takes_rest", False):
        parser.error(f"unrecognized arguments: {' '.join(arguments.rest)}")
    try:
        return arguments.run(arguments)
    except InvalidConfig as error:
        return _refuse(arguments, [str(p) for p in error.problems])
    except StudioError as error:
        return _refuse(arguments, [str(error)])
    except BrokenPipeError:  # the reader, e.g. `head`, has seen enough
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
        prog="python -m grpo_core", description="GRPO Studio without a browser."
    )
    command = adder(parser.add_subparsers(required=True, metavar="COMMAND"))
    for family in (training, checking, reading, serving):
        family.add_commands(command)
    return parser
