"""ZeroGPU: a GPU is lent for about a minute to a forked process that dies with its lease. train() runs in there and yields its events; the run's own
process writes the rows, so that no SQLite connection is ever used across the fork."""

from __future__ import annotations

import gc
import json
import math
import os
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
from grpo_core.errors import FieldProblem, InvalidConfig, StopRequested, StudioError
from grpo_core.models.device import DEVICE_VARIABLE
from grpo_core.training.control import RunControl, Start
from grpo_core.training.timing import RunTimer
from grpo_core.types import Checkpointed, Event, Intervened, ModelLoaded, Paused, Resumed

Train = Callable[[RunConfig, Callable[[Event], None], RunControl], None]
VARIABLE = "GRPO_LEASE_SECONDS"
SECONDS = 60  # the usual lease; a visitor without an account has 120 a day
USABLE = 0.85  # of a lease: the rest is for its process to begin, and to save the last step before it is killed
BEAT_SECONDS = 0.25  # how long a Stop or a changed setting may take to be heard
APART = "On ZeroGPU a run goes on in a process of its own while its lease lasts, so this cannot be said to it. Pause, Stop and changed settings can."


@dataclass(frozen=True, slots=True)
class Ended:
    """The last thing a lease yields. how: "finished", "stopped", "over" (its time), "waits" (for a person), "failed"."""

    how: str
    text: str = ""


KILLED = Ended(
    "failed",
    "The GPU's lease ended before the run did: its process was killed. What was saved is kept: press Resume for another lease.",
)


# ---- what fits -----------------------------------------------------------------------------------------------------------


def steps_that_fit(seconds: float, before: float, step: float) -> int:
    """OnGroupDone steps in one lease      ⌊(usable seconds − seconds before the first step) / seconds a step⌋, at least 0."""
    return max(0, math.floor((USABLE * seconds - before) / step)) if step > 0 else 0


def outlook(seconds: float, config: RunConfig, measured: tuple[float, float] | None) -> str:
    """In a sentence, before Start: how much of the run one lease holds. measured: seconds before the first step, and of a step, on a leased GPU."""
    if measured is None:
        return (
            f"ZeroGPU lends its GPU for {seconds:.0f} s at a time. How many steps of this size fit is not measured yet: Preflight measures it, or the first run. "
            "A run that needs longer is saved, and Resume takes the next lease."
        )
    fit, steps = steps_that_fit(seconds, *measured), config.train.steps
    if fit >= steps:
        return f"All {steps:,} steps fit into one lease of {seconds:.0f} s: {measured[0]:.1f} s to begin and {measured[1]:.2f} s a step were measured."
    leases = (
        f"{math.ceil(steps / fit):,} leases"
        if fit
        else "not one step in a lease: choose a smaller model, fewer completions or fewer tokens"
    )
    return (
        f"About {fit:,} of {steps:,} steps fit into one lease of {seconds:.0f} s: {measured[0]:.1f} s to begin and {measured[1]:.2f} s a step were measured. "
        f"The run takes {leases}. Each ends with a saved state, and Resume takes the next."
    )


def seconds_from(environment: Mapping[str, str]) -> int:
    """GRPO_LEASE_SECONDS, or the usual lease. Raises InvalidConfig."""
    text = environment.get(VARIABLE, "").strip() or str(SECONDS)
    if not (text.isdecimal() and 10 <= int(text) <= 3600):
        raise InvalidConfig(
            [
                FieldProblem(
                    VARIABLE,
                    text,
                    "is no whole number of seconds from 10 to 3600",
                    "60 is usual; correct the environment variable, or unset it.",
                )
            ]
        )
    return int(text)


def same_size(a: RunConfig, b: RunConfig) -> bool:
    """Whether two runs' steps take about as long."""
    return (
        a.model == b.model
        and all(
            getattr(a.train, n) == getattr(b.train, n)
            for n in ("prompts_per_step", "group_size", "max_new_tokens")
        )
        and (a.algorithm.updates_per_batch == b.algorithm.updates_per_batch)
    )


def measured_before(
    runs: Sequence[Any], steps_of: Callable[[str], Sequence[Mapping[str, Any]]], config: RunConfig
) -> tuple[float, float] | None:
    """Of the newest run of that size on a leased GPU: seconds before its first step, and the median of its steps; None if there is none."""
    for run in runs:
        try:
            if not (run.env or {}).get("lease_seconds") or not same_size(parse(run.config), config):
                continue
        except StudioError:  # a configuration of another version
            continue
        steps = [s["step_seconds"] for s in steps_of(run.id) if s["step_seconds"]]
        if steps:
            return run.env.get("lease_begin_seconds", 0.0), statistics.median(steps)
    return None


# ---- in the run's own process ----------------------------------------------------------------------------------------------


