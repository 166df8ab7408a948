"""What people ask of a running run, and the named points at which the trainer obeys."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_core.config import RunConfig
from grpo_core.errors import StopRequested, StudioError
from grpo_core.training.breakpoints import Breakpoint
from grpo_core.training.timing import RunTimer
from grpo_core.types import Event, Group, Intervened, Intervention, Paused, PhaseStarted, Resumed

# Settings that can change during a run. A change takes effect with the next step, so that each
# step has one value of everything.
KNOBS = (
    "train.learning_rate",
    "algorithm.kl_coef",
    "train.temperature",
    "algorithm.clip_eps_low",
    "algorithm.clip_eps_high",
)
STEP_OR_PHASE = ("phase", "step")
PAUSED = "Paused. Press Resume to go on, Step to go one step, or Stop."

Emit = Callable[[Event], None]
Train = Callable[[RunConfig, Emit, "RunControl"], None]  # trainer.train, or a stand-in for it
Command = tuple[str, tuple[Any, ...]]  # the name of a method of RunControl, and its arguments


@dataclass(frozen=True, slots=True)
class Start:
    """Where a run starts: a checkpoint, or the beginning; and what people changed until then."""

    step: int = 0
    path: Path | None = None
    sha256: str = ""
    interventions: tuple[Intervention, ...] = ()


class RunControl:
    """What people ask of a run, kept until the trainer obeys. Safe to use from any thread.

    folder: where checkpoints go (None: nowhere). start: where the run starts from. points: the
    trainer's side. If the trainer runs in another process, `forward_to` passes each command on.
    """

    def __init__(self, folder: Path | None = None, start: Start | None = None) -> None:
        self.folder, self.start = folder, start
        self.changed = threading.Condition()  # guards all fields below, and wakes a waiting trainer
        self.pending = False  # a command may need attention: the one field read without the lock
        self.stop_requested = False
        self.stop_reason = ""  # of a stop that no person asked for
        self.saving_seconds: float | None = None  # how long a save of this run took before
        self.pause_reason: str | None = None  # why the run has to wait
        self.pause_after: str | None = None  # "phase" or "step": wait again at its end
        self.save_requested = False
        self.rewards_edited = False
        self.breakpoints: tuple[Breakpoint, ...] = ()
        self.step_now = start.step if start else 0
        self.editable: tuple[int, list[int]] | None = None  # a step before its update; group sizes
        # Why some commands are refused: on a leased GPU the trainer reads only `message()`.
        self.refusal: str | None = None
        self._settings: dict[int, dict[str, float]] = {}  # step -> dotted field -> value
        self._rewards: dict[int, dict[tuple[int, int], float]] = {}  # step -> position -> reward
        self._restore(start.interventions if start else ())
        self._saves = 0  # how often saving was requested, for message()
        self._commands: list[Command] = []  # all so far, for a trainer that is attached later
        self._forward: Callable[[Command], None] | None = None
        self.points = ControlPoints(self)

    # ---- commands ------------------------------------------------------------------------------

    def stop(self, reason: str = "") -> None:
        """End the run at its next interrupt check. reason: why, if no person asked for it."""
        with self.changed:
            if reason and not self.stop_requested:
                self.stop_reason = reason
            self.stop_requested = True
            self.wake()
        with contextlib.suppress(StudioError):  # a process that does not listen is ended by force
            self._pass_on("stop", reason)

    def pause(self, reason: str = PAUSED) -> None:
        """Wait at the next interrupt check. While the run waits, pausing again changes nothing."""
        self._pass_on("pause", reason)
        with self.changed:
            if self.pause_reason is None:
                self._wait_for(reason, None)

    def resume(self) -> None:
        """Go on."""
        if not self.points.is_holding:
            self._pass_on("resume")
        with self.changed:
            self._wait_for(None, None)

    def step(self, stride: str = "step") -> None:
        """Go on, and wait again at the end of the present step, or of the present phase."""
        if stride not in STEP_OR_PHASE:
            raise StudioError(
                f"stride = {stride!r:.40}: a run steps by phase or by step. Write phase or step."
            )
        self._refuse_on_lease()
        if not self.points.is_holding:
            self._pass_on("step", stride)
        with self.changed:
            self._wait_for(None, stride)

    def checkpoint(self) -> None:
        """Save the last whole step at the next interrupt check."""
        self._pass_on("checkpoint")
        if self.folder is not None:
            with self.changed:
                self.save_requested = True
                self.wake()

    def set_knob(self, name: str, value: float) -> None:
        """Change a setting from the next step on. The caller has checked the field's bounds."""
        if name not in KNOBS:
            raise StudioError(
                f"{name!r:.80} cannot be changed while a run goes on. Known: {', '.join(KNOBS)}."
            )
        self._pass_on("set_knob", name, value)
        with self.changed:
            self._settings.setdefault(self.step_now + 1, {})[name] = float(value)

    def set_breakpoints(self, breakpoints: Sequence[Breakpoint]) -> None:
        """Wait before the update of every step in which one of these holds; they replace others."""
        if breakpoints:
            self._refuse_on_lease()
        self._pass_on("set_breakpoints", tuple(breakpoints))
        with self.changed:
            self.breakpoints = tuple(breakpoints)

    def edit_reward(self, step: int, group: int, completion: int, reward: float) -> None:
        """Give a completion of the waiting step another reward; positions count from 0.

        Its group's advantages are computed again before the update. Raises StudioError.
        """
        self._refuse_on_lease()
        if self._forward is not None:  # the waiting step is in the other process, which checks
            self._forward(("edit_reward", (step, group, completion, reward)))
            return
        with self.changed:
            if self.editable is None or self.pause_reason is None or self.editable[0] != step:
                raise StudioError(
                    "Rewards can be edited while a run waits between its advantages and its "
                    "update, and only those of that step. Set a breakpoint, e.g. step = 40."
                )
            sizes = self.editable[1]
            if not (0 <= group < len(sizes) and 0 <= completion < sizes[group]):
                raise StudioError(
                    f"step {step} has no completion {completion + 1} in group {group + 1}. "
                    f"It has {len(sizes)} groups of {sizes[0]}."
                )
            self._rewards.setdefault(step, {})[group, completion] = float(reward)
            self.rewards_edited = True
            self.wake()

    # ---- changes that people made --------------------------------------------------------------

    def settings(self, step: int | None = None) -> dict[str, float]:
        """The changed settings in force in a step (None: after all changes), by dotted name."""
        with self.changed:
            in_force = [s for s in sorted(self._settings) if step is None or s <= step]
            return {name: v for s in in_force for name, v in self._settings[s].items()}

    def settings_from(self, step: int) -> dict[str, float]:
        """The settings that change with this step."""
        with self.changed:
            return dict(self._settings.get(step, {}))

    def rewards(self, step: int) -> dict[tuple[int, int], float]:
        """(group, completion) -> the reward that a person gave it in this step."""
        with self.changed:
            return dict(self._rewards.get(step, {}))

    def _restore(self, interventions: Iterable[Intervention]) -> None:
        for i in interventions:
            if i.kind == "setting" and i.field is not None and i.value is not None:
                self._settings.setdefault(i.step, {})[i.field] = i.value
            elif i.kind == "reward" and i.value is not None:
                assert i.group is not None
                assert i.completion is not None
                self._rewards.setdefault(i.step, {})[i.group, i.completion] = i.value

    # ---- a trainer in another process ----------------------------------------------------------

    def forward_to(self, follower: Callable[[Command], None]) -> None:
        """Pass every command so far, and each further one, on to the process that trains."""
        with self.changed:
            self._forward = follower
            for command in self._commands:
                follower(command)
            self._commands.clear()

    def message(self) -> dict[str, Any]:
        """The commands so far as JSON types, for the process on a leased GPU; see `obey`.

        A pause is a stop there: a leased GPU does not wait for a person.
        """
        with self.changed:
            if self.save_requested:
                self.save_requested, self._saves = False, self._saves + 1
            stop = self.stop_requested or self.pause_reason is not None
            return {"stop": stop, "saves": self._saves, "settings": self.settings()}

    def obey(self, message: Mapping[str, Any]) -> None:
        """In the process on a leased GPU: take over what is new in a message."""
        if message["stop"]:
            self.stop()
        if message["saves"] > self._saves:
            self._saves = message["saves"]
            self.checkpoint()
        in_force = self.settings()
        for name, value in message["settings"].items():
            if in_force.get(name) != value:
                self.set_knob(name, value)

    def _pass_on(self, name: str, *values: Any) -> None:
        with self.changed:
            forward = self._forward
            if forward is None:
                self._commands.append((name, values))
        if forward is not None:
            forward((name, values))

    def _refuse_on_lease(self) -> None:
        if self.refusal:
            raise StudioError(self.refusal)

    # ---- for both sides; the caller holds `changed` ----------------------------------------------

    def _wait_for(self, reason: str | None, stride: str | None) -> None:
        self.pause_reason, self.pause_after = reason, stride
        self.wake()

    def wake(self) -> None:
        self.pending = True
        self.changed.notify_all()


