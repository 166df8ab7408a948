"""Rows of datasets on the Hub, streamed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from grpo_core.hub_probe import hub_unreachable
from grpo_core.tasks.files import BadSource

PREFIX = "hf://datasets/"
_PART = r"[A-Za-z0-9_](?:[\w.-]{0,94}\w)?"
_HUB_ID = re.compile(rf"{_PART}/{_PART}", re.ASCII)
# A subset is part of a path in the cache; a split may have a slice: train[:10%]+test.
_SUBSET = re.compile(r"[^<>:/\\|?*\[\]\x00-\x1f]{0,200}")
_SPLIT = re.compile(r"[\w.+:%()\[\] -]{1,200}")


def hub_id(path: str) -> str:
    """owner/name of a dataset that is written so, or with hf://datasets/ before it; else ""."""
    name = path.removeprefix(PREFIX)
    return name if _HUB_ID.fullmatch(name) and ".." not in name else ""


def is_subset(name: str) -> bool:
    """Whether a name can be one of a dataset's subsets; "" is the only one."""
    return bool(_SUBSET.fullmatch(name)) and (not name or bool(name.strip(". ")))


def is_split(name: str) -> bool:
    """Whether a name can be one of a dataset's splits."""
    return bool(_SPLIT.fullmatch(name)) and bool(name.strip(". "))


def hub_rows(path: str, subset: str, split: str) -> Iterator[Mapping[str, Any]]:
    """The rows of one split, streamed; from the cache of `datasets` when the Hub is unreachable.

    Never reads a folder of this machine. Raises BadSource with one line for what is missing,
    forbidden or unreachable.
    """
    import datasets  # takes seconds to import
    import datasets.config

    datasets.utils.logging.set_verbosity_error()
    name = hub_id(path)
    try:
        # The Hub's libraries retry for 23 s before they use the cache.
        if not datasets.config.HF_HUB_OFFLINE and hub_unreachable():
            rows = _cached_dataset(name, subset, split)
        else:
            # Without the prefix, `datasets` takes a local folder of this name.
            rows = datasets.load_dataset(PREFIX + name, subset or None, split=split, streaming=True)
        yield from rows
    except Exception as error:  # somebody's files, read by libraries that raise many kinds
        text = str(error).strip() or type(error).__name__
        raise BadSource(
            path,
            f"the dataset cannot be read from the Hub: {text.splitlines()[0][:200]}",
            "Check its name, subset and split, and that this machine reaches the Hub; "
            "or download a file and name that.",
        ) from None


def _cached_dataset(name: str, subset: str, split: str) -> Iterable[Mapping[str, Any]]:
    """A dataset that `datasets` downloaded as a whole before. Raises OSError if it did not."""
    from datasets.packaged_modules.cache.cache import Cache

    short = name.split("/")[-1]
    try:
        cached = Cache(None, short, subset or None, version="auto", hash="auto", repo_id=name)
    except ValueError:
        raise OSError("it could not be reached") from None
    rows = cached.as_streaming_dataset(split)
    assert not isinstance(rows, dict)  # a dict of splits only without a split
    return rows
