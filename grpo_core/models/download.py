"""Download a Hub model's files before they are loaded, and report progress in bytes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import HfApi, constants

from grpo_core.config import ModelConfig
from grpo_core.config.places import is_hub_name
from grpo_core.hub_probe import model_unreachable
from grpo_core.models.source import SETTINGS_SUFFIXES, WEIGHTS_SUFFIX, download_files

SUFFIXES = (WEIGHTS_SUFFIX, *SETTINGS_SUFFIXES)  # of files that loading reads
POLL_SECONDS = 0.5


def fetch(
    config: ModelConfig, report: Callable[[str], None], check_interrupt: Callable[[], None]
) -> None:
    """Download the files that loading needs. Errors are ignored: loading meets and explains them.

    report: gets a line on the progress every half second. check_interrupt: is called as often and
    may raise to stop; the next download continues with the bytes that are on the disk.
    """
    name = config.name
    if name == "bundled" or constants.HF_HUB_OFFLINE or not is_hub_name(name):
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
    except Exception:  # of the network, the Hub, or the disk: loading meets it, and explains it
        return
    files = info.siblings or []
    wanted = [f for f in files if "/" not in f.rfilename and f.rfilename.endswith(SUFFIXES)]
    total = sum(f.size or 0 for f in wanted)
    blobs = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}" / "blobs"
    if _bytes_in(blobs) >= total:  # already downloaded
        return
    done = threading.Event()

    def download() -> None:
        try:
            download_files(name, config.revision, SUFFIXES)
        except Exception:  # as above
            pass
        finally:
            done.set()

    threading.Thread(target=download, name="download", daemon=True).start()
    while not done.wait(POLL_SECONDS):
        report(_progress(name, _bytes_in(blobs), total))
        check_interrupt()
    report(_progress(name, _bytes_in(blobs), total))


def _bytes_in(blobs: Path) -> int:
    """Bytes of complete and partial files. A file may be renamed or removed meanwhile."""
    total = 0
    for file in blobs.glob("*"):
        try:
            total += file.stat().st_size
        except OSError:
            continue
    return total


def _progress(name: str, arrived: int, total: int) -> str:
    megabytes = f"{min(arrived, total) / 1e6:,.1f} of {total / 1e6:,.1f} MB"
    return f"Downloading {name}: {megabytes} ({min(1.0, arrived / max(1, total)):.0%})."
