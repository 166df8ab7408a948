"""How long does the store take? Prints one line a question; nothing here is a test.

    python benchmarks/store.py [--runs 200] [--steps 1000] [--keep FILE]

Fills a file with runs of numbers, and one run with 8 groups of 8 completions of 1.3 KB in each of 1000 steps.
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

WORDS = [
    "the",
    "sum",
    "of",
    "numbers",
    "is",
    "so",
    "we",
    "add",
    "carry",
    "first",
    "second",
    "digit",
    "therefore",
    "answer",
    "think",
    "step",
    "check",
    "again",
    "result",
    "equals",
    "twelve",
]
EXTRA = {f"score/criterion_{i}": 0.5 for i in range(10)}


def completion(rng: random.Random) -> str:
    words = (
        rng.choice(WORDS) if rng.random() < 0.7 else str(rng.randint(0, 9999)) for _ in range(230)
    )
    return f"<think>{' '.join(words)}</think><answer>{rng.randint(0, 999)}</answer>"


def groups(rng: random.Random) -> tuple[Group, ...]:
    return tuple(
        Group(
            Prompt(f"p{i}", f"What is {rng.randint(0, 99)} + {rng.randint(0, 99)}?", "7", "sums"),
            tuple(
                Rollout(
                    Completion(completion(rng), "stop", 230),
                    {"accuracy": 1.0, "format": 0.5},
                    rng.random(),
                    rng.random(),
                )
                for _ in range(8)
            ),
            rng.random(),
            0.3,
            rng.choice(("informative", "tied")),
        )
        for i in range(8)
    )


def numbers(rng: random.Random) -> StepMetrics:
    return StepMetrics(
        **{name: rng.random() if name != "tokens" else 14_720 for name in STEP_METRICS}
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
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
    print(
        f"{'filling ' + str(num_runs - 1) + ' runs of numbers':<44}{time.perf_counter() - started:9.1f} s   {store.file_bytes() / 1e6:.0f} MB"
    )

    run_id = store.create_run(RunConfig(), "with completions")
    seconds: dict[str, list[float]] = {
        "GroupsScored, 64 completions of 1.3 KB": [],
        "StepCompleted, 30 + 10 numbers": [],
        "PhaseStarted": [],
    }
    before = store.file_bytes()
    with Recorder(store, run_id) as recorder:
        for step in range(1, num_steps + 1):
            events = (
                PhaseStarted(Phase.EVALUATING, step, num_steps),
                GroupsScored(step, groups(rng)),
                StepCompleted(step, numbers(rng), EXTRA),
            )
            for name, event in zip(("PhaseStarted", *list(seconds)[:2]), events, strict=True):
                seconds[name].append(timed(recorder, event))
    for name, values in seconds.items():
        report("write: " + name, values)
    print(
        f"{'a run with completions takes':<44}{(store.file_bytes() - before) / 1e6:9.1f} MB  {num_steps} steps"
    )
    store.set_status(run_id, RunStatus.FINISHED)

    group_id = store.group_ids(run_id, num_steps // 2)[0]
    questions: dict[str, Callable[[], Any]] = {
        "open (a second time)": lambda: Store(path),
        "cursor": lambda: store.cursor(run_id),
        "runs_token": store.runs_token,
        "runs": store.runs,
        "run": lambda: store.run(run_id),
        "steps": lambda: store.steps(run_id),
        "steps, max_points=200": lambda: store.steps(run_id, 200),
        "metrics, all": lambda: store.metrics(run_id),
        "group_ids": lambda: store.group_ids(run_id, num_steps // 2),
        "group": lambda: store.group(group_id),
        "verdict_counts": lambda: store.verdict_counts(run_id),
        "groups": lambda: store.groups(run_id),
        "groups, verdict": lambda: store.groups(run_id, verdict="tied"),
        "groups, by reward": lambda: store.groups(run_id, sort="reward_mean"),
        "groups, last page": lambda: store.groups(run_id, offset=8 * num_steps - 50),
        "groups, search (builds the index if > 50,000)": lambda: store.groups(
            run_id, search="sum of 123"
        ),
        "groups, search again": lambda: store.groups(run_id, search="so we add"),
        "groups, search of two letters": lambda: store.groups(run_id, search="zq"),
        "file_bytes": store.file_bytes,
    }
    for name, ask in questions.items():
        report(name, [timed(ask) for _ in range(20)])
    report("export metrics, CSV", [timed(export_metrics_csv, store, run_id, io.StringIO())])
    report(
        "export rollouts, JSON Lines", [timed(export_rollouts_jsonl, store, run_id, io.StringIO())]
    )
    report(
        "export rollouts, Parquet",
        [timed(export_rollouts_parquet, store, run_id, f"{path}.parquet")],
    )
    size = store.file_bytes()
    report("delete a run of numbers", [timed(store.delete, store.runs()[-1].id)])
    report("delete the run with completions", [timed(store.delete, run_id)])
    print(f"{'which freed':<44}{(size - store.file_bytes()) / 1e6:9.1f} MB")


def fill(store: Store, num_steps: int, rng: random.Random) -> None:
    run_id = store.create_run(RunConfig(), "numbers only", status=RunStatus.FINISHED)
    with (
        store.writing() as writer,
        writer.transaction(),
        Recorder(store, run_id) as recorder,
    ):  # one commit: this is not what is measured
        recorder(Evaluated(0, {"heldout/accuracy": 0.1}))
        for step in range(1, num_steps + 1):
            recorder(StepCompleted(step, numbers(rng), EXTRA))
        recorder(Evaluated(num_steps, {"heldout/accuracy": 0.9}))


def timed(call: Callable[..., Any], *args: Any) -> float:
    started = time.perf_counter()
    call(*args)
    return time.perf_counter() - started


def report(name: str, seconds: list[float]) -> None:
    print(f"{name:<44}{statistics.median(seconds) * 1e3:9.2f} ms  worst {max(seconds) * 1e3:.1f}")


if __name__ == "__main__":
    main()
