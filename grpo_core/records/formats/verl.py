"""verl: `trainer.rollout_data_dir` and `validation_data_dir`, one `{step}.jsonl` a step.

A row: input, output, gts, score, step, and what the reward function returned beside its score.
verl 0.9's new trainer adds `uid` = sample_rollout_output; before, rows with one input are a group.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from grpo_core.records.formats.chats import asked
from grpo_core.records.formats.rows import (
    Row,
    by_key,
    first_row,
    found,
    group_of,
    in_parts,
    is_evaluation,
    number,
    scores,
    text,
    whole,
)
from grpo_core.records.record import SourceGroup, SourceRollout, SourceRun, SourceStep
from grpo_core.types import Turn, TurnRole

FIELDS = {"input", "output", "gts", "score", "step"}
# Which row it is, what it says, and the same reward again under another name.
NOT_SCORES = {*FIELDS, "uid", "request_id", "reward"}
UID = re.compile(r"(?P<sample>.+)_(?P<rollout>\d+)_(?P<output>\d+)")


def files(path: Path) -> list[Path]:
    return found(path, "[0-9]*.jsonl", "*/[0-9]*.jsonl")


def finds(path: Path) -> bool:
    return first_row(files(path)).keys() >= {"input", "output", "score", "step"}


def read(path: Path) -> Iterator[SourceRun | SourceStep]:
    """The run and its steps. Raises StudioError."""
    place = path.resolve()
    yield SourceRun(trainer="verl", format="verl", key=f"verl:{place}", name=place.stem)
    yield from in_parts(_groups(path))


def _groups(path: Path) -> Iterator[tuple[int, SourceGroup]]:
    for file in files(path):
        for rows in by_key(file, _key):
            step = whole(rows[0]["step"])
            assert step is not None
            answer = next((r["gts"] for r in rows if r.get("gts") is not None), None)
            rollouts = [_rollout(outputs) for outputs in _by_rollout(rows)]
            yield step, group_of(asked(rows[0]["input"]), rollouts, answer, is_evaluation(file))


def _key(row: Row) -> tuple[int, str] | None:
    step = whole(row.get("step"))
    if step is None or not {"input", "output"} <= row.keys():
        return None
    uid = UID.fullmatch(row["uid"]) if isinstance(row.get("uid"), str) else None
    return step, uid["sample"] if uid else text(row.get("uid") or row["input"])


def _by_rollout(rows: Sequence[Row]) -> list[list[Row]]:
    """The outputs of each rollout: an agent loop may write several, and they share a reward."""
    rollouts: dict[str | int, list[Row]] = {}
    for i, row in enumerate(rows):
        uid = UID.fullmatch(text(row.get("uid")))
        rollouts.setdefault(uid["rollout"] if uid else i, []).append(row)
    return list(rollouts.values())


def _rollout(outputs: Sequence[Row]) -> SourceRollout:
    texts = [text(row["output"]) for row in outputs]
    last = outputs[-1]
    return SourceRollout(
        text="\n".join(texts),
        reward=number(last.get("score")),
        scores=scores({k: v for k, v in last.items() if k not in NOT_SCORES}),
        turns=tuple(Turn(TurnRole.ACTION, t, 0, 0) for t in texts) if len(texts) > 1 else (),
    )