def leased(train: Train, gpu: Callable[..., Any], seconds: int = SECONDS) -> Train:
    """`train`, but on a GPU that is lent for `seconds`. gpu: spaces.GPU, or something that forks as it does.

    One lease a run. When it is over before the last step the run stops, saved, and Resume takes another. A pause gives the GPU back.
    """

    def in_lease(
        config: RunConfig, folder: Path | None, start: Start, post: str
    ) -> Iterator[Event | Ended | None]:
        yield from _inside(train, config, RunControl(folder, start), Path(post), USABLE * seconds)

    lend = gpu(duration=seconds)(in_lease)

    def train_leased(config: RunConfig, emit: Callable[[Event], None], control: RunControl) -> None:
        control.points.timer, control.refusal = RunTimer(emit), APART
        if control.breakpoints:
            raise StudioError(APART)
        start = control.start or Start()
        with tempfile.TemporaryDirectory(prefix="grpo-lease-") as folder:
            post = Path(folder) / "said.json"
            while True:
                start, end = _one_lease(lend, config, control, start, post, seconds)
                if end.how == "finished":
                    return
                if end.how == "failed":
                    raise StudioError(end.text)
                if control.stop_requested:
                    raise StopRequested(control.stop_reason)
                if end.how == "over":
                    raise StopRequested(
                        f"The GPU's lease of {seconds} s is over. Saved after step {start.step} of {config.train.steps}: press Resume for the next lease."
                    )
                if end.how == "waits":
                    control.points.hold(end.text)
                control.points.check_interrupt()  # a pause: the GPU is given back until somebody says Resume

    return train_leased


def _one_lease(
    lend: Callable[..., Iterator[Event | Ended | None]],
    config: RunConfig,
    control: RunControl,
    start: Start,
    post: Path,
    seconds: int,
) -> tuple[Start, Ended]:
    """Pass on what a lease says and tell it what people say. Returns where the next would start, and how this one ended."""
    made = start.interventions
    began, told = time.monotonic(), control.message()
    _write(post, told)
    events = lend(config, control.folder, start, str(post))
    while True:
        try:
            event = next(events, KILLED)
        except (
            Exception
        ) as error:  # gradio's own error class, with the quota or the queue in its text
            raise StudioError(
                f"The GPU's lease failed: {error}. What was saved is kept: press Resume for another, or wait for a new day's quota."
            ) from None
        if isinstance(event, Ended):
            for _ in events:  # to its end, so that the GPU is given back
                pass
            return replace(start, interventions=made), event
        match event:
            case None:
                pass
            case ModelLoaded(env=env):
                control.points.emit(
                    ModelLoaded(
                        {
                            **env,
                            "lease_seconds": seconds,
                            "lease_begin_seconds": time.monotonic() - began,
                        }
                    )
                )
            case _:
                control.points.emit(event)
        if isinstance(event, Checkpointed):
            start = Start(event.step, Path(event.path), event.sha256, made)
        elif isinstance(event, Intervened):
            made += event.interventions
        if (now := control.message()) != told:
            _write(post, told := now)


def _write(post: Path, said: Mapping[str, Any]) -> None:
    part = post.with_suffix(".part")
    part.write_text(json.dumps(said), "utf-8")
    part.replace(post)


# ---- in the lease's process ------------------------------------------------------------------------------------------------


def _inside(
    train: Train, config: RunConfig, control: RunControl, post: Path, seconds: float
) -> Iterator[Event | Ended | None]:
    """Events of train() in a thread, and None every beat, so that whoever listens can answer; Ended at last."""
    gc.freeze()  # what was inherited, open connections among it, is never collected here
    os.environ[DEVICE_VARIABLE] = "lent"
    said: SimpleQueue[Event | Ended] = SimpleQueue()
    deadline, over, waits = time.monotonic() + seconds, False, ""

    def work() -> None:
        try:
            train(config, said.put, control)
            said.put(Ended("finished"))
        except StopRequested:
            said.put(Ended("stopped"))
        except StudioError as problem:
            said.put(Ended("failed", str(problem)))
        except (
            BaseException
        ) as problem:  # belongs to the run's record, which is kept by the other process
            said.put(Ended("failed", f"{type(problem).__name__}: {problem}\n\n{format_exc()}"))

    threading.Thread(target=work, name="trainer", daemon=True).start()
    try:
        while True:
            try:
                event: Event | Ended | None = said.get(timeout=BEAT_SECONDS)
            except Empty:
                event = None
            control.obey(json.loads(post.read_text("utf-8")))
            if not over and time.monotonic() > deadline:
                over = True
                control.stop()
            if isinstance(event, Ended):
                yield (
                    Ended("over")
                    if over and event.how == "stopped"
                    else Ended("waits", waits)
                    if waits and event.how == "stopped"
                    else event
                )
                return
            if isinstance(
                event, Paused
            ):  # nobody's answer is worth a GPU that waits: save, give it back, and ask then
                waits = event.reason
                control.stop()
            elif not isinstance(event, Resumed):
                yield event
    finally:
        control.stop()
