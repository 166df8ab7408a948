"""Save and load the state of a run, to the last bit. Safetensors and JSON: no code can run."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from grpo_core.checkpoint_files import (
    IN_SHARDS,
    MANIFEST,
    ONE_PROCESS,
    BadCheckpoint,
    file_hash,
    folder_name,
    read_manifest,
    remove,
    sync,
    verify,
)
from grpo_core.errors import DiskFull
from grpo_core.learner import ALONE, Workers
from grpo_core.rubric import RunningStd

log = logging.getLogger("grpo_studio")

WEIGHTS, STATE = "policy.safetensors", "state.safetensors"
POLICY_PREFIX, STATE_PREFIX = "policy.", "state."  # of names, where shards share files

Room = Callable[[Sequence[int], torch.dtype], Tensor]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the next step starts from. Its tensors are valid until the next update."""

    step: int
    weights: Mapping[str, Tensor]  # trained weights only; the others come with the model
    learner: Mapping[str, Any]
    reward_scale: RunningStd
    evaluated: bool  # the evaluation due after this step is done
    heldout: float | None  # its accuracy, if any


def save(folder: Path, snapshot: Snapshot, workers: Workers = ALONE) -> Path:
    """Write a checkpoint to a temporary folder, sync it, then rename it: whole or not there.

    workers: those of a learner in shards; all of them call it, and each writes its own. Returns its
    folder. Raises DiskFull, on all, if the file system refuses it on one, for whatever reason.
    """
    name = folder_name(snapshot.step)
    target, part = folder / name, folder / f".{name}.part"
    tensors: dict[str, Tensor] = {}
    state = pack({"learner": snapshot.learner, "spread": asdict(snapshot.reward_scale)}, tensors)
    manifest = {
        "step": snapshot.step,
        "evaluated": snapshot.evaluated,
        "heldout": snapshot.heldout,
        "state": state,
    }
    try:
        workers.first(lambda: _make_room(folder, part))
        manifest |= _write_tensors(part, snapshot.weights, tensors, workers)
        workers.first(lambda: _complete(part, target, manifest))
    except Exception as error:
        if workers.is_first:
            shutil.rmtree(part, ignore_errors=True)
        numbers = workers.gather(partial(_error_number, error))
        number = next((n for n in numbers if n is not None), None)
        if number is None:
            raise
        saved = (*snapshot.weights.values(), *tensors.values())
        needed = sum(t.numel() * t.element_size() for t in saved)
        raise DiskFull(_why_not_saved(folder, snapshot.step, number, needed)) from None
    return target


def _make_room(folder: Path, part: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(".step-*"):  # of a process that was killed while it saved
        shutil.rmtree(leftover, ignore_errors=True)
    part.mkdir()


def _write_tensors(
    part: Path, weights: Mapping[str, Tensor], state: Mapping[str, Tensor], workers: Workers
) -> dict[str, Any]:
    """What the manifest says of the files: their format and hashes."""
    if workers.world == 1:
        for file, content in ((WEIGHTS, weights), (STATE, state)):
            save_file({k: v.detach().contiguous() for k, v in content.items()}, part / file)
            sync(part / file)
        hashes = {file: file_hash(part / file) for file in (WEIGHTS, STATE)}
        return {"format": ONE_PROCESS, "files": hashes}
    from grpo_core.training import sharded_checkpoint

    named = {POLICY_PREFIX + k: v.detach() for k, v in weights.items()}
    named |= {STATE_PREFIX + k: v.detach() for k, v in state.items()}
    hashes = sharded_checkpoint.write(part, named, workers)
    sharded = sharded_checkpoint.in_shards(named)
    return {"format": IN_SHARDS, "files": hashes, "sharded": sharded}


def _complete(part: Path, target: Path, manifest: Mapping[str, Any]) -> None:
    (part / MANIFEST).write_text(json.dumps(manifest), "utf-8")
    sync(part / MANIFEST)
    sync(part)
    remove(target)  # the same step, saved before the run was resumed; it has been read
    part.rename(target)
    sync(target.parent)


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


def load(path: Path, sha256: str, room: Room | None = None) -> Snapshot:
    """Read a checkpoint back after checking every byte. Raises BadCheckpoint.

    room: makes what tensors in shards are read into; by default they are read whole.
    """
    return read(path, verify(path, sha256), room)


def read(path: Path, manifest: Mapping[str, Any], room: Room | None = None) -> Snapshot:
    """The same, of a checkpoint that was checked."""
    if manifest["format"] == ONE_PROCESS:
        tensors = load_file(path / STATE)
    else:
        from grpo_core.training import sharded_checkpoint

        tensors = sharded_checkpoint.read(path, STATE_PREFIX, set(manifest["sharded"]), room)
    state = unpack(manifest["state"], tensors)
    return Snapshot(
        manifest["step"],
        load_weights(path),
        state["learner"],
        RunningStd(**state["spread"]),
        manifest["evaluated"],
        manifest["heldout"],
    )


def load_weights(path: Path) -> dict[str, Tensor]:
    """The trained weights of a checkpoint of any number of workers."""
    if read_manifest(path)["format"] == ONE_PROCESS:
        return load_file(path / WEIGHTS)
    from grpo_core.training import sharded_checkpoint

    return sharded_checkpoint.read(path, POLICY_PREFIX)


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
    if not value.data_ptr():  # empty, or in shards: those are never tied
        return None
    for name, t in tensors.items():
        if t.data_ptr() == value.data_ptr() and t.shape == value.shape:
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
