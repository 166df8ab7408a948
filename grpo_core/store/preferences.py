"""Which of two completions a person prefers: add, remove and read judgements."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from grpo_core.store.plain import finite_or_none, insertion, text, to_json
from grpo_core.store.problems import decoding
from grpo_core.store.store import Store
from grpo_core.types import Prompt, last_message

Verdict = Literal["left", "right", "tie", "skip"]
VERDICTS: tuple[Verdict, ...] = ("left", "right", "tie", "skip")


@dataclass(frozen=True, slots=True, kw_only=True)
class Preference:
    """One judgement of two completions of one prompt, with the texts as they stood.

    prompt: as in GroupRow, a whole chat for a chat; before: its earlier messages.
    margin: difference of imported scores. who: "" if nobody said. source: "page", "terminal",
    "ranking" or "import". ranking: one id for all pairs of a ranked group. id: 0 if not stored.
    """

    prompt: str
    left: str
    right: str
    verdict: str  # one of VERDICTS
    created_at: float  # unix seconds
    source: str
    id: int = 0
    prompt_id: str = ""
    before: Sequence[Mapping[str, str]] = ()
    margin: float | None = None
    who: str = ""
    seconds: float | None = None  # that the person took
    ranking: str | None = None
    run_id: str | None = None  # None: not of a run, or the run was deleted
    group_id: int | None = None

    @property
    def chosen(self) -> str | None:
        """The preferred text; None for a tie and a skipped pair."""
        return {"left": self.left, "right": self.right}.get(self.verdict)

    @property
    def rejected(self) -> str | None:
        """The other text; None for a tie and a skipped pair."""
        return {"left": self.right, "right": self.left}.get(self.verdict)

    @property
    def asked(self) -> Prompt:
        """The prompt as a criterion of a rubric gets it: its last message, earlier ones in meta."""
        meta = {"before": list(self.before)}
        return Prompt(self.prompt_id, last_message(self.prompt, self.before), "", "", meta)


_COLUMNS = [f.name for f in fields(Preference)]
_STORED = [name for name in _COLUMNS if name != "id"]
_INSERT = insertion("preferences", _STORED)


def add(store: Store, rows: Iterable[Preference]) -> list[int]:
    """Store judgements, all or none, and return their ids.

    Raises StoreBusy if another process holds the file.
    """
    with store.writing() as writer, writer.transaction() as db:
        # Not executemany: it does not tell the ids.
        return [db.execute(_INSERT, _plain(row)).lastrowid or 0 for row in rows]


def _plain(row: Preference) -> dict[str, Any]:
    assert row.verdict in VERDICTS, row.verdict
    values: dict[str, Any] = {name: getattr(row, name) for name in _STORED}
    values |= {name: text(v) for name, v in values.items() if isinstance(v, str)}
    return values | {
        "before": to_json(row.before),
        "margin": finite_or_none(row.margin),
        "seconds": finite_or_none(row.seconds),
    }


def remove(store: Store, ids: Iterable[int]) -> None:
    """Delete judgements, such as the last one, which its person takes back."""
    with store.writing() as writer, writer.transaction() as db:
        db.executemany("DELETE FROM preferences WHERE id = ?", [(i,) for i in ids])


def read(store: Store, who: str | None = None) -> list[Preference]:
    """All judgements, or those of one person, the oldest first; skipped pairs too."""
    where, values = ("", ()) if who is None else ("WHERE who = ?", (text(who),))
    rows = store._readers.all(
        f"SELECT {', '.join(_COLUMNS)} FROM preferences {where} ORDER BY id", values
    )
    with decoding(store.path):
        return [Preference(**{**row, "before": json.loads(row["before"])}) for row in rows]


def judged_scores(store: Store, run_id: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Scores by criterion of the preferred and of the other completion, for a run's judged pairs.

    Ties, skipped pairs, and completions that are no longer there are left out.
    """
    rows = store._readers.all(
        "SELECT p.verdict, l.scores AS left, r.scores AS right FROM preferences p "
        "JOIN rollouts l ON l.group_id = p.group_id AND l.text = p.left "
        "JOIN rollouts r ON r.group_id = p.group_id AND r.text = p.right "
        "WHERE p.run_id = ? AND p.verdict IN ('left', 'right') GROUP BY p.id ORDER BY p.id",
        (text(run_id),),
    )
    with decoding(store.path):
        pairs = [(json.loads(row["left"]), json.loads(row["right"]), row) for row in rows]
    return [(a, b) if row["verdict"] == "left" else (b, a) for a, b, row in pairs]


def people(store: Store) -> list[str]:
    """The names under which somebody judged, sorted; "" for no name."""
    rows = store._readers.all("SELECT DISTINCT who FROM preferences ORDER BY who")
    return [row["who"] for row in rows]


def token(store: Store) -> tuple[Any, ...]:
    """Differs whenever a judgement was added or taken back."""
    return tuple(store._readers.all("SELECT COUNT(*), MAX(created_at) FROM preferences")[0])
