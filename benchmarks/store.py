"""How long do the store's operations take? Prints one line each.

    python benchmarks/store.py [--runs 200] [--steps 1000] [--keep FILE]

Fills a file with runs of numbers, and with one run of 8 groups of 8 completions of 1.3 KB in each
of 1000 steps.
"""

from __future__ import annotations

import argparse
import io
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from grpo_core.config import RunConfig
from grpo_core.store import (
    Recorder,
    Store,
    export_metrics_csv,
    export_rollouts_jsonl,
    export_rollouts_parquet,
)
from grpo_core.types import (
    STEP_METRICS,
    Completion,
    Evaluated,
    Group,
    GroupsScored,
    Phase,
    PhaseStarted,
    Prompt,
    Rollout,
    RunStatus,
    StepCompleted,
    StepMetrics,
)

TEXT = (
    "the sum of numbers is so we add carry first second digit therefore answer think step check "
    "again result equals twelve"
)
WORDS = TEXT.split()
SCORES = {f"score/criterion_{i}": 0.5 for i in range(10)}
TIMES = 20


def completion(rng: random.Random) -> str:
    words = (
        rng.choice(WORDS) if rng.random() < 0.7 else str(rng.randint(0, 9999)) for _ in range(230)
    )
    return f"<think>{' '.join(words)}</think><answer>{rng.randint(0, 999)}</answer>"


def rollout(rng: random.Random) -> Rollout:
    scores = {"accuracy": 1.0, "format": 0.5}
    return Rollout(Completion(completion(rng), "stop", 230), scores, rng.random(), rng.random())


def group(rng: random.Random, position: int) -> Group:
    question = f"What is {rng.randint(0, 99)} + {rng.randint(0, 99)}?"
    return Group(
        Prompt(f"p{position}", question, "7", "sums"),
        tuple(rollout(rng) for _ in range(8)),
        rng.random(),
        0.3,
        rng.choice(("informative", "tied")),
    )


def metrics(rng: random.Random) -> StepMetrics:
    values: dict[str, Any] = {name: rng.random() for name in STEP_METRICS}
    counts = {f.name: 8 for f in fields(StepMetrics) if "int" in str(f.type)}
    return StepMetrics(**values | counts | {"tokens": 14_720})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--keep", help="leave the file here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(args.keep or f"{folder}/bench.db", args.runs, args.steps)


def measure(path: str, num_runs: int, num_steps: int) -> None:
    rng = random.Random(0)
    store = Store(path)
    started = time.perf_counter()
    for _ in range(num_runs - 1):
        fill(store, num_steps, rng)
    seconds, megabytes = time.perf_counter() - started, store.file_bytes() / 1e6
    label = f"filling {num_runs - 1} runs of numbers"
    print(f"{label:<44}{seconds:9.1f} s   {megabytes:.0f} MB")

    run_id = measure_writing(store, num_steps, rng)
    for name, call in reads(store, run_id, num_steps).items():
        report(name, [timed(call) for _ in range(TIMES)])
    measure_exports(store, run_id, path)

    size = store.file_bytes()
    report("delete a run of numbers", [timed(store.delete, store.runs()[-1].id)])
    report("delete the run with completions", [timed(store.delete, run_id)])
    print(f"{'which freed':<44}{(size - store.file_bytes()) / 1e6:9.1f} MB")


def fill(store: Store, num_steps: int, rng: random.Random) -> None:
    run_id = store.create_run(RunConfig(), "numbers only", status=RunStatus.FINISHED)
    # One commit for all steps, because writing is not measured here.
    with store.writing() as writer, writer.transaction(), Recorder(store, run_id) as recorder:
        recorder(Evaluated(0, {"heldout/accuracy": 0.1}))
        for step in range(1, num_steps + 1):
            recorder(StepCompleted(step, metrics(rng), SCORES))
        recorder(Evaluated(num_steps, {"heldout/accuracy": 0.9}))


def measure_writing(store: Store, num_steps: int, rng: random.Random) -> str:
    """Record a run with completions and print the time of each kind of event; the run's id."""
    run_id = store.create_run(RunConfig(), "with completions")
    scored, completed, phase = (
        "GroupsScored, 64 completions of 1.3 KB",
        "StepCompleted, 30 + 10 numbers",
        "PhaseStarted",
    )
    seconds: dict[str, list[float]] = {scored: [], completed: [], phase: []}
    before = store.file_bytes()
    with Recorder(store, run_id) as recorder:
        for step in range(1, num_steps + 1):
            events = {
                phase: PhaseStarted(Phase.EVALUATING, step, num_steps),
                scored: GroupsScored(step, tuple(group(rng, i) for i in range(8))),
                completed: StepCompleted(step, metrics(rng), SCORES),
            }
            for name, event in events.items():
                seconds[name].append(timed(recorder, event))
    for name, values in seconds.items():
        report(f"write: {name}", values)
    megabytes = (store.file_bytes() - before) / 1e6
    print(f"{'a run with completions takes':<44}{megabytes:9.1f} MB  {num_steps} steps")
    store.set_status(run_id, RunStatus.FINISHED)
    return run_id


def reads(store: Store, run_id: str, num_steps: int) -> dict[str, Callable[[], Any]]:
    middle = num_steps // 2
    group_id = store.group_ids(run_id, middle)[0]

    def search(text: str) -> Callable[[], Any]:
        return lambda: store.groups(run_id, search=text)

    return {
        "open (a second time)": lambda: Store(store.path),
        "cursor": lambda: store.cursor(run_id),
        "runs_token": store.runs_token,
        "runs": store.runs,
        "run": lambda: store.run(run_id),
        "steps": lambda: store.steps(run_id),
        "steps, max_points=200": lambda: store.steps(run_id, 200),
        "metrics, all": lambda: store.metrics(run_id),
        "group_ids": lambda: store.group_ids(run_id, middle),
        "group": lambda: store.group(group_id),
        "verdict_counts": lambda: store.verdict_counts(run_id),
        "groups": lambda: store.groups(run_id),
        "groups, verdict": lambda: store.groups(run_id, verdict="tied"),
        "groups, by reward": lambda: store.groups(run_id, sort="reward_mean"),
        "groups, last page": lambda: store.groups(run_id, offset=8 * num_steps - 50),
        "groups, search (builds the index if > 50,000)": search("sum of 123"),
        "groups, search again": search("so we add"),
        "groups, search of two letters": search("zq"),
        "file_bytes": store.file_bytes,
    }


def measure_exports(store: Store, run_id: str, path: str) -> None:
    parquet = f"{path}.parquet"
    exports = {
        "export metrics, CSV": lambda: export_metrics_csv(store, run_id, io.StringIO()),
        "export rollouts, JSON Lines": lambda: export_rollouts_jsonl(store, run_id, io.StringIO()),
        "export rollouts, Parquet": lambda: export_rollouts_parquet(store, run_id, parquet),
    }
    for name, call in exports.items():
        report(name, [timed(call)])


def timed(call: Callable[..., Any], *args: Any) -> float:
    started = time.perf_counter()
    call(*args)
    return time.perf_counter() - started


def report(name: str, seconds: list[float]) -> None:
    print(f"{name:<44}{statistics.median(seconds) * 1e3:9.2f} ms  worst {max(seconds) * 1e3:.1f}")


if __name__ == "__main__":
    main()
