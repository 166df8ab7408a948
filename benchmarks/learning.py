"""What does a default run learn? Trains it by the command line, seed after seed, and prints what the store says.

    python benchmarks/learning.py [--tasks sums] [--seeds 0 1 2] [--set section.field=value …]

The last two lines compare the first seed's run with a second one of the same seed, number by number.
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

sys.path.insert(0, str(Path(__file__).parent.parent))

from grpo_core.store import Store

ROOT = Path(__file__).parent.parent

EXACT = ("loss", "kl", "reward_mean", "entropy", "grad_norm", "completion_tokens_mean")


def train(db: Path, task: str, seed: int, settings: list[str]) -> str:
    sets = [f"task.name={task}", f"train.seed={seed}", *settings]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "grpo_core",
            "train",
            "--db",
            str(db),
            "--json",
            *(p for s in sets for p in ("--set", s)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.strip().splitlines()[-1])["run_id"]


def line(store: Store, run_id: str, task: str, seed: int) -> str:
    run, held = store.run(run_id), store.metrics(run_id)
    (_, before), *_, (_, after) = held["heldout/accuracy"]
    low, high = (held[f"heldout/accuracy_{end}"] for end in ("low", "high"))
    think, length = held["heldout/reasoning"], held["heldout/completion_tokens"]
    return (
        f"| {task} | {seed} | {before:.1%} ({low[0][1]:.1%}–{high[0][1]:.1%}) | {after:.1%} ({low[-1][1]:.1%}–{high[-1][1]:.1%}) | "
        f"{(after - before) * 100:+.1f} | {think[0][1]:.1%} → {think[-1][1]:.1%} | {length[0][1]:.1f} → {length[-1][1]:.1f} | "
        f"{sum(s['step_seconds'] for s in store.steps(run_id)):.0f} | {run.duration_seconds:.0f} |"
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
    print(
        "| task | seed | held-out before (95 %) | after (95 %) | points | reasons | tokens | training s | run s |\n|---|---|---|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as folder:
        db = Path(folder) / "runs.sqlite"
        first = None
        for task in options.tasks:
            for seed in options.seeds:
                run_id = train(db, task, seed, options.set)
                first = first or (run_id, task, seed)
                print(line(Store(db), run_id, task, seed), flush=True)
        again = train(db, *first[1:], options.set)
        a, b = (
            [[s[k] for k in EXACT] for s in Store(db).steps(run_id)] for run_id in (first[0], again)
        )
        print(
            f"\nthe first run again: {sum(x == y for x, y in zip(a, b, strict=True))} of {len(a)} steps equal in {', '.join(EXACT)}"
        )
        subprocess.run(
            [sys.executable, "benchmarks/rows.py", "--db", str(db)], cwd=ROOT, check=True
        )


if __name__ == "__main__":
    main()
