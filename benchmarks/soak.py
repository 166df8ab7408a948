"""Many runs started and stopped, then one long run: does anything grow?

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
from dataclasses import dataclass
from pathlib import Path

import psutil

from grpo_core.config import RunConfig, nest, parse
from grpo_core.runs.manager import RunManager
from grpo_core.runs.subprocess_trainer import in_subprocess, warm_up
from grpo_core.store import Store
from grpo_core.store.connection import IDLE_SECONDS
from grpo_core.training.trainer import train
from grpo_core.types import RunStatus

SETTLE_SECONDS = 1.0  # a thread that has done its work may not have ended yet
FIRST_CYCLES = 5
MAX_GROWTH = 0.05


@dataclass(frozen=True, slots=True)
class Usage:
    """Of this process: threads, open files, connections to the store's file.

    MiB: resident memory of this process and its children. Pages that they share count twice.
    """

    threads: int
    files: int
    connections: int
    mib: float


def usage(when: str) -> Usage:
    """The present usage, printed as a line of the table."""
    time.sleep(SETTLE_SECONDS)
    gc.collect()
    this = psutil.Process()
    mib = sum(p.memory_info().rss for p in (this, *this.children(recursive=True))) / 2**20
    threads, files = (len(os.listdir(f"/proc/self/{name}")) for name in ("task", "fd"))
    now = Usage(threads, files, num_connections(), mib)
    print(f"| {when} | {threads} | {files} | {now.connections} | {mib:.0f} |", flush=True)
    return now


def rest(store: Store) -> None:
    """Wait until reading connections count as idle, then read, which closes them."""
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


def start_and_stop(manager: RunManager, config: RunConfig) -> None:
    """Start a run, stop it after its first step, and delete it."""
    store = manager.store
    run_id = manager.start(config)
    while store.run(run_id).steps_done < 1:
        time.sleep(0.02)
    manager.stop(run_id)
    while store.run(run_id).status.is_live:
        time.sleep(0.02)
    assert store.run(run_id).status is RunStatus.STOPPED, store.run(run_id).error
    store.delete(run_id)


def long_run(manager: RunManager, config: RunConfig, warm_up_steps: int) -> list[Usage]:
    """Train a whole run. Returns the usage after the warm-up, near the end, and after it."""
    store, usages = manager.store, []
    # Near the end, not at it: the run's process must still be there.
    steps = [warm_up_steps, config.train.steps - 10]
    run_id = manager.start(config)
    while (run := store.run(run_id)).status.is_live:
        if steps and run.steps_done >= steps[0]:
            steps.pop(0)
            usages.append(usage(f"step {run.steps_done} of the long run"))
        time.sleep(0.2)
    rest(store)
    usages.append(usage(f"step {run.steps_done}, {run.status}"))
    assert run.status is RunStatus.FINISHED, run.error
    return usages


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default, meaning in (
        ("--cycles", 100, "runs started and stopped"),
        ("--steps", 2000, "steps of the long run"),
        ("--warm-up", 100, "steps of the long run before memory is first measured"),
    ):
        parser.add_argument(name, type=int, default=default, help=f"{meaning} (default {default})")
    options = parser.parse_args()
    settings = {
        "train.steps": options.steps,
        "train.eval_every": 500,
        "train.checkpoint_every": 100,
    }
    config = parse(nest(settings))
    with tempfile.TemporaryDirectory() as folder:
        manager = RunManager(Store(Path(folder) / "runs.sqlite"), in_subprocess(train))
        warm_up()
        print("| when | threads | open files | connections | resident MiB |\n|---|---|---|---|---|")
        for _ in range(FIRST_CYCLES):
            start_and_stop(manager, config)
        rest(manager.store)
        first = usage(f"after {FIRST_CYCLES} runs")
        for _ in range(options.cycles - FIRST_CYCLES):
            start_and_stop(manager, config)
        rest(manager.store)
        last = usage(f"after {options.cycles} runs")
        long = long_run(manager, config, options.warm_up)
        manager.close()
    return int(not report(first, last, long))


def report(first: Usage, last: Usage, long: list[Usage]) -> bool:
    """Print what grew; whether memory stayed within its goal and everything else is back."""
    over_runs = last.mib / first.mib - 1
    over_steps = long[1].mib / long[0].mib - 1 if len(long) > 1 else 0.0
    back = {
        name: max(getattr(long[-1], name), getattr(last, name)) <= getattr(first, name)
        for name in ("threads", "files", "connections")
    }
    print(
        f"memory grew by {over_runs:.1%} over the runs and by {over_steps:.1%} over the steps; "
        + ", ".join(f"{name} {'are back' if b else 'are NOT back'}" for name, b in back.items())
    )
    return max(over_runs, over_steps) <= MAX_GROWTH and all(back.values())


if __name__ == "__main__":
    sys.exit(main())
