"""Prompts that came up several times, in one run or in several."""

from __future__ import annotations

from typing import Any

from grpo_core.store.connection import Readers
from grpo_core.store.rows import PromptVisits


def repeated(readers: Readers, run_id: str, limit: int) -> list[PromptVisits]:
    """The prompts that came up more than once in a run.

    Held-out ones come first, then those with most visits, then those whose mean reward rose most.
    """
    return _found(readers, "run_id = ?", "HAVING COUNT(*) > 1", (run_id, limit))


def shared(readers: Readers, run_id: str, limit: int) -> list[PromptVisits]:
    """The prompts of a run that another run met too, in the same order."""
    met = "EXISTS (SELECT 1 FROM groups o WHERE o.prompt_id = g.prompt_id AND o.run_id != ?)"
    return _found(readers, f"run_id = ? AND {met}", "", (run_id, run_id, limit))


def _found(
    readers: Readers, where: str, having: str, values: tuple[Any, ...]
) -> list[PromptVisits]:
    rows = readers.all(
        "SELECT prompt_id, MIN(id) AS first, MAX(id) AS last, COUNT(*) AS num_visits, "
        f"MAX(kind = 'evaluation') AS is_heldout FROM groups g WHERE {where} "
        f"GROUP BY prompt_id {having} "
        "ORDER BY is_heldout DESC, num_visits DESC, first LIMIT ?",
        values,
    )
    # The texts of these rows only: they are long.
    ids = sorted({row[end] for row in rows for end in ("first", "last")})
    marks = ", ".join("?" * len(ids))
    ends = {
        row["id"]: row
        for row in readers.all(
            f"SELECT id, prompt, reward_mean FROM groups WHERE id IN ({marks})", ids
        )
    }

    def rise(row: Any) -> float:
        """Of the mean reward, from the first visit to the last; 0 if one was not scored."""
        means = [ends[row[end]]["reward_mean"] for end in ("first", "last") if row[end] in ends]
        return means[1] - means[0] if len(means) == 2 and None not in means else 0.0

    rows = sorted(rows, key=lambda row: (-row["is_heldout"], -row["num_visits"], -rise(row)))
    return [
        PromptVisits(
            row["prompt_id"],
            ends[row["first"]]["prompt"] if row["first"] in ends else "",
            row["num_visits"],
            bool(row["is_heldout"]),
        )
        for row in rows
    ]
