"""How long a run takes and how much memory, from steps of the same size that were measured."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grpo_core.config import RunConfig, parse
from grpo_core.errors import StudioError
from grpo_core.runs.zerogpu import same_size
from grpo_core.store import Store

NEWEST_RUNS = 50


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one step of a run takes. source: where that was measured, for a sentence."""

    step_seconds: float
    memory_mib: float | None
    source: str


def same_work(a: RunConfig, b: RunConfig) -> bool:
    """Whether the steps of two runs take about the same time and memory, on any device."""

    def anywhere(config: RunConfig) -> RunConfig:
        return config.model_copy(
            update={"model": config.model.model_copy(update={"device": "auto"})}
        )

    return same_size(anywhere(a), anywhere(b))


def from_steps(steps: Iterable[Mapping[str, Any]], source: str) -> Estimate | None:
    """The median time and the largest memory of steps; None if no time was measured."""
    steps = list(steps)
    seconds = [s["step_seconds"] for s in steps if s.get("step_seconds")]
    if not seconds:
        return None
    memory = [s["peak_memory_mib"] for s in steps if s.get("peak_memory_mib")]
    return Estimate(statistics.median(seconds), max(memory, default=None), source)


def from_store(store: Store, config: RunConfig) -> Estimate | None:
    """From the runs of a store. The example was recorded on another machine."""
    runs = [run for run in store.runs() if not run.example]
    return from_runs(runs, store.steps, config)


def from_runs(
    runs: Sequence[Any], steps_of: Callable[[str], Sequence[Mapping[str, Any]]], config: RunConfig
) -> Estimate | None:
    """From the newest run with the same model and sizes. runs: newest first."""
    for run in runs[:NEWEST_RUNS]:
        try:
            if not same_work(parse(run.config), config):
                continue
        except StudioError:  # the configuration is of another version
            continue
        if estimate := from_steps(steps_of(run.id), f"“{run.name}”"):
            return estimate
    return None
