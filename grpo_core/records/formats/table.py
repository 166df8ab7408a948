"""Any table with a completion a row: JSONL, Parquet, CSV or TSV. Columns are told by their names.

Needed: `completion`, and `group` or `prompt`. Further: step, reward, answer, advantage,
finish_reason, num_tokens, kind, and scores as one object or one numeric column a criterion. Rows
with the same step and group (else prompt) are siblings, wherever they stand. Without steps, every
GROUPS_A_STEP groups are a step, in the order of the file.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from grpo_core.errors import FieldProblem, InvalidConfig, StudioError
from grpo_core.records.formats.chats import asked, completed
from grpo_core.records.formats.rows import (
    Row,
    by_key,
    found,
    group_of,
    in_parts,
    loaded,
    number,
    rows,
    scores,
    text,
    whole,
)
from grpo_core.records.record import SourceGroup, SourceRollout, SourceRun, SourceStep
from grpo_core.tasks.source import read_rows
from grpo_core.types import GroupKind

# role -> the names that a column may have, best first
NAMES: dict[str, tuple[str, ...]] = {
    "completion": (
        "completion", "response", "output", "generation", "generated_text", "completion_text",
        "text",
    ),
    "prompt": ("prompt", "question", "problem", "messages", "instruction", "query", "input"),
    "group": ("group", "group_id", "uid", "prompt_id", "example_id"),
    "step": ("step", "global_step", "gen_step", "training_step", "iteration"),
    "reward": ("reward", "total_reward", "score"),
    "advantage": ("advantage", "advantages"),
    "answer": (
        "answer", "final_answer", "ground_truth", "gts", "solution", "target", "label", "gold",
    ),
    "finish_reason": ("finish_reason", "stop_reason"),
    "num_tokens": ("num_tokens", "completion_tokens", "response_length", "completion_length"),
    "scores": ("scores", "rewards"),
    "kind": ("kind",),
}  # fmt: skip
NOT_SCORES = ("index", "idx", "id", "position", "seed", "epoch", "timestamp", "time", "row")
SUFFIXES = (".jsonl", ".ndjson", ".parquet", ".csv", ".tsv")
ENDS = {"stop": "stop", "length": "length", "eos": "stop", "max_tokens": "length"}
GROUPS_A_STEP = 8
FIRST_ROWS = 200  # whose names decide which columns are read


@dataclass(frozen=True, slots=True)
class Columns:
    """role -> column, and the columns of criteria."""

    of: Mapping[str, str]
    criteria: tuple[str, ...]

    def value(self, row: Row, role: str) -> Any:
        return row.get(self.of[role]) if role in self.of else None


def files(path: Path) -> list[Path]:
    patterns = (f"*{suffix}" for suffix in SUFFIXES)
    return [f for f in found(path, *patterns) if f.suffix.lower() in SUFFIXES]


def finds(path: Path) -> bool:
    return bool(files(path)) and why_not(path) == ""


def why_not(path: Path) -> str:
    """Why the first file of a path is no table of completions; empty if it is one."""
    for file in files(path)[:1]:
        try:
            choose_columns(list(islice(_rows(file), FIRST_ROWS)), {})
        except InvalidConfig as error:
            return f"{str(file)!r}: {error.problems[0].problem}. {error.problems[0].hint}"
    return ""


def read(path: Path, columns: Mapping[str, str] | None = None) -> Iterator[SourceRun | SourceStep]:
    """The run and its steps. columns: role -> column, where names do not tell.

    Raises InvalidConfig, which lists the columns that exist.
    """
    place = path.resolve()
    yield SourceRun(
        trainer="table", format="table", key=f"table:{place}", name=place.stem or "table"
    )
    yield from in_parts(_groups(files(path), columns or {}))


def _groups(paths: Sequence[Path], named: Mapping[str, str]) -> Iterator[tuple[int, SourceGroup]]:
    num_groups = 0
    for path in paths:
        columns = choose_columns(list(islice(_rows(path), FIRST_ROWS)), named)
        with _as_lines(path) as lines:
            for siblings in by_key(lines, lambda row, c=columns: _key(row, c)):
                step = whole(columns.value(siblings[0], "step"))
                if step is None:
                    step = 1 + num_groups // GROUPS_A_STEP
                num_groups += 1
                yield step, _group(siblings, columns)


def first_columns(path: Path) -> list[str]:
    """The names of the columns of the first file; [] where nothing can be read."""
    for file in files(path)[:1]:
        with suppress(StudioError, OSError):
            some = islice(_rows(file), FIRST_ROWS)
            return list(dict.fromkeys(name for row in some for name in row))
    return []


def choose_columns(first: Sequence[Row], named: Mapping[str, str]) -> Columns:
    """The columns of a file from its first rows. Raises InvalidConfig."""
    names = list(dict.fromkeys(name for row in first for name in row))
    shown = f"Columns: {', '.join(names[:30])}." if names else "There is no row that can be read."
    problems = []
    for role, name in named.items():
        if role not in NAMES:
            hint = f"Known: {', '.join(NAMES)}."
            problems.append(FieldProblem("--columns", f"{role}={name}", "no such role", hint))
        elif name not in names:
            problems.append(FieldProblem("--columns", f"{role}={name}", "no such column", shown))
    of = {**_guessed(names), **named}
    for role in ("completion", "prompt"):
        if role not in of and not (role == "prompt" and "group" in of) and not problems:
            problem = f"no column has a name that a {role} usually has"
            hint = f"Name it with --columns {role}=NAME. {shown}"
            problems.append(FieldProblem("--columns", "", problem, hint))
    if problems:
        raise InvalidConfig(problems)
    criteria = [name for name in names if name not in of.values() and _is_criterion(first, name)]
    return Columns(of, tuple(criteria))


def _guessed(names: Sequence[str]) -> dict[str, str]:
    spelled = {name.strip().lower(): name for name in reversed(names)}
    of: dict[str, str] = {}
    for role, usual in NAMES.items():
        name = next((spelled[n] for n in usual if n in spelled), None)
        if name is not None and name not in of.values():
            of[role] = name
    return of


def _is_criterion(first: Sequence[Row], name: str) -> bool:
    values = [v for row in first if (v := row.get(name)) not in (None, "")]
    if name.strip().lower() in NOT_SCORES or not values:
        return False
    return all(isinstance(v, int | float | str) and number(v) is not None for v in values)


def _key(row: Row, columns: Columns) -> Any:
    """Equal for siblings; None for a row without a completion, or without group and prompt."""
    if columns.value(row, "completion") is None:
        return None
    group = columns.value(row, "group")
    group = columns.value(row, "prompt") if group is None else group
    return None if group is None else (text(columns.value(row, "step")), text(group))


def _group(siblings: Sequence[Row], columns: Columns) -> SourceGroup:
    first = siblings[0]
    prompt = columns.value(first, "prompt")
    return group_of(
        asked("" if prompt is None else prompt),
        [_rollout(row, columns) for row in siblings],
        columns.value(first, "answer"),
        evaluation=columns.value(first, "kind") == GroupKind.EVALUATION,
    )


def _rollout(row: Row, columns: Columns) -> SourceRollout:
    answer = completed(columns.value(row, "completion"))
    given = loaded(columns.value(row, "scores"))
    own = {name: number(row.get(name)) for name in columns.criteria}
    end = columns.value(row, "finish_reason")
    return SourceRollout(
        text=answer.text,
        turns=answer.turns,
        scores=own | (scores(given) if isinstance(given, dict) else {}),
        reward=number(columns.value(row, "reward")),
        advantage=number(columns.value(row, "advantage")),
        num_tokens=whole(columns.value(row, "num_tokens")),
        finish_reason=ENDS.get(end, end) if isinstance(end, str) and end else None,
    )


def _rows(path: Path) -> Iterator[Row]:
    """The rows of a file. A line of JSONL that cannot be read is left out with a warning."""
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        return rows(path)
    return (dict(row) for row in read_rows(str(path)))


@contextmanager
def _as_lines(path: Path) -> Iterator[Path]:
    """The file as JSONL, in which rows can be found again."""
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        yield path
        return
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl", encoding="utf-8") as lines:
        for row in _rows(path):
            lines.write(json.dumps(row) + "\n")
        lines.flush()
        yield Path(lines.name)
