"""Commands about preferences: judge pairs of stored answers; write and read files of them."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, TextIO

from grpo_core.analysis.text import format_number
from grpo_core.cli.request import find_run
from grpo_core.cli.terminal import AddCommand, printable
from grpo_core.errors import FieldProblem, InvalidConfig
from grpo_core.store import Store, preferences

if TYPE_CHECKING:
    from grpo_core.preferences.agreement import Agreement, Summary
    from grpo_core.preferences.pairs import Asker, Pair

VERDICT_OF = {"l": "left", "r": "right", "t": "tie", "s": "skip"}
# What a terminal sends for the arrow keys, after ESC.
ARROWS = {"[D": "l", "[C": "r", "[B": "t", "OD": "l", "OC": "r", "OB": "t"}
KEYS = "← or l left · → or r right · ↓ or t tie · s skip · u undo · q quit"
CTRL_D = "\x04"
_KEY = re.compile(r"(?s)\x1b[\[O].|.")


def add_commands(command: AddCommand) -> None:
    compare = command(
        "compare-answers",
        compare_command,
        "Show two stored answers to one prompt at a time and store which one is better.",
        epilog=f"Keys: {KEYS}.\nEach judgement is stored at once. Without a terminal, each line of "
        "the input is one key.\nThe last line of --json is {judged, skipped, with_self, "
        "with_others}.",
    )
    compare.add_argument(
        "--run", dest="run_id", metavar="RUN", help="only of this run: id, its start, or `last`"
    )
    compare.add_argument("--who", metavar="NAME", default="", help="who judges")
    compare.add_argument("--seed", type=int, default=0, help="draws other pairs (default 0)")
    files = command(
        "preferences",
        preferences_command,
        "Write or read preferences as a file of chosen and rejected answers.",
        epilog="The file is .jsonl or .parquet with the columns prompt, chosen and rejected, as in "
        "UltraFeedback\nand HH-RLHF. Ties have true in the column tie; skipped pairs are left out.",
    )
    files.add_argument("action", choices=["export", "import"])
    files.add_argument("file", metavar="FILE")
    files.add_argument("--chat", action="store_true", help="export: answers as chat messages")
    files.add_argument(
        "--map",
        metavar="COLUMN=NAME",
        action="append",
        default=[],
        help="import: a column's name in the file, e.g. chosen=better; may be repeated",
    )
    files.add_argument("--who", metavar="NAME", default="", help="import: who judged")


def compare_command(arguments: argparse.Namespace) -> int:
    from grpo_core.preferences.pairs import Asker

    store = Store(arguments.db)
    run_id = find_run(store, arguments.run_id).id if arguments.run_id else None
    asker = Asker(arguments.who.strip(), run_id, arguments.seed)
    shown = sys.stderr if arguments.json else sys.stdout
    # A person may press Ctrl-C at any time: all that was judged is stored.
    with suppress(KeyboardInterrupt):
        is_all = _judge(store, asker, shown)
        print("There is no further pair." if is_all else "", file=shown)
    _report(store, asker, arguments.json)
    return 0


def _judge(store: Store, asker: Asker, shown: TextIO) -> bool:
    """Ask until there is no pair left (True), or the person quits."""
    from grpo_core.preferences.pairs import next_pair, pair_of

    keys, made = _keys(sys.stdin), []
    pair = next_pair(store, preferences.read(store), asker)
    while pair is not None:
        print(_shown(pair, len(made) + 1), file=shown)
        since = time.monotonic()
        key = next((k for k in keys if k in (*VERDICT_OF, "u", "q")), "q")
        if key == "q":
            return False
        if key != "u":
            row = pair.judged(VERDICT_OF[key], asker.who, "terminal", time.monotonic() - since)
            made.append((preferences.add(store, [row])[0], row))
            print(f"  stored: {row.verdict}", file=shown, flush=True)
            pair = next_pair(store, preferences.read(store), asker)
        elif made:
            judged_id, row = made.pop()
            preferences.remove(store, [judged_id])
            print("  taken back", file=shown, flush=True)
            pair = pair_of(row)
        else:
            print("  nothing to take back", file=shown, flush=True)
    return True


def _shown(pair: Pair, number: int) -> str:
    rule = "─" * 72
    text = (
        f"{rule}\nPair {number}\n{pair.prompt}\n{rule}\nLEFT\n{pair.left}\n{rule}\n"
        f"RIGHT\n{pair.right}\n{rule}\n{KEYS}"
    )
    return printable(text)


def _keys(source: TextIO) -> Iterator[str]:
    """Pressed keys, one at a time; without a terminal the first letter of each line."""
    if not source.isatty():
        for line in source:
            word = line.strip()
            yield ARROWS.get(word.lstrip("\x1b"), word[:1].lower())
        return
    import termios
    import tty

    number = source.fileno()
    before = termios.tcgetattr(number)
    while True:
        # Only while it waits is the terminal in another mode.
        try:
            tty.setcbreak(number, termios.TCSADRAIN)  # keys typed ahead are kept
            pressed = os.read(number, 64).decode("utf-8", "ignore")
        finally:
            termios.tcsetattr(number, termios.TCSADRAIN, before)
        for key in map(str, _KEY.findall(pressed)):
            if key == CTRL_D:
                return
            yield ARROWS.get(key.lstrip("\x1b"), key.lower())


def _report(store: Store, asker: Asker, as_json: bool) -> None:
    from grpo_core.preferences.agreement import summary

    found = summary(preferences.read(store), asker.who)
    if as_json:
        print(json.dumps(_as_data(found)))
        return
    print(f"{found.num_judged} judged, {found.num_skipped} skipped. {_kappa(found.own)} yourself.")
    for name, agreement in found.others.items():
        print(printable(f"{_kappa(agreement)} {name or 'people without a name'}."))


def _as_data(found: Summary) -> dict[str, object]:
    others = {name: {"kappa": a.kappa, "pairs": a.num_pairs} for name, a in found.others.items()}
    own = {"kappa": found.own.kappa, "pairs": found.own.num_pairs}
    return {
        "judged": found.num_judged,
        "skipped": found.num_skipped,
        "with_self": own,
        "with_others": others,
    }


def _kappa(a: Agreement) -> str:
    return f"κ {format_number(a.kappa)} over {a.num_pairs} pairs with"


def preferences_command(arguments: argparse.Namespace) -> int:
    from grpo_core.preferences.exchange import export_preferences, import_preferences

    store = Store(arguments.db)
    if arguments.action == "export":
        num = export_preferences(store, arguments.file, arguments.chat)
        result = {"path": arguments.file, "rows": num}
        line = f"{arguments.file}: {num:,} preferences"
    else:
        found = import_preferences(
            store, arguments.file, dict(map(_mapped, arguments.map)), arguments.who.strip()
        )
        result = {
            "path": arguments.file,
            "added": found.num_added,
            "known": found.num_known,
            "bad": found.num_bad,
            "reasons": found.reasons,
        }
        line = f"{arguments.file}: {found}"
    print(json.dumps(result) if arguments.json else printable(line))
    return 0


def _mapped(text: str) -> tuple[str, str]:
    column, equals, name = text.partition("=")
    if not equals or not name:
        hint = "Write COLUMN=NAME, e.g. chosen=better_answer."
        raise InvalidConfig([FieldProblem("--map", text, "there is no name after =", hint)])
    return column, name
