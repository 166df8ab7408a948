"""A Hub model's files fetched before they are loaded, with progress: bytes that are really on the disk, of those that the Hub says there are."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download

from grpo_core.config import ModelConfig
from grpo_core.hub_probe import model_unreachable

WANTED = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja")
BEAT_SECONDS = 0.5


def fetch(
    config: ModelConfig, tell: Callable[[str], None], check_interrupt: Callable[[], None]
) -> None:
    """Download what loading will need, saying how far it is. Says nothing of what goes wrong: loading meets the same, and explains it.

    check_interrupt: asked every half second; it may raise, to stop. What has arrived by then is kept, and the next download goes on from there.
    """
    name = config.name.strip()
    if name == "bundled" or Path(name).expanduser().exists() or constants.HF_HUB_OFFLINE:
        return
    if model_unreachable(name, config.revision):
        return
    try:
        info = HfApi().model_info(
            name,
            revision=config.revision,
            files_metadata=True,
            timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,  # none by default
        )
    except Exception:
        return
    files = info.siblings or []
    total = sum(
        f.size or 0
        for f in files
        if "/" not in f.rfilename and Path(f.rfilename).suffix in {Path(w).suffix for w in WANTED}
    )
    blobs = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}" / "blobs"
    begun, done = _bytes_in(blobs), threading.Event()
    if begun >= total:  # all of it is here
        return

    def work() -> None:
        try:
            snapshot_download(
                name,
                revision=config.revision,
                allow_patterns=list(WANTED),
                ignore_patterns=["*/*"],
                tqdm_class=None,
            )
        except Exception:
            pass
        finally:
            done.set()

    threading.Thread(target=work, name="download", daemon=True).start()
    while not done.wait(BEAT_SECONDS):
        tell(_said(name, _bytes_in(blobs), total))
        check_interrupt()
    tell(_said(name, _bytes_in(blobs), total))


def _bytes_in(blobs: Path) -> int:
    """OnGroupDone and partial files; they are renamed when whole."""
    total = 0
    for file in blobs.glob("*"):
        try:
            total += file.stat().st_size
        except OSError:
            continue
    return total


def _said(name: str, arrived: int, total: int) -> str:
    return f"Downloading {name}: {min(arrived, total) / 1e6:,.1f} of {total / 1e6:,.1f} MB ({min(1.0, arrived / max(1, total)):.0%})."
