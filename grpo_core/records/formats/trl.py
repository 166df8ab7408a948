"""TRL from 0.28 on: `completions/completions_00005.parquet`, which `log_completions` writes.

A row is a completion: step, prompt, completion, a column for each reward function, extra columns,
advantage; num_generations rows in a row are a group. A file has the last generation batch only. A
batch that several updates use is in several files; here it is in the first of them. An evaluation
overwrites the file of its step, which only `trainer_state.json` tells.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from grpo_core.errors import InvalidConfig
from grpo_core.records.formats.chats import asked, completed
from grpo_core.records.formats.rows import (
    MAX_GROUP,
    Row,
    Teller,
    found,
    group_of,
    number,
    runs_of,
    settings_at,
    text,
    whole,
)
from grpo_core.records.record import SourceGroup, SourceRollout, SourceRun, SourceStep
from grpo_core.records.trl_metrics import named
from grpo_core.tasks.parquet_rows import ParquetReader

FIELDS = {"step", "prompt", "completion", "advantage"}
NOT_REWARDS = {*FIELDS, "images", "image", "__index_level_0__"}
MAX_STATE_BYTES = 256 << 20  # of trainer_state.json: a long run logs a kilobyte a step
EPS = 1e-4  # TRL adds it to the standard deviation
TOLERANCE = 2e-3  # float32, and another eps in old versions


def files(path: Path) -> list[Path]:
    """The completions, and the logs of metrics."""
    return [*_tables(path), *_states(_folder(path.resolve()))]


def _folder(place: Path) -> Path:
    """The output folder of the run."""
    folder = place.parent if place.is_file() else place
    return folder.parent if folder.name == "completions" else folder


def _tables(path: Path) -> list[Path]:
    return [
        f
        for f in found(path, "completions_*.parquet", "completions/completions_*.parquet")
        if f.suffix == ".parquet"
    ]


def finds(path: Path) -> bool:
    with ParquetReader() as reader:
        for file in _tables(path)[:3]:
            try:
                return next(reader.rows(str(file)), {}).keys() >= FIELDS
            except InvalidConfig:
                continue
    return False


def read(path: Path) -> Iterator[SourceRun | SourceStep]:
    """The run and its steps. Raises StudioError."""
    place = path.resolve()
    folder, tables = _folder(place), _tables(path)
    state = settings_at(*_states(folder), most=MAX_STATE_BYTES)
    history = _history(state)
    settings = {"max_steps": state["max_steps"]} if "max_steps" in state else {}
    weights = reward_weights(history.values())
    if weights:
        settings["reward_weights"] = weights
    yield SourceRun(
        trainer="TRL",
        format="trl",
        key=f"trl:{place if place.is_file() else folder}",
        name=folder.name,
        settings=settings,
        num_steps=whole(state.get("max_steps")) or None,
    )
    reader = _Files(history, weights)
    told: set[int] = set()
    for step, groups in reader.steps(tables):
        told.add(step)
        yield SourceStep(step=step, groups=groups, metrics=named(history.get(step, {})))
    for step in sorted(history.keys() - told):
        if metrics := named(history[step]):
            yield SourceStep(step=step, metrics=metrics)


# ---- trainer_state.json --------------------------------------------------------------------------


def _states(folder: Path) -> list[Path]:
    """Every trainer_state.json, the newest first: of the run's end, then of its checkpoints."""
    saved = found(folder, "checkpoint-*/trainer_state.json")
    return [*found(folder, "trainer_state.json"), *reversed(saved)]


