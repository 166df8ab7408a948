"""Rows -> files for other programs, streamed: a few hundred groups or steps in memory at a time."""

from __future__ import annotations

import csv
import errno
import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from grpo_core.errors import StudioError
from grpo_core.types import STEP_METRICS, GroupKind, TurnRole, last_message

if TYPE_CHECKING:
    from grpo_core.store.rollouts import Wanted
    from grpo_core.store.rows import GroupRow, RolloutRow
    from grpo_core.store.store import Store

ROW_GROUP = 10_000  # rollouts in memory at a time for Parquet


def export_metrics_csv(store: Store, run_id: str, out: TextIO) -> None:
    """One row a step: every field of StepMetrics, then the open metrics by name.

    An empty cell was not measurable. Step 0 exists if something was measured before the first step.
    Open `out` with newline="".
    """
    store.run(run_id)
    names = store.metric_names(run_id)
    # RFC 4180, line ends too: with "\n" alone a carriage return in a name would stay unquoted.
    writer = csv.writer(out)
    writer.writerow(map(_cell, ("step", *STEP_METRICS, *names)))
    for step, values in store.iter_numbers(run_id, names):
        writer.writerow([step, *map(_cell, values)])


def export_rollouts_jsonl(store: Store, run_id: str, out: TextIO) -> None:
    """One rollout a line, in order of step, group and position; evaluations come last.

    Pure ASCII, so no terminal code passes.
    """
    encode = json.JSONEncoder(allow_nan=False).encode
    for row in _rollouts(store, run_id):
        out.write(encode(row) + "\n")


def export_messages_jsonl(store: Store, run_id: str, out: TextIO) -> None:
    """One rollout a line as a chat, for programs that fine-tune: {"messages": [...], ...}.

    The roles are system, user, assistant and tool. An assistant's message is what the policy wrote,
    its calls included, so that a chat template writes the turn as it was. The rows have the same
    columns and types, as `datasets` wants.
    """
    encode = json.JSONEncoder(allow_nan=False).encode
    for group, rollout in _pairs(store, run_id):
        asked = {"role": "user", "content": last_message(group.prompt, group.before)}
        messages = [
            {"role": str(m["role"]), "content": str(m["content"]), "name": ""}
            for m in (*group.before, asked)
        ]
        row = {"messages": messages + _acts(rollout)}
        more = {name: getattr(group, name) for name in ("prompt_id", "answer", "step", "kind")}
        more |= {name: getattr(rollout, name) for name in ("finish_reason", "reward", "advantage")}
        out.write(encode(row | more) + "\n")


def _acts(rollout: RolloutRow) -> list[dict[str, str]]:
    """A completion as messages of the assistant and of its tools."""
    if not rollout.turns:
        return [{"role": "assistant", "content": rollout.text, "name": ""}]
    roles = {TurnRole.ACTION: "assistant", TurnRole.OBSERVATION: "tool"}
    return [{"role": roles[t.role], "content": t.text, "name": t.tool} for t in rollout.turns]


def export_found_jsonl(store: Store, run_id: str, wanted: Wanted, out: TextIO) -> int:
    """The selected rollouts, newest first, one JSON object a line. Returns how many."""
    encode, n = json.JSONEncoder(allow_nan=False).encode, 0
    for group, rollout in store.iter_found(run_id, wanted):
        out.write(encode(_row(group, rollout)) + "\n")
        n += 1
    return n


def export_rollouts_parquet(store: Store, run_id: str, path: str | Path) -> None:
    """The rows of the JSON Lines export as typed columns; `scores` and `turns` are JSON text.

    Written to a temporary file, then renamed: complete or not there.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise StudioError(
            "Parquet export needs the package pyarrow. Install it, or export JSON Lines."
        ) from None
    kinds = {
        "step": pa.int64(),
        "group_id": pa.int64(),
        "position": pa.int64(),
        "num_tokens": pa.int64(),
        "reward": pa.float64(),
        "advantage": pa.float64(),
    }
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in COLUMNS])
    if Path(path).exists() and not Path(path).is_file():  # else it would replace a device
        raise OSError(errno.EINVAL, "not a regular file")
    aside = Path(f"{path}.part")
    try:
        with pq.ParquetWriter(aside, schema) as writer:
            for rows in _batches(_rollouts(store, run_id), ROW_GROUP):
                rows = [
                    row | {name: json.dumps(row[name]) for name in ("scores", "turns")}
                    for row in rows
                ]
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def export_config_json(store: Store, run_id: str, out: TextIO) -> None:
    """The run's whole RunConfig, as `--config` reads it."""
    json.dump(store.run(run_id).config, out, indent=2)
    out.write("\n")


COLUMNS = (
    "run_id",
    "step",
    "group_id",
    "position",
    "prompt_id",
    "prompt",
    "answer",
    "text",
    "finish_reason",
    "num_tokens",
    "reward",
    "advantage",
    "scores",
    "verdict",
    "kind",
    "turns",
)


def _rollouts(store: Store, run_id: str) -> Iterator[dict[str, Any]]:
    return (_row(group, rollout) for group, rollout in _pairs(store, run_id))


def _pairs(store: Store, run_id: str) -> Iterator[tuple[GroupRow, RolloutRow]]:
    """The rollouts of training in order, then those of evaluations; `kind` tells them apart."""
    store.run(run_id)
    for kind in GroupKind:
        for group in store.iter_groups(run_id, kind=kind):
            for rollout in group.rollouts:
                yield group, rollout


def _row(group: GroupRow, rollout: RolloutRow) -> dict[str, Any]:
    row = {name: getattr(rollout if hasattr(rollout, name) else group, name) for name in COLUMNS}
    return row | {"turns": [asdict(turn) for turn in rollout.turns]}


def _batches(rows: Iterator[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    for row in rows:
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _cell(value: Any) -> Any:
    """Put an apostrophe before text that a spreadsheet would run as a formula. Numbers stay."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA_SIGNS) else value


# The ASCII signs, the blanks that spreadsheets skip before one, and the full-width forms that East
# Asian ones accept.
FORMULA_SIGNS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
