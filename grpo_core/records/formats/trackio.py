"""trackio: the SQLite file of a project, with its runs.

Table `traces`: messages, and metadata with reward, rewards/NAME, advantage and group_id, as TRL's
asynchronous GRPO trainer writes them; verl writes its validation with a score. Table `metrics`: the
curves, and the tables of completions that TRL's other trainers log, whose neighbouring rows with
the same prompt are a group.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from grpo_core.errors import StoreError
from grpo_core.records.formats.chats import answer_starts, answered, asked, completed, messages
from grpo_core.records.formats.rows import (
    EVALUATION,
    Row,
    found,
    group_of,
    in_parts,
    loaded,
    number,
    runs_of,
    scores,
    text,
    whole,
)
from grpo_core.records.record import SourceGroup, SourceRollout, SourceRun, SourceStep
from grpo_core.records.trl_metrics import our_name
from grpo_core.store.foreign_file import ForeignFile

TRACES = ("run_id", "run_name", "step", "key", "trace_index", "messages", "metadata")
METRICS = ("run_id", "run_name", "step", "metrics")
CONFIGS = ("run_id", "run_name", "config")
REWARD = "rewards/"  # the beginning of the names of reward functions
NOT_SCORES = {"step", "prompt", "completion", "advantage", "advantages", "image"}


def files(path: Path) -> list[Path]:
    return [f for f in found(path, "*.db", "*.sqlite") if f.suffix in (".db", ".sqlite")]


def finds(path: Path) -> bool:
    return any(_is_project(file) for file in files(path)[:20])


def _is_project(file: Path) -> bool:
    try:
        with ForeignFile(file) as db:
            tables = {"traces": TRACES, "metrics": METRICS}
            needed = {name: {*columns} - {"run_id"} for name, columns in tables.items()}
            return all(needed[name] <= {*db.columns(name)} for name in tables)
    except StoreError:
        return False


def read(path: Path) -> Iterator[SourceRun | SourceStep]:
    """Each run of each project, the newest first, followed by its steps. Raises StoreError."""
    for file in files(path):
        if path.is_file() or _is_project(file):
            with ForeignFile(file) as db:
                yield from _project(db, file.resolve())


def _project(db: ForeignFile, place: Path) -> Iterator[SourceRun | SourceStep]:
    settings = {_run(row): _object(row["config"]) for row in db.rows("configs", CONFIGS)}
    curves = _curves(db)
    ordered = ("run_id", "run_name", "step", "key", "trace_index")
    traced = dict.fromkeys(_run(row) for row in db.rows("traces", ("run_id", "run_name")))
    for run in reversed(dict.fromkeys([*settings, *curves, *traced])):  # the newest first
        steps = curves.get(run, _Curves())
        if run not in traced and not steps.tables:
            continue  # a run without completions
        identity, name = run
        yield SourceRun(
            trainer="trackio",
            format="trackio",
            key=f"trackio:{identity}" if identity != name else f"trackio:{place}:{name}",
            name=name or place.stem,
            settings=settings.get(run, {}),
        )
        which = {"run_name": name, "run_id": identity}
        traces = _traced_groups(db.rows("traces", TRACES, ordered, which))
        yield from in_parts(chain(steps.groups(), traces), steps.metrics)


def _run(row: Row) -> tuple[str, str]:
    """A run's id and name; files of versions before 0.24 have the name only."""
    name = text(row["run_name"])
    return text(row["run_id"]) or name, name


def _object(data: Any) -> dict[str, Any]:
    value = loaded(data)
    return value if isinstance(value, dict) else {}


# ---- curves, and tables of completions -----------------------------------------------------------


