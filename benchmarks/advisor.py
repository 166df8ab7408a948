"""Does the advisor name what is wrong, and is it quiet when nothing is?

    python benchmarks/advisor.py [--seeds 10] [--healthy 20] [--only "cut short" …] [--db FILE]

Trains runs with a known fault, and healthy ones, and prints the advisor's diagnoses. With --db the
runs are kept, and runs that are already there are not trained again.
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

from grpo_core.analysis.advisor import advise
from grpo_core.config import nest, parse
from grpo_core.environments.registry import add_environments
from grpo_core.rubric import CHECKS, Check
from grpo_core.rubric.criteria import AccuracyParams
from grpo_core.runs.execution import Job, execute
from grpo_core.runs.manager import prepare
from grpo_core.store import Store
from grpo_core.tasks import CHOICES, TASKS
from grpo_core.tasks.short import grade_integer
from grpo_core.tasks.task import Task, instruction
from grpo_core.training.control import RunControl
from grpo_core.training.trainer import train
from grpo_core.types import Completion, Prompt, RunStatus


def repeats(completion: Completion, prompt: Prompt, params: AccuracyParams) -> float:
    """A check that can be cheated: pays for every answer, right or wrong, up to four."""
    return min(1.0, completion.text.count("<answer>") / 4)


def make_huge(rng: random.Random) -> tuple[str, str, dict]:
    numbers = [rng.randint(10, 99) for _ in range(3)]
    return f"Q: {'+'.join(map(str, numbers))}=?", str(sum(numbers) + 1_000_000), {}


CHECKS["repeats"] = Check(repeats, AccuracyParams, "Pays for every <answer>, up to four.")
TASKS["easy"] = CHOICES["easy"] = Task(
    "easy",
    "Easy",
    "Every whole number is right.",
    instruction("Answer."),
    TASKS["sums"].make,
    lambda answer, prompt: float(answer.strip().isdigit()),
)
TASKS["impossible"] = CHOICES["impossible"] = Task(
    "impossible",
    "Impossible",
    "Answers that this model never writes.",
    instruction("Answer."),
    make_huge,
    grade_integer,
)

BROKEN = '''
class Broken:
    """A calculator that is out of order."""

    def reset(self, **row):
        pass

    def calculate(self, expression: str) -> str:
        """
        Work out an arithmetic expression.

        Args:
            expression: The expression, such as "34*57".
        """
        raise RuntimeError("out of order")
'''

PRODUCTS = {"task.name": "products"}
WATCHED = {"name": "accuracy", "check": "accuracy", "weight": 0.0, "outcome": True}


def rubric(*criteria: dict[str, Any]) -> dict[str, Any]:
    return {"rubric.name": "custom", "rubric.criteria": criteria}


@dataclass(frozen=True)
class Fault:
    """Settings that make a run faulty, and the diagnoses that name the fault."""

    codes: tuple[str, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    steps: int = 30


RUNS: dict[str, Fault] = {
    "repeating pays": Fault(
        ("hacking",), rubric({"name": "repeats", "check": "repeats", "weight": 1.0}, WATCHED), 60
    ),
    "all right": Fault(("dead_groups",), {"task.name": "easy", "rubric.name": "accuracy only"}, 20),
    "group size 2": Fault(
        ("dead_groups",),
        {
            "task.name": "countdown",
            "rubric.name": "accuracy only",
            "train.group_size": 2,
            "train.prompts_per_step": 16,
        },
        20,
    ),
    "cut short": Fault(("truncation",), {"train.max_new_tokens": 7}, 20),
    "learning rate x 100": Fault(("lr_too_high",), {"train.learning_rate": 1e-2}, 15),
    "learning rate / 100": Fault(("lr_too_low",), {"train.learning_rate": 1e-6}, 40),
    "format only": Fault(
        ("hacking",), rubric({"name": "format", "check": "format", "weight": 1.0}, WATCHED), 40
    ),
    "nobody right": Fault(("phantom",), {"task.name": "impossible"}, 20),
    "nobody right, gated": Fault(
        ("flat_reward", "dead_groups"), {"task.name": "impossible", "rubric.gate": True}, 20
    ),
    "tool out of order": Fault(("tool_errors",), {**PRODUCTS, "task.environment": "Broken"}, 20),
    "tool that nobody knows": Fault(
        ("tool_unused",), {"task.name": "sums", "task.environment": "Calculator"}, 20
    ),
}
HEALTHY = {"healthy": Fault((), steps=80), "healthy, with a tool": Fault((), PRODUCTS, 60)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=10, help="seeds of each faulty run")
    parser.add_argument("--healthy", type=int, default=20, help="seeds of each healthy run")
    parser.add_argument("--only", nargs="*", help="these faulty runs")
    parser.add_argument("--db", help="keep the runs here")
    parser.add_argument("--train-only", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = Store(args.db or f"{folder}/runs.sqlite")
        broken = Path(folder, "broken.py")
        broken.write_text(BROKEN)
        add_environments([str(broken)])
        names = [n for n in RUNS if args.only is None or n in args.only]
        jobs = [(name, seed, RUNS[name]) for seed in range(args.seeds) for name in names]
        jobs += [(name, seed, HEALTHY[name]) for seed in range(args.healthy) for name in HEALTHY]
        for name, seed, fault in jobs:
            train_one(store, f"{name}, seed {seed}", seed, fault)
        if not args.train_only:
            report(store, [(name, seed) for name, seed, _ in jobs])


def train_one(store: Store, name: str, seed: int, fault: Fault) -> None:
    """Train the run unless the store has it."""
    if any(r.name == name and r.status is RunStatus.FINISHED for r in store.runs()):
        return
    settings = {
        "train.steps": fault.steps,
        "train.seed": seed,
        "task.heldout_size": 100 if fault.codes else 200,
        "train.eval_every": 0,
        **fault.settings,
    }
    config = prepare(parse(nest(settings)))
    run_id = store.create_run(config, name)
    status = execute(store, Job(run_id, config, RunControl()), train)
    print(f"{name}: {status}", file=sys.stderr, flush=True)


def report(store: Store, jobs: list[tuple[str, int]]) -> None:
    """Print a line for each kind of run."""
    rows = {r.name: r for r in store.runs()}
    diagnoses: dict[str, list[list[str]]] = {}  # kind of run -> the codes of each seed
    for name, seed in jobs:
        advice = advise(store, rows[f"{name}, seed {seed}"].id)
        diagnoses.setdefault(name, []).append([alert.code for alert in advice])
    for name, runs in diagnoses.items():
        right = set(RUNS[name].codes) if name in RUNS else set()
        if right:
            named = sum(bool(right & set(codes)) for codes in runs)
            verdict = f"named in {named} of {len(runs)}"
        else:
            verdict = f"{sum(map(len, runs))} notices in {len(runs)} runs"
        counts = dict(Counter(code for codes in runs for code in codes))
        print(f"{name:<24}{verdict:<22}{counts}")


if __name__ == "__main__":
    main()
