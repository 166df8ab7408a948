"""Presets side by side: the same prompts, seeds and number of completions, measured and stored as ordinary runs.

Each run is a process of its own, so that its peak memory is its own; one at a time, so that its seconds are too, and because a
store has one writer. This module stays light (no torch): on Linux the peak of a child counts from the size of its parent.
"""

from __future__ import annotations

import json
import re
import signal
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from grpo_core.config import PRESETS, RunConfig
from grpo_core.errors import FieldProblem, InvalidConfig, StudioError
from grpo_core.store import Store
from grpo_core.types import STEP_METRICS, RunStatus


@dataclass(frozen=True, slots=True)
class Measured:
    """One run of the comparison, from its stored rows. Seconds are those of its steps: loading and evaluation are left out."""

    run_id: str
    preset: str
    seed: int
    status: RunStatus
    reward_last: float | None  # of the last step, as in the list of runs
    heldout_before: float | None
    heldout_after: float | None
    tokens: int
    seconds: float
    peak_memory_mib: float | None


@dataclass(frozen=True, slots=True)
class RunningStd:
    """Mean over seeds and its standard error, sd/√n; None where nothing, or nothing twice, was measured."""

    mean: float | None
    error: float | None


FIGURES = ("reward_last", "heldout_before", "heldout_after", "tokens", "seconds", "peak_memory_mib")


def find_preset(name: str) -> str:
    """The preset that somebody means by `ppo`, `dr.grpo` or `trust`: equal, else beginning so, letters and digits only."""
    short = {preset: re.sub(r"[^a-z0-9]", "", preset.lower()) for preset in PRESETS}
    wanted = re.sub(r"[^a-z0-9]", "", name.lower())
    found = [p for p, s in short.items() if s == wanted] or [
        p for p, s in short.items() if wanted and s.startswith(wanted)
    ]
    if len(found) != 1:
        problem = f"it could be {' or '.join(found)}" if found else "there is no such preset"
        raise InvalidConfig(
            [FieldProblem("preset", name, problem, f"Known: {', '.join(PRESETS)}.")]
        )
    return found[0]


def find_presets(names: Sequence[str]) -> list[str]:
    """At least two different ones, in the order given."""
    found = [find_preset(name) for name in names]
    if len(set(found)) < max(2, len(found)):
        raise InvalidConfig(
            [
                FieldProblem(
                    "preset",
                    " ".join(names),
                    "a comparison needs two or more different presets",
                    "For example: compare grpo ppo.",
                )
            ]
        )
    return found


class Refused(Exception):
    """A run's own process has said on standard error why it cannot be carried out; `lines` is the same."""

    def __init__(self, lines: list[str]):
        self.lines = lines
        super().__init__("; ".join(lines))


class Comparison:
    """The runs of a comparison, one after another. `stop` ends the one that is going and begins no other."""

    def __init__(self, db: str, configs: Mapping[str, RunConfig], assignments: Sequence[str]):
        self._db, self._configs, self._assignments = db, configs, assignments
        self._child: subprocess.Popen[str] | None = None
        self._stopped = threading.Event()

    def run(self, seeds: Sequence[int], tell: Callable[[str], None]) -> list[str]:
        """Ids of the runs, in the order in which they ran; fewer after `stop`. Raises Refused, or StudioError if a process dies."""
        ids = []
        # Seed by seed, so that a machine that gets slower, or a person who stops, meets every preset alike.
        for seed in seeds:
            for preset, config in self._configs.items():
                if self._stopped.is_set():
                    return ids
                tell(f"{preset}, seed {seed} ({len(ids) + 1} of {len(seeds) * len(self._configs)})")
                ids.append(
                    self._train(preset, seed, f"compare {config.task.name}: {preset}, seed {seed}")
                )
        return ids

    def stop(self) -> None:
        self._stopped.set()
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(signal.SIGINT)

    def _train(self, preset: str, seed: int, name: str) -> str:
        """One run in a process of its own; returns its id."""
        command = [
            sys.executable,
            "-m",
            "grpo_core",
            "train",
            "--db",
            self._db,
            "--json",
            "--name",
            name,
            "--preset",
            preset,
        ]
        for assignment in (*self._assignments, f"train.seed={seed}"):
            command += ["--set", assignment]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as self._child:
            if self._stopped.is_set():  # asked between the check above and the start
                self.stop()
            lines = self._child.communicate()[0].strip().splitlines()
        said = json.loads(lines[-1]) if lines else {}
        if "error" in said:
            raise Refused(said["error"])
        if "run_id" not in said:
            raise StudioError(
                f"{name}: its process died with exit code {self._child.returncode}. If memory was short, lower train.micro_batch_tokens."
            )
        return said["run_id"]


