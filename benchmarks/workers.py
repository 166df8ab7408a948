"""What do two workers save on two cores, and what does Ray cost one worker?

    python -m benchmarks.workers [--model FOLDER] [--rounds 3] [--steps 8] [--tokens 48] [--ray]

One worker and two in turn, each on a core of its own with one thread: the median seconds of a step,
its parts, and what workers wait for each other. --ray: one worker with and without Ray instead.
The first two steps of each run do not count.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from grpo_core.cluster.address import VARIABLE
from grpo_core.config import RunConfig, nest, parse
from grpo_core.learner.workers import ALONE, Distributed
from grpo_core.runs.subprocess_trainer import train_later
from grpo_core.training.control import RunControl
from grpo_core.training.trainer import train
from grpo_core.types import Event, StepCompleted

T = TypeVar("T")
PARTS = ("step_seconds", "sampling_seconds", "scoring_seconds", "update_seconds")
WARM_UP = 2  # steps


class Timed(Distributed):
    """Counts the seconds in which a worker waits for the others, and those of sums."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = {"gather_seconds": 0.0, "reduce_seconds": 0.0}

    def gather(self, work: Callable[[], T]) -> list[T]:
        own = 0.0

        def timed() -> T:
            nonlocal own
            begun = time.perf_counter()
            try:
                return work()
            finally:
                own = time.perf_counter() - begun

        begun = time.perf_counter()
        try:
            return super().gather(timed)
        finally:
            self.seconds["gather_seconds"] += time.perf_counter() - begun - own

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        begun = time.perf_counter()
        super().sum_(tensors)
        self.seconds["reduce_seconds"] += time.perf_counter() - begun


def worker(rank: int, world: int, folder: str, config: RunConfig) -> None:
    """Train as one of the workers; the first writes the seconds of its steps."""
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[rank]})
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world
        )
    workers = Timed() if world > 1 else ALONE
    steps: list[dict[str, float]] = []

    def emit(event: Event) -> None:
        if isinstance(event, StepCompleted):
            waited = workers.seconds if isinstance(workers, Timed) else {}
            steps.append({n: getattr(event.metrics, n) or 0.0 for n in PARTS} | waited)
            for name in waited:
                waited[name] = 0.0

    train(config, emit, RunControl(), workers)
    if not rank:
        Path(folder, "steps.json").write_text(json.dumps(steps[WARM_UP:]))
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()


def run(world: int, config: RunConfig) -> list[dict[str, float]]:
    """The seconds of the steps of a run by so many processes."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(worker, (world, folder, config), nprocs=world)
        return json.loads(Path(folder, "steps.json").read_text())


def run_by_ray(address: str, config: RunConfig) -> list[dict[str, float]]:
    """The same of one worker: through Ray, or in this process if there is no address."""
    os.environ[VARIABLE] = address
    steps: list[dict[str, float]] = []

    def emit(event: Event) -> None:
        if isinstance(event, StepCompleted):
            steps.append({n: getattr(event.metrics, n) or 0.0 for n in PARTS})

    train_later(config, emit, RunControl())
    return steps[WARM_UP:]


def settings(options: argparse.Namespace) -> RunConfig:
    """Steps without checkpoints; evaluations are outside of a step."""
    model: dict[str, Any] = {"model.name": options.model} if options.model else {}
    return parse(
        nest(
            {
                **model,
                "model.device": "cpu",
                "task.heldout_size": 2,
                "train.steps": options.steps + WARM_UP,
                "train.max_new_tokens": options.tokens,
                "train.prompts_per_step": options.prompts,
                "train.group_size": options.group,
                "train.checkpoint_every": 0,
                "train.eval_every": 0,
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="a model folder (default: the bundled model)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--ray", action="store_true", help="one worker with and without Ray")
    options = parser.parse_args()
    config = settings(options)
    kinds: dict[str, Callable[[], list[dict[str, float]]]] = {
        "one": lambda: run(1, config),
        "two": lambda: run(2, config),
    }
    if options.ray:
        kinds = {
            "without": lambda: run_by_ray("", config),
            "ray": lambda: run_by_ray("local", config),
        }
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in kinds}
    ratios = []
    for _ in range(options.rounds):
        steps = {}
        for name, measure in kinds.items():
            measured[name] += measure()
            steps[name] = statistics.median(
                s["step_seconds"] for s in measured[name][-options.steps :]
            )
        first, second = steps.values()
        ratios.append(round(second / first, 4))
    medians = {
        name: {part: round(statistics.median(s[part] for s in steps), 4) for part in steps[0]}
        for name, steps in measured.items()
    }
    ratio = statistics.median(ratios)
    result: dict[str, Any] = {"medians": medians, "ratios": ratios, "ratio": ratio}
    if not options.ray:
        result["efficiency"] = round(1 / (2 * ratio), 3)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
