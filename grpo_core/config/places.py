"""Where the name in a field leads: to a path of this machine, or elsewhere, such as to the Hub.

Whatever judges such a name and whatever opens it call `local_path` and use its result. So what is
judged is what is opened.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator

# Folders whose files may be read; app.py sets it for a server that strangers can reach.
ROOTS_VARIABLE = "GRPO_STUDIO_ROOTS"


def without_blanks(value: Any) -> Any:
    """A text without the blanks around it, tabs and no-break spaces among them."""
    return value.strip() if isinstance(value, str) else value


# The type of every field that may name a file, a folder or something on the Hub.
Name = Annotated[str, BeforeValidator(without_blanks)]


def local_path(name: str) -> Path | None:
    """The path that a name means, with `~`, `..` and all links resolved; None if it means no path.

    A name means a path if it begins with `/`, `.` or `~`, or if there is such a file or folder.
    Raises ValueError for a path that the system cannot resolve.
    """
    name = name.strip()
    try:
        path = Path(name).expanduser()
        if not path.exists() and not name.startswith(("/", ".", "~")):
            return None
        return path.resolve()
    # A name that is too long; nobody's home folder, or a loop of links; a NUL byte.
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"there is no such path ({type(error).__name__})") from None


def is_hub_name(name: str) -> bool:
    """Whether a name means nothing on this machine, so that only the Hub may have it."""
    try:
        return local_path(name) is None
    except ValueError:
        return False


def is_below(path: Path, folders: Sequence[Path]) -> bool:
    """Whether a resolved path is one of the folders or lies in one."""
    return any(path.is_relative_to(folder.resolve()) for folder in folders)


def may_read(path: Path) -> bool:
    """Whether a resolved path is in the folders of ROOTS_VARIABLE, if that is set."""
    roots = os.environ.get(ROOTS_VARIABLE)
    if roots is None:
        return True
    return is_below(path, [Path(root) for root in roots.split(os.pathsep) if root])
