"""The checkpoints of a run: when they are saved and which are kept."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from grpo_core.checkpoint_files import (
    MANIFEST,
    BadCheckpoint,
    file_hash,
    folder_bytes,
    folder_name,
    read_manifest,
    remove,
    saved_steps,
    superfluous,
    verify,
)
from grpo_core.config import RunConfig
from grpo_core.errors import DiskFull, StopRequested
from grpo_core.learner import ALONE, Learner
from grpo_core.rubric import RunningStd
from grpo_core.training.checkpoint import Snapshot, put_weights, read, save, trained
from grpo_core.training.control import RunControl
from grpo_core.types import Checkpointed, Phase, PhaseStarted

log = logging.getLogger("grpo_studio")


class CheckpointManager:
    """Saves a run's last whole step: when it is due, on request, and when the run is stopped."""

    def __init__(self, model: nn.Module, learner: Learner, config: RunConfig, control: RunControl):
        self._model, self._learner, self._train = model, learner, config.train
        self._control, self._points = control, control.points
        # Those that write: all if the learner is in shards, otherwise the first alone.
        self._workers = learner.workers if learner.weights.in_shards else ALONE
        folder = control.folder
        self._folder = learner.workers.first(lambda: folder)
        self._writes = learner.weights.in_shards or learner.workers.is_first
        self._asked = False  # a person wants a save, which waits for all workers
        self._last: Snapshot | None = None
        self._saved_step = 0  # the newest step on the disk

    def __enter__(self) -> CheckpointManager:
        self._points.save = self.save if self._workers.world == 1 else self._ask
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._points.save = None
        if kind is StopRequested and self._train.checkpoint_every:
            self.save()

    def restore(self) -> tuple[int, RunningStd, bool]:
        """Load the checkpoint that the run starts from, if any.

        Returns its step, the reward scale until then, and whether the step was evaluated.
        """
        workers = self._learner.workers
        start = workers.first(lambda: self._control.start)
        if start is None or start.path is None:
            return 0, RunningStd(), False
        path = start.path
        manifest = workers.first(partial(verify, path, start.sha256))
        snapshot = workers.together(partial(self._read, path, manifest))
        self._learner.load_state(dict(snapshot.learner))
        if path.parent == self._folder:
            self._saved_step = snapshot.step
        self.mark(snapshot.step, snapshot.reward_scale, snapshot.evaluated, snapshot.heldout)
        return snapshot.step, snapshot.reward_scale, snapshot.evaluated

    def _read(self, path: Path, manifest: Mapping[str, Any]) -> Snapshot:
        snapshot = read(path, manifest, self._learner.weights.room)
        put_weights(self._model, snapshot.weights)
        return snapshot

    def mark(
        self, step: int, reward_scale: RunningStd, evaluated: bool, heldout: float | None = None
    ) -> None:
        """A step is whole: save this state until the next step is."""
        self._learner.midway = False  # also after a refused update
        self._last = Snapshot(
            step, trained(self._model), self._learner.state(), reward_scale, evaluated, heldout
        )

    def save_if_due(self) -> None:
        t, step = self._train, self._last.step if self._last else 0
        due = bool(t.checkpoint_every and (step % t.checkpoint_every == 0 or step == t.steps))
        if self._workers.world > 1:
            if self._workers.first(lambda: due or self._asked):
                self.save()
        else:
            self._learner.workers.together(lambda: self.save() if due else None)

    def _ask(self) -> None:
        """Save at the end of this step: the workers are at different places until then."""
        self._asked = True

    def save(self) -> None:
        """Save the last whole step unless it is saved, and delete what need not be kept."""
        folder, last, self._asked = self._folder, self._last, False
        if folder is None or last is None or last.step <= self._saved_step or not self._writes:
            return
        self._points.emit(PhaseStarted(Phase.SAVING, last.step, self._train.steps))
        saved_to = self._save_or_wait(folder, last)
        if saved_to is None:
            return
        self._saved_step = last.step
        self._workers.first(lambda: self._record(last.step, *saved_to))

    def _record(self, step: int, path: Path, seconds: float) -> None:
        """Tell of a checkpoint, and delete those that need not be kept."""
        folder = path.parent
        saved = {s: self._heldout(p) for s, p in saved_steps(folder).items() if s <= step}
        dropped = superfluous(saved, self._train.checkpoint_keep, self._train.checkpoint_keep_every)
        # The row is written before older folders are deleted: whatever the store lists exists,
        # and a folder that it does not list does no harm.
        size, digest = folder_bytes(path), file_hash(path / MANIFEST)
        self._points.emit(Checkpointed(step, str(path), size, digest, dropped, seconds))
        for old in dropped:
            remove(folder / folder_name(old))

    def _save_or_wait(self, folder: Path, snapshot: Snapshot) -> tuple[Path, float] | None:
        """The checkpoint's folder and the seconds that saving took.

        Waits for a person while it cannot be written; None if the run is stopped meanwhile.
        """
        while True:
            started = time.perf_counter()
            try:
                path = save(folder, snapshot, self._workers)
                return path, time.perf_counter() - started
            except DiskFull as problem:
                text = str(problem)
            if not self._workers.first(partial(self._wait_for_room, text)):
                return None

    def _wait_for_room(self, problem: str) -> bool:
        """Whether to try again, once a person says Resume."""
        if self._control.stop_requested:  # nobody makes room: the last checkpoint must do
            log.warning("%s", problem)
            return False
        self._points.hold(problem)
        return True

    @staticmethod
    def _heldout(path: Path) -> float | None:
        try:
            return read_manifest(path)["heldout"]
        except BadCheckpoint:
            return None
