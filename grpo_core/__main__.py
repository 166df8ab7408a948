"""The same without a browser: python -m grpo_core train | resume | tell | prompts | compare | runs | show | advise | report | export | doctor."""

from __future__ import annotations

import argparse
import json
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from grpo_core.breakpoints import parse_breakpoints
from grpo_core.config import PRESETS, RunConfig, fields_by_name, flatten, nest, parse, read_json, with_preset
from grpo_core.control import RunControl, Start
from grpo_core.errors import FieldProblem, InvalidConfig, NotFound, StudioError
from grpo_core.recipes import as_command, as_trl_script
from grpo_core.store import RunRow, Store, export
from grpo_core.types import Evaluated, Event, Paused, Phase, PhaseStarted, RunStatus, StepCompleted

DEFAULT_DB = "runs/grpo.sqlite"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 the run did not finish, 2 the request cannot be carried out."""
    arguments = _parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except InvalidConfig as error:
        return _refuse(arguments, [str(p) for p in error.problems])
    except StudioError as error:
        return _refuse(arguments, [str(error)])
    except BrokenPipeError:  # the reader, e.g. `head`, has seen enough
        sys.stderr.close()
        return 0


def _refuse(arguments: argparse.Namespace, lines: list[str]) -> int:
    for line in lines:
        print(f"error: {printable(line)}", file=sys.stderr)
    if getattr(arguments, "json", False):
        print(json.dumps({"error": lines}))
    return 2


# ---- commands ------------------------------------------------------------------------------------------------------


def train_command(arguments: argparse.Namespace) -> int:
    if arguments.rewards:
        from grpo_core.rubric import add_plugins

        add_plugins(arguments.rewards)
    config = build_config(arguments.config, arguments.preset, arguments.set)
    # Imported here: torch takes seconds, and the other commands and wrong input need none of it.
    from grpo_core.policy import check_model
    from grpo_core.runs import default_name, prepare

    config = prepare(config, lambda c: check_model(c.model))
    store = Store(arguments.db)
    with store.writing():
        store.recover()
        run_id = store.create_run(config, arguments.name or default_name(config), status=RunStatus.LOADING)
        return _train_here(store, run_id, config, None, arguments)


def resume_command(arguments: argparse.Namespace) -> int:
    from grpo_core.policy import check_model
    from grpo_core.resume import plan_branch, plan_resume
    from grpo_core.runs import prepare

    store = Store(arguments.db)
    parent = _find(store, arguments.run_id)
    changes = dict(map(_assignment, arguments.set))
    if "algorithm.preset" in changes:
        changes = with_preset(changes, changes["algorithm.preset"])
    with store.writing():
        store.recover()
        if changes or arguments.step is not None or arguments.name:
            config, start = plan_branch(store, parent.id, arguments.step, changes)
            config = prepare(config, lambda c: check_model(c.model))
            run_id = store.create_run(config, arguments.name or f"{parent.name}, from step {start.step}", status=RunStatus.LOADING, parent=(parent.id, start.step))
        else:
            run_id, (config, start) = parent.id, plan_resume(store, parent.id)
            config = prepare(config, lambda c: check_model(c.model))
        print(f"goes on after step {start.step}" if start.path else "begins anew: there is no checkpoint", file=sys.stderr)
        return _train_here(store, run_id, config, start, arguments)


def _train_here(store: Store, run_id: str, config: RunConfig, start: Start | None, arguments: argparse.Namespace) -> int:
    """Train a run of the store in this process, with a progress bar; Ctrl-C stops it."""
    from grpo_core.runs import execute
    from grpo_core.trainer import train

    control = RunControl(store.checkpoint_folder(run_id), start)
    control.set_breakpoints(parse_breakpoints(getattr(arguments, "wait_when", None) or ""))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: control.stop())

    def listen(event: Event) -> None:
        _show_progress(bar, event)
        if isinstance(event, Paused):
            bar.write(f"paused: {printable(event.reason)}", file=sys.stderr)
            _ask(control)

    print(f"run {run_id} in {store.path}", file=sys.stderr)
    started = time.monotonic()
    with tqdm(total=config.train.steps, initial=start.step if start else 0, unit="step", dynamic_ncols=True) as bar:
        execute(store, run_id, config, train, control, listen)
    seconds = time.monotonic() - started
    row = store.run(run_id)
    if row.error:
        print(f"error: {printable(row.error)}", file=sys.stderr)
    if arguments.json:
        print(json.dumps({"run_id": run_id, "status": row.status, "steps": row.steps_done, "reward_first": row.reward_first,
                          "reward_last": row.reward_last, "heldout_before": row.heldout_before, "heldout_after": row.heldout_after,
                          "seconds": round(seconds, 3)}))
    else:
        print(_run_line(row))
    return 0 if row.status == RunStatus.FINISHED else 1


def _ask(control: RunControl) -> None:
    """What now? A run that waits with nobody there to answer is stopped: its last step is saved, and it can be resumed."""
    if not sys.stdin.isatty():
        control.stop()
        return

    def answer() -> None:
        said = input("Enter: resume, s: one step, p: one phase, q: stop > ").strip().lower()
        {"s": control.step, "p": lambda: control.step("phase"), "q": control.stop}.get(said, control.resume)()

    threading.Thread(target=answer, name="asks", daemon=True).start()


def _show_progress(bar: tqdm, event: Event) -> None:
    match event:
        case PhaseStarted(phase=Phase.LOADING | Phase.EVALUATING as phase):
            bar.set_description(phase)
        case StepCompleted(metrics=m):
            bar.set_description("training")
            shown = {"reward": m.reward_mean, "kl": m.kl, "tokens": m.completion_tokens_mean}
            bar.set_postfix({k: f"{v:.3g}" for k, v in shown.items() if v is not None}, refresh=False)
            bar.update()
        case Evaluated(step=step, metrics={"heldout/accuracy": accuracy, "heldout/accuracy_low": low, "heldout/accuracy_high": high}):
            bar.write(f"step {step}: held-out accuracy {accuracy:.1%} (95 % interval {low:.1%} to {high:.1%})", file=sys.stderr)


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


def compare_command(arguments: argparse.Namespace) -> int:
    from grpo_core.compare import Comparison, Refused, find_presets, measure, summarise, table
    from grpo_core.runs import prepare

    assignments = list(arguments.set)
    for name, value in map(_assignment, assignments):
        if name == "algorithm.preset":
            raise InvalidConfig([FieldProblem(name, value, "the presets are what is compared", "Name them before the options: compare grpo ppo.")])
    if arguments.task is not None:
        assignments.append(f"task.name={arguments.task}")
    if arguments.steps is not None:
        assignments.append(f"train.steps={arguments.steps}")
    # Refused here, in a moment, rather than by the first run's process.
    configs = {preset: prepare(build_config(None, preset, assignments)) for preset in find_presets(arguments.presets)}
    seed = next(iter(configs.values())).train.seed
    store = Store(arguments.db)
    comparison = Comparison(arguments.db, configs, assignments)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: comparison.stop())
    try:
        ids = comparison.run(range(seed, seed + arguments.seeds), lambda line: print(line, file=sys.stderr))
    except Refused as refused:
        if arguments.json:
            print(json.dumps({"error": refused.lines}))
        return 2
    runs = [measure(store, run_id) for run_id in ids]
    summary = summarise(runs)
    print(json.dumps({"presets": summary, "runs": [asdict(r) for r in runs]}) if arguments.json else table(summary))
    return 0 if len(runs) == len(configs) * arguments.seeds and all(r.status == RunStatus.FINISHED for r in runs) else 1


def doctor_command(arguments: argparse.Namespace) -> int:
    from grpo_core.doctor import examine

    said, left = [], 0
    for finding in examine(arguments.db):
        fixed = False
        if finding.wrong and finding.fix is not None and arguments.fix:
            finding.fix()
            fixed = True
        left += finding.wrong and not fixed
        said.append({"what": finding.what, "wrong": finding.wrong, "way_out": finding.way_out, "can_fix": finding.fix is not None, "fixed": fixed})
        if not arguments.json:
            mark = "fixed" if fixed else "WRONG" if finding.wrong else "ok"
            how = f" {finding.way_out}" if finding.wrong else ""
            print(f"{mark:<6} {printable(finding.what)}.{how}")
    if left and not arguments.json and not arguments.fix and any(s["can_fix"] for s in said if s["wrong"]):
        print("Nothing was changed. `python -m grpo_core doctor --fix` mends what can be mended.")
    if arguments.json:
        print(json.dumps({"findings": said, "wrong": left}))
    return 1 if left else 0


# A run that another process is training is reached through that process's server alone.
TOLD = ("pause", "step", "resume", "stop", "checkpoint", "status")


def tell_command(arguments: argparse.Namespace) -> int:
    from gradio_client import Client
    from gradio_client.exceptions import AppError

    auth = tuple(arguments.auth.split(":", 1)) if arguments.auth else None
    try:
        client = Client(arguments.server, auth=auth, verbose=False)
        named = dict(map(_assignment, arguments.set))
        answer = client.predict(run=arguments.run_id, api_name=f"/{arguments.what}") if arguments.what else client.predict(run=arguments.run_id, api_name="/status")
        for name, value in named.items():
            answer = client.predict(setting=name, value=value, run=arguments.run_id, api_name="/change")
        if arguments.wait_when is not None:
            answer = client.predict(conditions=arguments.wait_when, run=arguments.run_id, api_name="/wait_when")
    except AppError as error:
        raise StudioError(str(error)) from None
    except Exception as error:  # whatever a network can do
        raise StudioError(f"--server {arguments.server!r} cannot be asked: {error}. Start it with: python app.py") from None
    if arguments.json:
        print(json.dumps(answer))
    else:
        print(f"{answer['id']}  {answer['status']}  {printable(answer['name'])}  step {answer['steps_done']} of {answer['num_steps']}"
              + (f"  {printable(answer['error'])}" if answer["error"] else ""))
    return 0


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 up")
    return int(text)


def bench_command(arguments: argparse.Namespace) -> int:
    from benchmarks import speed

    speed.run(arguments)
    return 0


def runs_command(arguments: argparse.Namespace) -> int:
    rows = Store(arguments.db).runs()
    if arguments.json:
        print(json.dumps([_plain(row) for row in rows]))
    elif not rows:
        print("No runs yet. Start one with: python -m grpo_core train")
    for row in [] if arguments.json else rows:
        print(_run_line(row))
    return 0


def show_command(arguments: argparse.Namespace) -> int:
    store = Store(arguments.db)
    row = _find(store, arguments.run_id)
    steps, metrics = store.steps(row.id), store.metrics(row.id)
    if arguments.json:
        print(json.dumps({**_plain(row), "steps": steps, "metrics": metrics}))
        return 0
    print(_run_line(row))
    for name, value in flatten(parse(row.config)).items():
        print(f"  {name} = {printable(json.dumps(value, ensure_ascii=False))}")
    if row.error:
        print(printable(row.error))
    print(f"{'step':>6} {'reward':>8} {'kl':>8} {'loss':>9} {'tokens':>7}")
    stride = max(1, len(steps) // 20)
    for s in steps[::stride]:
        print(f"{s['step']:>6} {_number(s['reward_mean']):>8} {_number(s['kl']):>8} {_number(s['loss']):>9} {_number(s['completion_tokens_mean']):>7}")
    for step, value in metrics.get("heldout/accuracy", []):
        print(f"held-out accuracy at step {step}: {_number(value)}")
    return 0


def advise_command(arguments: argparse.Namespace) -> int:
    """What is wrong with a run, if anything: its diagnoses, worst first."""
    from grpo_core.advisor import advise

    store = Store(arguments.db)
    row = _find(store, arguments.run_id)
    notices = advise(store, row.id)
    if arguments.json:
        print(json.dumps([{**asdict(n), "evidence": dict(n.evidence)} for n in notices]))
    elif not notices:
        print(f"{printable(row.name)}: nothing to say after {row.steps_done} steps.")
    for n in [] if arguments.json else notices:
        evidence = ", ".join(f"{name} {value}" for name, value in n.evidence.items())
        print(printable(f"{n.severity:<8} {n.code}, step {n.step}: {n.message}\n         Try: {n.advice}\n         ({evidence})"))
    return 0


def report_command(arguments: argparse.Namespace) -> int:
    from grpo_core.report import write_report

    store = Store(arguments.db)
    row = _find(store, arguments.run_id)
    out = Path(arguments.out or f"{row.id}.html")
    try:
        with out.open("w", encoding="utf-8") as file:
            write_report(store, row.id, file)
    except OSError as error:
        raise StudioError(f"--out {str(out)!r} cannot be written: {error.strerror}. Choose another file.") from None
    size = out.stat().st_size
    print(json.dumps({"run_id": row.id, "path": str(out), "bytes": size}) if arguments.json else f"{out}: {size:,} bytes")
    return 0


def export_command(arguments: argparse.Namespace) -> int:
    store = Store(arguments.db)
    row = _find(store, arguments.run_id)
    if arguments.format in ("model", "adapter"):
        from grpo_core.trained import export_model  # torch

        folder = export_model(store, row.id, Path(arguments.out or row.id), arguments.step, adapter_only=arguments.format == "adapter")
        print(json.dumps({"run_id": row.id, "format": arguments.format, "path": str(folder)}) if arguments.json else f"{folder}: {', '.join(sorted(p.name for p in folder.iterdir()))}")
        return 0
    out = arguments.out or (f"{row.id}.parquet" if arguments.format == "parquet" else "-")
    try:
        if arguments.format == "parquet":
            export.export_rollouts_parquet(store, row.id, out)
        else:
            write = {"csv": export.export_metrics_csv, "jsonl": export.export_rollouts_jsonl, "config": export.export_config_json,
                     "command": _text_of(as_command), "trl": _text_of(as_trl_script)}[arguments.format]
            if out == "-":
                write(store, row.id, sys.stdout)
                return 0
            with open(out, "w", encoding="utf-8", newline="") as file:
                write(store, row.id, file)
    except OSError as error:
        raise StudioError(f"--out {out!r} cannot be written: {error.strerror}. Choose another file.") from None
    size = Path(out).stat().st_size
    print(json.dumps({"run_id": row.id, "format": arguments.format, "path": out, "bytes": size}) if arguments.json else f"{out}: {size:,} bytes")
    return 0


def _text_of(recipe: Callable[[RunConfig], str]) -> Callable[[Store, str, TextIO], None]:
    return lambda store, run_id, out: print(recipe(parse(store.run(run_id).config)), end="", file=out)


# ---- reading the request -------------------------------------------------------------------------------------------


def build_config(file: str | None, preset: str | None, assignments: Sequence[str]) -> RunConfig:
    """File, then preset, then `--set`: what is said later and more precisely wins. Raises InvalidConfig."""
    flat: dict[str, Any] = {}
    if file:
        data = read_json(file)
        if not isinstance(data, dict) or not all(isinstance(section, dict) for section in data.values()):
            raise StudioError(f"config file {file!r} is not an object of sections. Export one with: python -m grpo_core export RUN --format config")
        flat = {f"{section}.{name}": value for section, values in data.items() for name, value in values.items()}
    if preset:
        flat |= with_preset({}, preset)
    given = dict(map(_assignment, assignments))
    if "algorithm.preset" in given:
        flat |= with_preset({}, given["algorithm.preset"])
    flat |= given
    if "rubric.path" in flat:
        flat |= _rubric_file(flat.pop("rubric.path"))
    return parse(nest(flat))


def _assignment(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise InvalidConfig([FieldProblem("--set", text, "there is no = in it", "Write section.field=value, e.g. train.steps=60.")])
    known = fields_by_name().get(name)
    if name == "rubric.path" or (known is not None and known.annotation is str):
        return name, value
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def _rubric_file(path: str) -> dict[str, Any]:
    """A rubric as exported by the page: {"name": …, "criteria": […]}, or the bare list of criteria."""
    data = read_json(path, "rubric")
    if isinstance(data, list):
        data = {"criteria": data}
    if not isinstance(data, dict):
        raise StudioError(f"rubric file {path!r} holds no rubric. Write {{\"name\": …, \"criteria\": [{{\"name\": …, \"check\": …, \"weight\": …}}]}}.")
    return {f"rubric.{k}": v for k, v in {"name": "custom", **data}.items()}


def _find(store: Store, run: str) -> RunRow:
    """The run of that id, of the only id that begins so, or the latest for "last"."""
    rows = store.runs()
    found = rows[:1] if run == "last" else [r for r in rows if r.id == run] or [r for r in rows if r.id.startswith(run)]
    if len(found) != 1:
        problem = f"{len(found)} runs begin with {run!r}" if found else f"there is no run {run!r}"
        raise NotFound(f"{problem} in {store.path}. List them with: python -m grpo_core runs --db {store.path}")
    return found[0]


# ---- showing -------------------------------------------------------------------------------------------------------


def printable(text: str) -> str:
    """Text from models, files and people without the control characters that a terminal would obey."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", "�", text)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _run_line(row: RunRow) -> str:
    heldout = f"held-out {_number(row.heldout_before)} → {_number(row.heldout_after)}"
    seconds = "" if row.duration_seconds is None else f"  {row.duration_seconds:.0f} s"
    return (f"{row.id}  {row.status:<11}  {printable(row.name)}  {row.steps_done} steps  "
            f"reward {_number(row.reward_first)} → {_number(row.reward_last)}  {heldout}{seconds}")


