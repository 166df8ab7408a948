"""From `model.name` to a checked folder: a local one, or a model's snapshot in the Hub's cache."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub.errors as hub
from huggingface_hub import snapshot_download

from grpo_core.config import ModelConfig
from grpo_core.config.places import local_path, may_read
from grpo_core.hub_probe import cached_snapshot, model_unreachable
from grpo_core.models.folder import BadModel, check_folder

try:
    import httpx2 as web  # the HTTP client of huggingface_hub since 2.x
except ImportError:
    import httpx as web  # and before

BUNDLED = Path(__file__).parent / "bundled"
NAME_HINT = (
    "Write bundled, a folder with config.json, a tokenizer and *.safetensors, "
    "or a Hub id such as Qwen/Qwen3-0.6B."
)
WEIGHTS_SUFFIX = ".safetensors"
# Of the files that loading reads besides the weights.
SETTINGS_SUFFIXES = (".json", ".model", ".txt", ".jinja")
_HUB_ID = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?")
_REVISION = re.compile(r"\w[\w./+-]*")
_TOKEN = "a token with access in the environment variable HF_TOKEN; the token is never stored"
# The first match counts: some errors are subclasses of later ones.
_HUB_ERRORS: tuple[tuple[type[BaseException], str], ...] = (
    (
        hub.GatedRepoError,
        f"the Hub gives it only to people who accepted its terms; it needs {_TOKEN}",
    ),
    (hub.RevisionNotFoundError, "the Hub has no such revision of this model"),
    (
        hub.RepositoryNotFoundError,
        f"the Hub has no such model, or a private one that needs {_TOKEN}",
    ),
    (
        hub.OfflineModeIsEnabled,
        "it is not on this machine, and HF_HUB_OFFLINE forbids a connection to the Hub",
    ),
    (
        hub.LocalEntryNotFoundError,
        "it is not on this machine, and the Hub could not be reached or the download is incomplete",
    ),
    (web.TransportError, "the Hub could not be reached or the download is incomplete"),
)


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model is loaded from. Its files have been checked.

    name: a folder or a Hub id. folder: where the files lie. settings: the content of its
    config.json.
    """

    name: str
    folder: Path
    revision: str  # of a Hub model: the commit whose files were checked
    settings: dict[str, Any]

    @property
    def options(self) -> dict[str, Any]:
        """Arguments for every `from_pretrained` of transformers."""
        return {"trust_remote_code": False, "revision": self.revision}


def find_source(config: ModelConfig) -> Source:
    """The checked source that `model.name` means. Raises BadModel.

    Of a Hub model, downloads all files but the weights.
    """
    if config.name == "bundled":
        return _local(BUNDLED, config)
    try:
        path = local_path(config.name)
    except ValueError as error:
        raise BadModel(str(error), NAME_HINT) from None
    if path is None:
        return _on_hub(config)
    if not may_read(path):
        raise BadModel("this server does not read files there", "Name a model of the Hub.")
    if path.is_dir():
        return _local(path, config)
    if path.exists():
        raise BadModel("this is a file, not a model folder", NAME_HINT)
    raise BadModel("there is no such folder, and it is not a Hub id", NAME_HINT)


def _local(folder: Path, config: ModelConfig) -> Source:
    return Source(str(folder), folder, config.revision, check_folder(folder, config, is_local=True))


def _on_hub(config: ModelConfig) -> Source:
    name, revision = config.name, config.revision
    if not _HUB_ID.fullmatch(name) or ".." in name:
        raise BadModel("there is no such folder, and it is not a Hub id", NAME_HINT)
    if not _REVISION.fullmatch(revision) or ".." in revision:
        raise BadModel(
            f"{revision!r} is not a revision of a Hub model", "Set model.revision to main."
        )
    if model_unreachable(name, revision):
        snapshot = cached_snapshot(name, revision)
        if snapshot is None:
            raise BadModel("it is not on this machine, and the Hub could not be reached", NAME_HINT)
        settings = check_folder(snapshot, config, is_local=False)
        return Source(str(snapshot), snapshot, revision, settings)
    try:
        folder = download_files(name, revision, SETTINGS_SUFFIXES)
    except Exception as error:  # of the network, the Hub, or the disk
        raise BadModel(
            f"its configuration cannot be loaded: {one_line(error)}", NAME_HINT
        ) from None
    settings = check_folder(folder, config, is_local=False)
    return Source(name, folder, folder.name, settings)


def download_files(name: str, revision: str, suffixes: Sequence[str]) -> Path:
    """Download a Hub model's files with these suffixes, but none in its folders.

    Returns the snapshot in the cache, whose name is the commit. Raises errors of the network, the
    Hub, or the disk.
    """
    return Path(
        snapshot_download(
            name,
            revision=revision,
            allow_patterns=[f"*{suffix}" for suffix in suffixes],
            ignore_patterns=["*/*"],
            tqdm_class=None,
        )
    )


def one_line(error: BaseException) -> str:
    """The first line of a library's error; the rest is advice for programmers.

    transformers wraps the Hub's errors in its own, so the causes are searched first.
    """
    cause: BaseException | None = error
    while cause is not None:
        for kind, message in _HUB_ERRORS:
            if isinstance(cause, kind):
                return message
        cause = cause.__cause__ or cause.__context__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    # "Validation error for field 'hidden_size':" says what is wrong only on its next line.
    return " ".join(lines[:2] if lines[0].endswith(":") else lines[:1])[:200].rstrip(".")
