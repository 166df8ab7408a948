"""Commands that train in this process: train, resume, compare."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
import time
from dataclasses import asdict
from typing import Any

from tqdm import tqdm

from grpo_core.cli.request import assignment, build_config, count, find_run
from grpo_core.cli.terminal import AddCommand, printable, run_line
from grpo_core.config import PRESETS, RunConfig, fields_by_name, with_preset
from grpo_core.errors import FieldProblem, InvalidConfig
from grpo_core.store import Store
from grpo_core.training.breakpoints import as_text, parse_breakpoints
from grpo_core.training.control import RunControl, Start
from grpo_core.types import Evaluated, Event, Paused, Phase, PhaseStarted, RunStatus, StepCompleted


def add_commands(command: AddCommand) -> None:
    lines = [
        f"  {name:<34} {info.title}. {info.description}{_choices(info)}"
        for name, info in fields_by_name().items()
    ]
    train = command(
        "train",
        train_command,
        "Train, with a progress bar.",
        epilog="fields for --set, with what they do:\n" + "\n".join(lines),
    )
    train.add_argument("--preset", help=f"an algorithm: {', '.join(PRESETS)}")
    train.add_argument("--config", metavar="FILE", help="a configuration as exported")
    train.add_argument(
        "--set",
        metavar="section.field=value",
        action="append",
        default=[],
        help="one field; may be repeated",
    )
    train.add_argument("--name", help="a name for the run")
    train.add_argument(
        "--wait-when",
        metavar="CONDITIONS",
        help="breakpoints, e.g. 'kl > 0.2, step = 40'; asks on the terminal, or stops where there is none",
    )
    train.add_argument(
        "--rewards",
        metavar="FILE.py",
        action="append",
        default=[],
        help="a plug-in file with reward functions; its checks are named file.function",
    )
    train.add_argument(
        "--preflight",
        action="store_true",
        help="look first: red stops with exit code 1, amber asks",
    )
    train.add_argument(
        "--anyway",
        action="store_true",
        help="with --preflight: start in spite of what it found, where that can work",
    )
    resume = command(
        "resume",
        resume_command,
        "Go on with a run from its newest checkpoint. With --step, --set or --name: a new run that branches from it.",
    )
    resume.add_argument("run_id", metavar="RUN", help="id, the beginning of one, or `last`")
    resume.add_argument(
        "--step",
        type=count,
        metavar="N",
        help="branch from the checkpoint of this step (default: the newest)",
    )
    resume.add_argument(
        "--set",
        metavar="section.field=value",
        action="append",
        default=[],
        help="branch with one field changed; may be repeated",
    )
    resume.add_argument("--name", help="a name for the branch")
    resume.add_argument(
        "--wait-when", metavar="CONDITIONS", help="other breakpoints than it had; '' for none"
    )
    compare = command(
        "compare",
        compare_command,
        "Run presets on the same prompts, seeds and budget, and show reward against tokens, seconds and memory.",
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
    compare.add_argument(
        "--set",
        metavar="section.field=value",
        action="append",
        default=[],
        help="one field of every run; may be repeated",
    )


def train_command(arguments: argparse.Namespace) -> int:
    if arguments.rewards:
        from grpo_core.rubric import add_plugins

        add_plugins(arguments.rewards)
    config = build_config(arguments.config, arguments.preset, arguments.set)
    parse_breakpoints(arguments.wait_when or "")
    # Imported here: torch takes seconds, and the other commands and wrong input need none of it.
    from grpo_core.models import check_model
    from grpo_core.runs.manager import default_name, prepare

    config = prepare(config, lambda c: check_model(c.model))
    if arguments.preflight and not _looked_first(config, arguments):
        return 1
    store = Store(arguments.db)
    with store.writing():
        store.recover()
        run_id = store.create_run(
            config, arguments.name or default_name(config), status=RunStatus.LOADING
        )
        return _train_here(store, run_id, config, None, arguments)


def _looked_first(config: RunConfig, arguments: argparse.Namespace) -> bool:
    """Preflight's report on standard error, and whether to go on. Amber asks on the terminal; where there is none, only --anyway answers."""
    from grpo_core.preflight.preflight import refusal, verdict
    from grpo_core.preflight.service import PreflightService

    found = PreflightService().preflight(config)
    for f in found:
        print(f"{f.level:<6} {f.title}: {printable(f.text)}", file=sys.stderr)
    why = refusal(found, arguments.anyway)
    if not why:
        return True
    if verdict(found) == "amber" and sys.stdin.isatty():
        return input("Start anyway? [y/N] ").strip().lower() in ("y", "yes")
    print(
        printable(why) + (" (--anyway)" if not any(f.final for f in found) else ""), file=sys.stderr
    )
    if arguments.json:
        print(json.dumps({"verdict": verdict(found), "findings": [asdict(f) for f in found]}))
    return False


def resume_command(arguments: argparse.Namespace) -> int:
    from grpo_core.models import check_model
    from grpo_core.runs.manager import prepare
    from grpo_core.runs.resume import plan_branch, plan_resume

    parse_breakpoints(arguments.wait_when or "")
    store = Store(arguments.db)
    parent = find_run(store, arguments.run_id)
    changes = dict(map(assignment, arguments.set))
    if "algorithm.preset" in changes:
        changes = with_preset(changes, changes["algorithm.preset"])
    with store.writing():
        store.recover()
        if changes or arguments.step is not None or arguments.name:
            config, start = plan_branch(store, parent.id, arguments.step, changes)
            config = prepare(config, lambda c: check_model(c.model))
            run_id = store.create_run(
                config,
                arguments.name or f"{parent.name}, from step {start.step}",
                status=RunStatus.LOADING,
                parent=(parent.id, start.step),
            )
        else:
            run_id, (config, start) = parent.id, plan_resume(store, parent.id)
            config = prepare(config, lambda c: check_model(c.model))
        print(
            f"goes on after step {start.step}"
            if start.path
            else "begins anew: there is no checkpoint",
            file=sys.stderr,
        )
        return _train_here(store, run_id, config, start, arguments)