def _history(state: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """The metrics by step. The line at the end of training is left out."""
    lines = state.get("log_history")
    history: dict[int, dict[str, Any]] = {}
    for line in lines if isinstance(lines, list) else []:
        step = whole(line.get("step")) if isinstance(line, dict) else None
        if step is not None and "train_runtime" not in line:
            history.setdefault(step, {}).update(line)
    return history


def reward_weights(lines: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """The weights of the reward functions, which the files lack; {} if the log does not tell.

    Each line has the mean reward and the mean of each function: reward = Σ weight · mean.
    """
    kept = [line for line in lines if number(line.get("reward")) is not None]
    names = sorted(
        {n for line in kept for n in line if n.startswith("rewards/") and n.endswith("/mean")}
    )
    means = [[number(line.get(n)) for n in names] for line in kept]
    if not names or any(None in row for row in means):
        return {}
    wanted = np.array([number(line["reward"]) for line in kept], float)
    found, _, rank, _ = np.linalg.lstsq(np.array(means, float), wanted, rcond=1e-4)
    if rank < len(names) or np.abs(np.array(means, float) @ found - wanted).max() > 1e-4:
        return {}
    return {
        n.removeprefix("rewards/").removesuffix("/mean"): round(float(weight), 3)
        for n, weight in zip(names, found, strict=True)
    }


# ---- files ---------------------------------------------------------------------------------------


class _Files:
    """The groups of the files of a run, each generation batch once."""

    def __init__(self, history: Mapping[int, Mapping[str, Any]], weights: Mapping[str, float]):
        self._history, self._weights = history, weights
        self._size: int | None = None
        self._seen: list[Any] = []  # the rows of the file before

    def steps(self, paths: Sequence[Path]) -> Iterator[tuple[int, tuple[SourceGroup, ...]]]:
        with ParquetReader() as reader:
            for path in paths:
                tell = Teller(path)
                try:
                    rows = list(reader.rows(str(path)))
                except InvalidConfig as error:
                    tell("file", error.problems[0].problem)
                    continue
                step = whole(rows[0].get("step")) if rows else None
                if step is None or not all(row.keys() >= FIELDS for row in rows):
                    tell("fields", "it lacks step, prompt, completion or advantage")
                    continue
                yield step, self._groups(step, rows, tell)

    def _groups(self, step: int, rows: list[Row], tell: Teller) -> tuple[SourceGroup, ...]:
        names = self._reward_names(rows[0])
        keys = [_key(row, names) for row in rows]
        repeated = _repeated(self._seen, keys)
        self._seen = keys
        evaluated = self._num_evaluated(step, rows, names)
        size = self._group_size(rows, names)
        if len(rows) % size:
            tell("size", f"its {len(rows)} rows are no whole groups of {size}")
        groups = []
        for start in range(repeated, len(rows) - size + 1, size):
            siblings = rows[start : start + size]
            is_evaluation = start >= len(rows) - evaluated
            rollouts = [_rollout(row, names, is_evaluation) for row in siblings]
            groups.append(
                group_of(asked(siblings[0]["prompt"]), rollouts, evaluation=is_evaluation)
            )
        return tuple(groups)

    def _reward_names(self, row: Row) -> list[str]:
        """The columns of reward functions. Users' own columns may hold numbers too."""
        logged = {
            name.removeprefix("eval_").removeprefix("rewards/").removesuffix("/mean")
            for line in self._history.values()
            for name in line
            if name.removeprefix("eval_").startswith("rewards/") and name.endswith("/mean")
        }
        names = [name for name in row if name not in NOT_REWARDS]
        known = [name for name in names if name in logged]
        numbers = [n for n in names if row[n] is None or isinstance(row[n], int | float)]
        return known or numbers

    def _num_evaluated(self, step: int, rows: Sequence[Row], names: Sequence[str]) -> int:
        """How many rows at the end come from the evaluation at this step.

        They are as many as give its mean rewards; all of them, if the evaluation was larger.
        """
        line = self._history.get(step, {})
        means = {n: number(line.get(f"eval_rewards/{n}/mean")) for n in names}
        wanted = {n: mean for n, mean in means.items() if mean is not None}
        if not wanted:
            return 0
        for count in range(1, len(rows) + 1):
            if all(_is_mean(rows[-count:], n, mean) for n, mean in wanted.items()):
                return count
        return len(rows)

    def _group_size(self, rows: Sequence[Row], names: Sequence[str]) -> int:
        """num_generations: all rows of a group have one prompt, and its advantages fit together."""
        prompts = [text(row["prompt"]) for row in rows]
        common = math.gcd(*(len(run) for run in runs_of(prompts, len(rows))))
        if self._size is None or common % self._size:
            sizes = [d for d in range(common, 1, -1) if common % d == 0 and d <= MAX_GROUP]
            weights = [self._weights.get(name, 1.0) for name in names]
            fits = (d for d in sizes if _fits(rows, dict(zip(names, weights, strict=True)), d))
            self._size = next(fits, min(common, MAX_GROUP)) if len(sizes) > 1 else common
        return self._size


def _key(row: Row, names: Sequence[str]) -> Any:
    values = (row["prompt"], row["completion"], row["advantage"], *(row.get(n) for n in names))
    return tuple(map(text, values))


def _repeated(before: Sequence[Any], keys: Sequence[Any]) -> int:
    """How many of the first rows are the last ones of the file before."""
    return next(
        (n for n in range(min(len(before), len(keys)), 0, -1) if before[-n:] == keys[:n]), 0
    )


def _is_mean(rows: Sequence[Row], name: str, mean: float) -> bool:
    known = [v for row in rows if (v := number(row.get(name))) is not None]
    return bool(known) and abs(sum(known) / len(known) - mean) <= 1e-6 * (1 + abs(mean))


def _fits(rows: Sequence[Row], weights: Mapping[str, float], size: int) -> bool:
    """Whether groups of this size give the advantages, divided by the standard deviation or not."""
    for start in range(0, len(rows), size):
        group = rows[start : start + size]
        totals = [sum(w * (number(row.get(n)) or 0.0) for n, w in weights.items()) for row in group]
        wanted = [number(row["advantage"]) or 0.0 for row in group]
        centred = [total - statistics.fmean(totals) for total in totals]
        std = statistics.stdev(totals) if len(totals) > 1 else 0.0
        plain = all(abs(a - c) <= TOLERANCE for a, c in zip(wanted, centred, strict=True))
        scaled = all(
            abs(a - c / (std + EPS)) <= TOLERANCE * (1 + abs(a))
            for a, c in zip(wanted, centred, strict=True)
        )
        if not plain and not scaled:
            return False
    return True


def _rollout(row: Row, names: Sequence[str], is_evaluation: bool) -> SourceRollout:
    answer = completed(row["completion"])
    return SourceRollout(
        text=answer.text,
        turns=answer.turns,
        scores={name: number(row.get(name)) for name in names},
        advantage=None if is_evaluation else number(row["advantage"]),
    )
