"""Commands that look before a run: prompts, model, preflight, bench."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from grpo_core.cli.request import build_config, count
from grpo_core.cli.terminal import AddCommand, printable
from grpo_core.config import PRESETS

CHECKOUT = Path(__file__).parents[2]


def add_commands(command: AddCommand) -> None:
    prompts = command(
        "prompts",
        prompts_command,
        "Show prompts exactly as the model will read them, and what was counted in their file.",
    )
    prompts.add_argument("--config", metavar="FILE", help="a configuration as exported")
    prompts.add_argument(
        "--set",
        metavar="section.field=value",
        action="append",
        default=[],
        help="one field, e.g. task.path=my.csv; may be repeated",
    )
    prompts.add_argument(
        "--count", type=count, default=5, metavar="N", help="training prompts to show (default 5)"
    )
    model = command(
        "model",
        model_command,
        "Check a model for a run: parameters, memory against what is free, end tokens, a sampled answer. Exit code 1: it cannot work.",
    )
    model.add_argument("--config", metavar="FILE", help="a configuration as exported")
    model.add_argument(
        "--set",
        metavar="section.field=value",
        action="append",
        default=[],
        help="one field, e.g. model.name=Qwen/Qwen3-0.6B; may be repeated",
    )
    model.add_argument(
        "--no-sample", action="store_true", help="do not load the weights for a sampled answer"
    )
    preflight = command(
        "preflight",
        preflight_command,
        "One report before step 1: model, prompts, rubric, baseline, KL, time and memory of a real first step. Exit code 1: red.",
    )
    preflight.add_argument("--preset", help=f"an algorithm: {', '.join(PRESETS)}")
    preflight.add_argument("--config", metavar="FILE", help="a configuration as exported")
    preflight.add_argument(
        "--set",
        metavar="section.field=value",
        action="append",
        default=[],
        help="one field; may be repeated",
    )
    if (CHECKOUT / "benchmarks").is_dir():  # not in an installed package
        bench = command(
            "bench",
            bench_command,
            "A step's speed and memory beside TRL's. Options: python -m benchmarks.speed --help",
        )
        bench.set_defaults(takes_rest=True)


def prompts_command(arguments: argparse.Namespace) -> int:
    config = build_config(arguments.config, None, arguments.set)
    from grpo_core.preflight.service import (
        PreflightService,
    )  # tokenizers and transformers take seconds

    found = PreflightService().preview(config, arguments.count)
    if arguments.json:
        print(json.dumps(asdict(found)))
        return 0
    for name, value in found.counts.items():
        print(f"{name} = {printable(str(value))}")
    for p in found.prompts:
        print(
            f"\n--- {p.prompt_id}, {p.num_tokens} tokens, {'held out' if p.heldout else 'training'}, answer {printable(p.answer)!r}\n{printable(p.text)}"
        )
    return 0


def model_command(arguments: argparse.Namespace) -> int:
    config = build_config(arguments.config, None, arguments.set)
    from grpo_core.preflight.service import PreflightService

    found, sample = PreflightService().check_model(config, sample=not arguments.no_sample)
    if arguments.json:
        print(json.dumps({**asdict(found), "needed_bytes": found.needed_bytes, "sample": sample}))
        return 1 if found.problems else 0
    for name, value in {
        **asdict(found),
        "needed_bytes": found.needed_bytes,
        "sample": sample,
    }.items():
        print(f"{name} = {printable(json.dumps(value, ensure_ascii=False))}")
    return 1 if found.problems else 0


def preflight_command(arguments: argparse.Namespace) -> int:
    config = build_config(arguments.config, arguments.preset, arguments.set)
    from grpo_core.preflight.preflight import verdict
    from grpo_core.preflight.service import PreflightService
    from grpo_core.runs.manager import prepare

    found = PreflightService().preflight(prepare(config))
    if arguments.json:
        print(json.dumps({"verdict": verdict(found), "findings": [asdict(f) for f in found]}))
    for f in [] if arguments.json else found:
        print(f"{f.level:<6} {f.title}: {printable(f.text)}")
    return 1 if verdict(found) == "red" else 0


def bench_command(arguments: argparse.Namespace) -> int:
    """Run the benchmark as a program of its own: the library does not import what measures it."""
    options = [*arguments.rest, *(["--json"] if arguments.json else [])]
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.speed", *options], cwd=CHECKOUT
    ).returncode
