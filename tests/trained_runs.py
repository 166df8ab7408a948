"""Real training runs for tests: their settings, waiting for them, and all that they recorded."""

from __future__ import annotations

import contextlib
import time
from dataclasses import asdict
from pathlib import Path

from grpo_core.config import nest, parse
from grpo_core.runs.execution import Job, execute
from grpo_core.runs.manager import prepare
from grpo_core.store import Store
from grpo_core.training.control import RunControl
from grpo_core.types import STEP_METRICS, RunStatus

TIMELESS = [n for n in STEP_METRICS if "seconds" not in n and "memory" not in n]


def record(store: Store, run_id: str, after: int = -1):
    """All that a run's rows say about its steps after `after`, times, memory and row ids aside."""
    steps = [
        {n: s[n] for n in ("step", *TIMELESS)} for s in store.steps(run_id) if s["step"] > after
    ]
    metrics = {
        name: [v for v in values if v[0] > after] for name, values in store.metrics(run_id).items()
    }
    groups = []
    for group in store.iter_groups(run_id):
        rollouts = [
            {k: v for k, v in asdict(r).items() if k not in ("id", "group_id")}
            for r in group.rollouts
        ]
        if group.step > after:
            groups.append(
                {
                    **{k: v for k, v in asdict(group).items() if k not in ("id", "run_id")},
                    "rollouts": rollouts,
                }
            )
    return {"steps": steps, "metrics": {k: v for k, v in metrics.items() if v}, "groups": groups}


def configured(settings, **more):
    return prepare(
        parse(
            nest(
                {
                    **settings,
                    "train.steps": 6,
                    "train.checkpoint_every": 2,
                    "train.checkpoint_keep_every": 1,
                    "train.eval_every": 2,
                    **more,
                }
            )
        )
    )


def train_run(store: Store, settings, name: str, saves: bool = False) -> str:
    """Train a new run to its end in this process; return its id. saves: with checkpoints."""
    from grpo_core.training.trainer import train  # torch takes seconds

    config = prepare(parse(nest(settings)))
    run_id = store.create_run(config, name)
    control = RunControl(store.checkpoint_folder(run_id) if saves else None)
    status = execute(store, Job(run_id, config, control), train)
    assert status is RunStatus.FINISHED, store.run(run_id).error
    return run_id


def wait_for(manager, run_id, status, seconds=120.0, **fields):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        run = manager.store.run(run_id)
        if run.status is status and all(
            getattr(run, name) == value for name, value in fields.items()
        ):
            return run
        time.sleep(0.01)
    raise AssertionError(f"{run.status} in {run.phase} of step {run.step}: {run.error}")


def started_paused(manager, config, conditions="step = 1") -> str:
    """A run that waits before the update of its first step."""
    run_id = manager.start(config, conditions=conditions)
    wait_for(manager, run_id, RunStatus.PAUSED)
    manager.set_breakpoints(run_id, "")
    return run_id


def fill(folder: Path) -> Path:
    """Take all the space that is left."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (2**20, 4096, 1):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)) == size:
                    pass
    return ballast
