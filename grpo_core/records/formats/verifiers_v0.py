"""verifiers before 0.4: `results.jsonl` of an evaluation, with `metadata.json` beside it.

A row: example_id, prompt, completion (messages or text), reward, metrics; of early versions the
metrics are columns of their own. The rows of an example are a group. It has no steps and no
advantages.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from grpo_core.records.formats.chats import asked, completed
from grpo_core.records.formats.rows import (
    Row,
    by_key,
    first_row,
    found,
    group_of,
    in_parts,
    number,
    scores,
    settings_at,
    text,
    whole,
)
from grpo_core.records.record import SourceGroup, SourceRollout, SourceRun, SourceStep

FIELDS = {"example_id", "prompt", "completion", "reward"}
NOT_SCORES = {
    *FIELDS, "task", "error", "generation_ms", "scoring_ms", "total_ms", "info", "answer",
    "is_completed", "is_truncated", "stop_condition", "timing", "metrics", "token_usage",
    "tool_defs", "trajectory", "id", "error_chain", "long_error_chain",
}  # fmt: skip


def files(path: Path) -> list[Path]:
    return found(path, "results.jsonl")


def finds(path: Path) -> bool:
    return first_row(files(path)).keys() >= FIELDS


def read(path: Path) -> Iterator[SourceRun | SourceStep]:
    """The run and its one step. Raises StudioError."""
    place = path.resolve()
    folder = place.parent if place.is_file() else place
    settings = settings_at(folder / "metadata.json")
    version = settings.get("version_info")
    version = version.get("vf_version") if isinstance(version, dict) else None
    yield SourceRun(
        trainer=f"verifiers {version}" if version else "verifiers",
        format="verifiers-v0",
        key=f"verifiers-v0:{place}",
        name=text(settings.get("env_id") or settings.get("env")) or place.stem,
        settings=settings,
    )
    yield from in_parts((0, group) for file in files(path) for group in _groups(file))


def _groups(file: Path) -> Iterator[SourceGroup]:
    for rows in by_key(file, _key):
        yield group_of(
            asked(rows[0]["prompt"]), [_rollout(r) for r in rows], rows[0].get("answer"), True
        )


def _key(row: Row) -> str | None:
    return text(row["example_id"]) if row.keys() >= FIELDS else None


def _rollout(row: Row) -> SourceRollout:
    answer = completed(row["completion"])
    metrics = row.get("metrics")
    named = metrics if isinstance(metrics, dict) else _columns(row)
    usage = row.get("token_usage")
    return SourceRollout(
        text=answer.text,
        turns=answer.turns,
        finish_reason=_finish(row),
        reward=number(row["reward"]),
        scores=scores(named),
        num_tokens=whole(usage.get("output_tokens")) if isinstance(usage, dict) else None,
    )


def _columns(row: Row) -> dict[str, Any]:
    return {k: v for k, v in row.items() if k not in NOT_SCORES}


def _finish(row: Row) -> str | None:
    if row.get("is_truncated") is True:
        return "length"
    return "stop" if row.get("is_completed") is True else None
