"""Comparisons among stored runs: the newest one, what it measured, and the runs of another one.

Must not import torch: the page uses it.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grpo_core.config import RunConfig, nest, parse, with_preset
from grpo_core.runs.compare import run_name
from grpo_core.store import RunRow
from grpo_core.types import RunStatus

METHODS = ("GRPO", "PPO (critic)", "Trust-region GRPO", "RLOO")
STEPS = 60
# Quantiles .975 of Student's t by degrees of freedom, 1 to 10; beyond them the last one is used.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


@dataclass(frozen=True, slots=True)
class Comparison:
    """The runs of a comparison, the newest of each preset and seed; in order of their seeds."""

    runs: tuple[RunRow, ...]

    @property
    def presets(self) -> tuple[str, ...]:
        """GRPO first, then in the order in which they were started."""
        found = dict.fromkeys(preset_of(run) for run in self.runs)
        return tuple(sorted(found, key=lambda preset: preset != METHODS[0]))

    @property
    def live(self) -> list[RunRow]:
        return [run for run in self.runs if run.status.is_live]


@dataclass(frozen=True, slots=True)
class Interval:
    """Mean over n seeds with its 95 % interval by Student's t; one seed has no interval."""

    mean: float
    low: float | None = None
    high: float | None = None
    n: int = 1


def preset_of(run: RunRow) -> str:
    return str(run.config["algorithm"]["preset"])


def plan(num_seeds: int) -> list[tuple[RunConfig, str]]:
    """The runs of a comparison of METHODS and their names: all of one seed, then the next seed."""
    runs = []
    for seed in range(num_seeds):
        for preset in METHODS:
            config = parse(nest(with_preset({"train.steps": STEPS, "train.seed": seed}, preset)))
            runs.append((config, run_name(config.task.name, preset, seed)))
    return runs


def newest(runs: Sequence[RunRow]) -> Comparison | None:
    """The comparison of the newest run that has its name from `compare`; runs: newest first.

    Runs belong together if all settings but the algorithm, the seed and the device are equal.
    """
    found: dict[tuple[str, int], RunRow] = {}
    wanted = ""
    for run in runs:
        seed = run.config["train"]["seed"]
        if run.example or run.name != run_name(run.task, preset_of(run), seed):
            continue
        settings = _settings(run.config)
        wanted = wanted or settings
        place = (preset_of(run), seed)
        # A newer run that was stopped does not hide a finished one.
        if settings == wanted and (
            place not in found
            or (
                found[place].status is not RunStatus.FINISHED
                and not found[place].status.is_live
                and run.status is RunStatus.FINISHED
            )
        ):
            found[place] = run
    rows = sorted(found.values(), key=lambda run: (run.config["train"]["seed"], run.created_at))
    return Comparison(tuple(rows)) if rows else None


def _settings(config: Mapping[str, Any]) -> str:
    model = {k: v for k, v in config["model"].items() if k != "device"}
    train = {k: v for k, v in config["train"].items() if k != "seed"}
    return json.dumps([model, config["task"], config["rubric"], train], sort_keys=True)


def interval(values: Sequence[float | None]) -> Interval | None:
    """mean ± t·sd/√n of the values that are not None; None if there are none."""
    known = [v for v in values if v is not None]
    if not known:
        return None
    mean, n = statistics.fmean(known), len(known)
    if n == 1:
        return Interval(mean)
    half = _T[min(n - 1, len(_T)) - 1] * statistics.stdev(known) / n**0.5
    return Interval(mean, mean - half, mean + half, n)
