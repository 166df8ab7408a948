"""Rows of a dataset on the Hub, streamed: nothing is downloaded that is not read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from grpo_core.tasks.source import BadSource


def stream(path: str, subset: str, split: str) -> Iterator[Mapping[str, Any]]:
    """The rows of one split. Raises BadSource in one line for what is not there, not allowed or not reachable."""
    import datasets  # seconds to import, and only for this
    import huggingface_hub.errors as hub

    datasets.utils.logging.set_verbosity_error()
    try:
        rows = datasets.load_dataset(path, subset or None, split=split, streaming=True)
        yield from rows
    except (hub.OfflineModeIsEnabled, datasets.exceptions.DatasetNotFoundError, hub.HfHubHTTPError, ValueError, OSError, KeyError, RuntimeError) as error:
        text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BadSource(path, f"the dataset cannot be read from the Hub: {text[:200]}",
                        "Check its name, subset and split, and that this machine reaches the Hub; or download a file and name that.") from None
