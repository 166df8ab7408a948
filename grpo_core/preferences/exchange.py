"""Preferences as files: chosen and rejected answers, JSON Lines or Parquet.

The columns are those of UltraFeedback (binarized) and of TRL: prompt, chosen, rejected, as text or
as chat messages. Columns of ours beside them make an export readable again without loss.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grpo_core.errors import StudioError
from grpo_core.preferences.dialogues import bad_cell, read_texts
from grpo_core.store import Store, preferences
from grpo_core.store.plain import finite_or_none, text
from grpo_core.store.preferences import Preference
from grpo_core.tasks.cells import MISSING, BadCell, value_at
from grpo_core.tasks.files import BadSource, is_file
from grpo_core.tasks.source import read_rows

KINDS = {".jsonl": "jsonl", ".parquet": "parquet"}
COLUMNS = (
    "prompt", "chosen", "rejected", "score_chosen", "score_rejected", "margin", "tie", "side",
    "who", "seconds", "created_at", "source", "ranking", "prompt_id", "before",
)  # fmt: skip
SOURCES = ("page", "terminal", "ranking", "import")
MAX_ROWS = 500_000
MAX_NAME = 200  # characters of a name or an id
NAMED = 5  # bad rows that are named one by one


@dataclass(slots=True)
class Imported:
    """What became of a file's rows. reasons: of the first bad rows, each with row and column."""

    num_added: int = 0
    num_known: int = 0  # they were there before
    num_bad: int = 0
    reasons: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = [f"{self.num_added:,} added"]
        if self.num_known:
            parts.append(f"{self.num_known:,} were there already")
        if self.num_bad:
            parts.append(f"{self.num_bad:,} could not be read ({'; '.join(self.reasons)})")
        return ", ".join(parts) + "."


# ---- export --------------------------------------------------------------------------------------


def export_preferences(store: Store, path: str | Path, as_chat: bool = False) -> int:
    """Write all judgements but skipped pairs; returns how many. The file is whole or not there.

    as_chat: prompt stays text, chosen and rejected are all messages, as in UltraFeedback.
    A tie has true in the column tie; its chosen text is the left one.
    """
    path = Path(path)
    kind = _kind(path)
    rows = [_as_row(p, as_chat) for p in preferences.read(store) if p.verdict != "skip"]
    if path.exists() and not path.is_file():  # else it would replace a device
        raise StudioError(f"{str(path)!r} is not a regular file. Name another file.")
    aside = Path(f"{path}.part")
    try:
        if kind == "parquet":
            _write_parquet(rows, aside, as_chat)
        else:
            with aside.open("w", encoding="utf-8", newline="") as out:
                encode = json.JSONEncoder(allow_nan=False).encode  # ASCII: no terminal code passes
                out.writelines(encode(row) + "\n" for row in rows)
        os.replace(aside, path)
    except OSError as error:
        raise StudioError(
            f"{str(path)!r} cannot be written: {error.strerror}. Name another file."
        ) from None
    finally:
        aside.unlink(missing_ok=True)
    return len(rows)


def _kind(path: Path) -> str:
    kind = KINDS.get(path.suffix.lower())
    if kind is None:
        raise StudioError(f"{str(path)!r}: preferences are written as {' or '.join(KINDS)}.")
    return kind


def _as_row(p: Preference, as_chat: bool) -> dict[str, Any]:
    chosen, rejected = p.chosen, p.rejected
    if chosen is None or rejected is None:
        chosen, rejected = p.left, p.right
    own = {
        "margin": p.margin,
        "tie": p.verdict == "tie",
        "side": "right" if p.verdict == "right" else "left",  # where the chosen text stood
        "who": p.who,
        "seconds": p.seconds,
        "created_at": p.created_at,
        "source": p.source,
        "ranking": p.ranking,
        "prompt_id": p.prompt_id,
    }
    if not as_chat:
        before = [dict(m) for m in p.before]
        return {"prompt": p.prompt, "chosen": chosen, "rejected": rejected, **own, "before": before}
    asked = [*map(dict, p.before), {"role": "user", "content": p.asked.text}]
    chats = [[*asked, {"role": "assistant", "content": answer}] for answer in (chosen, rejected)]
    return {"prompt": p.prompt, "chosen": chats[0], "rejected": chats[1], **own}


def _write_parquet(rows: Sequence[Mapping[str, Any]], path: Path, as_chat: bool) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    chat = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    kinds = {
        "chosen": chat if as_chat else pa.string(),
        "rejected": chat if as_chat else pa.string(),
        "before": chat,
        "margin": pa.float64(),
        "seconds": pa.float64(),
        "created_at": pa.float64(),
        "tie": pa.bool_(),
    }
    names = [n for n in COLUMNS if n not in ("score_chosen", "score_rejected")]
    names = [n for n in names if not (as_chat and n == "before")]
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in names])
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), path, row_group_size=1000)


# ---- import --------------------------------------------------------------------------------------