def _plain(row: RunRow) -> Mapping[str, Any]:
    return {**asdict(row), "duration_seconds": row.duration_seconds}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m grpo_core", description="GRPO Studio without a browser.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Any, help: str, **options: Any) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help, formatter_class=argparse.RawDescriptionHelpFormatter, **options)
        sub.add_argument("--db", default=DEFAULT_DB, help=f"the SQLite file (default {DEFAULT_DB})")
        sub.add_argument("--json", action="store_true", help="machine-readable output; the last line is one JSON value")
        sub.set_defaults(run=run)
        return sub

    lines = [f"  {name:<34} {info.title}. {info.description}{_choices(info)}" for name, info in fields_by_name().items()]
    train = command("train", train_command, "Train, with a progress bar.", epilog="fields for --set, with what they do:\n" + "\n".join(lines))
    train.add_argument("--preset", help=f"an algorithm: {', '.join(PRESETS)}")
    train.add_argument("--config", metavar="FILE", help="a configuration as exported")
    train.add_argument("--set", metavar="section.field=value", action="append", default=[], help="one field; may be repeated")
    train.add_argument("--name", help="a name for the run")
    train.add_argument("--wait-when", metavar="CONDITIONS", help="breakpoints, e.g. 'kl > 0.2, step = 40'; asks on the terminal, or stops where there is none")
    train.add_argument("--rewards", metavar="FILE.py", action="append", default=[], help="a plug-in file with reward functions; its checks are named file.function")
    prompts = command("prompts", prompts_command, "Show prompts exactly as the model will read them, and what was counted in their file.")
    prompts.add_argument("--config", metavar="FILE", help="a configuration as exported")
    prompts.add_argument("--set", metavar="section.field=value", action="append", default=[], help="one field, e.g. task.path=my.csv; may be repeated")
    prompts.add_argument("--count", type=_count, default=5, metavar="N", help="training prompts to show (default 5)")
    resume = command("resume", resume_command, "Go on with a run from its newest checkpoint. With --step, --set or --name: a new run that branches from it.")
    resume.add_argument("run_id", metavar="RUN", help="id, the beginning of one, or `last`")
    resume.add_argument("--step", type=_count, metavar="N", help="branch from the checkpoint of this step (default: the newest)")
    resume.add_argument("--set", metavar="section.field=value", action="append", default=[], help="branch with one field changed; may be repeated")
    resume.add_argument("--name", help="a name for the branch")
    model = command("model", model_command, "Check a model for a run: parameters, memory against what is free, end tokens, a sampled answer. Exit code 1: it cannot work.")
    model.add_argument("--config", metavar="FILE", help="a configuration as exported")
    model.add_argument("--set", metavar="section.field=value", action="append", default=[], help="one field, e.g. model.name=Qwen/Qwen3-0.6B; may be repeated")
    model.add_argument("--no-sample", action="store_true", help="do not load the weights for a sampled answer")
    if (Path(__file__).parent.parent / "benchmarks").is_dir():  # of the checkout, not of the package
        from benchmarks import speed

        speed.add_arguments(command("bench", bench_command, speed.__doc__))

    preflight = command("preflight", preflight_command, "One report before step 1: model, prompts, rubric, baseline, KL, time and memory of a real first step. Exit code 1: red.")
    preflight.add_argument("--preset", help=f"an algorithm: {', '.join(PRESETS)}")
    preflight.add_argument("--config", metavar="FILE", help="a configuration as exported")
    preflight.add_argument("--set", metavar="section.field=value", action="append", default=[], help="one field; may be repeated")
    compare = command("compare", compare_command, "Run presets on the same prompts, seeds and budget, and show reward against tokens, seconds and memory.")
    compare.add_argument("presets", nargs="+", metavar="PRESET", help=f"two or more of: {', '.join(PRESETS)}; the beginning of a name is enough")
    compare.add_argument("--task", help="a task (default: the configuration's)")
    compare.add_argument("--seeds", type=_count, default=3, metavar="N", help="runs of each preset, from train.seed up (default 3)")
    compare.add_argument("--steps", metavar="N", help="optimiser steps of each run")
    compare.add_argument("--set", metavar="section.field=value", action="append", default=[], help="one field of every run; may be repeated")
    doctor = command("doctor", doctor_command, "Look for what is wrong: versions, device, the store, its checkpoints, the disk. Changes nothing without --fix.")
    doctor.add_argument("--fix", action="store_true", help="mend what can be mended")
    tell = command("tell", tell_command, "Say something to a run that a server is training: pause, step, resume, stop, checkpoint; or ask for its status.")
    tell.add_argument("run_id", metavar="RUN", help="its id, or `last`")
    tell.add_argument("what", nargs="?", choices=TOLD, help="default: status")
    tell.add_argument("--set", metavar="section.field=value", action="append", default=[], help="a setting that changes with the next step; may be repeated")
    tell.add_argument("--wait-when", metavar="CONDITIONS", help="breakpoints, e.g. 'kl > 0.2, step = 40'; '' for none")
    tell.add_argument("--server", default="http://127.0.0.1:7860", help="default http://127.0.0.1:7860")
    tell.add_argument("--auth", metavar="USER:PASSWORD")
    command("runs", runs_command, "List the runs, newest first.")
    show = command("show", show_command, "Show one run: settings, steps, held-out results.")
    write = command("export", export_command, "Write a run to a file: metrics (csv), rollouts (jsonl, parquet), settings (config, command, trl: the same run as a TRL script), the trained model or adapter.")
    advise = command("advise", advise_command, "What is wrong with a run, if anything: diagnoses with evidence and what to try.")
    report = command("report", report_command, "One self-contained HTML file of a run: curves, verdicts, advice, best and worst groups, settings.")
    for sub in (report, show, advise, write):
        sub.add_argument("run_id", metavar="RUN", help="id, the beginning of one, or `last`")
    report.add_argument("--out", metavar="FILE", help="default: RUN.html")
    write.add_argument("--format", choices=["csv", "jsonl", "parquet", "config", "command", "trl", "model", "adapter"], required=True)
    write.add_argument("--step", type=_count, metavar="N", help="model, adapter: the saved step (default: the last)")
    write.add_argument("--out", metavar="FILE", help="default: standard output; RUN.parquet for parquet; a new folder RUN for a model")
    return parser


def _choices(info: Any) -> str:
    """A field's options, each with its sentence, on lines of their own."""
    return "".join(f"\n      {name}: {text}" for name, text in (info.json_schema_extra or {}).get("options", {}).items())


if __name__ == "__main__":
    sys.exit(main())
