"""Training on ZeroGPU, which lends a GPU for about a minute to a forked process.

train() runs in the forked process, which dies with its lease, and yields its events. The parent
process writes the rows, because a SQLite connection must not be used across a fork.
"""

from __future__ import annotations

import contextlib
import gc
import json
import math
import os
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from traceback import format_exc
from typing import Any

from grpo_core.config import RunConfig, parse
from grpo_core.config.devices import VARIABLE as DEVICE_VARIABLE
from grpo_core.errors import FieldProblem, InvalidConfig, StopRequested, StudioError
from grpo_core.runs.stop_in_time import LATE, Patience, killed_if_late
from grpo_core.training.control import Emit, RunControl, Start, Train
from grpo_core.training.timing import RunTimer
from grpo_core.types import Checkpointed, Event, Intervened, ModelLoaded, Paused, Resumed

VARIABLE = "GRPO_LEASE_SECONDS"
SECONDS = 60  # a usual lease; a visitor without an account has 120 s a day
USABLE = 0.85  # of a lease; its process needs the rest to start and to save the last step
POLL_SECONDS = 0.25  # the longest delay until a Stop or a changed setting takes effect
NOT_POSSIBLE = (
    "On ZeroGPU a run trains in a separate process while its lease lasts, so this is not possible. "
    "Pause, Stop and changed settings work."
)


@dataclass(frozen=True, slots=True)
class Ended:
    """The last item that a lease yields.

    how: "finished", "stopped", "failed", "over" (its time), or "waits" (for a person).
    """

    how: str
    text: str = ""


Item = Event | Ended | None  # what a lease yields
KILLED = Ended(
    "failed",
    "The GPU's lease ended before the run did: its process was killed. "
    "What was saved is kept: press Resume for another lease.",
)


# ---- how many steps fit ----------------------------------------------------------------------


def steps_that_fit(seconds: float, before: float, step: float) -> int:
    """Steps that fit into one lease.

    ⌊(USABLE · seconds − before) / step⌋, at least 0      all in seconds; before: the first step
    """
    return max(0, math.floor((USABLE * seconds - before) / step)) if step > 0 else 0


def outlook(seconds: float, config: RunConfig, measured: tuple[float, float] | None) -> str:
    """A sentence that says before Start how much of the run fits into one lease.

    measured: seconds before the first step and seconds per step, on a leased GPU.
    """
    if measured is None:
        return (
            f"ZeroGPU lends its GPU for {seconds:.0f} s at a time. How many steps of this size fit "
            "is not measured yet: Preflight measures it, or the first run. "
            "A run that needs longer is saved, and Resume takes the next lease."
        )
    fit, steps = steps_that_fit(seconds, *measured), config.train.steps
    before, step = measured
    into_one_lease = (
        f"into one lease of {seconds:.0f} s: "
        f"{before:.1f} s to start and {step:.2f} s per step were measured."
    )
    if not fit:
        return (
            f"Not one step fits {into_one_lease} "
            "Choose a smaller model, fewer completions or fewer tokens."
        )
    if fit >= steps:
        return f"All {steps:,} steps fit {into_one_lease}"
    return (
        f"About {fit:,} of {steps:,} steps fit {into_one_lease} "
        f"The run takes {math.ceil(steps / fit):,} leases. "
        "Each ends with a saved state, and Resume takes the next."
    )


def seconds_from(environment: Mapping[str, str]) -> int:
    """GRPO_LEASE_SECONDS, or the usual lease. Raises InvalidConfig."""
    text = environment.get(VARIABLE, "").strip() or str(SECONDS)
    if not (text.isdecimal() and 10 <= int(text) <= 3600):
        problem = "must be a whole number of seconds from 10 to 3600"
        hint = "60 is usual. Correct the environment variable, or unset it."
        raise InvalidConfig([FieldProblem(VARIABLE, text, problem, hint)])
    return int(text)


