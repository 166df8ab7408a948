"""Does the advisor name what is wrong, and is it quiet when nothing is? Trains runs made to be ill, and healthy ones, and asks it.

    python benchmarks/advisor.py [--seeds 10] [--healthy 20] [--only lr_too_low …] [--db FILE]

With --db the runs are kept, and those that are already there are only asked again.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from grpo_core.config import nest, parse
from grpo_core.rubric import CHECKS, Check
from grpo_core.rubric.criteria import AccuracyParams
from grpo_core.runs.manager import execute, prepare
from grpo_core.store import Store
from grpo_core.tasks import TASKS
from grpo_core.tasks.short import grade_integer
from grpo_core.tasks.task import Task, instruction
from grpo_core.training.control import RunControl
from grpo_core.training.trainer import train
from grpo_core.types import Completion, Prompt, RunStatus


def repeats(completion: Completion, prompt: Prompt, params: AccuracyParams) -> float:
    """A check that can be cheated: pays for every answer that is written down, right or wrong, up to four."""
    return min(1.0, completion.text.count("<answer>") / 4)


def make_huge(rng: random.Random) -> tuple[str, str, dict]:
    numbers = [rng.randint(10, 99) for _ in range(3)]
    return f"Q: {'+'.join(map(str, numbers))}=?", str(sum(numbers) + 1_000_000), {}


CHECKS["repeats"] = Check(repeats, AccuracyParams, "Pays for every <answer>, up to four.")
TASKS["easy"] = Task(
    "easy",
    "Easy",
    "Every whole number is right.",
    instruction("Answer."),
    TASKS["sums"].make,
    lambda answer, prompt: float(answer.strip().isdigit()),
)
TASKS["impossible"] = Task(
    "impossible",
    "Impossible",
    "Answers that this model never writes.",
    instruction("Answer."),
    make_huge,
    grade_integer,
)

WATCHED = {"name": "accuracy", "check": "accuracy", "weight": 0.0, "outcome": True}


def rubric(*criteria: dict[str, Any]) -> dict[str, Any]:
    return {"rubric.name": "custom", "rubric.criteria": criteria}


@dataclass(frozen=True)
class Ill:
    """Settings that make a run ill, and the codes that name the illness."""

    codes: tuple[str, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    steps: int = 30


RUNS: dict[str, Ill] = {
    "repeating pays": Ill(
        ("hacking",), rubric({"name": "repeats", "check": "repeats", "weight": 1.0}, WATCHED), 60
    ),
    "all right": Ill(("dead_groups",), {"task.name": "easy", "rubric.name": "accuracy only"}, 20),
    "group size 2": Ill(
        ("dead_groups",),
        {
            "task.name": "countdown",
            "rubric.name": "accuracy only",
            "train.group_size": 2,
            "train.prompts_per_step": 16,
        },
        20,
    ),
    "cut short": Ill(("truncation",), {"train.max_new_tokens": 7}, 20),
    "learning rate x 100": Ill(("lr_too_high",), {"train.learning_rate": 1e-2}, 15),
    "learning rate / 100": Ill(("lr_too_low",), {"train.learning_rate": 1e-6}, 40),
    "format only": Ill(
        ("hacking",), rubric({"name": "format", "check": "format", "weight": 1.0}, WATCHED), 40
    ),
    "nobody right": Ill(("phantom",), {"task.name": "impossible"}, 20),
    "nobody right, gated": Ill(
        ("flat_reward", "dead_groups"), {"task.name": "impossible", "rubric.gate": True}, 20
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10, help="of each ill run")
    parser.add_argument("--healthy", type=int, default=20, help="seeds of the default run")
    parser.add_argument("--only", nargs="*", help="these ill runs")
    parser.add_argument("--db", help="keep the runs here")
    parser.add_argument("--train-only", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = Store(args.db or f"{folder}/runs.sqlite")
        wanted = [n for n in RUNS if args.only is None or n in args.only]
        jobs = [(n, s, RUNS[n]) for s in range(args.seeds) for n in wanted] + [
            ("healthy", s, Ill((), steps=80)) for s in range(args.healthy)
        ]
        for name, seed, ill in jobs:
            train_one(store, f"{name}, seed {seed}", seed, ill)
        if not args.train_only:
            judge(store, jobs)


def train_one(store: Store, name: str, seed: int, ill: Ill) -> None:
    if any(r.name == name and r.status is RunStatus.FINISHED for r in store.runs()):
        return
    heldout = 100 if ill.codes else 200
    config = prepare(
        parse(
            nest(
                {
                    "train.steps": ill.steps,
                    "train.seed": seed,
                    "task.heldout_size": heldout,
                    "train.eval_every": 0,
                    **ill.settings,
                }
            )
        )
    )
    run_id = store.create_run(config, name)
    status = execute(store, run_id, config, train, RunControl())
    print(f"{name}: {status}", file=sys.stderr, flush=True)


def judge(store: Store, jobs: list[tuple[str, int, Ill]]) -> None:
    from grpo_core.analysis.advisor import advise

    rows = {r.name: r for r in store.runs()}
    said: dict[str, list[list[str]]] = {}
    for name, seed, _ in jobs:
        said.setdefault(name, []).append(
            [a.code for a in advise(store, rows[f"{name}, seed {seed}"].id)]
        )
    for name, answers in said.items():
        codes = RUNS[name].codes if name in RUNS else ()
        named = sum(bool(set(codes) & set(a)) for a in answers)
        verdict = (
            f"named in {named} of {len(answers)}"
            if codes
            else f"{sum(map(len, answers))} notices in {len(answers)} runs"
        )
        print(f"{name:<24}{verdict:<22}{dict(Counter(c for a in answers for c in a))}")


if __name__ == "__main__":
    main()
