"""A run's state on the disk: whole or not there, and back to the last bit. Safetensors and JSON; nothing in it can run code."""

from __future__ import annotations

import errno
import json
import logging
import shutil
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
    """What the next step will start from. Its tensors are the living ones: it is good until the optimiser moves them."""

    step: int
    weights: Mapping[str, Tensor]  # what is trained; the rest comes from where the model came from
    learner: Mapping[str, Any]
    spread: RunningStd
    evaluated: bool  # what was to be measured of this step on held-out prompts has been
    heldout: float | None  # its accuracy, if any


# ---- one checkpoint ------------------------------------------------------------------------------------------------------


def save(folder: Path, snapshot: Snapshot) -> Path:
    """Write a checkpoint beside its place, make sure that it is on the disk, then give it its name. Returns its folder; raises DiskFull."""
    target, aside = (
        folder / folder_name(snapshot.step),
        folder / f".{folder_name(snapshot.step)}.part",
    )
    tensors: dict[str, Tensor] = {}
    state = pack({"learner": snapshot.learner, "spread": asdict(snapshot.spread)}, tensors)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(
            ".step-*"
        ):  # of a process that was killed while it saved or deleted
            shutil.rmtree(left, ignore_errors=True)
        aside.mkdir()
        for name, content in ((WEIGHTS, snapshot.weights), (STATE, tensors)):
            save_file({k: v.detach().contiguous() for k, v in content.items()}, aside / name)
            sync(aside / name)
        manifest = {
            "format": FORMAT,
            "step": snapshot.step,
            "evaluated": snapshot.evaluated,
            "heldout": snapshot.heldout,
            "state": state,
            "files": {name: file_hash(aside / name) for name in (WEIGHTS, STATE)},
        }
        (aside / MANIFEST).write_text(json.dumps(manifest), "utf-8")
        sync(aside / MANIFEST)
        sync(aside)
        remove(target)  # the same step of a life before; whoever resumed has read it already
        aside.rename(target)
        sync(folder)
    except Exception as error:
        shutil.rmtree(aside, ignore_errors=True)
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "os error 28" in str(
            error
        ):  # safetensors wraps the first
            need = sum(
                t.numel() * t.element_size()
                for t in (*snapshot.weights.values(), *tensors.values())
            )
            free = shutil.disk_usage(folder).free
            raise DiskFull(
                f"The checkpoint of step {snapshot.step} needs {need / 2**20:.1f} MiB in {str(folder)!r}, and {free / 2**20:.1f} MiB are free. "
                "Free some space and press Resume, or Stop."
            ) from None
        raise
    return target


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
    """Plain nested data -> JSON types, with tensors put aside under a number. JSON's floats come back to the last bit, inf too."""
    match value:
        case Tensor():  # tied weights are one tensor under two names, and safetensors would refuse the second
            same = (
                n
                for n, t in tensors.items()
                if value.numel() and t.data_ptr() == value.data_ptr() and t.shape == value.shape
            )
            name = next(same, str(len(tensors)))
            tensors[name] = value
            return {"tensor": name}
        case Mapping():  # as pairs: an optimiser's keys are numbers
            return {"pairs": [[key, pack(v, tensors)] for key, v in value.items()]}
        case list() | tuple():
            return {type(value).__name__: [pack(v, tensors) for v in value]}
        case None | bool() | int() | float() | str():
            return value
    raise TypeError(f"a checkpoint cannot keep {type(value).__name__}")


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
    """The weights that move, tied ones once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def put_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Into the memory that the model already has: results on CPU can depend on how that is aligned."""
    own = trained(model)
    if own.keys() != weights.keys() or any(own[n].shape != w.shape for n, w in weights.items()):
        raise BadCheckpoint(
            "the checkpoint is of another model than this run's. Name the model that it was made with."
        )
    for name, p in own.items():
        p.copy_(weights[name])


# ---- the checkpoints of a run ----------------------------------------------------------------------------------------------


class CheckpointManager:
    """Saves a run's state when it is due, when a person asks, and when the run is stopped: always that of the last whole step."""

    def __init__(self, model: nn.Module, learner: Learner, config: RunConfig, control: RunControl):
        self._model, self._learner, self._train, self._control = (
            model,
            learner,
            config.train,
            control,
        )
        self._last: Snapshot | None = None
        self._saved = 0  # the newest step that is on the disk

    def __enter__(self) -> CheckpointManager:
        self._control.save = self.save
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._control.save = None
        if kind is StopRequested and self._train.checkpoint_every:
            self.save()

    def restore(self) -> tuple[int, RunningStd, bool]:
        """Step, spread of the rewards until then, whether it was evaluated: of the checkpoint that control names, or of the beginning."""
        start = self._control.start
        if start is None or start.path is None:
            return 0, RunningStd(), False
        snapshot = load(start.path, start.sha256)
        put_weights(self._model, snapshot.weights)
        self._learner.load_state(dict(snapshot.learner))
        if start.path.parent == self._control.folder:
            self._saved = snapshot.step
        self.mark(snapshot.step, snapshot.spread, snapshot.evaluated, snapshot.heldout)
        return snapshot.step, snapshot.spread, snapshot.evaluated

    def mark(
        self, step: int, spread: RunningStd, evaluated: bool, heldout: float | None = None
    ) -> None:
        """A step is whole: this is what will be saved until the next one is."""
        self._learner.midway = False  # also where the rest of its updates was refused
        self._last = Snapshot(
            step, trained(self._model), self._learner.state(), spread, evaluated, heldout
        )

    def save_if_due(self) -> None:
        t, step = self._train, self._last.step if self._last else 0
        if t.checkpoint_every and (step % t.checkpoint_every == 0 or step == t.steps):
            self.save()

    def save(self) -> None:
        """Save the last whole step, unless it is on the disk already, and let go of what the retention rule does not keep."""
        folder, last = self._control.folder, self._last
        if folder is None or last is None or last.step <= self._saved:
            return
        self._control.tell(PhaseStarted(Phase.SAVING, last.step, self._train.steps))
        while True:
            try:
                path = save(folder, last)
                break
            except DiskFull as problem:
                if (
                    self._control.stop_requested
                ):  # nobody is there to make room: the checkpoint before this one must do
                    log.warning("%s", problem)
                    return
                self._control.hold(str(problem))
        self._saved = last.step
        there = {
            step: self._heldout(p) for step, p in saved_steps(folder).items() if step <= last.step
        }
        dropped = superfluous(there, self._train.checkpoint_keep, self._train.checkpoint_keep_every)
        # Row before folder and folder after row: what the store lists is always there, and what is there but not listed does no harm.
        self._control.tell(
            Checkpointed(
                last.step, str(path), folder_bytes(path), file_hash(path / MANIFEST), dropped
            )
        )
        for step in dropped:
            remove(folder / folder_name(step))

    @staticmethod
    def _heldout(path: Path) -> float | None:
        try:
            return read_manifest(path)["heldout"]
        except BadCheckpoint:
            return None
