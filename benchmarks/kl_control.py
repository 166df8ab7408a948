"""Do the KL controls hold their target over a whole run of the default task?

    python benchmarks/kl_control.py adaptive [--seeds 0 1 2] [--steps 80] [--set NAME=VALUE …]
    python benchmarks/kl_control.py hard     [--seeds 0 1 2] [--steps 80] [--set NAME=VALUE …]

adaptive: KL in the second half of the run, of single steps and averaged over ten. Goal: 50 % to
150 % of the target.
hard: KL of every pass, measured before the update that would follow it. Goal: no update follows a
KL above the limit.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[1]))

from grpo_core.config import RunConfig, nest, parse
from grpo_core.learner.passes import Passes, PassInputs, PassResult, PassSums
from grpo_core.training.control import RunControl
from grpo_core.training.trainer import train
from grpo_core.types import Evaluated, StepCompleted, StepMetrics

WINDOW = 10


def run(config: RunConfig) -> tuple[list[StepMetrics], float]:
    """Metrics of every step, and held-out accuracy at the end."""
    events: list[Any] = []
    train(config, events.append, RunControl())
    steps = [e.metrics for e in events if isinstance(e, StepCompleted)]
    *_, last = (e for e in events if isinstance(e, Evaluated))
    accuracy = last.metrics["heldout/accuracy"]
    assert accuracy is not None
    return steps, accuracy


def adaptive(config: RunConfig) -> str:
    steps, accuracy = run(config)
    kl = [s.kl for s in steps if s.kl is not None]
    assert len(kl) == len(steps), "KL was not measured in every step"
    first, target = len(kl) // 2, config.algorithm.kl_target
    means = [statistics.fmean(kl[i - WINDOW + 1 : i + 1]) for i in range(first, len(kl))]
    return (
        f"{statistics.fmean(kl[first:]):.4f} | {inside(kl[first:], target)} | "
        f"{inside(means, target)} | {steps[first].kl_coef:.3g} → {steps[-1].kl_coef:.3g} | "
        f"{accuracy:.1%}"
    )


def inside(values: list[float], target: float) -> str:
    share = statistics.fmean(0.5 * target <= v <= 1.5 * target for v in values)
    return f"{share:.0%} ({min(values):.4f}–{max(values):.4f})"


def hard(config: RunConfig) -> str:
    batches: list[list[float]] = []  # of each batch, the KL that each pass measured
    result_of = Passes.result

    def watched(self: Passes, found: Sequence[PassSums], inputs: PassInputs) -> PassResult:
        result = result_of(self, found, inputs)
        if inputs.update == 0:  # a new batch
            batches.append([])
        assert result.kl is not None, "the hard control measures KL in every pass"
        batches[-1].append(result.kl)
        return result

    with patch.object(Passes, "result", watched):
        steps, accuracy = run(config)
    limit, passes = config.algorithm.kl_target, [kl for batch in batches for kl in batch]
    num_above = sum(kl > limit for kl in passes)
    # Every pass but a batch's last one was followed by an update.
    num_followed = sum(kl > limit for batch in batches for kl in batch[:-1])
    num_updates = [s.num_updates or 0 for s in steps]
    possible = len(steps) * config.algorithm.updates_per_batch
    without = [n == 0 for n in num_updates]
    return (
        f"{sum(num_updates)} of {possible} | {num_above} of {len(passes)} | {num_followed} | "
        f"{max(passes):.4f} ({max(passes) / limit - 1:+.0%}) | {sum(without)} | "
        f"{longest(without)} | {accuracy:.1%}"
    )


def longest(flags: Iterable[bool]) -> int:
    """Length of the longest run of trues."""
    best = now = 0
    for flag in flags:
        now = now + 1 if flag else 0
        best = max(best, now)
    return best


# Control -> the heads of its columns, and its measurement.
MEASUREMENTS = {
    "adaptive": (
        (
            "KL, mean",
            "single steps inside (least–most)",
            f"means over {WINDOW} inside (least–most)",
            "kl_coef, half → end",
            "held-out",
        ),
        adaptive,
    ),
    "hard": (
        (
            "updates made",
            "passes above the limit",
            "of these followed by an update",
            "highest KL",
            "batches without update",
            "most in a row",
            "held-out",
        ),
        hard,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("control", choices=MEASUREMENTS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--set", action="append", default=[])
    options = parser.parse_args()
    heads, measure = MEASUREMENTS[options.control]
    print(f"| seed | {' | '.join(heads)} |\n|{'---|' * (len(heads) + 1)}")
    for seed in options.seeds:
        settings = {
            "algorithm.kl_control": options.control,
            "train.steps": options.steps,
            "train.seed": seed,
            "train.eval_every": 0,
        }
        config = parse(nest(settings | dict(s.split("=", 1) for s in options.set)))
        print(f"| {seed} | {measure(config)} |", flush=True)


if __name__ == "__main__":
    main()
