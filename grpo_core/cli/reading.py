"""Commands that read recorded runs: runs, show, advise, report, export."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from grpo_core.analysis.text import format_number
from grpo_core.cli.request import count, find_run
from grpo_core.cli.terminal import (
    AddCommand,
    add_environments_option,
    add_run_argument,
    plain,
    printable,
    program,
    run_line,
)
from grpo_core.config import RunConfig, flatten, parse
from grpo_core.errors import FieldProblem, InvalidConfig, StudioError
from grpo_core.exporting.recipes import as_command, as_trl_script
from grpo_core.store import RunRow, Store, export

ROWS = ("csv", "jsonl", "parquet", "messages", "config", "command", "trl")
MODELS = ("model", "adapter")


def add_commands(command: AddCommand) -> None:
    command("runs", runs_command, "List the runs, newest first.")
    show = command("show", show_command, "Show one run: settings, steps, held-out results.")
    write = command(
        "export",
        export_command,
        "Write a run to a file: metrics (csv), rollouts (jsonl, parquet; messages: as chats for "
        "fine-tuning), settings (config, command, trl: a TRL script of the same run), "
        "the trained model or adapter.",
    )
    advise = command(
        "advise",
        advise_command,
        "List the problems of a run, each with its evidence and what to try.",
    )
    report = command(
        "report",
        report_command,
        "Write one self-contained HTML file about a run: curves, verdicts, advice, "
        "best and worst groups, settings.",
    )
    for sub in (report, show, advise, write):
        add_run_argument(sub)
    report.add_argument("--out", metavar="FILE", help="default: RUN.html")
    add_environments_option(write)  # a TRL script names the file
    write.add_argument("--format", choices=[*ROWS, *MODELS], required=True, help="what to write")
    write.add_argument(
        "--step", type=count, metavar="N", help="model, adapter: the saved step (default: the last)"
    )
    write.add_argument(
        "--push",
        metavar="OWNER/NAME",
        help="model, adapter: also upload it to this repository of the Hub, with the token in "
        "HF_TOKEN; a new repository is private",
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
        return 0
    if not rows:
        print(f"No runs yet. Start one with: {program()} train")
    for row in rows:
        print(run_line(row))
    return 0


def show_command(arguments: argparse.Namespace) -> int:
    store = Store(arguments.db)
    row = find_run(store, arguments.run_id)
    steps, metrics = store.steps(row.id), store.metrics(row.id)
    if arguments.json:
        made = [asdict(i) for i in store.interventions(row.id)]
        print(json.dumps({**plain(row), "steps": steps, "metrics": metrics, "interventions": made}))
        return 0
    print(run_line(row))
    for name, value in flatten(parse(row.config)).items():
        print(f"  {name} = {printable(json.dumps(value, ensure_ascii=False))}")
    if row.error:
        print(printable(row.error))
    print(f"{'step':>6} {'reward':>8} {'kl':>8} {'loss':>9} {'tokens':>7}")
    stride = max(1, len(steps) // 20)
    for s in steps[::stride]:
        reward, kl, loss = (format_number(s[name]) for name in ("reward_mean", "kl", "loss"))
        tokens = format_number(s["completion_tokens_mean"])
        print(f"{s['step']:>6} {reward:>8} {kl:>8} {loss:>9} {tokens:>7}")
    for step, value in metrics.get("second/accuracy", []):
        print(f"second task's accuracy at step {step}: {format_number(value)}")
    for step, value in metrics.get("heldout/accuracy", []):
        print(f"held-out accuracy at step {step}: {format_number(value)}")
    return 0


def advise_command(arguments: argparse.Namespace) -> int:
    from grpo_core.analysis.advisor import advise

    store = Store(arguments.db)
    row = find_run(store, arguments.run_id)
    notices = advise(store, row.id)
    if arguments.json:
        print(json.dumps([{**asdict(n), "evidence": dict(n.evidence)} for n in notices]))
        return 0
    if not notices:
        print(f"{printable(row.name)}: no problem found after {row.steps_done} steps.")
    for n in notices:
        evidence = ", ".join(f"{name} {value}" for name, value in n.evidence.items())
        text = (
            f"{n.severity:<8} {n.code}, step {n.step}: {n.message}\n"
            f"         Try: {n.advice}\n"
            f"         ({evidence})"
        )
        print(printable(text))
    return 0


def report_command(arguments: argparse.Namespace) -> int:
    from grpo_core.analysis.html_report import write_report

    store = Store(arguments.db)
    row = find_run(store, arguments.run_id)
    out = Path(arguments.out or f"{row.id}.html")
    try:
        with _open_out(store, str(out)) as file:
            write_report(store, row.id, file)
    except OSError as error:
        raise _cannot_write(str(out), error) from None
    size = out.stat().st_size
    if arguments.json:
        print(json.dumps({"run_id": row.id, "path": str(out), "bytes": size}))
    else:
        print(f"{out}: {size:,} bytes")
    return 0


def export_command(arguments: argparse.Namespace) -> int:
    store = Store(arguments.db)
    row = find_run(store, arguments.run_id)
    if arguments.format in MODELS:
        return _export_model(store, row, arguments)
    if arguments.push:
        problem = "only a model or an adapter can be uploaded to the Hub"
        hint = "Use --format model or --format adapter."
        raise InvalidConfig([FieldProblem("--push", arguments.push, problem, hint)])
    return _export_rows(store, row, arguments)


def _export_model(store: Store, row: RunRow, arguments: argparse.Namespace) -> int:
    """Write the trained model or adapter to a folder, and upload it with --push."""
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
    result = {"run_id": row.id, "format": arguments.format, "path": str(folder)}
    line = f"{folder}: {', '.join(sorted(p.name for p in folder.iterdir()))}"
    if arguments.push:
        from grpo_core.exporting.hub import push_folder

        address = push_folder(folder, arguments.push, private=not arguments.public)
        result["address"] = address
        line = f"{folder} → {printable(address)}"
    print(json.dumps(result) if arguments.json else line)
    return 0


def _export_rows(store: Store, row: RunRow, arguments: argparse.Namespace) -> int:
    """Write metrics, rollouts or settings to a file or to standard output."""
    write = {
        "csv": export.export_metrics_csv,
        "jsonl": export.export_rollouts_jsonl,
        "messages": export.export_messages_jsonl,
        "config": export.export_config_json,
        "command": _text_of(as_command),
        "trl": _text_of(as_trl_script),
    }.get(arguments.format)
    out = arguments.out or ("-" if write else f"{row.id}.parquet")
    try:
        if write is None:
            _check_out(store, out)
            export.export_rollouts_parquet(store, row.id, out)
        elif out == "-":
            write(store, row.id, sys.stdout)
            return 0
        else:
            with _open_out(store, out) as file:
                write(store, row.id, file)
    except BrokenPipeError:  # the reader of standard output has closed it; see main()
        raise
    except OSError as error:
        raise _cannot_write(out, error) from None
    size = Path(out).stat().st_size
    if arguments.json:
        result = {"run_id": row.id, "format": arguments.format, "path": out, "bytes": size}
        print(json.dumps(result))
    else:
        print(f"{out}: {size:,} bytes")
    return 0


def _check_out(store: Store, out: str) -> None:
    """Raises StudioError for a file of the store, which writing would destroy."""
    if store.owns(Path(out)):
        raise StudioError(f"--out {out!r} belongs to the store. Choose another file.")


def _open_out(store: Store, out: str) -> TextIO:
    """Open a file for writing. A pipe that nobody reads is an OSError: it would wait for ever."""
    _check_out(store, out)
    if not Path(out).is_fifo():
        return open(out, "w", encoding="utf-8", newline="")
    pipe = os.open(out, os.O_WRONLY | os.O_NONBLOCK)
    os.set_blocking(pipe, True)
    return os.fdopen(pipe, "w", encoding="utf-8", newline="")


def _cannot_write(out: str, error: OSError) -> StudioError:
    return StudioError(f"--out {out!r} cannot be written: {error.strerror}. Choose another file.")


def _text_of(recipe: Callable[[RunConfig], str]) -> Callable[[Store, str, TextIO], None]:
    """A function that writes the recipe of a stored run."""

    def write(store: Store, run_id: str, out: TextIO) -> None:
        out.write(recipe(parse(store.run(run_id).config)))

    return write