def one_device(config: RunConfig) -> None:
    """Raise InvalidConfig for several workers: a lease has one GPU."""
    if config.train.workers > 1:
        problem = "ZeroGPU lends one GPU"
        raise InvalidConfig(
            [FieldProblem("train.workers", config.train.workers, problem, "Use 1.")]
        )


def same_size(a: RunConfig, b: RunConfig) -> bool:
    """Whether the steps of two runs take about the same time."""

    def size(config: RunConfig) -> tuple[Any, ...]:
        t, updates = config.train, config.algorithm.updates_per_batch
        return config.model, t.prompts_per_step, t.group_size, t.max_new_tokens, t.workers, updates

    return size(a) == size(b)


def measured_before(
    runs: Sequence[Any], steps_of: Callable[[str], Sequence[Mapping[str, Any]]], config: RunConfig
) -> tuple[float, float] | None:
    """Seconds before the first step, and the median seconds of a step, on a leased GPU.

    From the newest run of the same size; runs: newest first. None if there is none.
    """
    for run in runs:
        try:
            if not (run.env or {}).get("lease_seconds") or not same_size(parse(run.config), config):
                continue
        except StudioError:  # the configuration is of another version
            continue
        steps = [s["step_seconds"] for s in steps_of(run.id) if s["step_seconds"]]
        if steps:
            return run.env.get("lease_begin_seconds", 0.0), statistics.median(steps)
    return None


# ---- in the parent process -------------------------------------------------------------------


def leased(train: Train, gpu: Callable[..., Any], seconds: int = SECONDS) -> Train:
    """`train`, but on a GPU that is lent for `seconds`. gpu: spaces.GPU, or a stand-in that forks.

    If the lease ends before the last step, the run is saved and stops; Resume takes another lease.
    A pause gives the GPU back.
    """

    def in_lease(
        config: RunConfig, folder: Path | None, start: Start, message_file: str
    ) -> Iterator[Item]:
        control = RunControl(folder, start)
        yield from _events(train, config, control, Path(message_file), USABLE * seconds)

    lend = gpu(duration=seconds)(in_lease)

    def train_leased(config: RunConfig, emit: Emit, control: RunControl) -> None:
        control.points.timer, control.refusal = RunTimer(emit), NOT_POSSIBLE
        if control.breakpoints:
            raise StudioError(NOT_POSSIBLE)
        start = control.start or Start()
        with tempfile.TemporaryDirectory(prefix="grpo-lease-") as folder:
            message_file = Path(folder) / "message.json"
            patience = Patience(config, control.saving_seconds)
            lease = _Lease(lend, config, control, message_file, seconds, patience)
            with killed_if_late(control, patience, lambda: _kill(message_file)) as late:
                try:
                    _train_in_leases(lease, start)
                except StudioError:
                    if not late.is_set():
                        raise
                    raise StopRequested(f"{control.stop_reason} {LATE}".strip()) from None

    return train_leased


def _train_in_leases(lease: _Lease, start: Start) -> None:
    """One lease after another, until the run is finished. Raises StudioError, StopRequested."""
    config, control = lease.config, lease.control
    while True:
        start, end = _one_lease(lease, start)
        if end.how == "finished":
            return
        if end.how == "failed":
            raise StudioError(end.text)
        if control.stop_requested:
            raise StopRequested(control.stop_reason)
        if end.how == "over":
            raise StopRequested(
                f"The GPU's lease of {lease.seconds} s is over. Saved after step {start.step} of "
                f"{config.train.steps}: press Resume for the next lease."
            )
        if end.how == "waits":
            control.points.hold(end.text)
        control.points.check_interrupt()  # a pause waits here, without a GPU, until Resume


@dataclass(frozen=True, slots=True)
class _Lease:
    """A run and how it gets a GPU; used for one lease after another."""

    lend: Callable[..., Iterator[Item]]
    config: RunConfig
    control: RunControl
    message_file: Path  # commands to the forked process, which polls it
    seconds: int
    patience: Patience


