"""The command compare: the same run with several presets."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from dataclasses import asdict

from grpo_core.cli.request import assignment, build_config, count
from grpo_core.cli.terminal import AddCommand, add_environments_option, add_set_option
from grpo_core.config import PRESETS
from grpo_core.errors import FieldProblem, InvalidConfig
from grpo_core.store import Store
from grpo_core.types import RunStatus


def add_commands(command: AddCommand) -> None:
    compare = command(
        "compare",
        compare_command,
        "Run presets on the same prompts, seeds and budget; show their reward, tokens, seconds "
        "and memory.",
    )
    compare.add_argument(
        "presets",
        nargs="+",
        metavar="PRESET",
        help=f"two or more of: {', '.join(PRESETS)}; the beginning of a name is enough",
    )
    compare.add_argument("--task", help="a task (default: the configuration's)")
    compare.add_argument(
        "--seeds",
        type=count,
        default=3,
        metavar="N",
        help="runs of each preset, from train.seed up (default 3)",
    )
    compare.add_argument("--steps", metavar="N", help="optimiser steps of each run")
    add_set_option(compare, "set one field of every run; may be repeated")
    add_environments_option(compare)


def compare_command(arguments: argparse.Namespace) -> int:
    from grpo_core.runs.compare import Comparison, Refused, find_presets, measure, summarise, table
    from grpo_core.runs.manager import prepare

    assignments = _assignments(arguments)
    # Every configuration is checked here, before the process of the first run starts.
    configs = {
        preset: prepare(build_config(None, preset, assignments))
        for preset in find_presets(arguments.presets)
    }
    seed = next(iter(configs.values())).train.seed
    store = Store(arguments.db)
    comparison = Comparison(arguments.db, configs, assignments, arguments.environments)
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signal_number, lambda *_: comparison.stop())
    seeds = range(seed, seed + arguments.seeds)
    try:
        ids = comparison.run(seeds, lambda line: print(line, file=sys.stderr))
    except Refused as refused:
        if arguments.json:
            print(json.dumps({"error": refused.lines}))
        return 2
    runs = [measure(store, run_id) for run_id in ids]
    summary = summarise(runs)
    if arguments.json:
        print(json.dumps({"presets": summary, "runs": [asdict(r) for r in runs]}))
    else:
        print(table(summary))
    is_complete = len(runs) == len(configs) * arguments.seeds
    return 0 if is_complete and all(r.status == RunStatus.FINISHED for r in runs) else 1


def _assignments(arguments: argparse.Namespace) -> list[str]:
    """`--set`, `--task` and `--steps` as section.field=value."""
    assignments = list(arguments.set)
    for name, value in map(assignment, assignments):
        if name == "algorithm.preset":
            problem = "the compared presets cannot be set as a field"
            hint = "Name them before the options: compare grpo ppo."
            raise InvalidConfig([FieldProblem(name, value, problem, hint)])
    if arguments.task is not None:
        assignments.append(f"task.name={arguments.task}")
    if arguments.steps is not None:
        assignments.append(f"train.steps={arguments.steps}")
    return assignments
