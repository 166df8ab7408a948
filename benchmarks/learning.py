"""What does a default run learn? Trains it by the command line, seed after seed.

    python benchmarks/learning.py [--tasks sums] [--seeds 0 1 2] [--set section.field=value …]

Prints what the store holds. The last two lines compare the first seed's run with a second run of
the same seed, number by number, and the stored rows with a recomputation.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from grpo_core.store import Store

ROOT = Path(__file__).parents[1]
EXACT = ("loss", "kl", "reward_mean", "entropy", "grad_norm", "completion_tokens_mean")
HEAD = (
    "| task | seed | held-out before (95 %) | after (95 %) | points | reasons or calls | tokens "
    "| training s | run s |\n|---|---|---|---|---|---|---|---|---|"
)


def train(db: Path, settings: list[str]) -> str:
    """Train one run; its id."""
    command = [sys.executable, "-m", "grpo_core", "train", "--db", str(db), "--json"]
    for setting in settings:
        command += ["--set", setting]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.strip().splitlines()[-1])["run_id"]


def line(store: Store, run_id: str, task: str, seed: int) -> str:
    run, metrics = store.run(run_id), store.metrics(run_id)

    def ends(name: str) -> tuple[float, float]:
        """A held-out metric before and after training."""
        points = metrics[f"heldout/{name}"]
        before, after = points[0][1], points[-1][1]
        assert before is not None
        assert after is not None
        return before, after

    accuracy, low, high = ends("accuracy"), ends("accuracy_low"), ends("accuracy_high")
    tokens = ends("completion_tokens")
    works = ends("tool_use" if "heldout/tool_use" in metrics else "reasoning")
    intervals = [f"{accuracy[i]:.1%} ({low[i]:.1%}–{high[i]:.1%})" for i in (0, 1)]
    training_seconds = sum(s["step_seconds"] for s in store.steps(run_id))
    return (
        f"| {task} | {seed} | {intervals[0]} | {intervals[1]} | "
        f"{(accuracy[1] - accuracy[0]) * 100:+.1f} | {works[0]:.1%} → {works[1]:.1%} | "
        f"{tokens[0]:.1f} → {tokens[1]:.1f} | {training_seconds:.0f} | "
        f"{run.duration_seconds:.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", default=["sums"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--set", action="append", default=[])
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, Python {platform.python_version()}\n")
    print(HEAD)
    with tempfile.TemporaryDirectory() as folder:
        db = Path(folder) / "runs.sqlite"
        runs: dict[str, list[str]] = {}  # id -> settings
        for task in options.tasks:
            for seed in options.seeds:
                settings = [f"task.name={task}", f"train.seed={seed}", *options.set]
                run_id = train(db, settings)
                runs[run_id] = settings
                print(line(Store(db), run_id, task, seed), flush=True)
        first, settings = next(iter(runs.items()))
        compare(Store(db), first, train(db, settings))
        command = [sys.executable, "benchmarks/rows.py", "--db", str(db)]
        subprocess.run(command, cwd=ROOT, check=True)


def compare(store: Store, first: str, again: str) -> None:
    a, b = ([[step[k] for k in EXACT] for step in store.steps(run)] for run in (first, again))
    num_equal = sum(x == y for x, y in zip(a, b, strict=True))
    print(
        f"\nthe first run again: {num_equal} of {len(a)} steps equal in {', '.join(EXACT)}",
        flush=True,
    )


if __name__ == "__main__":
    main()