def _train_here(
    store: Store, run_id: str, config: RunConfig, start: Start | None, arguments: argparse.Namespace
) -> int:
    """Train a run of the store in this process, with a progress bar; Ctrl-C stops it."""
    from grpo_core.runs.manager import execute
    from grpo_core.training.trainer import train

    control = RunControl(store.checkpoint_folder(run_id), start)
    if arguments.wait_when is not None:
        store.set_breakpoints(run_id, as_text(parse_breakpoints(arguments.wait_when)))
    control.set_breakpoints(parse_breakpoints(store.run(run_id).breakpoints))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: control.stop())

    def listen(event: Event) -> None:
        _show_progress(bar, event)
        if isinstance(event, Paused):
            bar.write(f"paused: {printable(event.reason)}", file=sys.stderr)
            _ask(control)

    print(f"run {run_id} in {store.path}", file=sys.stderr)
    started = time.monotonic()
    with tqdm(
        total=config.train.steps,
        initial=start.step if start else 0,
        unit="step",
        dynamic_ncols=True,
    ) as bar:
        execute(store, run_id, config, train, control, listen)
    seconds = time.monotonic() - started
    row = store.run(run_id)
    if row.error:
        print(f"error: {printable(row.error)}", file=sys.stderr)
    if arguments.json:
        print(
            json.dumps(
                {
                    "run_id": run_id,
                    "status": row.status,
                    "steps": row.steps_done,
                    "reward_first": row.reward_first,
                    "reward_last": row.reward_last,
                    "heldout_before": row.heldout_before,
                    "heldout_after": row.heldout_after,
                    "seconds": round(seconds, 3),
                }
            )
        )
    else:
        print(run_line(row))
    return 0 if row.status == RunStatus.FINISHED else 1


def _ask(control: RunControl) -> None:
    """What now? A run that waits with nobody there to answer is stopped: its last step is saved, and it can be resumed."""
    if not sys.stdin.isatty():
        control.stop()
        return

    def answer() -> None:
        said = input("Enter: resume, s: one step, p: one phase, q: stop > ").strip().lower()
        {"s": control.step, "p": lambda: control.step("phase"), "q": control.stop}.get(
            said, control.resume
        )()

    threading.Thread(target=answer, name="asks", daemon=True).start()


def _show_progress(bar: tqdm, event: Event) -> None:
    match event:
        case PhaseStarted(phase=Phase.LOADING | Phase.EVALUATING as phase):
            bar.set_description(phase)
        case StepCompleted(metrics=m):
            bar.set_description("training")
            shown = {"reward": m.reward_mean, "kl": m.kl, "tokens": m.completion_tokens_mean}
            bar.set_postfix(
                {k: f"{v:.3g}" for k, v in shown.items() if v is not None}, refresh=False
            )
            bar.update()
        case Evaluated(
            step=step,
            metrics={
                "heldout/accuracy": accuracy,
                "heldout/accuracy_low": low,
                "heldout/accuracy_high": high,
            },
        ):
            bar.write(
                f"step {step}: held-out accuracy {accuracy:.1%} (95 % interval {low:.1%} to {high:.1%})",
                file=sys.stderr,
            )


def compare_command(arguments: argparse.Namespace) -> int:
    from grpo_core.runs.compare import Comparison, Refused, find_presets, measure, summarise, table
    from grpo_core.runs.manager import prepare

    assignments = list(arguments.set)
    for name, value in map(assignment, assignments):
        if name == "algorithm.preset":
            raise InvalidConfig(
                [
                    FieldProblem(
                        name,
                        value,
                        "the presets are what is compared",
                        "Name them before the options: compare grpo ppo.",
                    )
                ]
            )
    if arguments.task is not None:
        assignments.append(f"task.name={arguments.task}")
    if arguments.steps is not None:
        assignments.append(f"train.steps={arguments.steps}")
    # Refused here, in a moment, rather than by the first run's process.
    configs = {
        preset: prepare(build_config(None, preset, assignments))
        for preset in find_presets(arguments.presets)
    }
    seed = next(iter(configs.values())).train.seed
    store = Store(arguments.db)
    comparison = Comparison(arguments.db, configs, assignments)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: comparison.stop())
    try:
        ids = comparison.run(
            range(seed, seed + arguments.seeds), lambda line: print(line, file=sys.stderr)
        )
    except Refused as refused:
        if arguments.json:
            print(json.dumps({"error": refused.lines}))
        return 2
    runs = [measure(store, run_id) for run_id in ids]
    summary = summarise(runs)
    print(
        json.dumps({"presets": summary, "runs": [asdict(r) for r in runs]})
        if arguments.json
        else table(summary)
    )
    return (
        0
        if len(runs) == len(configs) * arguments.seeds
        and all(r.status == RunStatus.FINISHED for r in runs)
        else 1
    )


def _choices(info: Any) -> str:
    """A field's options, each with its sentence, on lines of their own."""
    return "".join(
        f"\n      {name}: {text}"
        for name, text in (info.json_schema_extra or {}).get("options", {}).items()
    )
