"""Rows of files (CSV, TSV, JSONL, Parquet) and Hub datasets, one at a time, within limits."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import IO, Any

from grpo_core.errors import FieldProblem, InvalidConfig
from grpo_core.hub_probe import hub_unreachable

MAX_ROW_CHARS = 1_000_000
MAX_COLUMNS = 1_000
MAX_DEPTH = 40  # of a JSON value; a real row needs five
# Uncompressed size of a Parquet row group, which has to fit in memory as a whole.
MAX_GROUP_BYTES = 2 << 30
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
    b"\x1f\x8b": "a gzip archive",
    b"\xfd7zXZ": "an xz archive",
    b"BZh": "a bzip2 archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
}

csv.field_size_limit(MAX_ROW_CHARS)

Row = Mapping[str, Any]

# Folders whose files may be read; app.py sets it for a server that strangers can reach.
ROOTS_VARIABLE = "GRPO_STUDIO_ROOTS"
_HUB_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")
HINT = "Write a CSV, TSV, JSONL or Parquet file, or a dataset on the Hub such as openai/gsm8k."
JSONL_HINT = "Write one object per line (JSONL)."


class BadSource(InvalidConfig):
    """A file or dataset that cannot be read as prompts."""

    def __init__(self, path: str, problem: str, hint: str, field: str = "task.path"):
        super().__init__([FieldProblem(field, path, problem, hint)])


def check_source(path: str, field: str = "task.path") -> None:
    """Raise BadSource unless the name is a file of a known kind, or has the form of a Hub id."""
    if is_file(path):
        suffix = Path(path).suffix.lower()
        if suffix not in SUFFIXES:
            hint = f"Use one of: {', '.join(SUFFIXES)}."
            raise BadSource(path, f"files ending in {suffix!r} are not read", hint, field)
    elif path.lower().endswith(tuple(SUFFIXES)):
        raise BadSource(path, "there is no such file", HINT, field)
    elif not _HUB_ID.fullmatch(path) or ".." in path:
        raise BadSource(path, "there is no such file, and it is no Hub dataset", HINT, field)


def is_file(path: str) -> bool:
    """Whether there is a file that may be read.

    False for a file outside of the folders in ROOTS_VARIABLE, after following links.
    """
    try:
        file = Path(path).expanduser()
        if not file.is_file():
            return False
        roots = os.environ.get(ROOTS_VARIABLE)
        if roots is None:
            return True
        folders = [Path(root).resolve() for root in roots.split(os.pathsep) if root]
        return any(file.resolve().is_relative_to(folder) for folder in folders)
    except (OSError, ValueError, RuntimeError):  # too long for a name, a NUL byte, a loop of links
        return False


def read_rows(path: str, subset: str = "", split: str = "train") -> Iterator[Row]:
    """The rows of a file, or of a dataset streamed from the Hub.

    Raises BadSource, also in the middle of a file; it names the line.
    """
    check_source(path)
    if not is_file(path):
        yield from _hub_rows(path, subset, split)
        return
    file = Path(path).expanduser()
    with file.open("rb") as binary:
        head = binary.read(8)
    for magic, archive in MAGIC.items():
        if head.startswith(magic):
            raise BadSource(path, f"this is {archive}", "Unpack it first.")
    kind = "parquet" if head.startswith(b"PAR1") else SUFFIXES[file.suffix.lower()]
    if kind == "parquet":
        yield from _parquet_rows(file)
        return
    try:
        with file.open(encoding="utf-8-sig", newline="" if kind != "jsonl" else None) as text:
            yield from _jsonl_rows(path, text) if kind == "jsonl" else _table_rows(path, text, kind)
    except UnicodeDecodeError as error:
        byte = f"byte {error.start} of a block is {error.object[error.start]:#04x}"
        raise BadSource(path, f"it is not UTF-8 text ({byte})", "Save it as UTF-8.") from None
    except OSError as error:
        problem = f"it cannot be read: {error.strerror}"
        raise BadSource(path, problem, "Check its permissions.") from None


def _lines(path: str, text: IO[str]) -> Iterator[str]:
    """The lines of a file. Raises BadSource at MAX_ROW_CHARS, before it reads a longer line."""
    number = 0
    while line := text.readline(MAX_ROW_CHARS + 1):
        number += 1
        if len(line) > MAX_ROW_CHARS:
            raise BadSource(
                path,
                f"line {number:,} has more than {MAX_ROW_CHARS:,} characters",
                "Shorten it, or check that this is the right kind of file.",
            )
        yield line


def _table_rows(path: str, text: IO[str], kind: str) -> Iterator[Row]:
    lines = _lines(path, text)
    first = next(lines, "")
    # Spreadsheets write semicolons where the comma is the decimal sign.
    delimiter = "\t" if kind == "tsv" else max(",;\t", key=first.count)
    reader = csv.reader(chain([first], lines), delimiter=delimiter, strict=True)
    try:
        names = next(reader, [])
        if len(names) > MAX_COLUMNS:
            raise BadSource(
                path,
                f"it has {len(names):,} columns",
                f"At most {MAX_COLUMNS:,} are read; remove those that no prompt needs.",
            )
        if len(set(names)) < len(names):
            hint = "Give each its own name in the first line."
            raise BadSource(path, "two columns share a name", hint)
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(names):
                raise BadSource(
                    path,
                    f"line {reader.line_num:,} has {len(cells)} cells, the first line {len(names)}",
                    "Put cells that contain the separator in quotation marks.",
                )
            yield dict(zip(names, cells, strict=True))
    except csv.Error as error:
        problem = f"line {reader.line_num:,} cannot be read: {error}"
        raise BadSource(path, problem, "Check its quotation marks.") from None


def _jsonl_rows(path: str, text: IO[str]) -> Iterator[Row]:
    for number, line in enumerate(_lines(path, text), 1):
        if not line.strip():
            continue
        if number == 1 and line.lstrip().startswith("["):
            raise BadSource(path, "it is one JSON list", JSONL_HINT)
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            problem = f"line {number:,} is no JSON: {str(error)[:100]}"
            raise BadSource(path, problem, JSONL_HINT) from None
        if not isinstance(row, dict):
            hint = 'Write lines such as {"prompt": …, "answer": …}.'
            raise BadSource(path, f"line {number:,} is no JSON object", hint)
        if len(row) > MAX_COLUMNS or _is_deeper(row, MAX_DEPTH):
            raise BadSource(
                path,
                f"line {number:,} has more than {MAX_COLUMNS:,} columns "
                f"or is nested deeper than {MAX_DEPTH}",
                "Keep only what prompts need.",
            )
        yield row


def _is_deeper(value: Any, depth: int) -> bool:
    """Whether a JSON value is nested more than `depth` levels deep."""
    if depth < 0:
        return True
    children = value.values() if isinstance(value, dict) else value
    return isinstance(value, (dict, list)) and any(_is_deeper(c, depth - 1) for c in children)


def _parquet_rows(file: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(
            file, thrift_string_size_limit=100_000_000, thrift_container_size_limit=1_000_000
        ) as parquet:
            meta = parquet.metadata
            if meta.num_columns > MAX_COLUMNS:
                raise BadSource(
                    str(file),
                    f"it has {meta.num_columns:,} columns",
                    f"At most {MAX_COLUMNS:,} are read.",
                )
            largest = max(
                (meta.row_group(i).total_byte_size for i in range(meta.num_row_groups)), default=0
            )
            if largest > MAX_GROUP_BYTES:
                raise BadSource(
                    str(file),
                    f"a row group unpacks to {largest / 2**30:.1f} GiB",
                    "Write it again with row groups below 2 GiB.",
                )
            for batch in parquet.iter_batches(batch_size=256):
                if batch.nbytes > 256 * MAX_ROW_CHARS:
                    raise BadSource(
                        str(file),
                        f"256 rows take {batch.nbytes / 2**20:.0f} MiB",
                        f"Rows of up to {MAX_ROW_CHARS:,} characters are read.",
                    )
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        problem = f"it is no readable Parquet file: {str(error).splitlines()[0][:150]}"
        raise BadSource(str(file), problem, "Write it again, or use JSONL.") from None


def _hub_rows(path: str, subset: str, split: str) -> Iterator[Row]:
    """The rows of one split, streamed; from the cache of `datasets` when the Hub is unreachable.

    Raises BadSource with one line for what is missing, forbidden or unreachable.
    """
    import datasets  # takes seconds to import
    import datasets.config
    import huggingface_hub.errors as hub
    from datasets.exceptions import DatasetNotFoundError

    datasets.utils.logging.set_verbosity_error()
    try:
        # The Hub's libraries retry for 23 s before they use the cache.
        if not datasets.config.HF_HUB_OFFLINE and hub_unreachable():
            rows = _cached_dataset(path, subset, split)
        else:
            rows = datasets.load_dataset(path, subset or None, split=split, streaming=True)
        yield from rows
    except (
        hub.OfflineModeIsEnabled,
        DatasetNotFoundError,
        hub.HfHubHTTPError,
        ValueError,
        OSError,
        KeyError,
        RuntimeError,
    ) as error:
        text = str(error).strip() or type(error).__name__
        raise BadSource(
            path,
            f"the dataset cannot be read from the Hub: {text.splitlines()[0][:200]}",
            "Check its name, subset and split, and that this machine reaches the Hub; "
            "or download a file and name that.",
        ) from None


def _cached_dataset(path: str, subset: str, split: str) -> Iterable[Row]:
    """A dataset that `datasets` downloaded as a whole before. Raises OSError if it did not."""
    from datasets.packaged_modules.cache.cache import Cache

    name = path.split("/")[-1]
    try:
        cached = Cache(None, name, subset or None, version="auto", hash="auto", repo_id=path)
    except ValueError:
        raise OSError("it could not be reached") from None
    rows = cached.as_streaming_dataset(split)
    assert not isinstance(rows, dict)  # a dict of splits only without a split
    return rows
