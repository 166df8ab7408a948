"""Checkpoint folders: their names, their hash, and which of them are kept. Standard library only, so that pages need no torch."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grpo_core.errors import StudioError

MANIFEST = "checkpoint.json"
FORMAT = 1
_NAME = re.compile(r"step-(\d{8,})")


class BadCheckpoint(StudioError):
    """A checkpoint that is not what was saved: cut off, changed, or gone."""


def folder_name(step: int) -> str:
    return f"step-{step:08d}"


def saved_steps(folder: Path) -> dict[int, Path]:
    """Step -> folder of every checkpoint that was finished."""
    found = (
        {
            int(match[1]): p
            for p in folder.iterdir()
            if (match := _NAME.fullmatch(p.name)) and p.is_dir()
        }
        if folder.is_dir()
        else {}
    )
    return dict(sorted(found.items()))


def read_manifest(path: Path) -> dict[str, Any]:
    """What a checkpoint says about itself, unverified. Raises BadCheckpoint."""
    try:
        manifest = json.loads((path / MANIFEST).read_text("utf-8"))
        if manifest["format"] != FORMAT:
            raise BadCheckpoint(
                f"checkpoint {str(path)!r} has format {manifest['format']!r}, this GRPO Studio reads {FORMAT}. Update GRPO Studio."
            )
        return manifest
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadCheckpoint(f"checkpoint {str(path)!r} cannot be read: {error}") from None


def verify(path: Path, sha256: str) -> dict[str, Any]:
    """The manifest, once every byte of the checkpoint was found to be as it was saved. Raises BadCheckpoint."""
    try:
        if file_hash(path / MANIFEST) != sha256:
            raise BadCheckpoint(
                f"checkpoint {str(path)!r} is damaged: {MANIFEST} is not as it was saved"
            )
        manifest = read_manifest(path)
        for name, expected in manifest["files"].items():
            if file_hash(path / name) != expected:
                raise BadCheckpoint(
                    f"checkpoint {str(path)!r} is damaged: {name} is not as it was saved"
                )
        return manifest
    except OSError as error:
        raise BadCheckpoint(
            f"checkpoint {str(path)!r} cannot be read: {error.strerror or error}"
        ) from None


def file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_bytes(path: Path) -> int:
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


def sync(path: Path) -> None:
    """Until this returns, a power cut may undo what was written to a file, or the names in a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def superfluous(
    heldout: Mapping[int, float | None], keep_last: int, keep_every: int
) -> tuple[int, ...]:
    """The steps that the retention rule lets go. heldout: step of each checkpoint -> held-out accuracy at it, None = not measured.

    Kept are the last `keep_last`, the best held-out one (of equals the latest), and every multiple of `keep_every`.
    """
    steps = sorted(heldout)
    measured = [s for s in steps if heldout[s] is not None]
    kept = {
        *steps[-keep_last:],
        *([max(measured, key=lambda s: (heldout[s], s))] if measured else []),
        *(s for s in steps if keep_every and s % keep_every == 0),
    }
    return tuple(s for s in steps if s not in kept)


def remove(path: Path) -> None:
    """Out of sight first, so that a half-deleted checkpoint is never taken for one."""
    aside = path.with_name(f".{path.name}.gone")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
    except FileNotFoundError:
        return
    shutil.rmtree(aside, ignore_errors=True)
