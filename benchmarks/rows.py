"""Are the stored rows right? Recomputes rewards from scores and advantages in plain Python.

python benchmarks/rows.py [--db runs/grpo.sqlite]
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from grpo_core.store import GroupRow, RunRow, Store

TOLERANCE = 1e-9
ESTIMATORS = ("group_std", "group_mean", "leave_one_out")
Numbers = Sequence[float | None]  # None: could not be scored


def advantages(rewards: Numbers, estimator: str) -> list[float]:
    known = [r for r in rewards if r is not None]
    if len(known) < 2 or max(known) - min(known) <= 1e-8:
        return [0.0] * len(rewards)
    centre, n = statistics.fmean(known), len(known)
    scale = {
        "group_std": 1 / (statistics.stdev(known) + 1e-4),
        "group_mean": 1.0,
        "leave_one_out": n / (n - 1),
    }[estimator]
    return [0.0 if r is None else (r - centre) * scale for r in rewards]


def reward(scores: Mapping[str, float | None], weights: Mapping[str, float]) -> float | None:
    terms = []
    for name, weight in weights.items():
        score = scores[name]
        if weight > 0 and score is not None:
            terms.append(weight * score)
    return sum(terms) if terms else None


def is_plain(config: Mapping[str, Any]) -> bool:
    """Whether the functions above cover the run: rewards not shaped, siblings of one prompt."""
    rubric, algorithm = config["rubric"], config["algorithm"]
    clipped = rubric.get("clip_low") is not None or rubric.get("clip_high") is not None
    if clipped or rubric.get("gate") or rubric.get("scale"):
        return False
    return algorithm.get("grouping", "prompt") == "prompt" and algorithm["advantage"] in ESTIMATORS


def is_right(group: GroupRow, run: RunRow) -> bool:
    weights = {c["name"]: c["weight"] for c in run.config["rubric"]["criteria"]}
    rewards = [reward(rollout.scores, weights) for rollout in group.rollouts]
    expected = advantages(rewards, run.config["algorithm"]["advantage"])
    return equal([r.reward for r in group.rollouts], rewards) and equal(
        [r.advantage for r in group.rollouts], expected
    )


def equal(stored: Numbers, expected: Numbers) -> bool:
    return all(
        a is b is None or (a is not None and b is not None and abs(a - b) <= TOLERANCE)
        for a, b in zip(stored, expected, strict=True)
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--db", default="runs/grpo.sqlite")
    store = Store(parser.parse_args().db)
    runs = store.runs()
    num_groups = num_wrong = num_skipped = 0
    for run in runs:
        if not is_plain(run.config):
            num_skipped += 1
            continue
        for group in store.iter_groups(run.id):
            num_groups += 1
            num_wrong += not is_right(group, run)
    skipped = f"; {num_skipped} runs with other comparisons not checked" if num_skipped else ""
    right = num_groups - num_wrong
    print(
        f"{num_groups:,} groups of {len(runs)} runs: {right:,} as recomputed, {num_wrong} not"
        + skipped
    )
    return num_wrong > 0


if __name__ == "__main__":
    sys.exit(main())
