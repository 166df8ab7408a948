"""Answers that a person kept in the Playground: rows of a prompt file. Add, remove, read, write."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TextIO

from grpo_core.store.plain import insertion, integer, text, to_json
from grpo_core.store.problems import decoding
from grpo_core.store.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptAnswer:
    """One answer with its prompt, as they stood. right: the right answer; "" if nobody gave one.

    before: the messages before the prompt. run_id, step: the state that wrote the answer; run_id
    None if its run was deleted. id: 0 if not stored.
    """

    prompt: str
    right: str
    answer: str
    step: int
    created_at: float  # unix seconds
    run_id: str | None = None
    before: Sequence[Mapping[str, str]] = ()
    id: int = 0

    @property
    def row(self) -> dict[str, Any]:
        """The row of a prompt file. Without a right answer, the kept one stands for it."""
        prompt: Any = self.prompt
        if self.before:
            prompt = [*self.before, {"role": "user", "content": self.prompt}]
        return {
            "prompt": prompt,
            "answer": self.right or self.answer,
            "completion": self.answer,
        }


_STORED = [f.name for f in fields(KeptAnswer) if f.name != "id"]


def add(store: Store, kept: KeptAnswer) -> None:
    """Store an answer. Raises StoreBusy if another process holds the file."""
    values: dict[str, Any] = {name: getattr(kept, name) for name in _STORED}
    values |= {name: text(v) for name, v in values.items() if isinstance(v, str)}
    values |= {"step": integer(kept.step), "before": to_json(kept.before)}
    with store.writing() as writer, writer.transaction() as db:
        db.execute(insertion("kept_answers", _STORED), values)


def remove(store: Store, ids: Iterable[int]) -> None:
    """Delete kept answers; those that are gone are no error."""
    with store.writing() as writer, writer.transaction() as db:
        db.executemany("DELETE FROM kept_answers WHERE id = ?", [(integer(i),) for i in ids])


def read(store: Store) -> list[KeptAnswer]:
    """All kept answers, the oldest first."""
    rows = store._readers.all(f"SELECT id, {', '.join(_STORED)} FROM kept_answers ORDER BY id")
    with decoding(store.path):
        return [KeptAnswer(**{**row, "before": json.loads(row["before"])}) for row in rows]


def write_jsonl(store: Store, out: TextIO) -> int:
    """Write all kept answers as the rows of a prompt file; return how many."""
    kept = read(store)
    for answer in kept:
        out.write(json.dumps(answer.row, ensure_ascii=False) + "\n")
    return len(kept)
