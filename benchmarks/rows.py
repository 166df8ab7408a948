"""Are the stored rows right? Recomputes every reward from scores and every advantage from rewards in plain Python.

python benchmarks/rows.py [--db runs/grpo.sqlite]
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from grpo_core.store import Store

TOLERANCE = 1e-9


def advantages(rewards: list[float | None], estimator: str) -> list[float]:
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


def plain(config: Mapping[str, Any]) -> bool:
    """Whether the few lines above are the whole of it: no shaping of rewards, siblings are those of one prompt."""
    rubric, algorithm = config["rubric"], config["algorithm"]
    shaped = (
        rubric.get("gate")
        or rubric.get("scale")
        or rubric.get("clip_low") is not None
        or rubric.get("clip_high") is not None
    )
    return (
        not shaped
        and algorithm.get("grouping", "prompt") == "prompt"
        and algorithm["advantage"] in ("group_std", "group_mean", "leave_one_out")
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--db", default="runs/grpo.sqlite")
    store = Store(parser.parse_args().db)
    groups = wrong = skipped = 0
    for run in store.runs():
        if not plain(run.config):
            skipped += 1
            continue
        weights = {c["name"]: c["weight"] for c in run.config["rubric"]["criteria"]}
        for group in store.iter_groups(run.id):
            rewards = []
            for rollout in group.rollouts:
                counted = [
                    w * rollout.scores[k]
                    for k, w in weights.items()
                    if w > 0 and rollout.scores[k] is not None
                ]
                rewards.append(sum(counted) if counted else None)
            expected = advantages(rewards, run.config["algorithm"]["advantage"])
            same = all(
                (a is None) == (b is None) and (a is None or abs(a - b) <= TOLERANCE)
                for r, reward, advantage in zip(group.rollouts, rewards, expected, strict=True)
                for a, b in ((r.reward, reward), (r.advantage, advantage))
            )
            groups, wrong = groups + 1, wrong + (not same)
    print(
        f"{groups:,} groups of {len(store.runs())} runs: {groups - wrong:,} as recomputed, {wrong} not"
        + (f"; {skipped} runs with other comparisons not checked" if skipped else "")
    )
    return wrong > 0


if __name__ == "__main__":
    sys.exit(main())
