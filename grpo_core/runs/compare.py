"""Train presets on the same prompts and seeds, and compare their results and costs.

Each run has its own process, so that peak memory is measured per run. Runs do not overlap: the
seconds of one would count the other, and a store has one writer. This module must not import
torch: on Linux the peak memory of a child process starts from the size of its parent.
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
    """Result and cost of one run, from its stored rows.

    `seconds` is the sum over its steps; loading and evaluation are not included. The last
    evaluation comes after the last step, so `evaluation_seconds` does not include it.
    """

    run_id: str
    preset: str
    seed: int
    status: RunStatus
    reward_last: float | None  # of the last step
    heldout_before: float | None
    heldout_after: float | None
    tokens: int
    seconds: float
    peak_memory_mib: float | None
    evaluation_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class MeanAndError:
    """Mean over n seeds and its standard error, sd/√n. The error needs two values, else None."""

    mean: float | None
    error: float | None


FIGURES = (
    "reward_last",
    "heldout_before",
    "heldout_after",
    "tokens",
    "seconds",
    "evaluation_seconds",
    "peak_memory_mib",
)


def find_preset(name: str) -> str:
    """The preset that equals `name`, or else the only one that starts with it.

    Compares lower-case letters and digits: `ppo`, `dr.grpo` and `trust` are enough. Raises
    InvalidConfig.
    """
    short_names = {preset: _letters_and_digits(preset) for preset in PRESETS}
    wanted = _letters_and_digits(name)
    matches = [preset for preset, short in short_names.items() if short == wanted]
    if not matches and wanted:
        matches = [preset for preset, short in short_names.items() if short.startswith(wanted)]
    if len(matches) != 1:
        problem = f"it could be {' or '.join(matches)}" if matches else "there is no such preset"
        hint = f"Known: {', '.join(PRESETS)}."
        raise InvalidConfig([FieldProblem("preset", name, problem, hint)])
    return matches[0]


def _letters_and_digits(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def find_presets(names: Sequence[str]) -> list[str]:
    """Two or more different presets, in the order given. Raises InvalidConfig."""
    presets = [find_preset(name) for name in names]
    if len(set(presets)) < max(2, len(presets)):
        problem = "a comparison needs two or more different presets"
        hint = "For example: compare grpo ppo."
        raise InvalidConfig([FieldProblem("preset", " ".join(names), problem, hint)])
    return presets


def run_name(task: str, preset: str, seed: int) -> str:
    """The name of a run of a comparison, by which comparisons.py finds it again."""
    return f"compare {task}: {preset}, seed {seed}"


class Refused(Exception):
    """A run was refused; its process printed the reasons, `lines`, on standard error."""

    def __init__(self, lines: list[str]):
        self.lines = lines
        super().__init__("; ".join(lines))


class Comparison:
    """Trains the runs of a comparison, one after another."""

    def __init__(
        self,
        db: str,
        configs: Mapping[str, RunConfig],
        assignments: Sequence[str],
        environments: Sequence[str] = (),
    ):
        """environments: the files that `--environments` names, for every run."""
        self._db = db
        self._environments = environments
        self._configs = configs
        self._assignments = assignments
        self._child: subprocess.Popen[str] | None = None
        self._stopped = threading.Event()

    def run(self, seeds: Sequence[int], announce: Callable[[str], None]) -> list[str]:
        """Train all runs; returns their ids in order, fewer after `stop`.

        announce: receives a line before each run. Raises Refused, or StudioError if a process dies.
        """
        ids: list[str] = []
        total = len(seeds) * len(self._configs)
        # All presets of one seed come before the next seed. A stop, or a machine that becomes
        # slower, then affects every preset in the same way.
        for seed in seeds:
            for preset, config in self._configs.items():
                if self._stopped.is_set():
                    return ids
                announce(f"{preset}, seed {seed} ({len(ids) + 1} of {total})")
                ids.append(self._train(preset, seed, run_name(config.task.name, preset, seed)))
        return ids

    def stop(self) -> None:
        """End the current run and start no other."""
        self._stopped.set()
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(signal.SIGINT)

    def _train(self, preset: str, seed: int, name: str) -> str:
        """Train one run in its own process; returns its id."""
        command = [sys.executable, "-m", "grpo_core", "train", "--db", self._db, "--json"]
        command += ["--name", name, "--preset", preset]
        for assignment in (*self._assignments, f"train.seed={seed}"):
            command += ["--set", assignment]
        for file in self._environments:
            command += ["--environments", file]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as self._child:
            if self._stopped.is_set():  # `stop` was called before the process existed
                self.stop()
            lines = self._child.communicate()[0].strip().splitlines()
        result = json.loads(lines[-1]) if lines else {}
        if "error" in result:
            raise Refused(result["error"])
        if "run_id" not in result:
            raise StudioError(
                f"{name}: its process died with exit code {self._child.returncode}. "
                "If memory was short, lower train.micro_batch_tokens."
            )
        return result["run_id"]


def measure(store: Store, run_id: str) -> Measured:
    """Read result and cost of a run. Raises NotFound."""
    row = store.run(run_id)
    numbers = store.iter_numbers(run_id, ())
    steps = [dict(zip(STEP_METRICS, values, strict=True)) for _, values in numbers]
    peaks = [s["peak_memory_mib"] for s in steps if s["peak_memory_mib"] is not None]
    return Measured(
        run_id,
        row.config["algorithm"]["preset"],
        row.config["train"]["seed"],
        row.status,
        row.reward_last,
        row.heldout_before,
        row.heldout_after,
        sum(int(s["tokens"] or 0) for s in steps),
        sum(s["step_seconds"] or 0.0 for s in steps),
        max(peaks, default=None),
        sum(s["evaluation_seconds"] or 0.0 for s in steps),
    )


def mean_and_error(values: Sequence[float | None]) -> MeanAndError:
    """Mean and standard error of the values that are not None."""
    known = [v for v in values if v is not None]
    return MeanAndError(
        statistics.fmean(known) if known else None,
        statistics.stdev(known) / len(known) ** 0.5 if len(known) > 1 else None,
    )


def summarise(runs: Sequence[Measured]) -> dict[str, dict[str, Any]]:
    """Per preset: number of runs, each figure over the finished ones, and held-out gain.

    The gain is held-out accuracy minus that of the first preset, per seed and then averaged. Runs
    of one seed share their prompts, so a seed's difficulty cancels out.
    """
    presets = list(dict.fromkeys(r.preset for r in runs))
    finished: dict[str, dict[int, Measured]] = {preset: {} for preset in presets}
    for run in runs:
        if run.status is RunStatus.FINISHED:
            finished[run.preset][run.seed] = run
    lines = {}
    for preset in presets:
        mine, first = finished[preset], finished[presets[0]]
        gains = []
        for seed in mine.keys() & first.keys():
            after, first_after = mine[seed].heldout_after, first[seed].heldout_after
            if after is not None and first_after is not None:
                gains.append(after - first_after)
        figures = {
            name: asdict(mean_and_error([getattr(run, name) for run in mine.values()]))
            for name in FIGURES
        }
        lines[preset] = {
            "runs": sum(run.preset == preset for run in runs),
            "finished": len(mine),
            **figures,
            "heldout_gain_over_first": (
                None if preset == presets[0] else asdict(mean_and_error(gains))
            ),
        }
    return lines


def table(summary: Mapping[str, Mapping[str, Any]]) -> str:
    """The summary as text: means over seeds ± standard error."""
    head = (
        "preset",
        "runs",
        "reward last",
        "held-out before → after",
        "tokens",
        "seconds",
        "peak MiB",
    )
    rows: list[tuple[str, ...]] = [head]
    for preset, line in summary.items():
        before, after = _format(line["heldout_before"], 3), _format(line["heldout_after"], 3)
        row = (
            preset,
            f"{line['finished']}/{line['runs']}",
            _format(line["reward_last"], 3),
            f"{before} → {after}",
            _format(line["tokens"], 0),
            _format(line["seconds"], 1),
            _format(line["peak_memory_mib"], 0),
        )
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    first = next(iter(summary), None)
    for preset in summary:
        if preset == first:
            continue
        gain = _format(summary[preset]["heldout_gain_over_first"], 3, sign="+")
        lines.append(f"held-out accuracy, {preset} less {first}, seed by seed: {gain}")
    return "\n".join(lines)


def _format(value: Mapping[str, float | None], digits: int, sign: str = "") -> str:
    mean, error = value["mean"], value["error"]
    if mean is None:
        return "-"
    return f"{mean:{sign},.{digits}f}" + ("" if error is None else f" ± {error:,.{digits}f}")
