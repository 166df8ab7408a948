"""An exported model on the Hub: a new private repository, or a further commit to one. The token is HF_TOKEN's; it is written nowhere and in no message."""

from __future__ import annotations

import re
from pathlib import Path

import huggingface_hub.errors as hub
from huggingface_hub import HfApi

from grpo_core.errors import FieldProblem, InvalidConfig, StudioError

try:
    import httpx2 as web  # what huggingface_hub speaks with since 2.x
except ImportError:
    import httpx as web  # and before

FIELD = "export.push"
_REPOSITORY = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")
_TOKEN = "Put a token that may write to it into the environment variable HF_TOKEN; it is read there and written nowhere."


def check_repository(name: str) -> str:
    """owner/name, or InvalidConfig: asked before a model is exported for it."""
    if not _REPOSITORY.fullmatch(name) or ".." in name or "--" in name:
        raise InvalidConfig(
            [
                FieldProblem(
                    FIELD,
                    name,
                    "is no repository of the Hub",
                    "Write owner/name, e.g. me/tiny-reasoner.",
                )
            ]
        )
    return name


def push_folder(folder: Path, repository: str, private: bool = True) -> str:
    """Create the repository if it is not there, and upload the folder in one commit. Returns its address; raises StudioError."""
    api = HfApi()
    try:
        api.create_repo(
            check_repository(repository), repo_type="model", private=private, exist_ok=True
        )
        return str(
            api.upload_folder(
                repo_id=repository, folder_path=folder, commit_message="Trained with GRPO Studio"
            ).commit_url
            or f"{api.endpoint}/{repository}"
        )
    except hub.OfflineModeIsEnabled:
        raise _refused(repository, "HF_HUB_OFFLINE forbids asking the Hub", "Unset it.") from None
    except hub.LocalTokenNotFoundError:
        raise _refused(repository, "there is no token", _TOKEN) from None
    except hub.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status in (401, 403):
            raise _refused(repository, f"the Hub refused it ({status})", _TOKEN) from None
        raise _refused(
            repository,
            f"the Hub answered {status}",
            "Try again later; the exported folder can be uploaded by hand too.",
        ) from None
    except (web.TransportError, OSError) as error:
        raise _refused(
            repository,
            f"the Hub could not be reached or took it only in part ({type(error).__name__})",
            "Try again: what arrived is not shown before all of it has.",
        ) from None


def _refused(repository: str, why: str, hint: str) -> StudioError:
    return InvalidConfig([FieldProblem(FIELD, repository, why, hint)])
