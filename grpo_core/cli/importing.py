"""The command `import`: the run of another trainer, from its files."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
import time

from grpo_core.cli.terminal import AddCommand, printable
from grpo_core.errors import FieldProblem, InvalidConfig
from grpo_core.records.formats import FORMATS
from grpo_core.records.importing import Asked, Imported, import_folder
from grpo_core.records.watching import watch_folder
from grpo_core.store import Store

TELL_SECONDS = 2.0  # between two lines about a long import


def add_commands(command: AddCommand) -> None:
    reader = command(
        "import",
        import_command,
        "Read a run that another trainer recorded. A second import adds only what is new.",
    )
    reader.add_argument("path", metavar="PATH", help="a file, or the folder of a run")
    reader.add_argument(
        "--from",
        dest="format",
        default="",
        metavar="FORMAT",
        help=f"the format, if its fields do not tell: {', '.join(FORMATS)}",
    )
    reader.add_argument("--name", default="", help="name of the run")
    reader.add_argument(
        "--columns",
        action="append",
        default=[],
        metavar="ROLE=COLUMN",
        help="a column of a table, e.g. completion=answer_text; may be repeated",
    )
    reader.add_argument(
        "--weight",
        action="append",
        default=[],
        metavar="FUNCTION=NUMBER",
        help="weight of a reward function, where the files lack it; may be repeated",
    )
    reader.add_argument("--watch", action="store_true", help="follow files that still grow")


def import_command(arguments: argparse.Namespace) -> int:
    asked = Asked(
        format=arguments.format,
        name=arguments.name,
        columns=dict(_pair("--columns", text) for text in arguments.columns),
        weights=dict(map(_weight, arguments.weight)),
    )
    store = Store(arguments.db)
    if not arguments.watch:
        _show(import_folder(store, arguments.path, asked, _telling()), arguments.json)
        return 0
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    print(f"following {printable(arguments.path)}; Ctrl-C ends it", file=sys.stderr)
    found = watch_folder(store, arguments.path, asked, stop, _news)
    if found is None:
        print("error: nothing came that could be read", file=sys.stderr)
        return 1
    _show(found, arguments.json)
    return 0


def _pair(option: str, text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        problem = FieldProblem(option, text, "there is no = in it", "Write NAME=VALUE.")
        raise InvalidConfig([problem])
    return name.strip(), value


def _weight(text: str) -> tuple[str, float]:
    name, value = _pair("--weight", text)
    try:
        return name, float(value)
    except ValueError:
        hint = "Write FUNCTION=NUMBER, e.g. format=0.5."
        raise InvalidConfig([FieldProblem("--weight", text, "not a number", hint)]) from None


def _telling():
    """A line every few seconds, so that a long import is seen to go on."""
    told_at = time.monotonic()

    def tell(steps: int, rollouts: int) -> None:
        nonlocal told_at
        if time.monotonic() - told_at >= TELL_SECONDS:
            told_at = time.monotonic()
            print(f"{rollouts:,} completions of {steps:,} steps", file=sys.stderr)

    return tell


def _news(found: Imported) -> None:
    print(f"{found.steps:,} steps, {found.rollouts:,} completions", file=sys.stderr)


def _show(found: Imported, as_json: bool) -> None:
    for line in found.left_out:
        print(f"left out: {printable(line)}", file=sys.stderr)
    if as_json:
        names = ("run_id", "format", "steps", "groups", "rollouts")
        fields = {name: getattr(found, name) for name in names}
        lists = {n: [*getattr(found, n)] for n in ("recorded", "recomputed", "absent")}
        if found.others:
            lists["others"] = [*found.others]
        print(json.dumps(fields | lists))
        return
    added = f"{found.added:,} parts new" if found.added else "nothing new"
    print(
        f"{found.run_id}: {found.steps:,} steps, {found.groups:,} groups, "
        f"{found.rollouts:,} completions from {FORMATS[found.format].title} ({added})"
    )
    if found.others:
        print(f"further runs of the project: {', '.join(found.others)}")
    print(f"recorded: {', '.join(found.recorded) or 'nothing'}")
    for name, how in found.recomputed.items():
        print(f"recomputed: {name} ({how})")
    print(f"absent: {', '.join(found.absent) or 'nothing'}")
    if found.disagreements:
        print(f"{found.disagreements:,} groups have other advantages than their rewards give")
