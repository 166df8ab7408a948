"""Checkpoint folders: names, hashes, and which ones are kept.

Standard library only, so that the page does not load torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from grpo_core.errors import StudioError

MANIFEST = "checkpoint.json"
# 1: two files of one process. 2: shards of several workers.
ONE_PROCESS, IN_SHARDS = 1, 2
_NAME = re.compile(r"step-(\d{8,})")


class BadCheckpoint(StudioError):
    """A checkpoint is truncated, changed or missing."""


def folder_name(step: int) -> str:
    return f"step-{step:08d}"


def saved_steps(folder: Path) -> dict[int, Path]:
    """Step -> folder of every complete checkpoint in `folder`, in order of step."""
    if not folder.is_dir():
        return {}
    steps = {}
    for path in folder.iterdir():
        match = _NAME.fullmatch(path.name)
        if match and path.is_dir():
            steps[int(match[1])] = path
    return dict(sorted(steps.items()))


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint, without checking any hash. Raises BadCheckpoint."""
    try:
        manifest = json.loads((path / MANIFEST).read_text("utf-8"))
        if manifest["format"] not in (ONE_PROCESS, IN_SHARDS):
            raise BadCheckpoint(
                f"checkpoint {str(path)!r} has format {manifest['format']!r}, but this GRPO "
                f"Studio reads formats {ONE_PROCESS} and {IN_SHARDS}. Update GRPO Studio."
            )
        return manifest
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadCheckpoint(f"checkpoint {str(path)!r} cannot be read: {error}") from None


def verify(path: Path, sha256: str) -> dict[str, Any]:
    """The manifest, after checking the hash of every file against it. Raises BadCheckpoint.

    sha256: hash of the manifest itself, as recorded when the checkpoint was saved.
    """
    try:
        if file_hash(path / MANIFEST) != sha256:
            raise _damaged(path, MANIFEST)
        manifest = read_manifest(path)
        for name, expected in manifest["files"].items():
            if file_hash(path / name) != expected:
                raise _damaged(path, name)
        return manifest
    except OSError as error:
        reason = error.strerror or error
        raise BadCheckpoint(f"checkpoint {str(path)!r} cannot be read: {reason}") from None


def _damaged(path: Path, name: str) -> BadCheckpoint:
    return BadCheckpoint(f"checkpoint {str(path)!r} is damaged: {name} is not as it was saved")


def file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_bytes(path: Path) -> int:
    return used_bytes((path,))


def used_bytes(places: Iterable[Path]) -> int:
    """Bytes of files, and of all files in folders; those that vanish meanwhile do not count."""
    total = 0
    for place in places:
        inside = (Path(at, name) for at, _, names in os.walk(place) for name in names)
        for path in (place, *inside):
            with contextlib.suppress(OSError):
                found = path.lstat()
                total += found.st_size if stat.S_ISREG(found.st_mode) else 0
    return total


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk, so that a power failure keeps them."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def superfluous(
    heldout: Mapping[int, float | None], keep_last: int, keep_every: int
) -> tuple[int, ...]:
    """Steps whose checkpoints the retention rule deletes.

    Kept are the last `keep_last`, every multiple of `keep_every`, and the one with the best
    held-out accuracy (the latest of equals). heldout: step of each checkpoint -> held-out
    accuracy, None if not measured.
    """
    steps = sorted(heldout)
    kept = set(steps[-keep_last:])
    kept |= {s for s in steps if keep_every and s % keep_every == 0}
    measured = [(accuracy, s) for s, accuracy in heldout.items() if accuracy is not None]
    if measured:
        _, best = max(measured)
        kept.add(best)
    return tuple(s for s in steps if s not in kept)


def remove(path: Path) -> None:
    """Delete a checkpoint. A missing one is not an error."""
    # Rename first, so that a half-deleted folder is never read as a checkpoint.
    aside = path.with_name(f".{path.name}.gone")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
    except FileNotFoundError:
        return
    shutil.rmtree(aside, ignore_errors=True)