class ControlPoints:
    """The trainer's side of a RunControl: it waits, saves, stops and takes changes over, here only.

    `timer`: passes events on to the record and measures the run; set by whoever runs the trainer.
    `save`: saves the last whole step; set while the trainer can. Both are used while the run waits.
    """

    def __init__(self, control: RunControl) -> None:
        self._control = control
        self.timer = RunTimer(lambda event: None)
        self.save: Callable[[], None] | None = None
        # The run waits in hold(): Resume is for this side alone. A trainer in another process may
        # wait as well, for a reason that nobody has seen yet.
        self.is_holding = False
        self._recorded_reason: str | None = None  # the pause that is on record
        self._numbers: Mapping[str, float | int | None] = {}  # metrics of the step before
        self._breakpoints_checked = 0  # the step: edited rewards do not ask its breakpoints again
        self._had_warning = False
        self._comparing = False  # advantages follow edited rewards before anything else

    def emit(self, event: Event) -> None:
        """Record an event."""
        self.timer(event)

    def check_interrupt(self, at_step_boundary: bool = True) -> None:
        """Wait as long as a person wants; raise StopRequested if the run is to stop.

        at_step_boundary: False while the weights are between two steps; saving and stopping then
        wait for the end of the step.
        """
        if self._control.pending:
            self._attend(at_step_boundary)

    def _attend(self, at_step_boundary: bool) -> None:
        c = self._control
        while True:
            with c.changed:
                if c.stop_requested and at_step_boundary:
                    raise StopRequested(c.stop_reason)
                save = self.save if c.save_requested and at_step_boundary else None
                reason = None if c.stop_requested else c.pause_reason
                if save is not None:
                    c.save_requested = False
                elif c.rewards_edited or self._comparing:
                    return  # advantages first, see review()
                elif reason is None:
                    c.pending = c.stop_requested or c.save_requested
                    break
                elif reason == self._recorded_reason:
                    c.changed.wait()
                    continue
            # Outside of the lock: saving and recording take time, and commands must not wait.
            if save is not None:
                save()
            else:
                self._recorded_reason = reason
                self.emit(Paused(str(reason)))
        if self._recorded_reason is not None:
            self._recorded_reason = None
            self.emit(Resumed())

    def hold(self, reason: str) -> None:
        """The run cannot go on alone: wait until a person says Resume, Step or Stop."""
        c = self._control
        self.is_holding = True
        try:
            with c.changed:
                c.pause_reason, c.pause_after = reason, None
                c.wake()
            self._attend(at_step_boundary=False)
        finally:
            self.is_holding = False

    def begin_phase(self, phase: PhaseStarted) -> None:
        """Record the phase; wait here if a person steps phase by phase."""
        self.emit(phase)
        if self._control.pause_after == "phase":
            self._control.pause(
                f"Before {phase.phase} of step {phase.step}. Press Step or Resume to go on."
            )
        self.check_interrupt()

    def begin_step(self, step: int) -> dict[str, float]:
        """Record the settings that change now; return all changed settings, by dotted name."""
        c = self._control
        with c.changed:
            c.step_now = step
        changes = c.settings_from(step)
        if changes:
            made = (Intervention(step, "setting", v, field=name) for name, v in changes.items())
            self.emit(Intervened(tuple(made)))
        return c.settings(step)

    def edited_rewards(self, step: int) -> dict[tuple[int, int], float]:
        """Record and return the rewards that a person gave: (group, completion) -> reward."""
        c = self._control
        with c.changed:
            rewards = c.rewards(step)
            c.rewards_edited = False
        if rewards:
            made = (
                Intervention(step, "reward", v, group=g, completion=i)
                for (g, i), v in rewards.items()
            )
            self.emit(Intervened(tuple(made)))
        return rewards

    def review(
        self,
        step: int,
        groups: Sequence[Group],
        numbers: Mapping[str, float | int | None],
        warning: str | None = None,
    ) -> bool:
        """Between advantages and update: wait if a breakpoint holds. True: rewards were edited.

        numbers: metrics of this step, added to those of the update before. warning: a reason
        to wait, such as too many unscored completions, unless the step before had one too.
        """
        c = self._control
        with c.changed:
            c.editable, self._comparing = (step, [len(g.rollouts) for g in groups]), False
            if self._breakpoints_checked != step:
                self._breakpoints_checked = step
                known = {**self._numbers, **numbers}
                hit = next((b for b in c.breakpoints if b.holds(step, groups, known)), None)
                if hit is not None:
                    c.pause(
                        f"Breakpoint “{hit}” before the update of step {step}. "
                        "Edit rewards, press Resume or Step to go on, or Stop."
                    )
                if warning is not None and not self._had_warning:
                    c.pause(warning)
                self._had_warning = warning is not None
        self.check_interrupt()
        with c.changed:
            if not c.rewards_edited:
                c.editable = None
            self._comparing = c.rewards_edited
            return self._comparing

    def end_step(self, step: int, numbers: Mapping[str, float | int | None]) -> None:
        """Wait here if a person steps step by step. numbers: the step's metrics."""
        self._numbers = numbers
        if self._control.pause_after == "step":
            self._control.pause(f"After step {step}. Press Step or Resume to go on.")
        self.check_interrupt()
