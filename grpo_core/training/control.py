"""RunControl: everything that a person can say to a running run, and where the run listens."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grpo_core.errors import StopRequested, StudioError
from grpo_core.training.breakpoints import Breakpoint
from grpo_core.training.timing import Clock
from grpo_core.types import Edited, Group, Paused, PhaseStarted, Resumed

# What can be changed while a run goes on. Each takes effect with the next step, so that a step has one value of everything.
KNOBS = (
    "train.learning_rate",
    "algorithm.kl_coef",
    "train.temperature",
    "algorithm.clip_eps_low",
    "algorithm.clip_eps_high",
)
KNOB, EDIT = "knob/", "edit/"  # names in the record, see types.Edited
_EVER = 2**62  # a step after all others

Word = tuple[str, tuple[Any, ...]]  # a method of RunControl that people call, and its arguments


@dataclass(frozen=True, slots=True)
class Start:
    """Where a run goes on from: a checkpoint, or the beginning; and what had been changed by hand, step by step."""

    step: int = 0
    path: Path | None = None
    sha256: str = ""
    edits: Mapping[int, Mapping[str, float]] = field(
        default_factory=dict
    )  # step -> values as in types.Edited


class RunControl:
    """The one object through which a run is reached from outside. Safe to use from any thread, any number of times.

    The trainer calls `check_interrupt()` at its named points (before each token, micro-batch and phase), `enter()` when a phase begins,
    `review()` between advantages and update, `changed()` and `finished()` around a step. Nothing else reaches into it.
    """

    def __init__(self, folder: Path | None = None, start: Start | None = None) -> None:
        self.folder, self.start = (
            folder,
            start,
        )  # where checkpoints go (None: nowhere), and where to go on from
        self.tell = Clock(
            lambda event: None
        )  # set by the trainer: what is said here is part of the run's events
        self.save: Callable[[], None] | None = (
            None  # set by the trainer while it can save its last whole step
        )
        self._talk = threading.Condition()
        self._attention = False  # something was said: the only thing that a breath looks at
        self._stopping = self._saving = False
        self.stop_reason = ""  # of a stop that no person asked for
        self._waiting: str | None = None  # why the run shall not go on
        self._stride: str | None = (
            None  # "phase" or "step": at the end of which it shall wait again
        )
        self._breakpoints: tuple[Breakpoint, ...] = ()
        self._broke_at = (
            0  # a breakpoint is asked once a step, however often its rewards are edited
        )
        self._edits: dict[int, dict[str, float]] = {
            step: dict(v) for step, v in (start.edits if start else {}).items()
        }
        self._step = start.step if start else 0
        self._numbers: Mapping[str, float | int | None] = {}  # of the step before
        self._worried = False
        self._reviewed: tuple[int, list[int]] | None = (
            None  # the step before whose update the run is, and its group sizes
        )
        self._edited = self._comparing = False  # rewards were edited; advantages are following
        self._told: str | None = None  # the reason for waiting that is on record
        self.apart: str | None = (
            None  # why some things cannot be said: the trainer is in a process of its own, and hears `said()`
        )
        self._saves = 0  # how often saving was asked for, of a trainer apart
        self._words: list[Word] = []  # all that people said, until somebody follows
        self._follower: Callable[[Word], None] | None = None
        self._holding = False  # it waits here, in hold(): to go on is said to it alone, not to a run elsewhere that may wait for a reason nobody has seen yet

    # ---- said by people ------------------------------------------------------------------------------------------------

    def stop(self, reason: str = "") -> None:
        """Ask the run to end at its next breath. Everything recorded is kept. reason: why, where nobody asked for it."""
        self._pass_on("stop", reason)
        self._say(
            _stopping=True, **({"stop_reason": reason} if reason and not self._stopping else {})
        )

    def pause(
        self, reason: str = "Paused. Press Resume to go on, Step to go one step, or Stop."
    ) -> None:
        """Ask the run to wait at its next breath. Once it waits, asking again changes nothing."""
        self._pass_on("pause", reason)
        with self._talk:
            if self._waiting is None:
                self._say(_waiting=reason, _stride=None)

    def resume(self) -> None:
        if not self._holding:
            self._pass_on("resume")
        self._say(_waiting=None, _stride=None)

    def step(self, stride: str = "step") -> None:
        """Go on, and wait again at the end of the present step, or of the present phase."""
        if stride not in ("phase", "step"):
            raise StudioError(
                f"stride = {stride!r:.40}: a run steps by phase or by step. Write phase or step."
            )
        self._refuse_apart()
        if not self._holding:
            self._pass_on("step", stride)
        self._say(_waiting=None, _stride=stride)

    def checkpoint(self) -> None:
        """Save the last whole step at the next breath."""
        self._pass_on("checkpoint")
        if self.folder is not None:
            self._say(_saving=True)

    def set_knob(self, name: str, value: float) -> None:
        """Change a setting from the next step on. Whoever calls has checked the value against the field's bounds."""
        if name not in KNOBS:
            raise StudioError(
                f"{name!r:.80} cannot be changed while a run goes on. Known: {', '.join(KNOBS)}."
            )
        self._pass_on("set_knob", name, value)
        with self._talk:
            self._edits.setdefault(self._step + 1, {})[KNOB + name] = float(value)

    def set_breakpoints(self, breakpoints: Sequence[Breakpoint]) -> None:
        """These and no others: the run waits before the update of every step in which one of them holds."""
        if breakpoints:
            self._refuse_apart()
        self._pass_on("set_breakpoints", tuple(breakpoints))
        with self._talk:
            self._breakpoints = tuple(breakpoints)

    def edit_reward(self, step: int, group: int, completion: int, reward: float) -> None:
        """Give a completion of the waiting step another reward; its advantages follow before the update. Counted from 0."""
        self._refuse_apart()
        if (
            self._follower is not None
        ):  # the step that waits is there, and so is what may be said against it
            return self._follower(("edit_reward", (step, group, completion, reward)))
        with self._talk:
            if self._reviewed is None or self._waiting is None or self._reviewed[0] != step:
                raise StudioError(
                    "Rewards can be edited while a run waits between its advantages and its update, and only those of that step. "
                    "Set a breakpoint, e.g. step = 40, or press Step until the phase is updating."
                )
            sizes = self._reviewed[1]
            if not (0 <= group < len(sizes) and 0 <= completion < sizes[group]):
                raise StudioError(
                    f"step {step} has no completion {completion + 1} in group {group + 1}. It has {len(sizes)} groups of {sizes[0]}."
                )
            self._edits.setdefault(step, {})[f"{EDIT}{group}/{completion}"] = float(reward)
            self._say(_edited=True)

    def _refuse_apart(self) -> None:
        if self.apart:
            raise StudioError(self.apart)

    # ---- a trainer in another process ------------------------------------------------------------------------------------

    def followed_by(self, follower: Callable[[Word], None]) -> None:
        """The run listens elsewhere: everything that people said goes to `follower` now, and what they will say as they say it."""
        with self._talk:
            self._follower = follower
            for word in self._words:
                follower(word)
            self._words.clear()

    def _pass_on(self, name: str, *values: Any) -> None:
        with self._talk:
            follower = self._follower
            if follower is None:
                self._words.append((name, values))
        if follower is not None:
            follower((name, values))

    @property
    def has_breakpoints(self) -> bool:
        return bool(self._breakpoints)

    def said(self) -> dict[str, Any]:
        """What was said so far and a trainer elsewhere can do; a wish to wait is a stop there. JSON types, for `hear`."""
        with self._talk:
            if self._saving:
                self._saving, self._saves = False, self._saves + 1
            return {
                "stop": self._stopping or self._waiting is not None,
                "saves": self._saves,
                "knobs": self.knobs(_EVER),
            }

    def hear(self, said: Mapping[str, Any]) -> None:
        """There: take over what is new in it."""
        if said["stop"]:
            self.stop()
        if said["saves"] > self._saves:
            self._saves = said["saves"]
            self.checkpoint()
        in_force = self.knobs(_EVER)
        for name, value in said["knobs"].items():
            if in_force.get(name) != value:
                self.set_knob(name, value)

    def _say(self, **what: object) -> None:
        with self._talk:
            for name, value in what.items():
                setattr(self, name, value)
            self._attention = True
            self._talk.notify_all()

    # ---- asked by the run ----------------------------------------------------------------------------------------------

    @property
    def stop_requested(self) -> bool:
        return self._stopping

    def check_interrupt(self, whole: bool = True) -> None:
        """Waits as long as a person wants; raises StopRequested if somebody asked the run to stop.

        whole: False while the weights are between two steps; saving and stopping then wait for the end of the step.
        """
        if self._attention:
            self._attend(whole)

    def _attend(self, whole: bool) -> None:
        while True:
            with self._talk:
                if self._stopping and whole:
                    raise StopRequested(self.stop_reason)
                save = self.save if self._saving and whole else None
                reason = None if self._stopping else self._waiting
                if save is not None:
                    self._saving = False
                elif self._edited or self._comparing:
                    return  # advantages first, see review()
                elif reason is None:
                    self._attention = self._stopping or self._saving
                    break
                elif reason == self._told:
                    self._talk.wait()
                    continue
            # Outside of the lock: saving and recording take their time, and nobody who says something shall wait for them.
            if save is not None:
                save()
            else:
                self._told = reason
                self.tell(Paused(str(reason)))
        if self._told is not None:
            self._told = None
            self.tell(Resumed())

    def hold(self, reason: str) -> None:
        """Said by the run itself: it cannot go on alone. Returns when a person has said Resume, Step or Stop."""
        self._holding = True
        try:
            self._say(_waiting=reason, _stride=None)
            self._attend(whole=False)
        finally:
            self._holding = False

    def enter(self, phase: PhaseStarted) -> None:
        """A phase begins; stepping phase by phase, the run waits here."""
        self.tell(phase)
        if self._stride == "phase":
            self.pause(f"Before {phase.phase} of step {phase.step}. Press Step or Resume to go on.")
        self.check_interrupt()

    def changed(self, step: int) -> dict[str, float]:
        """A step begins: every setting that was changed by now, under its dotted name."""
        with self._talk:
            self._step = step
            news = {
                name: v for name, v in self._edits.get(step, {}).items() if name.startswith(KNOB)
            }
        if news:
            self.tell(Edited(step, news))
        return self.knobs(step)

    def knobs(self, step: int) -> dict[str, float]:
        """The changed settings that are in force in a step."""
        with self._talk:
            return {
                name.removeprefix(KNOB): v
                for s in sorted(self._edits)
                if s <= step
                for name, v in self._edits[s].items()
                if name.startswith(KNOB)
            }

    def rewards(self, step: int) -> dict[tuple[int, int], float]:
        """(group, completion) -> the reward that a person gave it in this step."""
        with self._talk:
            values = {
                name: v for name, v in self._edits.get(step, {}).items() if name.startswith(EDIT)
            }
            self._edited = False
        if values:
            self.tell(Edited(step, values))
        return {
            (int(g), int(c)): v
            for name, v in values.items()
            for g, c in [name.removeprefix(EDIT).split("/")]
        }

    def review(
        self,
        step: int,
        groups: Sequence[Group],
        numbers: Mapping[str, float | int | None],
        worry: str | None = None,
    ) -> bool:
        """Between advantages and update: waits if a breakpoint holds. Whether rewards were edited, so that advantages must follow.

        numbers: the step's own figures, which join those of the update before. worry: a reason to wait, unless it was there in the step before.
        """
        with self._talk:
            self._reviewed, self._comparing = (step, [len(g.rollouts) for g in groups]), False
            if self._broke_at != step:
                self._broke_at = step
                hit = next(
                    (
                        b
                        for b in self._breakpoints
                        if b.holds(step, groups, {**self._numbers, **numbers})
                    ),
                    None,
                )
                if hit is not None:
                    self.pause(
                        f"Breakpoint “{hit}” before the update of step {step}. Edit rewards, press Resume or Step to go on, or Stop."
                    )
                if worry is not None and not self._worried:
                    self.pause(worry)
                self._worried = worry is not None
        self.check_interrupt()
        with self._talk:
            if not self._edited:
                self._reviewed = None
            self._comparing = self._edited
            return self._comparing

    def finished(self, step: int, numbers: Mapping[str, float | int | None]) -> None:
        """A step is whole; stepping step by step, the run waits here. numbers: what it measured, for breakpoints."""
        self._numbers = numbers
        if self._stride == "step":
            self.pause(f"After step {step}. Press Step or Resume to go on.")
        self.check_interrupt()
