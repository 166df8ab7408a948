"""Prompts that came up several times, in one run or in several."""

from __future__ import annotations

from typing import Any

from grpo_core.store.connection import Readers
from grpo_core.store.rows import PromptVisits


def repeated(readers: Readers, run_id: str, limit: int) -> list[PromptVisits]:
    """The prompts that came up more than once in a run: held-out ones first, most visits first."""
    return _found(readers, "run_id = ?", "HAVING COUNT(*) > 1", (run_id, limit))


def shared(readers: Readers, run_id: str, limit: int) -> list[PromptVisits]:
    """The prompts of a run that another run met too, in the same order."""
    met = "EXISTS (SELECT 1 FROM groups o WHERE o.prompt_id = g.prompt_id AND o.run_id != ?)"
    return _found(readers, f"run_id = ? AND {met}", "", (run_id, run_id, limit))


def _found(
    readers: Readers, where: str, having: str, values: tuple[Any, ...]
) -> list[PromptVisits]:
    rows = readers.all(
        "SELECT prompt_id, MIN(id) AS first, COUNT(*) AS num_visits, "
        f"MAX(kind = 'evaluation') AS is_heldout FROM groups g WHERE {where} "
        f"GROUP BY prompt_id {having} "
        "ORDER BY is_heldout DESC, num_visits DESC, first LIMIT ?",
        values,
    )
    # The texts of these rows only: they are long.
    marks = ", ".join("?" * len(rows))
    found = readers.all(
        f"SELECT id, prompt FROM groups WHERE id IN ({marks})", [row["first"] for row in rows]
    )
    texts = {row["id"]: row["prompt"] for row in found}
    return [
        PromptVisits(
            row["prompt_id"],
            texts.get(row["first"], ""),
            row["num_visits"],
            bool(row["is_heldout"]),
        )
        for row in rows
    ]
