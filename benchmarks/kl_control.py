"""Do the KL controls keep their word over a whole run of the default task?

    python benchmarks/kl_control.py adaptive [--seeds 0 1 2] [--steps 80] [--set algorithm.kl_target=0.025 …]
    python benchmarks/kl_control.py hard     [--seeds 0 1 2] [--steps 80] [--set algorithm.updates_per_batch=4 …]

adaptive: KL in the second half of the run, single steps and the mean over ten; wanted is 50 % to 150 % of the target.
hard: every pass's KL, before the update that would follow it. Wanted is that no update follows a KL above the limit.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from grpo_core.config import RunConfig, nest, parse
from grpo_core.learner import update as learner_update
from grpo_core.training.control import RunControl
from grpo_core.training.trainer import train
from grpo_core.types import Evaluated, StepCompleted

WINDOW = 10


def run(config: RunConfig) -> tuple[list[Any], float]:
    """Metrics of every step, and held-out accuracy at the end."""
    events: list[Any] = []
    train(config, events.append, RunControl())
    return [e.metrics for e in events if isinstance(e, StepCompleted)], [
        e for e in events if isinstance(e, Evaluated)
    ][-1].metrics["heldout/accuracy"]


def adaptive(config: RunConfig) -> str:
    steps, accuracy = run(config)
    target, kl = config.algorithm.kl_target, [s.kl for s in steps]
    first = len(kl) // 2
    half, means = (
        kl[first:],
        [statistics.fmean(kl[i - WINDOW + 1 : i + 1]) for i in range(first, len(kl))],
    )
    inside = [
        statistics.fmean(0.5 * target <= v <= 1.5 * target for v in values)
        for values in (half, means)
    ]
    return (
        f"{statistics.fmean(half):.4f} | {inside[0]:.0%} ({min(half):.4f}–{max(half):.4f}) | {inside[1]:.0%} ({min(means):.4f}–{max(means):.4f}) | "
        f"{steps[first].kl_coef:.3g} → {steps[-1].kl_coef:.3g} | {accuracy:.1%}"
    )


def hard(config: RunConfig) -> str:
    passes: list[list[float]] = []  # of each batch, the KL that each pass measured
    backward = learner_update.Passes.backward

    def watched(self: Any, *arguments: Any) -> Any:
        done = backward(self, *arguments)
        if arguments[2] == 0:  # num_passes before this one: a new batch
            passes.append([])
        passes[-1].append(done.kl)
        return done

    learner_update.Passes.backward = watched
    try:
        steps, accuracy = run(config)
    finally:
        learner_update.Passes.backward = backward
    limit, flat = config.algorithm.kl_target, [kl for batch in passes for kl in batch]
    above = [kl for kl in flat if kl > limit]
    after = sum(kl > limit for batch in passes for kl in batch[:-1])  # followed by an update
    lost = sum(s.num_updates == 0 for s in steps)
    return (
        f"{sum(s.num_updates for s in steps)} of {len(steps) * config.algorithm.updates_per_batch} | {len(above)} of {len(flat)} | {after} | "
        f"{max(flat):.4f} ({max(flat) / limit - 1:+.0%}) | {lost} | {longest(s.num_updates == 0 for s in steps)} | {accuracy:.1%}"
    )


def longest(flags: Any) -> int:
    """Length of the longest run of trues."""
    best = now = 0
    for flag in flags:
        now = now + 1 if flag else 0
        best = max(best, now)
    return best


HEADS = {
    "adaptive": (
        "KL, mean | single steps inside (least–most) | means over 10 inside (least–most) | kl_coef, half → end | held-out",
        adaptive,
    ),
    "hard": (
        "updates made | passes above the limit | of these followed by an update | highest KL | batches without update | most in a row | held-out",
        hard,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("control", choices=HEADS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--set", action="append", default=[])
    asked = parser.parse_args()
    head, measure = HEADS[asked.control]
    print(f"| seed | {head} |\n|{'---|' * (head.count('|') + 2)}")
    for seed in asked.seeds:
        flat = {
            "algorithm.kl_control": asked.control,
            "train.steps": asked.steps,
            "train.seed": seed,
            "train.eval_every": 0,
        }
        config = parse(nest(flat | dict(s.split("=", 1) for s in asked.set)))
        print(f"| {seed} | {measure(config)} |", flush=True)


if __name__ == "__main__":
    main()
