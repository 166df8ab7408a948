"""Kill a run at random instants, resume it each time, and compare its rows with those of a run that nobody disturbed.

python -m benchmarks.chaos --kills 30                  # every variant, 30 kills each
python -m benchmarks.chaos --kills 8 --variants plain
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
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from grpo_core.config import RunConfig, nest, parse
from grpo_core.runs.manager import execute, prepare
from grpo_core.runs.resume import plan_resume
from grpo_core.store import Store
from grpo_core.training.control import RunControl
from grpo_core.training.trainer import train
from grpo_core.types import STEP_METRICS, RunStatus
from scripts.bundled_model.make import make_tokenizer

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
    """A random-weight two-layer Llama: loading and training are the real code, and take milliseconds."""
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=128,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def in_child(work: Callable[[], Any], kill_after: float | None = None) -> Any:
    """work() in a fork of this process, which has torch in memory already; its result, or None if it was killed before it had one."""
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


def go_on(db: Path, config: RunConfig) -> str:
    """Start the run of this file, or resume it; returns its status."""
    store = Store(db)
    store.recover()
    with store.writing():
        if rows := store.runs():
            if rows[0].status is RunStatus.FINISHED:  # killed after its last word
                return "finished"
            run_id, (config, start) = rows[0].id, plan_resume(store, rows[0].id)
        else:
            run_id, start = store.create_run(config, "chaos", status=RunStatus.LOADING), None
        return execute(
            store, run_id, config, train, RunControl(store.checkpoint_folder(run_id), start)
        )


def look(db: Path) -> dict[str, Any]:
    """What stands in the file after a kill: whether it is whole, the steps that are there, where it was."""
    with sqlite3.connect(db) as raw:
        whole = raw.execute("PRAGMA integrity_check").fetchone()[0]
    store = Store(db)
    if not store.runs():
        return {"integrity": whole, "steps": [], "status": "none", "phase": "none", "checkpoint": 0}
    phase = store.runs()[0].phase
    store.recover()
    run = store.runs()[0]
    saved = store.checkpoints(run.id)
    return {
        "integrity": whole,
        "steps": [s["step"] for s in store.steps(run.id)],
        "status": run.status,
        "phase": phase or "starting",
        "checkpoint": saved[-1].step if saved else 0,
    }


def rows(db: Path) -> dict[str, Any]:
    """Everything recorded, times, memory and ids aside."""
    store = Store(db)
    run = store.runs()[0]
    groups = [
        {
            **{k: v for k, v in asdict(g).items() if k not in ("id", "run_id")},
            "rollouts": [
                {k: v for k, v in asdict(r).items() if k not in ("id", "group_id")}
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


def trouble(
    db: Path, config: RunConfig, kills: int, rng: random.Random, longest: float
) -> tuple[list[str], Counter[str], int]:
    """Kill and resume until `kills` have hit a run that was going. Returns problems, where the kills hit, and the most steps lost by one."""
    problems: list[str] = []
    hits: Counter[str] = Counter()
    lost = 0
    while sum(hits.values()) < kills:
        if in_child(lambda: go_on(db, config), kill_after=rng.uniform(0.0, longest)) is not None:
            break  # it finished first
        if not db.exists():
            continue
        seen = in_child(lambda: look(db))
        if seen is None:
            problems.append("the store could not be opened after a kill")
            break
        hits[seen["phase"]] += 1
        lost = max(lost, len(seen["steps"]) - seen["checkpoint"])
        if seen["integrity"] != "ok":
            problems.append(f"integrity_check: {seen['integrity']}")
        if seen["steps"] != list(range(1, len(seen["steps"]) + 1)):
            problems.append(f"steps with gaps: {seen['steps']}")
        if seen["status"] not in ("interrupted", "finished", "none"):
            problems.append(f"after a kill the run is {seen['status']}")
    if (
        in_child(lambda: look(db)["status"]) != "finished"
        and in_child(lambda: go_on(db, config)) != "finished"
    ):
        problems.append("the last resume did not finish")
    return problems, hits, lost


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=30, help="kills for each variant (default 30)")
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        model = tiny_model(Path(folder) / "model")
        print(
            "| variant | kills | in phase | most steps lost | rows equal | problems |\n|---|---|---|---|---|---|",
            flush=True,
        )
        for variant in options.variants:
            config = prepare(
                parse(
                    nest(
                        {
                            "model.name": str(model),
                            "task.heldout_size": 8,
                            "train.steps": STEPS,
                            "train.prompts_per_step": 2,
                            "train.group_size": 4,
                            "train.max_new_tokens": 8,
                            "train.eval_every": 8,
                            "train.checkpoint_every": EVERY,
                            **VARIANTS[variant],
                        }
                    )
                )
            )
            calm, wild = (Path(folder) / f"{variant}-{kind}.sqlite" for kind in ("calm", "wild"))
            started = time.monotonic()
            assert in_child(lambda db=calm, config=config: go_on(db, config)) == "finished"
            alone = time.monotonic() - started
            problems, hits, lost, rng = [], Counter(), 0, random.Random(options.seed)
            batch = 0
            while (
                sum(hits.values()) < options.kills and not problems
            ):  # a file is finished after some kills; then a fresh one
                db = wild.with_suffix(f".{batch}.sqlite")
                found, where, most = trouble(
                    db, config, options.kills - sum(hits.values()), rng, 0.5 * alone
                )
                problems, hits, lost, batch = (
                    problems + found,
                    hits + where,
                    max(lost, most),
                    batch + 1,
                )
                if not in_child(lambda a=calm, b=db: rows(a) == rows(b)):
                    problems.append(f"rows of {db.name} differ")
            if lost > EVERY:
                problems.append(f"{lost} steps lost")
            failed |= bool(problems)
            phases = ", ".join(f"{phase} {n}" for phase, n in hits.most_common())
            print(
                f"| {variant} | {sum(hits.values())} | {phases} | {lost} of {EVERY} | {'no' if problems else f'yes, {batch} runs'} | {'; '.join(problems) or 'none'} |",
                flush=True,
            )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
