"""Commands that train in this process: train, resume."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import threading
import time
from dataclasses import asdict
from functools import partial
from typing import NoReturn

from tqdm import tqdm

from grpo_core.child_process import kill_all
from grpo_core.cli.request import assignment, build_config, count, find_run
from grpo_core.cli.signals import stopped_by_signals
from grpo_core.cli.terminal import (
    AddCommand,
    add_config_options,
    add_environments_option,
    add_run_argument,
    add_set_option,
    printable,
    run_line,
)
from grpo_core.cluster.address import use_cluster
from grpo_core.config import PRESETS, RunConfig, fields_by_name, with_changes, with_preset
from grpo_core.config.devices import using_only
from grpo_core.errors import StudioError
from grpo_core.runs.mirror import FINISH_SECONDS, check_trackers, mirrored
from grpo_core.runs.tracker_child import TRACKERS
from grpo_core.store import Store
from grpo_core.training.breakpoints import as_text, parse_breakpoints
from grpo_core.training.control import RunControl, Start
from grpo_core.types import (
    Evaluated,
    Event,
    Paused,
    Phase,
    PhaseStarted,
    Restarted,
    RunStatus,
    StepCompleted,
)

NOTE_SECONDS = 2.0  # to store that the run was stopped


def add_commands(command: AddCommand) -> None:
    train = command(
        "train",
        train_command,
        "Train a model, with a progress bar.",
        epilog=_fields_help(),
    )
    train.add_argument("--preset", help=f"an algorithm: {', '.join(PRESETS)}")
    add_config_options(train)
    train.add_argument("--name", help="a name for the run")
    train.add_argument(
        "--wait-when",
        metavar="CONDITIONS",
        help="pause the run under these conditions, e.g. 'kl > 0.2, step = 40'; "
        "without a terminal the run stops there",
    )
    train.add_argument(
        "--rewards",
        metavar="FILE.py",
        action="append",
        default=[],
        help="a plug-in file with reward functions; its checks are named file.function",
    )
    _add_report_option(train)
    _add_workers_options(train)
    train.add_argument(
        "--preflight",
        action="store_true",
        help="run preflight first; red stops with exit code 1, amber asks on the terminal",
    )
    train.add_argument(
        "--anyway",
        action="store_true",
        help="with --preflight: start despite its findings, unless the run cannot work",
    )
    resume = command(
        "resume",
        resume_command,
        "Continue a run from its newest checkpoint. "
        "With --step, --set or --name: start a new run that branches from it.",
    )
    add_run_argument(resume)
    resume.add_argument(
        "--step",
        type=count,
        metavar="N",
        help="branch from the checkpoint of this step (default: the newest)",
    )
    add_set_option(resume, "branch with one field changed; may be repeated")
    add_environments_option(resume)
    _add_report_option(resume)
    _add_workers_options(resume)
    resume.add_argument("--name", help="a name for the branch")
    resume.add_argument(
        "--wait-when", metavar="CONDITIONS", help="replace the run's breakpoints; '' for none"
    )


def _add_report_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--report-to",
        metavar="TRACKER",
        choices=TRACKERS,
        action="append",
        default=[],
        help=f"mirror the curves and some groups to {', '.join(TRACKERS)}; may be repeated. Each "
        "needs its package, and writes where its own settings say",
    )


def _add_workers_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workers",
        type=count,
        metavar="N",
        help="share each step among N processes, one on each device; the result is the same",
    )
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="let a Ray cluster place them: auto, or HOST:PORT (default: Ray is started on this "
        "machine for the run)",
    )


def _fields_help() -> str:
    """Every field with its title, its help and its options, for the end of `train --help`."""
    lines = ["fields for --set:"]
    for name, info in fields_by_name().items():
        lines.append(f"  {name:<34} {info.title}. {info.description}")
        options = (info.json_schema_extra or {}).get("options", {})
        lines += [f"      {option}: {text}" for option, text in options.items()]
    return "\n".join(lines)


def train_command(arguments: argparse.Namespace) -> int:
    check_trackers(arguments.report_to)
    if arguments.rewards:
        from grpo_core.rubric import add_plugins

        add_plugins(arguments.rewards)
    use_cluster(arguments.ray)
    workers = [f"train.workers={arguments.workers}"] if arguments.workers is not None else []
    config = build_config(arguments.config, arguments.preset, [*arguments.set, *workers])
    parse_breakpoints(arguments.wait_when or "")
    # Imported late: torch takes seconds to import, and a refused configuration does not need it.
    from grpo_core.preflight.room import check_start
    from grpo_core.runs.manager import default_name, prepare

    config = prepare(config, check_start)
    if arguments.preflight and not _preflight_allows(config, arguments):
        return 1
    store = Store(arguments.db)
    with store.writing():
        store.recover()
        run_id = store.create_run(
            config, arguments.name or default_name(config), status=RunStatus.LOADING
        )
        return _train_here(store, run_id, config, None, arguments)


def _preflight_allows(config: RunConfig, arguments: argparse.Namespace) -> bool:
    """Print preflight's findings on standard error; returns whether to start.

    Amber: the user decides on the terminal. Without a terminal, only --anyway starts the run.
    """
    from grpo_core.preflight.preflight import refusal, verdict
    from grpo_core.preflight.service import PreflightService

    findings = PreflightService().preflight(config)
    for f in findings:
        print(f"{f.level:<6} {f.title}: {printable(f.text)}", file=sys.stderr)
    reason = refusal(findings, arguments.anyway)
    if not reason:
        return True
    if verdict(findings) == "amber" and sys.stdin.isatty():
        return input("Start anyway? [y/N] ").strip().lower() in ("y", "yes")
    override = "" if any(f.final for f in findings) else " (--anyway)"
    print(f"{printable(reason)}{override}", file=sys.stderr)
    if arguments.json:
        print(json.dumps({"verdict": verdict(findings), "findings": [asdict(f) for f in findings]}))
    return False


def resume_command(arguments: argparse.Namespace) -> int:
    from grpo_core.preflight.room import check_start
    from grpo_core.runs.manager import prepare
    from grpo_core.runs.resume import plan_branch, plan_resume

    use_cluster(arguments.ray)
    check_trackers(arguments.report_to)
    parse_breakpoints(arguments.wait_when or "")
    store = Store(arguments.db)
    parent = find_run(store, arguments.run_id)
    changes = dict(map(assignment, arguments.set))
    if "algorithm.preset" in changes:
        changes = with_preset(changes, changes["algorithm.preset"])
    branches = bool(changes or arguments.step is not None or arguments.name)
    if branches and arguments.workers is not None:
        changes["train.workers"] = arguments.workers
    with store.writing():
        store.recover()
        if branches:
            config, start = plan_branch(store, parent.id, arguments.step, changes)
            config = prepare(config, check_start)
            run_id = store.create_run(
                config,
                arguments.name or f"{parent.name}, from step {start.step}",
                status=RunStatus.LOADING,
                parent=(parent.id, start.step),
            )
        else:
            run_id = parent.id
            config, start = plan_resume(store, parent.id)
            if arguments.workers is not None:  # the result is the same, so it is the same run
                config = with_changes(config, {"train.workers": arguments.workers})
            config = prepare(config, check_start)
        origin = f"continues after step {start.step}"
        if not start.path:
            origin = "starts from the beginning: there is no checkpoint"
        print(origin, file=sys.stderr)
        return _train_here(store, run_id, config, start, arguments)


def _train_here(
    store: Store, run_id: str, config: RunConfig, start: Start | None, arguments: argparse.Namespace
) -> int:
    """Train a stored run in this process, with a progress bar.

    Ctrl-C stops it. A second one ends the process at once.
    """
    from grpo_core.preflight.room import choose_device
    from grpo_core.runs.device_queue import placed
    from grpo_core.runs.execution import Job, execute
    from grpo_core.runs.stop_in_time import Patience
    from grpo_core.runs.subprocess_trainer import train_later

    config = placed(config, choose_device(config))
    control = RunControl(store.checkpoint_folder(run_id), start)
    if arguments.wait_when is not None:
        store.set_breakpoints(run_id, as_text(parse_breakpoints(arguments.wait_when)))
    control.set_breakpoints(parse_breakpoints(store.run(run_id).breakpoints))
    patience = Patience(config, store.saving_seconds(run_id))

    def listen(event: Event) -> None:
        patience.note(event)
        _show_progress(bar, event)
        if isinstance(event, Paused):
            bar.write(f"paused: {printable(event.reason)}", file=sys.stderr)
            _ask_how_to_continue(control)

    print(f"run {run_id} in {store.path}", file=sys.stderr)
    started = time.monotonic()
    with (
        using_only(config.model.device),
        stopped_by_signals(control, patience, lambda why: _end_now(store, run_id, why)),
        tqdm(
            total=config.train.steps,
            initial=start.step if start else 0,
            unit="step",
            dynamic_ncols=True,
        ) as bar,
    ):
        say = partial(bar.write, file=sys.stderr)
        told = mirrored(train_later, store, arguments.report_to, say, FINISH_SECONDS)
        execute(store, Job(run_id, config, control), told, listen)
    seconds = time.monotonic() - started
    row = store.run(run_id)
    if row.error:
        print(f"error: {printable(row.error)}", file=sys.stderr)
    if arguments.json:
        result = {
            "run_id": run_id,
            "status": row.status,
            "steps": row.steps_done,
            "reward_first": row.reward_first,
            "reward_last": row.reward_last,
            "heldout_before": row.heldout_before,
            "heldout_after": row.heldout_after,
            "seconds": round(seconds, 3),
        }
        print(json.dumps(result))
    else:
        print(run_line(row))
    return 0 if row.status == RunStatus.FINISHED else 1


def _end_now(store: Store, run_id: str, why: str) -> NoReturn:
    """End this process although its trainer goes on. The last checkpoint counts."""

    def note() -> None:
        with contextlib.suppress(StudioError):
            store.set_status(run_id, RunStatus.STOPPED, why)

    # In a thread: the trainer may hang while it holds the file. The next start then notes the end.
    writer = threading.Thread(target=note, daemon=True)
    writer.start()
    writer.join(NOTE_SECONDS)
    print(f"error: {why}", file=sys.stderr, flush=True)
    kill_all()
    os._exit(1)


def _ask_how_to_continue(control: RunControl) -> None:
    """Ask on the terminal what a paused run does next.

    Without a terminal nobody can answer, so the run stops: its last step is saved, and it can be
    resumed.
    """
    if not sys.stdin.isatty():
        control.stop()
        return

    def answer() -> None:
        key = input("Enter: resume, s: one step, p: one phase, q: stop > ").strip().lower()
        if key == "s":
            control.step()
        elif key == "p":
            control.step("phase")
        elif key == "q":
            control.stop()
        else:
            control.resume()

    threading.Thread(target=answer, name="pause prompt", daemon=True).start()


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
        case Restarted(step=step, reason=reason):
            bar.n = max(step, 0)
            bar.write(f"{printable(reason)} Going on after step {bar.n}.", file=sys.stderr)
        case Evaluated(
            step=step,
            metrics={
                "heldout/accuracy": accuracy,
                "heldout/accuracy_low": low,
                "heldout/accuracy_high": high,
            },
        ):
            bar.write(
                f"step {step}: held-out accuracy {accuracy:.1%} "
                f"(95 % interval {low:.1%} to {high:.1%})",
                file=sys.stderr,
            )
