"""Rows of text files: CSV, TSV, and JSON objects one a line."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from itertools import chain
from typing import IO, Any

from grpo_core.tasks.files import MAX_COLUMNS, MAX_ROW_CHARS, BadSource

MAX_DEPTH = 40  # of a JSON value; a real row needs five
JSONL_HINT = "Write one object per line (JSONL)."
_SEPARATOR = re.compile(r'"?sep=([^"\w\s]|\t)"?\s*', re.IGNORECASE)  # Excel's first line
_QUOTED = re.compile(r'"[^"]*"')

csv.field_size_limit(MAX_ROW_CHARS)


class _Lines:
    """The lines of a file, without reading a row of more than MAX_ROW_CHARS. Raises BadSource."""

    def __init__(self, path: str, text: IO[str]):
        self.number = 0  # of the last line
        self._path, self._text = path, text
        self._row_chars = 0

    def begin_row(self) -> None:
        self._row_chars = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._text.readline(MAX_ROW_CHARS + 1)
        if not line:
            raise StopIteration
        self.number += 1
        self._row_chars += len(line)
        if self._row_chars > MAX_ROW_CHARS:
            problem = f"the row at line {self.number:,} has more than {MAX_ROW_CHARS:,} characters"
            hint = "Shorten it, or check that this is the right kind of file."
            raise BadSource(self._path, problem, hint)
        return line


def table_rows(path: str, text: IO[str], is_tsv: bool) -> Iterator[dict[str, str]]:
    """The rows of a table whose first line has the columns' names. Raises BadSource."""
    lines = _Lines(path, text)
    first = next(lines, "")
    separator = _SEPARATOR.fullmatch(first)
    first = next(lines, "") if separator else first
    unquoted = _QUOTED.sub("", first)
    # Spreadsheets write semicolons where the comma is the decimal sign.
    delimiter = "\t" if is_tsv else max(",;\t", key=unquoted.count)
    delimiter = separator[1] if separator else delimiter
    # A space after the separators of the first line is no part of names, nor of quoted cells.
    spaced = f"{delimiter} " in unquoted
    reader = csv.reader(
        chain([first], lines), delimiter=delimiter, skipinitialspace=spaced, strict=True
    )
    try:
        names, num_named = _column_names(path, next(reader, []))
        lines.begin_row()
        for cells in reader:
            lines.begin_row()
            if not cells:
                continue
            if not num_named <= len(cells) <= len(names):
                raise BadSource(
                    path,
                    f"line {lines.number:,} has {len(cells)} cells, the first line {len(names)}",
                    "Put cells that contain the separator in quotation marks.",
                )
            yield dict(zip(names, cells, strict=False))
    except csv.Error as error:
        problem = f"line {lines.number:,} cannot be read: {error}"
        raise BadSource(path, problem, "Check its quotation marks.") from None


def _column_names(path: str, cells: list[str]) -> tuple[list[str], int]:
    """The columns' names, and how many cells a row needs: unnamed columns at the end may lack."""
    if len(cells) > MAX_COLUMNS:
        raise BadSource(
            path,
            f"it has {len(cells):,} columns",
            f"At most {MAX_COLUMNS:,} are read; remove those that no prompt needs.",
        )
    stripped = [cell.strip() for cell in cells]
    names = [name or f"column {i}" for i, name in enumerate(stripped, 1)]
    if repeated := [name for name in names if names.count(name) > 1]:
        hint = "Give each its own name in the first line."
        raise BadSource(path, f"two columns share a name: {repeated[0][:60]!r}", hint)
    return names, max((i for i, name in enumerate(stripped, 1) if name), default=len(names))


def object_rows(path: str, text: IO[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The JSON objects of a file, one a line, with the numbers of their lines. Raises BadSource."""
    lines, is_first = _Lines(path, text), True
    for line in lines:
        lines.begin_row()
        if not line.strip():
            continue
        if is_first and line.lstrip().startswith("["):
            raise BadSource(path, "it is one JSON list", JSONL_HINT)
        is_first, number = False, lines.number
        try:
            row = json.loads(line, object_pairs_hook=_distinct)
        except (ValueError, RecursionError) as error:
            problem = f"line {number:,} is not JSON: {str(error)[:100]}"
            raise BadSource(path, problem, JSONL_HINT) from None
        if not isinstance(row, dict):
            hint = 'Write lines such as {"prompt": …, "answer": …}.'
            raise BadSource(path, f"line {number:,} is not a JSON object", hint)
        if len(row) > MAX_COLUMNS or _is_deeper(row, MAX_DEPTH):
            raise BadSource(
                path,
                f"line {number:,} has more than {MAX_COLUMNS:,} columns "
                f"or is nested deeper than {MAX_DEPTH}",
                "Keep only what prompts need.",
            )
        yield number, row


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object. JSON itself would keep the last of two values with one name, without a word."""
    names = dict(pairs)
    if len(names) < len(pairs):
        repeated = next(name for i, (name, _) in enumerate(pairs) if name in dict(pairs[:i]))
        raise ValueError(f"the name {repeated[:60]!r} occurs twice")
    return names


def _is_deeper(value: Any, depth: int) -> bool:
    """Whether a JSON value is nested more than `depth` levels deep."""
    if depth < 0:
        return True
    children = value.values() if isinstance(value, dict) else value
    return isinstance(value, (dict, list)) and any(_is_deeper(c, depth - 1) for c in children)
