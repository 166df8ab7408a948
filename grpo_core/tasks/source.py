"""Rows out of files and Hub datasets, one at a time: CSV, TSV, JSONL, Parquet. Every limit is here, and each says which it is."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from grpo_core.errors import FieldProblem, InvalidConfig
from grpo_core.hub_probe import hub_unreachable

MAX_ROW_CHARS = 1_000_000
MAX_COLUMNS = 1_000
MAX_DEPTH = 40  # of a JSON value; a fair row needs five
MAX_GROUP_BYTES = (
    2 << 30
)  # uncompressed size of one Parquet row group: what has to be in memory at once
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


_HUB_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")
WAY_OUT = "Write a CSV, TSV, JSONL or Parquet file, or a dataset on the Hub such as openai/gsm8k."


class BadSource(InvalidConfig):
    """A file or dataset that cannot be read as prompts."""

    def __init__(self, path: str, problem: str, hint: str, field: str = "task.path"):
        super().__init__([FieldProblem(field, path, problem, hint)])


def check_source(path: str, field: str = "task.path") -> None:
    """Whether a name can be a source at all: a file of a known kind, or something shaped like a Hub id. Raises BadSource."""
    if is_file(path):
        suffix = Path(path).suffix.lower()
        if suffix not in SUFFIXES:
            raise BadSource(
                path,
                f"files ending in {suffix!r} are not read",
                f"Use one of: {', '.join(SUFFIXES)}.",
                field,
            )
    elif not _HUB_ID.fullmatch(path) or ".." in path or path.lower().endswith(tuple(SUFFIXES)):
        raise BadSource(
            path,
            "there is no such file"
            + ("" if path.lower().endswith(tuple(SUFFIXES)) else ", and it is no Hub dataset"),
            WAY_OUT,
            field,
        )


ROOTS_VARIABLE = "GRPO_STUDIO_ROOTS"  # set by app.py for a server that strangers reach: the only folders below which files are seen at all


def is_file(path: str) -> bool:
    """Whether there is a file that may be read. One outside of the allowed folders is as good as not there, links followed."""
    try:
        found = Path(path).expanduser()
        if not found.is_file():
            return False
        roots = os.environ.get(ROOTS_VARIABLE)
        return roots is None or any(
            found.resolve().is_relative_to(Path(root).resolve())
            for root in roots.split(os.pathsep)
            if root
        )
    except (OSError, ValueError, RuntimeError):  # too long for a name, a NUL byte, a loop of links
        return False


def read_rows(path: str, subset: str = "", split: str = "train") -> Iterator[Row]:
    """The rows of a file, or of a Hub dataset streamed from the Hub. Raises BadSource, also in the middle of a file, with the line."""
    check_source(path)
    if not is_file(path):
        yield from _hub_rows(path, subset, split)
        return
    file = Path(path).expanduser()
    with file.open("rb") as opened:
        head = opened.read(8)
    if archive := next((kind for magic, kind in MAGIC.items() if head.startswith(magic)), None):
        raise BadSource(path, f"this is {archive}", "Unpack it first.")
    kind = "parquet" if head.startswith(b"PAR1") else SUFFIXES[file.suffix.lower()]
    if kind == "parquet":
        yield from _parquet_rows(file)
        return
    try:
        with file.open(encoding="utf-8-sig", newline="" if kind != "jsonl" else None) as text:
            yield from _jsonl_rows(path, text) if kind == "jsonl" else _table_rows(path, text, kind)
    except UnicodeDecodeError as error:
        raise BadSource(
            path,
            f"it is not UTF-8 text (byte {error.start} of a block is {error.object[error.start]:#04x})",
            "Save it as UTF-8.",
        ) from None
    except OSError as error:
        raise BadSource(
            path, f"it cannot be read: {error.strerror}", "Check its permissions."
        ) from None


def _lines(path: str, text: IO[str]) -> Iterator[str]:
    """Lines that are never longer than MAX_ROW_CHARS in memory, however long they are in the file."""
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
    delimiter = (
        "\t" if kind == "tsv" else max(",;\t", key=first.count)
    )  # semicolons: spreadsheets of half of Europe
    reader = csv.reader(_again(first, lines), delimiter=delimiter, strict=True)
    try:
        names = next(reader, [])
        if len(names) > MAX_COLUMNS:
            raise BadSource(
                path,
                f"it has {len(names):,} columns",
                f"At most {MAX_COLUMNS:,} are read; leave out those that no prompt needs.",
            )
        if len(set(names)) < len(names):
            raise BadSource(
                path, "two columns share a name", "Give each its own name in the first line."
            )
        for cells in reader:
            if cells and len(cells) != len(names):
                raise BadSource(
                    path,
                    f"line {reader.line_num:,} has {len(cells)} cells, the first line {len(names)}",
                    "Quote cells that hold the separator.",
                )
            if cells:
                yield dict(zip(names, cells, strict=True))
    except csv.Error as error:
        raise BadSource(
            path, f"line {reader.line_num:,} cannot be read: {error}", "Check its quotation marks."
        ) from None


def _again(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _jsonl_rows(path: str, text: IO[str]) -> Iterator[Row]:
    for number, line in enumerate(_lines(path, text), 1):
        if not line.strip():
            continue
        if number == 1 and line.lstrip().startswith("["):
            raise BadSource(path, "it is one JSON list", "Write one object a line (JSONL).")
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BadSource(
                path,
                f"line {number:,} is no JSON: {str(error)[:100]}",
                "Write one object a line (JSONL).",
            ) from None
        if not isinstance(row, dict):
            raise BadSource(
                path,
                f"line {number:,} is no JSON object",
                'Write lines such as {"prompt": …, "answer": …}.',
            )
        if len(row) > MAX_COLUMNS or _deeper(row, MAX_DEPTH):
            raise BadSource(
                path,
                f"line {number:,} has more than {MAX_COLUMNS:,} columns or is nested deeper than {MAX_DEPTH}",
                "Keep what prompts need.",
            )
        yield row


def _deeper(value: Any, depth: int) -> bool:
    children = (
        value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    )
    return depth < 0 or any(_deeper(child, depth - 1) for child in children)


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
        raise BadSource(
            str(file),
            f"it is no readable Parquet file: {str(error).splitlines()[0][:150]}",
            "Write it again, or use JSONL.",
        ) from None


def _hub_rows(path: str, subset: str, split: str) -> Iterator[Row]:
    """The rows of one split, streamed; from the cache of `datasets` when the Hub is unreachable.

    Raises BadSource with one line for what is missing, forbidden or unreachable.
    """
    import datasets  # seconds to import, and only for this
    import huggingface_hub.errors as hub

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
        datasets.exceptions.DatasetNotFoundError,
        hub.HfHubHTTPError,
        ValueError,
        OSError,
        KeyError,
        RuntimeError,
    ) as error:
        text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BadSource(
            path,
            f"the dataset cannot be read from the Hub: {text[:200]}",
            "Check its name, subset and split, and that this machine reaches the Hub; or download a file and name that.",
        ) from None


def _cached_dataset(path: str, subset: str, split: str) -> Iterable[Row]:
    """A dataset that `datasets` has downloaded whole before. Raises OSError when it has not."""
    from datasets.packaged_modules.cache.cache import Cache

    name = path.split("/")[-1]
    try:
        cached = Cache(None, name, subset or None, version="auto", hash="auto", repo_id=path)
    except ValueError:
        raise OSError("it could not be reached") from None
    return cached.as_streaming_dataset(split)
