"""Commands that look before a run: prompts, model, preflight, bench."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from grpo_core.cli.command import AddCommand
from grpo_core.cli.output import printable
from grpo_core.cli.request import build_config, count
from grpo_core.config import PRESETS


def add_commands(command: AddCommand) -> None:
    prompts = command("prompts", prompts_command, "Show prompts exactly as the model will read them, and what was counted in their file.")
    prompts.add_argument("--config", metavar="FILE", help="a configuration as exported")
    prompts.add_argument("--set", metavar="section.field=value", action="append", default=[], help="one field, e.g. task.path=my.csv; may be repeated")
    prompts.add_argument("--count", type=count, default=5, metavar="N", help="training prompts to show (default 5)")
    model = command("model", model_command, "Check a model for a run: parameters, memory against what is free, end tokens, a sampled answer. Exit code 1: it cannot work.")
    model.add_argument("--config", metavar="FILE", help="a configuration as exported")
    model.add_argument("--set", metavar="section.field=value", action="append", default=[], help="one field, e.g. model.name=Qwen/Qwen3-0.6B; may be repeated")
    model.add_argument("--no-sample", action="store_true", help="do not load the weights for a sampled answer")
    preflight = command("preflight", preflight_command, "One report before step 1: model, prompts, rubric, baseline, KL, time and memory of a real first step. Exit code 1: red.")
    preflight.add_argument("--preset", help=f"an algorithm: {', '.join(PRESETS)}")
    preflight.add_argument("--config", metavar="FILE", help="a configuration as exported")
    preflight.add_argument("--set", metavar="section.field=value", action="append", default=[], help="one field; may be repeated")
    if (Path(__file__).parents[2] / "benchmarks").is_dir():  # of the checkout, not of the package
        from benchmarks import speed

        speed.add_arguments(command("bench", bench_command, speed.__doc__))


def prompts_command(arguments: argparse.Namespace) -> int:
    config = build_config(arguments.config, None, arguments.set)
    from grpo_core.desk import Desk  # tokenizers and transformers take seconds

    found = Desk().preview(config, arguments.count)
    if arguments.json:
        print(json.dumps(asdict(found)))
        return 0
    for name, value in found.counts.items():
        print(f"{name} = {printable(str(value))}")
    for p in found.prompts:
        print(f"\n--- {p.prompt_id}, {p.num_tokens} tokens, {'held out' if p.heldout else 'training'}, answer {printable(p.answer)!r}\n{printable(p.text)}")
    return 0


def model_command(arguments: argparse.Namespace) -> int:
    config = build_config(arguments.config, None, arguments.set)
    from grpo_core.desk import Desk

    found, sample = Desk().check_model(config, sample=not arguments.no_sample)
    if arguments.json:
        print(json.dumps({**asdict(found), "needed_bytes": found.needed_bytes, "sample": sample}))
        return 1 if found.problems else 0
    for name, value in {**asdict(found), "needed_bytes": found.needed_bytes, "sample": sample}.items():
        print(f"{name} = {printable(json.dumps(value, ensure_ascii=False))}")
    return 1 if found.problems else 0


def preflight_command(arguments: argparse.Namespace) -> int:
    config = build_config(arguments.config, arguments.preset, arguments.set)
    from grpo_core.desk import Desk
    from grpo_core.preflight import verdict
    from grpo_core.runs import prepare

    found = Desk().preflight(prepare(config))
    if arguments.json:
        print(json.dumps({"verdict": verdict(found), "findings": [asdict(f) for f in found]}))
    for f in [] if arguments.json else found:
        print(f"{f.level:<6} {f.title}: {printable(f.text)}")
    return 1 if verdict(found) == "red" else 0


def bench_command(arguments: argparse.Namespace) -> int:
    from benchmarks import speed

    speed.run(arguments)
    return 0
