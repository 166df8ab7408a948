"""What attach() costs a run of TRL's.

    python benchmarks/attach.py [--pairs 5] [--steps 20] [--tokens 64]

The same run of TRL's GRPOTrainer on the bundled model, without and with attach to a file, in
turns; the first pair warms up. Two numbers: the time that the hooks take in the trainer's own
thread, and the paired difference of whole steps, which has the machine's noise in it.
Needs tests/requirements.txt (trl).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "records"))

from trl_runs import make_trainer  # pyright: ignore[reportMissingImports]

from grpo_core import attach
from grpo_core.records.attach import _Attached

HOOKS = ("_keep", "_step_ended", "_logged", "_begin")


def run(folder: Path, steps: int, tokens: int, recorded: bool) -> tuple[float, float]:
    """Seconds of a step, and of the hooks in it."""
    trainer = make_trainer(
        folder,
        steps=steps,
        per_device_train_batch_size=64,
        num_generations=8,
        max_completion_length=tokens,
        generation_kwargs={"min_new_tokens": tokens},
    )
    spent = [0.0]
    if recorded:
        attach(trainer, db=folder / "runs.sqlite")
        for name in HOOKS:
            _timed(trainer._grpo_studio, name, spent)
    started: list[float] = []
    original = trainer.training_step

    def step(*args: Any, **options: Any) -> Any:
        started.append(time.perf_counter())
        return original(*args, **options)

    trainer.training_step = step
    trainer.train()
    seconds = statistics.median(b - a for a, b in pairwise(started))
    return seconds, spent[0] / steps


def _timed(attached: _Attached, name: str, spent: list[float]) -> None:
    original = getattr(attached, name)

    def timed(*args: Any, **options: Any) -> Any:
        begun = time.perf_counter()
        try:
            return original(*args, **options)
        finally:
            spent[0] += time.perf_counter() - begun

    setattr(attached, name, timed)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=64)
    options = parser.parse_args()
    torch.set_num_threads(1)
    ratios, shares, seconds = [], [], []
    for pair in range(options.pairs + 1):
        with tempfile.TemporaryDirectory() as folder:
            sides = [
                run(Path(folder), options.steps, options.tokens, recorded)
                for recorded in ((False, True) if pair % 2 else (True, False))
            ]
        without, recorded = sides if pair % 2 else sides[::-1]
        if pair:
            ratios.append(recorded[0] / without[0] - 1)
            shares.append(recorded[1] / without[0])
            seconds.append(without[0])
    print(f"a step without attach: {1000 * statistics.median(seconds):.0f} ms")
    print(f"hooks in the trainer's thread: {statistics.median(shares):.2%} of a step")
    error = statistics.stdev(ratios) / len(ratios) ** 0.5 if len(ratios) > 1 else float("nan")
    print(f"paired difference of whole steps: {statistics.mean(ratios):+.2%} ± {error:.2%}")


if __name__ == "__main__":
    main()