def measure(store: Store, run_id: str) -> Measured:
    """What the stored rows of a run say about result and cost."""
    row = store.run(run_id)
    steps = [
        dict(zip(STEP_METRICS, values, strict=True)) for _, values in store.iter_numbers(run_id, ())
    ]
    peaks = [s["peak_memory_mib"] for s in steps if s["peak_memory_mib"] is not None]
    return Measured(
        run_id,
        row.config["algorithm"]["preset"],
        row.config["train"]["seed"],
        row.status,
        row.reward_last,
        row.heldout_before,
        row.heldout_after,
        sum(s["tokens"] or 0 for s in steps),
        sum(s["step_seconds"] or 0.0 for s in steps),
        max(peaks, default=None),
    )


def spread(values: Sequence[float | None]) -> RunningStd:
    """Mean and standard error of those that were measured."""
    known = [v for v in values if v is not None]
    return RunningStd(
        statistics.fmean(known) if known else None,
        statistics.stdev(known) / len(known) ** 0.5 if len(known) > 1 else None,
    )


def summarise(runs: Sequence[Measured]) -> dict[str, dict[str, Any]]:
    """Per preset: how many of its runs finished, every figure over these, and held-out accuracy less that of the first preset.

    The difference is taken seed by seed: the runs share prompts, so what a lucky seed gives to both falls out.
    """
    presets = list(dict.fromkeys(r.preset for r in runs))
    finished = {
        p: {r.seed: r for r in runs if r.preset == p and r.status is RunStatus.FINISHED}
        for p in presets
    }
    lines = {}
    for preset in presets:
        mine, first = finished[preset], finished[presets[0]]
        pairs = [
            (mine[s].heldout_after, first[s].heldout_after) for s in mine.keys() & first.keys()
        ]
        lines[preset] = {
            "runs": sum(r.preset == preset for r in runs),
            "finished": len(mine),
            **{name: asdict(spread([getattr(r, name) for r in mine.values()])) for name in FIGURES},
            "heldout_gain_over_first": None
            if preset == presets[0]
            else asdict(spread([a - b for a, b in pairs if None not in (a, b)])),
        }
    return lines


def table(summary: Mapping[str, Mapping[str, Any]]) -> str:
    """The summary for people: means over seeds ± standard error."""
    head = (
        "preset",
        "runs",
        "reward last",
        "held-out before → after",
        "tokens",
        "seconds",
        "peak MiB",
    )
    rows = [head]
    for preset, line in summary.items():
        rows.append(
            (
                preset,
                f"{line['finished']}/{line['runs']}",
                _shown(line["reward_last"], 3),
                f"{_shown(line['heldout_before'], 3)} → {_shown(line['heldout_after'], 3)}",
                _shown(line["tokens"], 0),
                _shown(line["seconds"], 1),
                _shown(line["peak_memory_mib"], 0),
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    first = next(iter(summary), None)
    lines += [
        f"held-out accuracy, {preset} less {first}, seed by seed: {_shown(line['heldout_gain_over_first'], 3, sign='+')}"
        for preset, line in summary.items()
        if preset != first
    ]
    return "\n".join(lines)


def _shown(value: Mapping[str, float | None], digits: int, sign: str = "") -> str:
    if value["mean"] is None:
        return "-"
    error = "" if value["error"] is None else f" ± {value['error']:,.{digits}f}"
    return f"{value['mean']:{sign},.{digits}f}{error}"
