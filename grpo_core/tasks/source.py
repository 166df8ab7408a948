"""Sources of prompts: files (CSV, TSV, JSONL, Parquet) and Hub datasets, a row at a time."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from grpo_core.config import TaskConfig
from grpo_core.tasks.files import BadSource, is_file, open_file, why_no_file
from grpo_core.tasks.hub_rows import PREFIX, hub_id, hub_rows, is_split, is_subset
from grpo_core.tasks.parquet_rows import parquet_rows
from grpo_core.tasks.text_rows import object_rows, table_rows

SUFFIXES = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
}
MAGIC = {
    b"PK\x03\x04": "a zip archive",
    b"PK\x05\x06": "a zip archive",
    b"\x1f\x8b": "a gzip archive",
    b"\xfd7zXZ": "an xz archive",
    b"BZh": "a bzip2 archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"\x04\x22\x4d\x18": "an lz4 archive",
    b"ARROW1": "an Arrow file",
}
HINT = "Write a CSV, TSV, JSONL or Parquet file, or a dataset on the Hub such as openai/gsm8k."

Row = Mapping[str, Any]


def check_source(path: str, field: str = "task.path") -> None:
    """Raise BadSource unless the name is a file of a known kind, or has the form of a Hub id."""
    if is_file(path):
        check_kind(path, field)
    elif reason := why_no_file(path):
        hint = f"Name a file in it, or write {PREFIX}owner/name for a dataset on the Hub."
        raise BadSource(path, reason, hint if "folder" in reason else HINT, field)
    elif path.lower().endswith(tuple(SUFFIXES)) and not path.startswith(PREFIX):
        raise BadSource(path, "there is no such file", HINT, field)
    elif not hub_id(path):
        raise BadSource(path, "there is no such file, and it is not a Hub dataset", HINT, field)


def short_name(path: str) -> str:
    """A source in few letters, such as "sums.csv" of "/data/sums.csv": the end of its path."""
    return path.rstrip("/\\").replace("\\", "/").rpartition("/")[2]


def check_kind(path: str, field: str = "task.path") -> None:
    """Raise BadSource unless files with this ending are read."""
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        hint = f"Use one of: {', '.join(SUFFIXES)}."
        raise BadSource(path, f"files ending in {suffix!r} are not read", hint, field)


def check_sources(config: TaskConfig) -> None:
    """Check the names of a file or dataset and its parts before anything is read.

    Raises BadSource.
    """
    check_source(config.path)
    heldout, reads_file = config.heldout_source, is_file(config.path)
    if heldout and (reads_file or is_file(heldout)):
        check_source(heldout, "task.heldout_source")
    elif heldout and (not is_split(heldout) or heldout.lower().endswith(tuple(SUFFIXES))):
        problem = "there is no such file, and it is not a split of a dataset"
        raise BadSource(heldout, problem, "Write a split such as test.", "task.heldout_source")
    if not is_subset(config.subset):
        hint = "Write its name, such as main, or leave it empty."
        raise BadSource(config.subset, "it cannot be the name of a subset", hint, "task.subset")
    if not is_split(config.split):
        hint = "Write its name, such as train."
        raise BadSource(config.split, "it cannot be the name of a split", hint, "task.split")


def read_rows(path: str, subset: str = "", split: str = "train") -> Iterator[Row]:
    """The rows of a file, or of a dataset streamed from the Hub.

    Raises BadSource, also in the middle of a file; it names the line.
    """
    check_source(path)
    if not is_file(path):
        yield from hub_rows(path, subset, split)
        return
    try:
        with open_file(path) as file:
            head = file.read(8)
            for magic, archive in MAGIC.items():
                if head.startswith(magic):
                    raise BadSource(path, f"this is {archive}", "Unpack it, or write it as JSONL.")
            kind = SUFFIXES[Path(path).suffix.lower()]
            if kind == "parquet" or head.startswith(b"PAR1"):
                yield from parquet_rows(path)
                return
            file.seek(0)
            newline = None if kind == "jsonl" else ""
            text = io.TextIOWrapper(file, encoding="utf-8-sig", newline=newline)
            if kind == "jsonl":
                yield from (row for _, row in object_rows(path, text))
            else:
                yield from table_rows(path, text, kind == "tsv")
    except UnicodeDecodeError as error:
        byte = f"byte {error.start} of a block is {error.object[error.start]:#04x}"
        raise BadSource(path, f"it is not UTF-8 text ({byte})", "Save it as UTF-8.") from None
    except OSError as error:
        problem = f"it cannot be read: {error.strerror}"
        raise BadSource(path, problem, "Check its permissions.") from None
