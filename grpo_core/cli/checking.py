"""Commands that check before a run: prompts, model, preflight, bench."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from grpo_core.cli.request import build_config, count
from grpo_core.cli.terminal import AddCommand, add_config_options, printable
from grpo_core.config import PRESETS

# The services are imported inside the commands: transformers and torch take seconds to import.
CHECKOUT = Path(__file__).parents[2]


def add_commands(command: AddCommand) -> None:
    prompts = command(
        "prompts",
        prompts_command,
        "Show prompts exactly as the model reads them, and the counts of their file.",
    )
    add_config_options(prompts, ", e.g. task.path=my.csv")
    prompts.add_argument(
        "--count", type=count, default=5, metavar="N", help="training prompts to show (default 5)"
    )
    model = command(
        "model",
        model_command,
        "Check that a model can be trained: parameters, needed and free memory, end tokens, "
        "a sampled answer. Exit code 1: it cannot.",
    )
    add_config_options(model, ", e.g. model.name=Qwen/Qwen3-0.6B")
    model.add_argument(
        "--no-sample", action="store_true", help="do not load the weights to sample an answer"
    )
    preflight = command(
        "preflight",
        preflight_command,
        "Check a whole configuration with one real step: model, prompts, rubric, baseline, KL, "
        "time, memory. Exit code 1: red.",
    )
    preflight.add_argument("--preset", help=f"an algorithm: {', '.join(PRESETS)}")
    add_config_options(preflight)
    if (CHECKOUT / "benchmarks").is_dir():  # not in an installed package
        command(
            "bench",
            bench_command,
            "Measure the speed and memory of a step beside TRL's; see bench --help.",
            takes_rest=True,
        )


def prompts_command(arguments: argparse.Namespace) -> int:
    config = build_config(arguments.config, None, arguments.set)
    from grpo_core.preflight.service import PreflightService

    preview = PreflightService().preview(config, arguments.count)
    if arguments.json:
        print(json.dumps(asdict(preview)))
        return 0
    for name, value in preview.counts.items():
        print(f"{name} = {printable(str(value))}")
    for p in preview.prompts:
        split = "held out" if p.heldout else "training"
        print(
            f"\n--- {p.prompt_id}, {p.num_tokens} tokens, {split}, answer {printable(p.answer)!r}"
            f"\n{printable(p.text)}"
        )
    return 0


def model_command(arguments: argparse.Namespace) -> int:
    config = build_config(arguments.config, None, arguments.set)
    from grpo_core.preflight.service import PreflightService

    report, sample = PreflightService().check_model(config, sample=not arguments.no_sample)
    values = {**asdict(report), "needed_bytes": report.needed_bytes, "sample": sample}
    if arguments.json:
        print(json.dumps(values))
    else:
        for name, value in values.items():
            print(f"{name} = {printable(json.dumps(value, ensure_ascii=False))}")
    return 1 if report.problems else 0


def preflight_command(arguments: argparse.Namespace) -> int:
    config = build_config(arguments.config, arguments.preset, arguments.set)
    from grpo_core.preflight.preflight import verdict
    from grpo_core.preflight.service import PreflightService
    from grpo_core.runs.manager import prepare

    findings = PreflightService().preflight(prepare(config))
    if arguments.json:
        print(json.dumps({"verdict": verdict(findings), "findings": [asdict(f) for f in findings]}))
    else:
        for f in findings:
            print(f"{f.level:<6} {f.title}: {printable(f.text)}")
    return 1 if verdict(findings) == "red" else 0


def bench_command(arguments: argparse.Namespace) -> int:
    """Run benchmarks.speed as its own program: the library must not import its benchmarks."""
    command = [sys.executable, "-m", "benchmarks.speed", *arguments.rest]
    return subprocess.run(command, cwd=CHECKOUT).returncode
