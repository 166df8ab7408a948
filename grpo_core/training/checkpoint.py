"""Save and load the state of a run, to the last bit. Safetensors and JSON: no code can run."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from grpo_core.checkpoint_files import (
    FORMAT,
    MANIFEST,
    BadCheckpoint,
    file_hash,
    folder_bytes,
    folder_name,
    read_manifest,
    remove,
    saved_steps,
    superfluous,
    sync,
    verify,
)
from grpo_core.config import RunConfig
from grpo_core.errors import DiskFull, StopRequested
from grpo_core.learner import Learner
from grpo_core.rubric import RunningStd
from grpo_core.training.control import RunControl
from grpo_core.types import Checkpointed, Phase, PhaseStarted

log = logging.getLogger("grpo_studio")

WEIGHTS, STATE = "policy.safetensors", "state.safetensors"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the next step starts from. Its tensors are valid until the next update."""

    step: int
    weights: Mapping[str, Tensor]  # trained weights only; the others come with the model
    learner: Mapping[str, Any]
    reward_scale: RunningStd
    evaluated: bool  # the evaluation due after this step is done
    heldout: float | None  # its accuracy, if any


# ---- one checkpoint --------------------------------------------------------------------------


def save(folder: Path, snapshot: Snapshot) -> Path:
    """Write a checkpoint to a temporary folder, sync it, then rename it: whole or not there.

    Returns its folder. Raises DiskFull if the file system refuses it, for whatever reason.
    """
    name = folder_name(snapshot.step)
    target, part = folder / name, folder / f".{name}.part"
    tensors: dict[str, Tensor] = {}
    state = pack({"learner": snapshot.learner, "spread": asdict(snapshot.reward_scale)}, tensors)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(".step-*"):  # of a process that was killed while it saved
            shutil.rmtree(leftover, ignore_errors=True)
        part.mkdir()
        for file, content in ((WEIGHTS, snapshot.weights), (STATE, tensors)):
            save_file({k: v.detach().contiguous() for k, v in content.items()}, part / file)
            sync(part / file)
        manifest = {
            "format": FORMAT,
            "step": snapshot.step,
            "evaluated": snapshot.evaluated,
            "heldout": snapshot.heldout,
            "state": state,
            "files": {file: file_hash(part / file) for file in (WEIGHTS, STATE)},
        }
        (part / MANIFEST).write_text(json.dumps(manifest), "utf-8")
        sync(part / MANIFEST)
        sync(part)
        remove(target)  # the same step, saved before the run was resumed; it has been read
        part.rename(target)
        sync(folder)
    except Exception as error:
        shutil.rmtree(part, ignore_errors=True)
        number = _error_number(error)
        if number is None:
            raise
        saved = (*snapshot.weights.values(), *tensors.values())
        needed = sum(t.numel() * t.element_size() for t in saved)
        raise DiskFull(_why_not_saved(folder, snapshot.step, number, needed)) from None
    return target


def _error_number(error: Exception) -> int | None:
    """The number of an error of the file system; None for any other error."""
    if isinstance(error, OSError):
        return error.errno
    hidden = re.search(r"os error (\d+)", str(error))  # how safetensors names it
    return int(hidden[1]) if hidden else None


def _why_not_saved(folder: Path, step: int, number: int, needed: int) -> str:
    size = f"The checkpoint of step {step} needs {needed / 2**20:.1f} MiB in {str(folder)!r}"
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        with contextlib.suppress(OSError):  # the folder may be gone too
            free = shutil.disk_usage(folder).free / 2**20
            quota = "" if number == errno.ENOSPC else f" ({os.strerror(number)})"
            return (
                f"{size}, and {free:.1f} MiB are free{quota}. "
                "Free some space and press Resume, or Stop."
            )
    return (
        f"{size}, which cannot be written: {os.strerror(number)}. "
        "Make the folder writable and press Resume, or Stop."
    )


def load(path: Path, sha256: str) -> Snapshot:
    """Read a checkpoint back after checking every byte. Raises BadCheckpoint."""
    manifest = verify(path, sha256)
    state = unpack(manifest["state"], load_file(path / STATE))
    return Snapshot(
        manifest["step"],
        load_file(path / WEIGHTS),
        state["learner"],
        RunningStd(**state["spread"]),
        manifest["evaluated"],
        manifest["heldout"],
    )


def pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Nested data -> JSON types; tensors go to `tensors` under a number. Floats keep every bit."""
    match value:
        case Tensor():
            name = _name_of(value, tensors) or str(len(tensors))
            tensors[name] = value
            return {"tensor": name}
        case Mapping():  # as pairs: the keys of an optimiser's state are numbers
            return {"pairs": [[key, pack(v, tensors)] for key, v in value.items()]}
        case list() | tuple():
            # A named tuple becomes a plain one; whoever loads it makes its type again.
            kind = "list" if isinstance(value, list) else "tuple"
            return {kind: [pack(v, tensors) for v in value]}
        case None | bool() | int() | float() | str():
            return value
    raise TypeError(f"a checkpoint cannot keep {type(value).__name__}")


def _name_of(value: Tensor, tensors: Mapping[str, Tensor]) -> str | None:
    """Tied weights are one tensor; safetensors refuses to save it under two names."""
    for name, t in tensors.items():
        if value.numel() and t.data_ptr() == value.data_ptr() and t.shape == value.shape:
            return name
    return None


def unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    match value:
        case {"tensor": name}:
            return tensors[name]
        case {"pairs": pairs}:
            return {key: unpack(v, tensors) for key, v in pairs}
        case {"list": items}:
            return [unpack(v, tensors) for v in items]
        case {"tuple": items}:
            return tuple(unpack(v, tensors) for v in items)
    return value


def trained(model: nn.Module) -> dict[str, Tensor]:
    """The trained weights by name, tied ones once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def put_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy into the model's own memory: results on a CPU can depend on its alignment."""
    own = trained(model)
    if own.keys() != weights.keys() or any(own[n].shape != w.shape for n, w in weights.items()):
        raise BadCheckpoint(
            "the checkpoint is of another model than this run's. "
            "Name the model that it was made with."
        )
    for name, p in own.items():
        p.copy_(weights[name])


# ---- the checkpoints of a run ----------------------------------------------------------------


class CheckpointManager:
    """Saves a run's last whole step: when it is due, on request, and when the run is stopped."""

    def __init__(self, model: nn.Module, learner: Learner, config: RunConfig, control: RunControl):
        self._model, self._learner, self._train = model, learner, config.train
        self._control, self._points = control, control.points
        self._last: Snapshot | None = None
        self._saved_step = 0  # the newest step on the disk

    def __enter__(self) -> CheckpointManager:
        self._points.save = self.save
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._points.save = None
        if kind is StopRequested and self._train.checkpoint_every:
            self.save()

    def restore(self) -> tuple[int, RunningStd, bool]:
        """Load the checkpoint that the run starts from, if any.

        Returns its step, the reward scale until then, and whether the step was evaluated.
        """
        start = self._control.start
        if start is None or start.path is None:
            return 0, RunningStd(), False
        snapshot = load(start.path, start.sha256)
        put_weights(self._model, snapshot.weights)
        self._learner.load_state(dict(snapshot.learner))
        if start.path.parent == self._control.folder:
            self._saved_step = snapshot.step
        self.mark(snapshot.step, snapshot.reward_scale, snapshot.evaluated, snapshot.heldout)
        return snapshot.step, snapshot.reward_scale, snapshot.evaluated

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
        if t.checkpoint_every and (step % t.checkpoint_every == 0 or step == t.steps):
            self.save()

    def save(self) -> None:
        """Save the last whole step unless it is saved, and delete what need not be kept."""
        folder, last = self._control.folder, self._last
        if folder is None or last is None or last.step <= self._saved_step:
            return
        self._points.emit(PhaseStarted(Phase.SAVING, last.step, self._train.steps))
        saved_to = self._save_or_wait(folder, last)
        if saved_to is None:
            return
        path, seconds = saved_to
        self._saved_step = last.step
        saved = {
            step: self._heldout(p) for step, p in saved_steps(folder).items() if step <= last.step
        }
        dropped = superfluous(saved, self._train.checkpoint_keep, self._train.checkpoint_keep_every)
        # The row is written before older folders are deleted: whatever the store lists exists,
        # and a folder that it does not list does no harm.
        size, digest = folder_bytes(path), file_hash(path / MANIFEST)
        self._points.emit(Checkpointed(last.step, str(path), size, digest, dropped, seconds))
        for step in dropped:
            remove(folder / folder_name(step))

    def _save_or_wait(self, folder: Path, snapshot: Snapshot) -> tuple[Path, float] | None:
        """The checkpoint's folder and the seconds that saving took.

        Waits for a person while it cannot be written; None if the run is stopped meanwhile.
        """
        while True:
            started = time.perf_counter()
            try:
                return save(folder, snapshot), time.perf_counter() - started
            except DiskFull as problem:
                if self._control.stop_requested:  # nobody makes room: the last checkpoint must do
                    log.warning("%s", problem)
                    return None
                self._points.hold(str(problem))

    @staticmethod
    def _heldout(path: Path) -> float | None:
        try:
            return read_manifest(path)["heldout"]
        except BadCheckpoint:
            return None