def import_preferences(
    store: Store, path: str, columns: Mapping[str, str] | None = None, who: str = ""
) -> Imported:
    """Add the rows of a file; those that are there already are not added again.

    columns: one of COLUMNS -> the name that it has in the file; a dot reaches into an object.
    who: where the file does not say. Without a prompt column, the messages or the dialogue that
    chosen and rejected share are the prompt, as in HH-RLHF. score_chosen − score_rejected is the
    margin. Raises StudioError for a file that is no such file, naming the row; nothing is added.
    """
    columns = columns or {}
    if unknown := columns.keys() - set(COLUMNS):
        known = f"Known: {', '.join(COLUMNS)}."
        raise StudioError(f"{sorted(unknown)[0]!r} is no column of preferences. {known}")
    if not is_file(path):
        raise StudioError(f"{path!r} is no file that may be read. Name a JSONL or Parquet file.")
    result, rows = Imported(), []
    for number, row in enumerate(_rows(path), 1):
        if number > MAX_ROWS:
            raise StudioError(f"{path!r} has more than {MAX_ROWS:,} rows. Split it.")
        try:
            rows.append(_preference(_Row(row, columns), who))
        except BadCell as error:
            result.num_bad += 1
            if len(result.reasons) < NAMED:
                result.reasons.append(f"row {number:,}, {error}")
    if not rows:
        found = "; ".join(result.reasons) or "it has no rows"
        hint = "Name the columns, such as chosen=better_answer."
        raise StudioError(f"{path!r} holds no preferences: {found}. {hint}")
    # Held from the reading to the writing: two imports at once add nothing twice.
    with store.writing():
        new = list(_unknown(rows, preferences.read(store)))
        preferences.add(store, [p for p, _ in new])
    result.num_added, result.num_known = len(new), len(rows) - len(new)
    return result


def _rows(path: str) -> Iterator[Mapping[str, Any]]:
    try:
        yield from read_rows(path)
    except BadSource as error:  # it names a field of a run's settings
        [problem] = error.problems
        raise StudioError(f"{path!r}: {problem.problem}. {problem.hint}") from None


@dataclass(frozen=True, slots=True)
class _Row:
    """One row of a file, read through the mapped names of its columns."""

    cells: Mapping[str, Any]
    columns: Mapping[str, str]

    def named(self, name: str) -> str:
        return self.columns.get(name, name)

    def cell(self, name: str) -> Any:
        """None if the row has no such column."""
        value = value_at(self.cells, self.named(name))
        return None if value is MISSING else value

    def number(self, name: str) -> float | None:
        value = self.cell(name)
        if value is None or value == "":
            return None
        try:
            if isinstance(value, bool):
                raise ValueError
            return finite_or_none(value)
        except (TypeError, ValueError, OverflowError):
            raise bad_cell(self.named(name), "it holds no number", value) from None

    def word(self, name: str) -> str:
        value = self.cell(name)
        if value is None:
            return ""
        if not isinstance(value, str) or len(value) > MAX_NAME:
            problem = f"it holds no text of at most {MAX_NAME} characters"
            raise bad_cell(self.named(name), problem, value)
        return value


def _preference(row: _Row, who: str) -> tuple[Preference, bool]:
    """A row's judgement, and whether the row says when it was made. Raises BadCell."""
    names = [row.named(name) for name in ("prompt", "chosen", "rejected", "before")]
    found = read_texts(
        {name: row.cell(name) for name in ("prompt", "chosen", "rejected", "before")}, names
    )
    high, low, margin = map(row.number, ("score_chosen", "score_rejected", "margin"))
    tie = row.cell("tie")
    if tie not in (None, True, False, "", "true", "false"):
        raise bad_cell(row.named("tie"), "it is neither true nor false", tie)
    on_right = row.word("side") == "right"
    left, right = (found.chosen, found.rejected)[:: -1 if on_right else 1]
    source, made_at = row.word("source"), row.number("created_at")
    judged = Preference(
        prompt_id=row.word("prompt_id"),
        prompt=found.prompt,
        before=found.before,
        left=left,
        right=right,
        verdict="tie" if tie in (True, "true") else "right" if on_right else "left",
        margin=high - low if high is not None and low is not None else margin,
        who=row.word("who") or who,
        seconds=row.number("seconds"),
        created_at=time.time() if made_at is None else made_at,
        source=source if source in SOURCES else "import",
        ranking=row.word("ranking") or None,
    )
    return judged, made_at is not None


def _unknown(
    rows: Iterable[tuple[Preference, bool]], there: Sequence[Preference]
) -> Iterator[tuple[Preference, bool]]:
    """The rows that are not there yet. A row without a time equals one of any time."""
    timed = {(_same(p), p.created_at) for p in there}
    known = {_same(p) for p in there}
    for p, has_time in rows:
        same = _same(p)
        if (same, p.created_at) in timed if has_time else same in known:
            continue
        known.add(same)
        timed.add((same, p.created_at))
        yield p, has_time


def _same(p: Preference) -> tuple[Any, ...]:
    """What makes two judgements one, as the store writes it."""
    better = p.chosen
    return (
        text(p.prompt),
        frozenset((text(p.left), text(p.right))),
        p.verdict if better is None else text(better),
        text(p.who),
    )
