"""Which Ray cluster a run uses, and the files of one that was started for it. Imports no Ray."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from grpo_core.errors import StudioError

# The cluster's address. Without it, Ray is started on this machine for each run that needs it.
VARIABLE = "GRPO_RAY"
LOCAL = "local"
AUTO = "auto"
_ADDRESS = re.compile(r"[^\s/:]+:\d{1,5}|\[[0-9a-fA-F:]+\]:\d{1,5}")
_PREFIX = "grpo-ray"
_OWNER = re.compile(rf"{_PREFIX}-(\d+)-.+")
# Ray's sockets lie in there, and the name of a socket has at most some 100 characters.
_FOLDER = Path("/tmp") if os.name == "posix" else Path(tempfile.gettempdir())


def address_in(environment: Mapping[str, str]) -> str:
    """The address of the operator's cluster; "" for none."""
    return environment.get(VARIABLE, "")


def use_cluster(address: str | None) -> None:
    """Train on this cluster from now on: `auto`, HOST:PORT, or `local`. Raises StudioError."""
    if address is None:
        return
    if address not in (AUTO, LOCAL) and not _ADDRESS.fullmatch(address):
        raise StudioError(
            f"--ray {address!r:.200}: write auto for the cluster of this machine, or HOST:PORT. "
            "Start on a node of the cluster: Ray's client, ray://, cannot train."
        )
    check_installed(f"--ray {address}")
    os.environ[VARIABLE] = address


def check_installed(wanted: str) -> None:
    """Raises StudioError without Ray. wanted: what needs it."""
    if importlib.util.find_spec("ray") is None:
        raise StudioError(
            f"{wanted}: this needs the package ray. "
            "Install it: pip install -r requirements-cluster.txt."
        )


def new_folder() -> Path:
    """A folder for the files of a Ray that this process starts; those of dead processes go."""
    for path in _FOLDER.glob(f"{_PREFIX}-*"):
        owner = _OWNER.fullmatch(path.name)
        if owner and not _lives(int(owner[1])):
            shutil.rmtree(path, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{_PREFIX}-{os.getpid()}-", dir=_FOLDER))


def remove_folders(process: int) -> None:
    """Delete what a process that has ended left behind."""
    for path in _FOLDER.glob(f"{_PREFIX}-{process}-*"):
        shutil.rmtree(path, ignore_errors=True)


def _lives(process: int) -> bool:
    with contextlib.suppress(PermissionError):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return False
    return True