def _one_lease(lease: _Lease, start: Start) -> tuple[Start, Ended]:
    """Emit the events of one lease, and pass commands on to it.

    Returns the start of the next lease, and how this one ended.
    """
    control = lease.control
    made = start.interventions
    _process_file(lease.message_file).unlink(missing_ok=True)
    lent_at, sent = time.monotonic(), control.message()
    _write(lease.message_file, sent)
    events = lease.lend(lease.config, control.folder, start, str(lease.message_file))
    while True:
        try:
            event = next(events, KILLED)
        except Exception as error:  # gradio's error class; its text names the quota or the queue
            raise StudioError(
                f"The GPU's lease failed: {error}. What was saved is kept: press Resume for "
                "another, or wait for a new day's quota."
            ) from None
        if isinstance(event, Ended):
            for _ in events:  # finish the generator, which gives the GPU back
                pass
            return replace(start, interventions=made), event
        match event:
            case None:
                pass
            case ModelLoaded(env=env):
                begin = time.monotonic() - lent_at
                times = {"lease_seconds": lease.seconds, "lease_begin_seconds": begin}
                control.points.emit(replace(event, env={**env, **times}))
            case _:
                control.points.emit(event)
        if event is not None:
            lease.patience.note(event)
        if isinstance(event, Checkpointed):
            start = Start(event.step, Path(event.path), event.sha256, made)
        elif isinstance(event, Intervened):
            made += event.interventions
        message = control.message()
        if message != sent:
            _write(lease.message_file, message)
            sent = message


def _kill(message_file: Path) -> None:
    """Kill the process that has the GPU, if there is one. The lease then ends with an error."""
    with contextlib.suppress(OSError, ValueError):
        os.kill(int(_process_file(message_file).read_text()), signal.SIGKILL)


def _process_file(message_file: Path) -> Path:
    return message_file.with_suffix(".pid")


def _write(file: Path, message: Mapping[str, Any]) -> None:
    part = file.with_suffix(".part")
    part.write_text(json.dumps(message), "utf-8")
    part.replace(file)  # atomic: the reader never sees half of a message


# ---- in the forked process -------------------------------------------------------------------


def _events(
    train: Train, config: RunConfig, control: RunControl, message_file: Path, seconds: float
) -> Iterator[Item]:
    """Run train() in a thread and yield its events, then Ended.

    Without an event it yields None every POLL_SECONDS, so that the parent process can send a
    message.
    """
    gc.freeze()  # never collect inherited objects: that would close the parent's connections
    os.environ[DEVICE_VARIABLE] = "lent"
    _process_file(message_file).write_text(str(os.getpid()))
    events: SimpleQueue[Event | Ended] = SimpleQueue()
    deadline, over, pause_reason = time.monotonic() + seconds, False, ""

    def work() -> None:
        try:
            train(config, events.put, control)
            events.put(Ended("finished"))
        except StopRequested:
            events.put(Ended("stopped"))
        except StudioError as problem:
            events.put(Ended("failed", str(problem)))
        except BaseException as problem:  # the parent process records it
            events.put(Ended("failed", f"{type(problem).__name__}: {problem}\n\n{format_exc()}"))

    threading.Thread(target=work, name="trainer", daemon=True).start()
    try:
        while True:
            try:
                event: Item = events.get(timeout=POLL_SECONDS)
            except Empty:
                event = None
            control.obey(json.loads(message_file.read_text("utf-8")))
            if not over and time.monotonic() > deadline:
                over = True
                control.stop()
            if isinstance(event, Ended):
                if event.how == "stopped" and over:
                    event = Ended("over")
                elif event.how == "stopped" and pause_reason:
                    event = Ended("waits", pause_reason)
                yield event
                return
            if isinstance(event, Paused):
                # A person may take longer than the lease. Save, give the GPU back, and wait there.
                pause_reason = event.reason
                control.stop()
            elif not isinstance(event, Resumed):
                yield event
    finally:
        control.stop()
