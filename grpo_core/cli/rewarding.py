"""The command reward-model: train a reward model from people's preferences."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from grpo_core.cli.terminal import DEFAULT_DB, AddCommand, printable
from grpo_core.errors import StudioError
from grpo_core.store import Store, preferences
from grpo_core.store.preferences import Preference

if TYPE_CHECKING:
    from grpo_core.preferences.reward_training import Progress

FILES = (".jsonl", ".parquet")
# option -> setting, and how its value is read
OPTIONS = {
    "base": ("base", str, "MODEL"),
    "revision": ("revision", str, "REVISION"),
    "seed": ("seed", int, "N"),
    "epochs": ("epochs", int, "N"),
    "learning-rate": ("learning_rate", float, "X"),
    "batch-pairs": ("batch_pairs", int, "N"),
    "heldout-share": ("heldout_share", float, "X"),
    "max-tokens": ("max_tokens", int, "N"),
    "lora-rank": ("lora_rank", int, "N"),
    "margin": ("margin", float, "X"),
}


def add_commands(command: AddCommand) -> None:
    from grpo_core.preferences.reward_settings import RewardSettings

    sub = command(
        "reward-model",
        reward_model_command,
        "Train a reward model from preferences, for the check reward_model of a rubric.",
        epilog="Ctrl-C ends the training early and keeps the model as it is then. With --json, "
        "each step is\na line {step, num_steps, loss, heldout_accuracy, heldout_loss}; the last "
        "line is\n{heldout_accuracy, interval, pairs, seconds, out}.",
    )
    sub.add_argument(
        "--from",
        dest="source",
        metavar="FILE",
        help="a database with preferences (default: that of --db), or a .jsonl or .parquet file "
        "with the columns prompt, chosen, rejected",
    )
    sub.add_argument("--who", help="only the judgements of this person")
    sub.add_argument("--out", required=True, metavar="DIR", help="a new folder for the model")
    fields = RewardSettings.model_fields
    for option, (name, kind, metavar) in OPTIONS.items():
        field = fields[name]
        default = "" if field.default is None else f" (default {field.default})"
        sub.add_argument(
            f"--{option}",
            dest=name,
            type=kind,
            metavar=metavar,
            help=f"{field.description}{default}".replace("%", "%%"),
        )


def reward_model_command(arguments: argparse.Namespace) -> int:
    from grpo_core.preferences.judged_pairs import judged_pairs, split_by_prompt
    from grpo_core.preferences.reward_folder import check_out, save
    from grpo_core.preferences.reward_settings import reward_settings

    names = [name for name, *_ in OPTIONS.values()]
    settings = reward_settings({name: getattr(arguments, name) for name in names})
    out = Path(arguments.out)
    check_out(out)
    found = read_preferences(arguments.source or arguments.db, arguments.who)
    split = split_by_prompt(judged_pairs(found), settings.heldout_share, settings.seed)

    from grpo_core.preferences.reward_training import train_reward_model  # torch takes seconds

    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    trained = train_reward_model(
        split, settings, _json_line if arguments.json else _print_line, stop.is_set
    )
    numbers = save(trained, split, settings, out)
    heldout = numbers["heldout"]
    result = {
        "heldout_accuracy": heldout["accuracy"],
        "interval": [heldout["low"], heldout["high"]],
        "pairs": sum(n for name, n in numbers["pairs"].items() if "prompts" not in name),
        "seconds": numbers["seconds"],
        "out": str(out),
    }
    if arguments.json:
        print(json.dumps(result))
    else:
        print(
            f"held-out pairs: {heldout['accuracy']:.1%} right "
            f"(95 % interval {heldout['low']:.1%} to {heldout['high']:.1%}, "
            f"{heldout['num_pairs']} pairs); {numbers['seconds']:.0f} s; {printable(str(out))}"
        )
    return 0


def read_preferences(source: str, who: str | None = None) -> list[Preference]:
    """The judgements of a database or of a file. Raises StudioError."""
    if Path(source).suffix.lower() not in FILES:
        if not Path(source).exists():
            hint = f"Name a database such as {DEFAULT_DB}, or a file: {', '.join(FILES)}."
            raise StudioError(f"--from {source!r}: there is no such file. {hint}")
        found = preferences.read(Store(source), who)
        if not any(p.verdict != "skip" for p in found):
            raise StudioError(
                f"--from {source!r}: it has no preferences"
                f"{'' if who is None else f' of {who!r}'}. Compare answers on Inspect first."
            )
        return found
    from grpo_core.preferences.exchange import import_preferences

    with tempfile.TemporaryDirectory(prefix="grpo-pairs-") as folder:
        store = Store(Path(folder) / "pairs.sqlite")
        imported = import_preferences(store, source)
        if imported.num_bad:
            print(f"{printable(source)}: {printable(str(imported))}", file=sys.stderr)
        found = preferences.read(store, who)
        store.close()
    return found


def _json_line(progress: Progress) -> None:
    from dataclasses import asdict

    print(json.dumps(asdict(progress)), flush=True)


def _print_line(progress: Progress) -> None:
    if progress.heldout_accuracy is None or progress.heldout_loss is None:
        return
    loss = "" if progress.loss is None else f"  loss {progress.loss:.3f}"
    print(
        f"step {progress.step} of {progress.num_steps}{loss}  held-out pairs "
        f"{progress.heldout_accuracy:.1%} right, loss {progress.heldout_loss:.3f}",
        file=sys.stderr,
        flush=True,
    )
