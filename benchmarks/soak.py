"""Weeks of use in minutes: many runs started and stopped, then one long one. Does anything grow?

python -m benchmarks.soak --cycles 100 --steps 2000
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import sys
import tempfile
import time
from pathlib import Path

import psutil

from grpo_core.config import nest, parse
from grpo_core.runs.manager import RunManager
from grpo_core.runs.subprocess_trainer import apart, warm_up
from grpo_core.store import Store
from grpo_core.store.connection import IDLE_SECONDS
from grpo_core.training.trainer import train
from grpo_core.types import RunStatus

SETTLE_SECONDS = 1.0  # a thread that has done its work may not have ended yet


def now(what: str) -> dict[str, float]:
    """Threads, open files, connections to the store's file of this process; resident MiB of it and of a run's process; printed as a line of the table."""
    time.sleep(SETTLE_SECONDS)
    gc.collect()
    this = psutil.Process()
    resident = sum(p.memory_info().rss for p in (this, *this.children(recursive=True))) / 2**20
    seen = {
        "threads": len(os.listdir("/proc/self/task")),
        "files": len(os.listdir("/proc/self/fd")),
        "connections": num_connections(),
        "MiB": resident,
    }
    print(
        f"| {what} | {seen['threads']} | {seen['files']} | {seen['connections']} | {resident:.0f} |",
        flush=True,
    )
    return seen


def rest(store: Store) -> None:
    """Long enough for reading connections that were needed at once to be given up by whoever reads next."""
    time.sleep(IDLE_SECONDS + 1)
    for _ in range(3):
        store.runs()


def num_connections() -> int:
    """How often a database is open: each connection of SQLite opens the file once."""
    count = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # closed meanwhile
            count += os.readlink(f"/proc/self/fd/{name}").endswith(".sqlite")
    return count


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cycles", type=int, default=100, help="runs started and stopped (default 100)"
    )
    parser.add_argument(
        "--steps", type=int, default=2000, help="steps of the long run (default 2000)"
    )
    parser.add_argument(
        "--warm-up",
        type=int,
        default=100,
        help="steps after which memory is first looked at (default 100)",
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        manager = RunManager(Store(Path(folder) / "runs.sqlite"), apart(train))  # as app.py does
        warm_up(train)
        store = manager.store
        config = parse(
            nest(
                {
                    "train.steps": options.steps,
                    "train.eval_every": 500,
                    "train.checkpoint_every": 100,
                }
            )
        )
        print("| when | threads | open files | connections | resident MiB |\n|---|---|---|---|---|")

        def cycle() -> None:
            run_id = manager.start(config)
            while store.run(run_id).steps_done < 1:
                time.sleep(0.02)
            manager.stop(run_id)
            while store.run(run_id).status.is_live:
                time.sleep(0.02)
            assert store.run(run_id).status is RunStatus.STOPPED, store.run(run_id).error
            store.delete(run_id)

        for _ in range(5):
            cycle()
        rest(store)
        first = now("after 5 runs")
        for _ in range(options.cycles - 5):
            cycle()
        rest(store)
        last = now(f"after {options.cycles} runs")
        run_id = manager.start(config)
        warm = late = None
        while (run := store.run(run_id)).status.is_live:
            if warm is None and run.steps_done >= options.warm_up:
                warm = now(f"step {run.steps_done} of the long run")
            if (
                late is None and run.steps_done >= options.steps - 10
            ):  # while its process is still there
                late = now(f"step {run.steps_done} of the long run")
            time.sleep(0.2)
        rest(store)
        end = now(f"step {run.steps_done}, {run.status}")
        back = {
            name: end[name] <= first[name] and last[name] <= first[name]
            for name in ("threads", "files", "connections")
        }
        manager.close()
        grown = {
            "runs": last["MiB"] / first["MiB"] - 1,
            "steps": (late or end)["MiB"] / (warm or end)["MiB"] - 1,
        }
        print(
            f"memory grew by {grown['runs']:.1%} over the runs and by {grown['steps']:.1%} over the steps; "
            + ", ".join(
                f"{name} {'are back' if yes else 'are NOT back'}" for name, yes in back.items()
            )
        )
        return int(
            run.status is not RunStatus.FINISHED
            or max(grown.values()) > 0.05
            or not all(back.values())
        )


if __name__ == "__main__":
    sys.exit(main())
