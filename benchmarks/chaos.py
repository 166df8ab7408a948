"""Kill a run at random instants, resume it each time, and compare its rows with a calm run's.

python -m benchmarks.chaos --kills 30                  # every variant, 30 kills each
python -m benchmarks.chaos --kills 8 --variants plain
python -m benchmarks.chaos --variants plain --environments dice.py --set task.environment=Dice
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from grpo_core.cli.request import assignment
from grpo_core.config import RunConfig, nest, parse
from grpo_core.environments.registry import add_environments
from grpo_core.runs.execution import Job, execute
from grpo_core.runs.manager import prepare
from grpo_core.runs.resume import plan_resume
from grpo_core.store import Store
from grpo_core.training.control import RunControl
from grpo_core.training.trainer import train
from grpo_core.types import STEP_METRICS, RunStatus
from scripts.bundled_model.make import make_tokenizer, special_ids

STEPS, EVERY = 120, 4
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "two updates": {"algorithm.updates_per_batch": 2},
    "adaptive KL": {
        "algorithm.kl_control": "adaptive",
        "algorithm.kl_target": 0.001,
        "algorithm.kl_horizon": 50,
    },
    "trust region": {"algorithm.objective": "trust_region", "algorithm.kl_coef": 0.0},
    "critic": {"algorithm.advantage": "value"},
    "LoRA": {"model.lora_rank": 4},
}
TIMELESS = [n for n in STEP_METRICS if "seconds" not in n and "memory" not in n]


def tiny_model(folder: Path) -> Path:
    """A random-weight two-layer Llama: the real loading and training code, in milliseconds."""
    tokenizer = make_tokenizer()
    ids = special_ids(tokenizer)
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=128,
            eos_token_id=ids["eos_token_id"],
            pad_token_id=ids["pad_token_id"],
        )
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def in_child(work: Callable[[], Any], kill_after: float | None = None) -> Any:
    """The result of work() in a fork of this process, which has torch in memory already.

    None if the fork was killed before it had a result.
    """
    reader, writer = os.pipe()
    gc.collect()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            os.write(writer, json.dumps(work()).encode()[:60_000])
            os._exit(0)
        except BaseException as error:
            print(f"child: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
    os.close(writer)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    data = b""
    while chunk := os.read(reader, 65_536):
        data += chunk
    os.close(reader)
    os.waitpid(child, 0)
    return json.loads(data) if data else None


def train_or_resume(db: Path, config: RunConfig) -> str:
    """Start the run of this file, or resume it; returns its status."""
    store = Store(db)
    store.recover()
    with store.writing():
        if rows := store.runs():
            if rows[0].status is RunStatus.FINISHED:  # killed after its last event
                return "finished"
            run_id, (config, start) = rows[0].id, plan_resume(store, rows[0].id)
        else:
            run_id, start = store.create_run(config, "chaos", status=RunStatus.LOADING), None
        control = RunControl(store.checkpoint_folder(run_id), start)
        return execute(store, Job(run_id, config, control), train)


def inspect(db: Path) -> dict[str, Any]:
    """The file after a kill: its integrity, its steps, and the phase that the kill hit."""
    with sqlite3.connect(db) as raw:
        integrity = raw.execute("PRAGMA integrity_check").fetchone()[0]
    store = Store(db)
    found = {"integrity": integrity, "steps": [], "status": "none", "phase": "none", "saved": 0}
    if not store.runs():
        return found
    phase = store.runs()[0].phase
    store.recover()
    run = store.runs()[0]
    checkpoints = store.checkpoints(run.id)
    return found | {
        "steps": [s["step"] for s in store.steps(run.id)],
        "status": run.status,
        "phase": phase or "starting",
        "saved": checkpoints[-1].step if checkpoints else 0,
    }


def rows(db: Path) -> dict[str, Any]:
    """Everything recorded, except times, memory and ids."""
    store = Store(db)
    run = store.runs()[0]
    groups = [
        {
            **{k: v for k, v in asdict(g).items() if k not in ("id", "run_id")},
            "rollouts": [
                {k: v for k, v in asdict(r).items() if k not in ("id", "group_id")}
                | {"turns": [replace(t, seconds=None) for t in r.turns]}
                for r in g.rollouts
            ],
        }
        for g in store.iter_groups(run.id)
    ]
    return {
        "steps": [{n: s[n] for n in ("step", *TIMELESS)} for s in store.steps(run.id)],
        "metrics": store.metrics(run.id),
        "groups": groups,
    }


@dataclass(slots=True)
class Outcome:
    """What the kills of one variant did."""

    problems: list[str] = field(default_factory=list)
    hits: Counter[str] = field(default_factory=Counter)  # phase -> kills
    lost: int = 0  # most steps that one kill cost
    runs: int = 0  # finished and compared

    def check(self, found: dict[str, Any]) -> None:
        """Count a kill and what it left, as inspect() finds it."""
        steps = found["steps"]
        self.hits[found["phase"]] += 1
        self.lost = max(self.lost, len(steps) - found["saved"])
        if found["integrity"] != "ok":
            self.problems.append(f"integrity_check: {found['integrity']}")
        if steps != list(range(1, len(steps) + 1)):
            self.problems.append(f"steps with gaps: {steps}")
        if found["status"] not in ("interrupted", "finished", "none"):
            self.problems.append(f"after a kill the run is {found['status']}")

    def row(self, variant: str) -> str:
        phases = ", ".join(f"{phase} {n}" for phase, n in self.hits.most_common())
        equal = "no" if self.problems else f"yes, {self.runs} runs"
        problems = "; ".join(self.problems) or "none"
        return (
            f"| {variant} | {self.hits.total()} | {phases} | {self.lost} of {EVERY} | {equal} "
            f"| {problems} |"
        )


@dataclass(frozen=True, slots=True)
class Killer:
    """Kills the run of a file again and again."""

    config: RunConfig
    rng: random.Random
    longest: float  # seconds until a kill, at most
    kills: int  # wanted

    def trouble(self, db: Path, outcome: Outcome) -> None:
        """Kill and resume until enough kills have hit a run, or the run has finished."""

        def work() -> str:
            return train_or_resume(db, self.config)

        while outcome.hits.total() < self.kills:
            if in_child(work, kill_after=self.rng.uniform(0.0, self.longest)) is not None:
                break  # it finished first
            if not db.exists():
                continue
            found = in_child(lambda: inspect(db))
            if found is None:
                outcome.problems.append("the store could not be opened after a kill")
                break
            outcome.check(found)
        if in_child(lambda: inspect(db)["status"]) != "finished" and in_child(work) != "finished":
            outcome.problems.append("the last resume did not finish")


def measure(config: RunConfig, folder: Path, kills: int, seed: int) -> Outcome:
    """Kill runs of this configuration, and compare each finished one with a calm run."""
    calm = folder / "calm.sqlite"
    started = time.monotonic()
    assert in_child(lambda: train_or_resume(calm, config)) == "finished"
    seconds = time.monotonic() - started
    killer, outcome = Killer(config, random.Random(seed), 0.5 * seconds, kills), Outcome()
    # A run finishes after some kills. Then a new file begins.
    while outcome.hits.total() < kills and not outcome.problems:
        db = folder / f"wild.{outcome.runs}.sqlite"
        outcome.runs += 1
        killer.trouble(db, outcome)
        if not in_child(lambda wild=db: rows(calm) == rows(wild)):
            outcome.problems.append(f"rows of {db.name} differ")
    if outcome.lost > EVERY:
        outcome.problems.append(f"{outcome.lost} steps lost")
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=30, help="kills for each variant (default 30)")
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--environments", nargs="*", default=[], help="Python files")
    parser.add_argument("--set", nargs="*", default=[], metavar="field=value")
    options = parser.parse_args()
    torch.set_num_threads(1)
    add_environments(options.environments)
    failed = False
    print("| variant | kills | in phase | most steps lost | rows equal | problems |")
    print("|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as name:
        model = tiny_model(Path(name) / "model")
        for variant in options.variants:
            folder = Path(name) / variant
            folder.mkdir()
            settings = {
                "model.name": str(model),
                "task.heldout_size": 8,
                "train.steps": STEPS,
                "train.prompts_per_step": 2,
                "train.group_size": 4,
                "train.max_new_tokens": 8,
                "train.eval_every": 8,
                "train.checkpoint_every": EVERY,
                **VARIANTS[variant],
                **dict(map(assignment, options.set)),
            }
            outcome = measure(prepare(parse(nest(settings))), folder, options.kills, options.seed)
            failed |= bool(outcome.problems)
            print(outcome.row(variant), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
