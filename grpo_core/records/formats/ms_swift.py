"""ms-swift: `completions.jsonl` of `log_completions`, with `args.json` beside it.

A line is a whole table: step or gen_step, prompt, completion, one list a reward function,
advantages, then entropy and other columns. The rewards are the columns before the advantages; their
weights are in the arguments. Its Ray trainer writes one row a line, with one reward.

The trainer keeps its last batch: a batch that is logged again, because several updates use it, is
one step. A table of the same step with other rows is a further part; an earlier step means that the
run was resumed from there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from grpo_core.records.formats.chats import asked, completed
from grpo_core.records.formats.rows import (
    Row,
    Teller,
    first_row,
    found,
    group_of,
    number,
    rows,
    runs_of,
    scores,
    settings_at,
    text,
    whole,
)
from grpo_core.records.record import SourceGroup, SourceRollout, SourceRun, SourceStep

STEPS = ("step", "gen_step")
TEXTS = ("prompt", "completion")
MAX_ROWS = 8192  # of a table that comes in single rows


def files(path: Path) -> list[Path]:
    return found(path, "completions.jsonl", "*/completions.jsonl")


def finds(path: Path) -> bool:
    row = first_row(files(path))
    if not row.keys() >= set(TEXTS) or not any(name in row for name in STEPS):
        return False
    return "gen_step" in row or all(isinstance(row[name], list) for name in ("step", *TEXTS))


def read(path: Path) -> Iterator[SourceRun | SourceStep]:
    """The run and its steps. Raises StudioError."""
    place = path.resolve()
    folder = place.parent if place.is_file() else place
    settings = settings_at(folder / "args.json")
    version = settings.get("swift_version")
    yield SourceRun(
        trainer=f"ms-swift {version}" if version else "ms-swift",
        format="ms-swift",
        key=f"ms-swift:{place}",
        name=folder.name,
        settings={**settings, "reward_weights": _weights(settings, first_row(files(path)))},
        num_steps=whole(settings.get("max_steps")) or None,
    )
    size = whole(settings.get("num_generations"))
    for file in files(path)[-1:]:  # the newest of several runs in one output folder
        yield from _steps(file, size or None)


def _weights(settings: Mapping[str, Any], row: Row) -> Any:
    """The weights by the name of their reward; as they are where the names are not known."""
    names = [n for n in _reward_columns(list(row)) if n != "reward"]
    weights = settings.get("reward_weights")
    if not isinstance(weights, list) or len(weights) != len(names):
        return weights
    return dict(zip(names, weights, strict=True))


def _steps(file: Path, size: int | None) -> Iterator[SourceStep]:
    last, last_step, part = list[tuple[str, str]](), -1, 0
    tell = Teller(file)
    for table in _tables(file):
        step, keys = table.step, table.keys
        if step is None or not keys:
            tell("table", "a table lacks its steps, or its columns differ in length")
            continue
        is_continued = bool(last) and keys[: len(last)] == last
        if is_continued and len(keys) == len(last):
            continue
        part = part + 1 if step == last_step else 0
        groups = table.groups(size, len(last) if is_continued else 0)
        last, last_step = keys, step
        yield SourceStep(step=step, part=part, groups=groups)


def _tables(file: Path) -> Iterator[_Table]:
    """The tables of a file; neighbouring lines of one row each and the same step are one table."""

    def place(numbered: tuple[int, Row]) -> Any:
        i, row = numbered
        is_row = isinstance(row.get("completion"), str)
        return (whole(row.get("gen_step")), i // MAX_ROWS) if is_row else i

    for _, lines in groupby(enumerate(rows(file)), key=place):
        group = [row for _, row in lines]
        if len(group) == 1 and isinstance(group[0].get("completion"), list):
            yield _Table(group[0])
            continue
        names = list(dict.fromkeys(name for row in group for name in row))
        yield _Table({name: [row.get(name) for row in group] for name in names})


class _Table:
    """Columns of equal length. A column of another length is as good as absent."""

    def __init__(self, row: Row):
        columns: dict[str, list[Any]] = {k: v for k, v in row.items() if isinstance(v, list)}
        prompts, completions = (columns.get(name, []) for name in TEXTS)
        size = len(prompts) if len(prompts) == len(completions) else 0
        self._columns = {name: values for name, values in columns.items() if len(values) == size}
        steps = next((self._columns[name] for name in STEPS if name in self._columns), [])
        self.step = whole(steps[0]) if steps else None
        self.keys = [(text(p), text(c)) for p, c in zip(prompts, completions, strict=False)]

    def groups(self, size: int | None, first: int) -> tuple[SourceGroup, ...]:
        """The groups of the rows from `first` on. size: of a group, None: equal neighbours."""
        prompts = [prompt for prompt, _ in self.keys[first:]]
        answers = self._columns.get("solution", [None] * len(self.keys))
        return tuple(
            group_of(
                asked(self._columns["prompt"][first + rows[0]]),
                [self._rollout(first + i) for i in rows],
                answers[first + rows[0]],
            )
            for rows in runs_of(prompts, size)
        )

    def _rollout(self, i: int) -> SourceRollout:
        answer = completed(self._columns["completion"][i])
        row = {name: values[i] for name, values in self._columns.items()}
        given = scores({name: row[name] for name in _reward_columns(list(row))})
        return SourceRollout(
            text=answer.text,
            turns=answer.turns,
            reward=number(row.get("reward")),
            scores={k: v for k, v in given.items() if k != "reward"},
            advantage=number(row.get("advantages")),
        )


def _reward_columns(names: Sequence[str]) -> list[str]:
    """Those before the advantages, which follow the rewards."""
    end = names.index("advantages") if "advantages" in names else len(names)
    return [name for name in names[:end] if name not in (*STEPS, *TEXTS)]
