"""The weights that a vLLM server gets: adapters, or all of them, in folders that it can read."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError

from grpo_core.config import ModelConfig
from grpo_core.config.places import local_path, may_read
from grpo_core.errors import FieldProblem, InvalidConfig
from grpo_core.models import Policy
from grpo_core.models.lora import save_adapter

FIELD = "rollout.shared_folder"
ANOTHER = "Name a folder that this machine and the server see by the same path."


class WeightFolders:
    """Folders of one run, one for each set of weights; a server reads the newest.

    shared: where they are made; "": in a temporary folder of this machine. Nothing else in it is
    touched. Raises InvalidConfig where none can be made.
    """

    def __init__(self, shared: str) -> None:
        self.name = f"grpo-{secrets.token_hex(4)}"  # of the run, also on the server
        self._shared, self._kept = shared, list[Path]()
        self._root: Path | None = None
        self._count = 0

    def write(self, policy: Policy, config: ModelConfig) -> Path:
        """A new folder with the present weights. The one before the last is removed."""
        self._count += 1
        try:
            if self._root is None:
                self._root = _made(self._shared, self.name)
            folder = self._root / f"{self.name}-{self._count}"
            folder.mkdir()
            self._kept.append(folder)
            with torch.no_grad():
                if config.lora_rank:
                    save_adapter(policy.model, config, folder)
                else:
                    policy.model.save_pretrained(folder)
            # A server may run as somebody else.
            folder.chmod(0o755)
            for file in folder.iterdir():
                file.chmod(0o644)
        except (OSError, SafetensorError) as error:
            raise _refused(self._shared or tempfile.gettempdir(), error) from None
        for old in self._kept[:-2]:
            shutil.rmtree(old, ignore_errors=True)
            self._kept.remove(old)
        return folder

    def close(self) -> None:
        """Remove all of them."""
        if self._root is not None:
            shutil.rmtree(self._root, ignore_errors=True)
            self._root = None


def check_folder(shared: str) -> None:
    """Raise InvalidConfig for a folder in which nothing may be written."""
    if not shared:
        return
    try:
        path = local_path(shared)
        if path is None or not path.is_dir():
            raise ValueError("there is no such folder here")
        if not may_read(path):
            raise ValueError("this server reads and writes no files there")
    except ValueError as error:
        raise _refused(shared, error) from None


def _made(shared: str, name: str) -> Path:
    if not shared:
        root = Path(tempfile.mkdtemp(prefix=f"{name}-"))
    else:
        check_folder(shared)
        path = local_path(shared)
        assert path is not None
        root = path / name
        root.mkdir()
    root.chmod(0o755)
    return root


def _refused(shared: str, error: Exception) -> InvalidConfig:
    said = getattr(error, "strerror", None) or str(error)
    return InvalidConfig([FieldProblem(FIELD, shared, f"cannot be written: {said}", ANOTHER)])
