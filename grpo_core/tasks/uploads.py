"""Uploaded prompt files: kept under the hash of their content, so that a run can be repeated after the browser's temporary file is gone."""

from __future__ import annotations

import re
import shutil
from hashlib import blake2b
from pathlib import Path

from grpo_core.tasks.table import cache_folder


def keep_upload(source: Path) -> Path:
    """Copies an upload to where it stays, and returns that place. The same content twice is one file."""
    digest = blake2b(digest_size=8)
    with source.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    readable = re.sub(r"[^A-Za-z0-9_-]+", "-", source.stem).strip("-")[:60] or "prompts"
    target = cache_folder().parent / "uploads" / f"{readable}-{digest.hexdigest()}{source.suffix.lower()}"
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not target.exists():
        part = target.with_suffix(".part")
        shutil.copyfile(source, part)
        part.replace(target)
    return target
