"""The tensors of several workers' checkpoint: each writes its shards, any number reads them back.

By torch.distributed.checkpoint in its safetensors form, so no code can run from it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor

from grpo_core.checkpoint_files import file_hash
from grpo_core.errors import StudioError
from grpo_core.learner import Workers

# A worker's file is built in memory before it is written, so it begins a new one here.
FILE_BYTES = 2**28

Room = Callable[[Sequence[int], torch.dtype], Tensor]  # makes the tensor that is read into


def in_shards(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of those of which each worker has a part."""
    return [name for name, t in tensors.items() if isinstance(t, DTensor)]


def write(folder: Path, tensors: Mapping[str, Tensor], workers: Workers) -> dict[str, str]:
    """Write shards, and each tensor that all workers have once. All workers call it.

    Returns the hashes of all files by name. What one worker cannot write, all raise.
    """
    places, size = {}, 0
    for name, t in tensors.items():
        places[name] = 1 + size // FILE_BYTES
        size += t.numel() * t.element_size() // workers.world
    writer = HuggingFaceStorageWriter(str(folder), places, save_distributed=True)
    try:
        save(dict(tensors), storage_writer=writer)
    except CheckpointException as problem:
        error, _ = next(iter(problem.failures.values()))
        raise error if isinstance(error, Exception) else StudioError(str(problem)) from None
    own = sorted(folder.glob(f"shard-{workers.rank + 1:05d}-*"))
    found = workers.gather(lambda: {path.name: file_hash(path) for path in own})
    hashes = {name: digest for files in found for name, digest in files.items()}
    workers.first(lambda: _check_shared(folder, hashes))
    return hashes


def _check_shared(folder: Path, names: Collection[str]) -> None:
    if any(not (folder / name).exists() for name in names):
        raise StudioError(
            f"the checkpoints' folder {str(folder.parent)!r} is another one on some of the run's "
            "machines. Put the store on a disk that all of them share."
        )


def read(
    folder: Path, prefix: str, sharded: Collection[str] = (), room: Room | None = None
) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, without it. Needs no other process.

    room: makes what those of `sharded` are read into; by default they are read whole.
    """
    found = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    tensors: dict[str, Tensor] = {}
    for name, entry in found.items():
        if name.startswith(prefix) and isinstance(entry, TensorStorageMetadata):
            make = room if room is not None and name in sharded else _whole
            tensors[name] = make(entry.size, entry.properties.dtype)
    with warnings.catch_warnings():  # it says that it reads alone
        warnings.simplefilter("ignore")
        load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    return {name.removeprefix(prefix): t for name, t in tensors.items()}


def _whole(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(tuple(shape), dtype=dtype)
