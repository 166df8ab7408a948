"""Commands that read what was recorded: runs, show, advise, report, export."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from grpo_core.analysis.text import format_number
from grpo_core.cli.request import count, find_run
from grpo_core.cli.terminal import AddCommand, plain, printable, run_line
from grpo_core.config import RunConfig, flatten, parse
from grpo_core.errors import FieldProblem, InvalidConfig, StudioError
from grpo_core.exporting.recipes import as_command, as_trl_script
from grpo_core.store import Store, export


def add_commands(command: AddCommand) -> None:
    command("runs", runs_command, "List the runs, newest first.")
    show = command("show", show_command, "Show one run: settings, steps, held-out results.")
    write = command(
        "export",
        export_command,
        "Write a run to a file: metrics (csv), rollouts (jsonl, parquet), settings (config, command, trl: the same run as a TRL script), the trained model or adapter.",
    )
    advise = command(
        "advise",
        advise_command,
        "What is wrong with a run, if anything: diagnoses with evidence and what to try.",
    )
    report = command(
        "report",
        report_command,
        "One self-contained HTML file of a run: curves, verdicts, advice, best and worst groups, settings.",
    )
    for sub in (report, show, advise, write):
        sub.add_argument("run_id", metavar="RUN", help="id, the beginning of one, or `last`")
    report.add_argument("--out", metavar="FILE", help="default: RUN.html")
    write.add_argument(
        "--format",
        choices=["csv", "jsonl", "parquet", "config", "command", "trl", "model", "adapter"],
        required=True,
    )
    write.add_argument(
        "--step", type=count, metavar="N", help="model, adapter: the saved step (default: the last)"
    )
    write.add_argument(
        "--push",
        metavar="OWNER/NAME",
        help="model, adapter: then upload it to this repository of the Hub, made private if it is new; the token is HF_TOKEN's",
    )
    write.add_argument(
        "--public", action="store_true", help="with --push: a new repository is public"
    )
    write.add_argument(
        "--out",
        metavar="FILE",
        help="default: standard output; RUN.parquet for parquet; a new folder RUN for a model",
    )


def runs_command(arguments: argparse.Namespace) -> int:
    rows = Store(arguments.db).runs()
    if arguments.json:
        print(json.dumps([plain(row) for row in rows]))
    elif not rows:
        print("No runs yet. Start one with: python -m grpo_core train")
    for row in [] if arguments.json else rows:
        print(run_line(row))
    return 0


def show_command(arguments: argparse.Namespace) -> int:
    store = Store(arguments.db)
    row = find_run(store, arguments.run_id)
    steps, metrics = store.steps(row.id), store.metrics(row.id)
    if arguments.json:
        print(json.dumps({**plain(row), "steps": steps, "metrics": metrics}))
        return 0
    print(run_line(row))
    for name, value in flatten(parse(row.config)).items():
        print(f"  {name} = {printable(json.dumps(value, ensure_ascii=False))}")
    if row.error:
        print(printable(row.error))
    print(f"{'step':>6} {'reward':>8} {'kl':>8} {'loss':>9} {'tokens':>7}")
    stride = max(1, len(steps) // 20)
    for s in steps[::stride]:
        print(
            f"{s['step']:>6} {format_number(s['reward_mean']):>8} {format_number(s['kl']):>8} {format_number(s['loss']):>9} {format_number(s['completion_tokens_mean']):>7}"
        )
    for step, value in metrics.get("second/accuracy", []):
        print(f"second task's accuracy at step {step}: {format_number(value)}")
    for step, value in metrics.get("heldout/accuracy", []):
        print(f"held-out accuracy at step {step}: {format_number(value)}")
    return 0


def advise_command(arguments: argparse.Namespace) -> int:
    """What is wrong with a run, if anything: its diagnoses, worst first."""
    from grpo_core.analysis.advisor import advise

    store = Store(arguments.db)
    row = find_run(store, arguments.run_id)
    notices = advise(store, row.id)
    if arguments.json:
        print(json.dumps([{**asdict(n), "evidence": dict(n.evidence)} for n in notices]))
    elif not notices:
        print(f"{printable(row.name)}: nothing to say after {row.steps_done} steps.")
    for n in [] if arguments.json else notices:
        evidence = ", ".join(f"{name} {value}" for name, value in n.evidence.items())
        print(
            printable(
                f"{n.severity:<8} {n.code}, step {n.step}: {n.message}\n         Try: {n.advice}\n         ({evidence})"
            )
        )
    return 0


def report_command(arguments: argparse.Namespace) -> int:
    from grpo_core.analysis.html_report import write_report

    store = Store(arguments.db)
    row = find_run(store, arguments.run_id)
    out = Path(arguments.out or f"{row.id}.html")
    try:
        with out.open("w", encoding="utf-8") as file:
            write_report(store, row.id, file)
    except OSError as error:
        raise StudioError(
            f"--out {str(out)!r} cannot be written: {error.strerror}. Choose another file."
        ) from None
    size = out.stat().st_size
    print(
        json.dumps({"run_id": row.id, "path": str(out), "bytes": size})
        if arguments.json
        else f"{out}: {size:,} bytes"
    )
    return 0


def export_command(arguments: argparse.Namespace) -> int:
    store = Store(arguments.db)
    row = find_run(store, arguments.run_id)
    if arguments.format in ("model", "adapter"):
        if arguments.push:
            from grpo_core.exporting.hub import check_repository

            check_repository(arguments.push)
        from grpo_core.exporting.trained_model import export_model  # torch

        folder = export_model(
            store,
            row.id,
            Path(arguments.out or row.id),
            arguments.step,
            adapter_only=arguments.format == "adapter",
        )
        if arguments.push:
            from grpo_core.exporting.hub import push_folder

            address = push_folder(folder, arguments.push, private=not arguments.public)
            print(
                json.dumps(
                    {
                        "run_id": row.id,
                        "format": arguments.format,
                        "path": str(folder),
                        "address": address,
                    }
                )
                if arguments.json
                else f"{folder} → {printable(address)}"
            )
            return 0
        print(
            json.dumps({"run_id": row.id, "format": arguments.format, "path": str(folder)})
            if arguments.json
            else f"{folder}: {', '.join(sorted(p.name for p in folder.iterdir()))}"
        )
        return 0
    if arguments.push:
        raise InvalidConfig(
            [
                FieldProblem(
                    "--push",
                    arguments.push,
                    "only a model or an adapter goes to the Hub",
                    "Use --format model or --format adapter.",
                )
            ]
        )
    out = arguments.out or (f"{row.id}.parquet" if arguments.format == "parquet" else "-")
    try:
        if arguments.format == "parquet":
            export.export_rollouts_parquet(store, row.id, out)
        else:
            write = {
                "csv": export.export_metrics_csv,
                "jsonl": export.export_rollouts_jsonl,
                "config": export.export_config_json,
                "command": _text_of(as_command),
                "trl": _text_of(as_trl_script),
            }[arguments.format]
            if out == "-":
                write(store, row.id, sys.stdout)
                return 0
            with open(out, "w", encoding="utf-8", newline="") as file:
                write(store, row.id, file)
    except OSError as error:
        raise StudioError(
            f"--out {out!r} cannot be written: {error.strerror}. Choose another file."
        ) from None
    size = Path(out).stat().st_size
    print(
        json.dumps({"run_id": row.id, "format": arguments.format, "path": out, "bytes": size})
        if arguments.json
        else f"{out}: {size:,} bytes"
    )
    return 0


def _text_of(recipe: Callable[[RunConfig], str]) -> Callable[[Store, str, TextIO], None]:
    return lambda store, run_id, out: print(
        recipe(parse(store.run(run_id).config)), end="", file=out
    )
