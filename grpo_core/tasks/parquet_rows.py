"""Rows of Parquet files, which a helper with limited memory and time decodes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from grpo_core.child_process import KILL_AFTER, ChildFailed, module_child
from grpo_core.tasks.files import BadSource

SECONDS = 60.0  # to open a file, and for the next rows
HINT = "Write it again with smaller rows and row groups, or use JSONL."


def parquet_rows(path: str) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file in JSON types. Raises BadSource."""
    with ParquetReader() as reader:
        yield from reader.rows(path)


class ParquetReader:
    """Reads Parquet files one after the other, in one helper process.

    A small file can unpack to any size, and its footer can lie about it. The helper dies instead
    of this process; the next file gets a new one.
    """

    def __init__(self) -> None:
        self._child = module_child("grpo_core.tasks.parquet_child")

    def __enter__(self) -> ParquetReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.close()

    def rows(self, path: str) -> Iterator[dict[str, Any]]:
        """The rows of a file in JSON types. Raises BadSource."""
        self._ask(path, "open", str(Path(path).expanduser().resolve()))
        while rows := self._ask(path, "more"):
            yield from rows

    def _ask(self, path: str, do: str, *arguments: str) -> list[dict[str, Any]]:
        question = {"do": do, "arguments": arguments, "seconds": SECONDS}
        try:
            answer = self._child.request(question, SECONDS + KILL_AFTER, _shaped)
        except ChildFailed as error:
            problem = f"it is not a readable Parquet file: {error}"
            raise BadSource(path, problem, HINT) from None
        if isinstance(answer, str):
            raise BadSource(path, answer, HINT)
        return answer


def _shaped(answer: Any) -> list[dict[str, Any]] | str:
    """Rows, or the reason why there are none. Raises ValueError for any other answer."""
    if isinstance(answer, dict) and isinstance(reason := answer.get("null"), str):
        return reason[:300]
    rows = answer["value"]
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("no rows")
    return rows
