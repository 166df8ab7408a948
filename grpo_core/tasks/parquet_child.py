"""The helper behind parquet_rows: opens one Parquet file and gives its rows, some at a time."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from itertools import count
from typing import Any

from grpo_core.child_process import NoValue, serve
from grpo_core.tasks.cells import plain
from grpo_core.tasks.files import MAX_COLUMNS, MAX_ROW_CHARS, open_file

# The system's allocator: others reserve address space, which is limited here.
os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"

MAX_MEMORY = 2 << 30
MAX_GROUP_BYTES = 2 << 30  # uncompressed size of a row group, as the footer states it
BATCH_ROWS = 256
MAX_VALUES = 10_000_000  # in the lists of so many rows; a null or a zero takes no room in the file
ANSWER_CHARS = 4 << 20  # of rows as JSON, in one answer; child_process allows 8 MiB
MAX_ROW_JSON = 3 << 20  # a row of 1,000,000 characters where half of them need an escape

_rows: Iterator[tuple[dict[str, Any], int]] = iter(())


def open_parquet(path: str) -> list[Any]:
    """Open the file; [] if its footer states nothing that is too large. Raises NoValue."""
    global _rows
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        parquet = pq.ParquetFile(
            open_file(path),
            thrift_string_size_limit=100_000_000,
            thrift_container_size_limit=1_000_000,
            pre_buffer=False,
        )
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(error) from None
    meta, names = parquet.metadata, parquet.schema_arrow.names
    if meta.num_columns > MAX_COLUMNS:
        raise NoValue(f"it has {meta.num_columns:,} columns, and at most {MAX_COLUMNS:,} are read")
    if len(set(names)) < len(names):
        raise NoValue("two columns share a name")
    groups = (meta.row_group(i).total_byte_size for i in range(meta.num_row_groups))
    if (largest := max(groups, default=0)) > MAX_GROUP_BYTES:
        raise NoValue(f"a row group unpacks to {largest / 2**30:.1f} GiB")
    _rows = _decode(parquet)
    return []


def more_rows() -> list[dict[str, Any]]:
    """The next rows; [] at the end. Raises NoValue."""
    rows, size = [], 0
    for row, length in _rows:
        rows.append(row)
        size += length
        if size > ANSWER_CHARS:
            break
    return rows


def _decode(parquet: Any) -> Iterator[tuple[dict[str, Any], int]]:
    """Rows in JSON types, each with its length as JSON."""
    import pyarrow as pa

    numbers = count(1)
    try:
        for batch in parquet.iter_batches(batch_size=BATCH_ROWS, use_threads=False):
            if batch.nbytes > BATCH_ROWS * MAX_ROW_CHARS:
                raise NoValue(f"{batch.num_rows} rows take {batch.nbytes / 2**20:.0f} MiB")
            if (values := sum(map(_num_values, batch.columns))) > MAX_VALUES:
                raise NoValue(f"{batch.num_rows} rows hold {values:,} values")
            for row, number in zip(_batch_rows(batch), numbers, strict=False):
                length = len(json.dumps(row))
                if length > MAX_ROW_JSON:
                    raise NoValue(f"row {number:,} has more than {MAX_ROW_CHARS:,} characters")
                yield row, length
    except MemoryError:
        raise NoValue(f"its rows need more than {MAX_MEMORY >> 30} GiB of memory") from None
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(error) from None


def _num_values(column: Any) -> int:
    """How many values a column of an Arrow batch holds, those in its lists and structs included."""
    inside = column.flatten() if hasattr(column, "flatten") else []
    return len(column) + sum(map(_num_values, inside if isinstance(inside, list) else [inside]))


def _batch_rows(batch: Any) -> list[dict[str, Any]]:
    import pyarrow as pa

    rows = batch.to_pylist()
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if pa.types.is_float32(column.type) or pa.types.is_float16(column.type):
            # numpy prints 0.1 as 0.1; as a Python float it is 0.10000000149011612.
            for row, number in zip(rows, column.to_numpy(zero_copy_only=False), strict=True):
                row[name] = number
    return [_finite(plain(row)) for row in rows]


def _finite(value: Any) -> Any:
    """JSON has no infinity, so it goes as text."""
    if isinstance(value, dict):
        return {name: _finite(v) for name, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return str(value) if isinstance(value, float) and math.isinf(value) else value


def _unreadable(error: Exception) -> NoValue:
    first = (str(error) or type(error).__name__).splitlines()[0][:150]
    return NoValue(f"it is not a readable Parquet file: {first}")


if __name__ == "__main__":
    serve({"open": open_parquet, "more": more_rows}, MAX_MEMORY)
