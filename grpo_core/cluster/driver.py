"""A run's own process, when Ray trains the run: it records what the workers say.

It alone decides where the workers begin: after the last checkpoint that is on record.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from grpo_core.cluster.mailbox import Answered, Began, Letter, Lost
from grpo_core.config import RunConfig
from grpo_core.errors import StopRequested, StudioError
from grpo_core.training.control import Command, Emit, RunControl, Start
from grpo_core.training.distant import KEPT, DistantTimer, Ended, Logged, Message, log
from grpo_core.types import (
    LOST,
    WAITING,
    Checkpointed,
    Event,
    Intervened,
    Intervention,
    Noticed,
    Paused,
    Restarted,
    Resumed,
    StepCompleted,
)

POLL_SECONDS = 0.1
PLACE_SECONDS = 30.0  # without workers, until a notice says what is missing
ANSWER_SECONDS = 5.0  # for the one command that is answered, edit_reward
MAX_LOSSES = 3  # of workers, one after another, without a new step


class Engine(Protocol):
    """Starts the workers, again and again, and carries letters. No method but `letters` waits."""

    def letters(self, seconds: float) -> Sequence[Letter]:
        """What the workers said since; waits for some. Raises StudioError if none can start."""
        ...

    def begin_from(self, life: int, start: Start) -> None:
        """Let the workers of this life train."""
        ...

    def tell(self, command: Command, life: int | None = None, question: int | None = None) -> None:
        """Send a command. life: for these workers only."""
        ...

    def missing(self) -> str:
        """Why there are no workers now."""
        ...

    def stop(self) -> None:
        """End all workers, and Ray if it was started for them."""
        ...


def train_on_cluster(config: RunConfig, emit: Emit, control: RunControl) -> None:
    """trainer.train by `train.workers` processes that Ray places. Raises the same errors."""
    from grpo_core.cluster.ray_engine import RayEngine

    follow(RayEngine(config, control.folder, dict(os.environ)), emit, control)


def follow(engine: Engine, emit: Emit, control: RunControl) -> None:
    """Record what the workers of `engine` say until they end; pass commands on to them."""
    post = _Post(engine)
    control.points.timer = DistantTimer(emit, post)
    control.forward_to(post)
    try:
        _Run(engine, post, emit, control).follow()
    finally:
        engine.stop()


class _Post:
    """Passes commands on to the workers. A call raises StudioError if they refuse the command."""

    def __init__(self, engine: Engine):
        self.pending: dict[str, float] = {}  # settings that no step has yet
        self._engine = engine
        self._turn = threading.Lock()
        self._question = 0
        self._answer: str | None = None
        self._answered = threading.Event()

    def __call__(self, command: Command) -> None:
        name, values = command
        if name == "edit_reward":
            self._ask(command)
            return
        if name == "set_knob":
            self.pending[values[0]] = values[1]
        self.deliver(command)

    def deliver(self, command: Command) -> None:
        self._engine.tell(command)

    def answered(self, answer: Answered) -> None:
        if answer.question == self._question:  # else a late answer to an earlier question
            self._answer = answer.refusal
            self._answered.set()

    def _ask(self, command: Command) -> None:
        with self._turn:
            self._question += 1
            self._answered.clear()
            self._engine.tell(command, question=self._question)
            if not self._answered.wait(ANSWER_SECONDS):
                raise StudioError(
                    f"The workers did not answer within {ANSWER_SECONDS:.0f} s. "
                    "Check whether the reward was edited. Then try again, or press Stop."
                )
            if self._answer:
                raise StudioError(self._answer)


class _Run:
    """What is known of a run while its workers come and go."""

    def __init__(self, engine: Engine, post: _Post, emit: Emit, control: RunControl):
        self._engine, self._post, self._emit, self._control = engine, post, emit, control
        self._start = control.start or Start()
        self._made: dict[tuple[object, ...], Intervention] = {}
        self._life = 0  # of the workers that train now; 0: none do
        self._lives = 0
        self._step = self._best = self._start.step
        self._best_when_lost = -1
        self._losses = 0
        self._reason = ""
        self._is_paused = False
        self._waits_since: float | None = time.monotonic()
        self._is_told = False  # that the run waits for workers

    def follow(self) -> None:
        """Returns when the run has finished. Raises StopRequested, StudioError."""
        while True:
            for life, message in self._engine.letters(POLL_SECONDS):
                if self._read(life, message):
                    return
            if not self._life:
                if self._control.stop_requested:  # nobody is there to save anything
                    raise StopRequested(self._control.stop_reason)
                self._tell_what_is_missing()

    def _read(self, life: int, message: Message | Began | Lost | Answered) -> bool:
        match message:
            case Lost(reason):
                self._lose(reason)
            case Began():
                self._begin(life)
            case Answered():
                self._post.answered(message)
            case Logged(level, text):
                log.log(level, "%s", text)
            case Ended("finished"):
                return True
            case Ended("stopped", text):
                raise StopRequested(text or self._control.stop_reason)
            case Ended(_, text):
                raise StudioError(text)
            case _:
                self._record(life, message)
        return False

    def _record(self, life: int, event: Event) -> None:
        self._emit(event)
        match event:
            case Checkpointed(step, path, _, sha256):
                self._start = Start(step, Path(path), sha256)
                self._engine.tell(("recorded", ()), life)
            case StepCompleted(step):
                self._step, self._best = step, max(step, self._best)
            case Intervened(made):
                for i in made:
                    self._made[i.step, i.kind, i.field, i.group, i.completion] = i
                    if i.field and self._post.pending.get(i.field) == i.value:
                        del self._post.pending[i.field]
            case Paused():
                self._is_paused = True
            case Resumed():
                self._is_paused = False

    # ---- workers that come and go ----------------------------------------------------------------

    def _begin(self, life: int) -> None:
        """Let new workers train on from the last checkpoint on record."""
        if self._control.stop_requested:
            return
        start = self._start
        if self._is_told:
            self._is_told = False
            self._emit(Noticed(self._step, WAITING, "info", ""))
        if self._lives:
            step = start.step if start.path else -1
            if self._is_paused:
                self._emit(Resumed())
            self._emit(Restarted(step, self._reason))
        self._life, self._lives, self._waits_since = life, self._lives + 1, None
        self._is_paused = False
        self._step = start.step
        known = self._control.start.interventions if self._control.start else ()
        made = (*known, *self._made.values())
        self._repeat_commands()
        self._engine.begin_from(life, Start(start.step, start.path, start.sha256, made))

    def _repeat_commands(self) -> None:
        """Tell new workers what people asked before, and still want."""
        c = self._control
        with c.changed:
            breakpoints, reason, stride = c.breakpoints, c.pause_reason, c.pause_after
        self._engine.tell(("set_breakpoints", (breakpoints,)))
        for name, value in self._post.pending.items():
            self._engine.tell(("set_knob", (name, value)))
        if reason is not None:
            self._engine.tell(("pause", (reason,)))
        elif stride is not None:
            self._engine.tell(("step", (stride,)))

    def _lose(self, reason: str) -> None:
        self._life, self._reason = 0, reason
        self._waits_since = time.monotonic()
        is_stuck = self._best == self._best_when_lost
        self._losses, self._best_when_lost = self._losses + 1 if is_stuck else 1, self._best
        if self._control.stop_requested:
            return
        if self._losses >= MAX_LOSSES:
            raise StudioError(
                f"The workers failed {self._losses} times without a new step. The last time: "
                f"{reason} {KEPT}"
            )
        self._emit(
            Noticed(
                self._step,
                LOST,
                "warning",
                f"{reason} Ray starts the workers again, from {_place(self._start)}.",
            )
        )

    def _tell_what_is_missing(self) -> None:
        since = self._waits_since
        if since is not None and time.monotonic() - since > PLACE_SECONDS:
            self._waits_since, self._is_told = None, True
            text = f"The run has had no workers for {PLACE_SECONDS:.0f} s."
            text = f"{text} {self._engine.missing()} It waits; Stop ends it."
            self._emit(Noticed(self._step, WAITING, "warning", text))


def _place(start: Start) -> str:
    return f"the checkpoint of step {start.step}" if start.path else "the beginning"
