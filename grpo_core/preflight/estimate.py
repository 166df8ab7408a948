"""How long a run takes and how much memory, from steps of the same size that were measured."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from grpo_core.config import RunConfig, parse
from grpo_core.config.devices import CPU
from grpo_core.errors import StudioError
from grpo_core.runs.device_queue import placed
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
    return same_size(placed(a, CPU), placed(b, CPU))


def from_steps(steps: Iterable[Mapping[str, Any]], source: str) -> Estimate | None:
    """The median time and the largest memory of steps; None if no time was measured."""
    steps = list(steps)
    seconds = [s["step_seconds"] for s in steps if s.get("step_seconds")]
    if not seconds:
        return None
    memory = [s["peak_memory_mib"] for s in steps if s.get("peak_memory_mib")]
    return Estimate(statistics.median(seconds), max(memory, default=None), source)


def from_store(store: Store, config: RunConfig) -> Estimate | None:
    """From the newest run with the same model and sizes, except the example."""
    runs = [run for run in store.runs() if not run.example]  # the example is of another machine
    for run in runs[:NEWEST_RUNS]:
        try:
            if not same_work(parse(run.config), config):
                continue
        except StudioError:  # the configuration is of another version
            continue
        if estimate := from_steps(store.steps(run.id), f"“{run.name}”"):
            return estimate
    return None
