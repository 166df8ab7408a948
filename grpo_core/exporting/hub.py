"""Push an exported model to the Hub: a new private repository, or a commit to an existing one.

The Hub's library reads the token from HF_TOKEN. It is not stored and is in no message.
"""

from __future__ import annotations

import re
from pathlib import Path

import huggingface_hub.errors as hub
from huggingface_hub import HfApi

from grpo_core.errors import FieldProblem, InvalidConfig

try:
    import httpx2 as web  # the HTTP client of huggingface_hub since 2.x
except ImportError:
    import httpx as web  # and before

FIELD = "export.push"
_REPOSITORY = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")
_TOKEN = (
    "Put a token that may write to it into the environment variable HF_TOKEN; "
    "the token is never stored."
)


def check_repository(name: str) -> str:
    """Return the name if it has the form owner/name. Raises InvalidConfig."""
    if not _REPOSITORY.fullmatch(name) or ".." in name or "--" in name:
        raise _error(
            name, "is not a repository on the Hub", "Write owner/name, e.g. me/tiny-reasoner."
        )
    return name


def push_folder(folder: Path, repository: str, private: bool = True) -> str:
    """Create the repository if there is none, and upload the folder in one commit.

    Returns the commit's address. Raises InvalidConfig on `export.push`.
    """
    api = HfApi()
    try:
        check_repository(repository)
        api.create_repo(repository, repo_type="model", private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository, folder_path=folder, commit_message="Trained with GRPO Studio"
        )
        return str(commit.commit_url or f"{api.endpoint}/{repository}")
    except hub.OfflineModeIsEnabled:
        problem, hint = "HF_HUB_OFFLINE forbids a connection to the Hub", "Unset it."
    except hub.LocalTokenNotFoundError:
        problem, hint = "there is no token", _TOKEN
    except hub.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status in (401, 403):
            problem, hint = f"the Hub refused it ({status})", _TOKEN
        else:
            problem = f"the Hub answered {status}"
            hint = "Try again later, or upload the exported folder by hand."
    except (web.TransportError, OSError) as error:
        problem = (
            f"the Hub could not be reached or the upload is incomplete ({type(error).__name__})"
        )
        hint = "Try again: the Hub shows an upload only when it is complete."
    raise _error(repository, problem, hint)


def _error(repository: str, problem: str, hint: str) -> InvalidConfig:
    return InvalidConfig([FieldProblem(FIELD, repository, problem, hint)])