@dataclass(slots=True)
class _Curves:
    """Of one run. tables: step -> the tables of completions that were logged with it."""

    metrics: dict[int, dict[str, float]] = field(default_factory=dict)
    tables: list[tuple[int, str, list[Row]]] = field(default_factory=list)

    def groups(self) -> Iterator[tuple[int, SourceGroup]]:
        for step, name, table in self.tables:
            for rows in runs_of([_prompt(row) for row in table]):
                group = [table[i] for i in rows]
                evaluation = bool(EVALUATION.search(name.lower()))
                yield (
                    step,
                    group_of(
                        asked(group[0].get("prompt")), [_logged(r) for r in group], None, evaluation
                    ),
                )


def _curves(db: ForeignFile) -> dict[tuple[str, str], _Curves]:
    runs: dict[tuple[str, str], _Curves] = {}
    for row in db.rows("metrics", METRICS):
        step = whole(row["step"])
        if step is None:
            continue
        curves = runs.setdefault(_run(row), _Curves())
        for name, value in _object(row["metrics"]).items():
            if rows := _table(value):
                own = whole(rows[0].get("step"))
                curves.tables.append((step if own is None else own, name, rows))
            elif isinstance(value, int | float) and (n := number(value)) is not None:
                curves.metrics.setdefault(step, {})[our_name(name.removeprefix("train/"))] = n
    return runs


def _table(value: Any) -> list[Row]:
    """The rows of a logged table of completions; [] for anything else."""
    if not isinstance(value, dict) or value.get("_type") != "trackio.table":
        return []
    rows = value.get("_value")
    rows = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    return rows if rows and rows[0].keys() >= {"prompt", "completion"} else []


def _prompt(row: Row) -> str:
    return text(row.get("prompt"))


def _logged(row: Row) -> SourceRollout:
    answer = completed(row.get("completion"))
    given = scores({k: v for k, v in row.items() if k not in NOT_SCORES})
    return SourceRollout(
        text=answer.text,
        turns=answer.turns,
        scores=given,
        advantage=number(row.get("advantage", row.get("advantages"))),
    )


# ---- traces --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Trace:
    chat: list[dict[str, Any]]
    metadata: Mapping[str, Any]


def _traced_groups(rows: Iterator[Row]) -> Iterator[tuple[int, SourceGroup]]:
    """The groups of a run. Traces come in the order of step, key and index."""
    held: dict[str, list[_Trace]] = {}
    place: tuple[int, str] | None = None
    for row in rows:
        step, chat = whole(row["step"]), messages(loaded(row["messages"]))
        if step is None or not chat:
            continue
        if place != (now := (step, text(row["key"]))):
            yield from _held_groups(place, held)
            held, place = {}, now
        trace = _Trace(chat, _object(row["metadata"]))
        held.setdefault(_group_key(trace), []).append(trace)
    yield from _held_groups(place, held)


def _group_key(trace: _Trace) -> str:
    if (given := trace.metadata.get("group_id")) is not None:
        return f"id {given}"
    return json.dumps(trace.chat[: answer_starts([trace.chat])])


def _held_groups(
    place: tuple[int, str] | None, held: Mapping[str, Sequence[_Trace]]
) -> Iterator[tuple[int, SourceGroup]]:
    for traces in held.values():
        assert place is not None
        step, key = place
        start = answer_starts([t.chat for t in traces])
        yield (
            step,
            group_of(
                asked(traces[0].chat[:start]),
                [_rollout(t, start) for t in traces],
                next((t.metadata["answer"] for t in traces if "answer" in t.metadata), None),
                bool(EVALUATION.search(key.lower().replace("/", "_"))),
            ),
        )


def _rollout(trace: _Trace, start: int) -> SourceRollout:
    answer, given = answered(trace.chat[start:]), trace.metadata
    reward = given.get("reward", given.get("score"))
    named = {k.removeprefix(REWARD): v for k, v in given.items() if k.startswith(REWARD)}
    return SourceRollout(
        text=answer.text,
        turns=answer.turns,
        scores=scores(named),
        reward=number(reward),
        advantage=number(given.get("advantage")),
        num_tokens=whole(given.get("completion_tokens")),
    )
