"""Training in a GPU lease of ZeroGPU, with a stand-in for its decorator that really forks.

Each run has its own Python process: no Space forks one in which torch has used its threads.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from grpo_core.config import nest, parse
from grpo_core.errors import InvalidConfig
from grpo_core.runs.zerogpu import USABLE, outlook, same_size, seconds_from, steps_that_fit
from tests.environments.conftest import calling_model as calling_model  # a fixture

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]

GRADERS = [
    {"name": "right", "check": "accuracy", "weight": 1, "outcome": True},
    {"name": "maths", "check": "math", "weight": 0.1},
    {
        "name": "own",
        "check": "python",
        "weight": 0.1,
        "params": {"code": "def score(c, p, a, t):\n    return len(c) / 100\n"},
    },
]  # two of them in processes of their own

RUN = """
import json, os, sys, threading, time
sys.path[:0] = [sys.argv[1] + "/tests/runs", sys.argv[1]]
os.environ["HF_HUB_OFFLINE"] = "1"
from pathlib import Path
import torch
torch.set_num_threads(1)
from forked_gpu import GPU
from grpo_core.config import nest, parse
from grpo_core.runs.zerogpu import leased
from grpo_core.config.devices import use_only
from grpo_core.runs.manager import RunManager
from grpo_core.rubric import build_rubric
from grpo_core.store import Store
from grpo_core.training.trainer import train
from grpo_core.types import Completion, Prompt

use_only("cpu")
store = Store(Path(sys.argv[2]))
plan = json.loads(sys.argv[3])
settings = {
    "train.prompts_per_step": 2,
    "train.group_size": 4,
    "train.max_new_tokens": 16,
    "task.heldout_size": 8,
    "train.eval_every": 0,
    "train.seed": 3,
}
config = parse(nest(settings | plan["settings"]))
question = Completion("1/2", "stop", 3), Prompt("p", "q", "0.5", "sums")
# The page has scored a text: its helper processes are alive, and the lease must not touch them.
before = build_rubric(config.rubric).score(*question)
def gpu(duration):
    return GPU(plan["seconds"])
runs = RunManager(store, leased(train, gpu, plan["seconds"]))
run_id = runs.start(config)

def until(*statuses, seconds=90):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        row = store.run(run_id)
        ending = row.status in ("stopped", "finished", "failed") and runs.running
        if row.status in statuses and not ending:
            return row
        time.sleep(0.02)
    raise SystemExit(f"waited for {statuses}, got {row.status}: {row.error}")

def at_step(n):
    while store.run(run_id).steps_done < n:
        assert store.run(run_id).status != "failed", store.run(run_id).error
        time.sleep(0.01)

out = {}
exec(plan["then"])
row = store.run(run_id)
after = build_rubric(config.rubric).score(*question)
steps = store.steps(run_id)
out |= {
    "status": row.status,
    "error": row.error,
    "steps": [s["step"] for s in steps],
    "rewards": [s["reward_mean"] for s in steps],
    "losses": [s["loss"] for s in steps],
    "env": row.env,
    "same": before == after,
    "rates": [s["learning_rate"] for s in steps],
    "checkpoints": [c.step for c in store.checkpoints(run_id)],
}
print(json.dumps(out))
runs.close(); store.close()
"""


def run(tmp_path: Path, then: str, seconds: int = 100, **settings) -> dict:
    plan = json.dumps(
        {
            "then": then,
            "seconds": seconds,
            "settings": {k.replace("__", "."): v for k, v in settings.items()},
        }
    )
    with (tmp_path / "out").open("w+") as out:  # no pipe: a forked process would hold it open
        done = subprocess.run(
            [sys.executable, "-c", RUN, str(ROOT), str(tmp_path / "runs.sqlite"), plan],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            timeout=300,
            cwd=tmp_path,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "GRPO_STUDIO_CACHE": str(tmp_path / "cache"),
            },
        )
        out.seek(0)
        said = out.read()
    assert done.returncode == 0, said[-2000:]
    return json.loads(said.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict:
    return run(
        tmp_path_factory.mktemp("whole"),
        "until('finished', 'failed')",
        train__steps=6,
        rubric__name="custom",
        rubric__criteria=GRADERS,
    )


def test_a_run_in_a_lease_equals_one_here_and_the_parent_writes(whole):
    from grpo_core.training.control import RunControl
    from grpo_core.training.trainer import train
    from grpo_core.types import StepCompleted

    assert (whole["status"], whole["steps"]) == ("finished", [1, 2, 3, 4, 5, 6])
    assert whole["env"]["lease_seconds"] == 100
    assert whole["env"]["lease_begin_seconds"] > 0
    assert whole["same"]  # the page's own graders live on
    assert whole["checkpoints"][-1] == 6
    events = []
    train(
        parse(
            nest(
                {
                    "train.prompts_per_step": 2,
                    "train.group_size": 4,
                    "train.max_new_tokens": 16,
                    "task.heldout_size": 8,
                    "train.eval_every": 0,
                    "train.seed": 3,
                    "rubric.name": "custom",
                    "rubric.criteria": GRADERS,
                    "train.steps": 6,
                    "train.checkpoint_every": 0,
                }
            )
        ),
        events.append,
        RunControl(),
    )
    here = [e.metrics for e in events if isinstance(e, StepCompleted)]
    assert whole["rewards"] == pytest.approx([m.reward_mean for m in here], abs=1e-9)
    assert whole["losses"] == pytest.approx([m.loss for m in here], abs=1e-6)


def test_an_expired_lease_leaves_a_saved_run_that_can_resume(tmp_path):
    said = run(
        tmp_path,
        """
def leased_again(steps, row):
    for _ in range(9):  # on a busy machine a lease may be over before its first step
        if row.steps_done > steps:
            break
        runs.resume(run_id)
        while not runs.running:
            time.sleep(0.01)
        row = until('stopped', 'failed')
    return row

row = leased_again(0, until('stopped', 'failed'))
out['first'], out['first_steps'], out['said'] = row.status, row.steps_done, row.error
row = leased_again(out['first_steps'], row)
out['second_steps'] = row.steps_done
""",
        seconds=8,
        train__steps=100_000,
    )
    assert said["first"] == "stopped", said["said"]
    assert said["said"] == (
        f"The GPU's lease of 8 s is over. Saved after step {said['first_steps']} of 100000: "
        "press Resume for the next lease."
    )
    assert said["second_steps"] > said["first_steps"] > 0
    assert said["steps"] == list(range(1, said["second_steps"] + 1))  # no row twice, none missing


def test_pause_returns_the_gpu_and_stop_and_settings_take_effect(tmp_path):
    said = run(
        tmp_path,
        """
at_step(2)
runs.set_knob(run_id, 'train.learning_rate', 5e-5)
at_step(5)
runs.pause(run_id)
out['paused_at'] = until('paused').steps_done
try:
    runs.step(run_id)
except Exception as error:
    out['refused'] = str(error)
import multiprocessing
out['processes'] = len(multiprocessing.active_children())
runs.resume(run_id)
at_step(out['paused_at'] + 2)
runs.stop(run_id)
until('stopped', 'failed')
""",
        train__steps=100_000,
        train__warmup_steps=0,
    )
    assert said["processes"] == 0
    assert said["refused"].startswith("On ZeroGPU a run trains in a separate process")
    assert (said["status"], said["error"]) == ("stopped", None)
    assert said["steps"] == list(range(1, len(said["steps"]) + 1))
    assert said["checkpoints"][-1] == len(said["steps"])
    assert said["rates"][0] == pytest.approx(1e-4)
    assert said["rates"][-1] == pytest.approx(5e-5)  # in the next lease too


def test_a_killed_lease_fails_the_run_with_a_hint_and_keeps_rows(
    tmp_path,
):
    said = run(
        tmp_path,
        """
import multiprocessing
at_step(3)
[child] = multiprocessing.active_children()
child.kill()
until('failed')
""",
        train__steps=100_000,
    )
    assert said["status"] == "failed"
    assert said["error"].startswith(
        "The GPU's lease failed: GPU task aborted. What was saved is kept: press Resume"
    )
    assert len(said["steps"]) >= 3
    assert said["same"]


def test_a_fault_inside_a_lease_reaches_the_record(tmp_path):
    said = run(tmp_path, "until('failed')", train__steps=3, train__max_new_tokens=4096)
    assert said["status"] == "failed"
    assert "context" in said["error"]


# ---- how many steps fit ----------------------------------------------------------------------


def test_the_steps_that_fit_a_lease_are_known_before_it():
    # 0.85 · 60 = 51 s usable, 11 s to begin: 40 s hold 20 steps of 2 s
    assert USABLE == 0.85
    assert steps_that_fit(60, 11, 2.0) == 20
    assert steps_that_fit(60, 60, 2.0) == 0
    config = parse(nest({"train.steps": 50}))
    assert outlook(60, config, (11, 2.0)).startswith(
        "About 20 of 50 steps fit into one lease of 60 s: "
        "11.0 s to start and 2.00 s per step were measured. The run takes 3 leases."
    )
    assert outlook(60, parse(nest({"train.steps": 20})), (11, 2.0)).startswith(
        "All 20 steps fit into one lease of 60 s"
    )
    assert "not measured yet" in outlook(60, config, None)
    assert outlook(60, config, (60, 2.0)).startswith("Not one step fits into one lease of 60 s: ")
    assert same_size(config, parse(nest({"train.steps": 9, "train.seed": 4})))
    assert not same_size(config, parse(nest({"train.group_size": 4})))
    assert seconds_from({}) == 60
    with pytest.raises(InvalidConfig, match="GRPO_LEASE_SECONDS = 'long'"):
        seconds_from({"GRPO_LEASE_SECONDS": "long"})


@pytest.mark.faults
def test_stop_ends_a_lease_whose_process_hangs(tmp_path):
    out = run(
        tmp_path,
        "import signal, tempfile, grpo_core.runs.stop_in_time as stop_in_time\n"
        "stop_in_time.GRACE_SECONDS = 0.5\n"
        "at_step(2)\n"
        "folder = Path(tempfile.gettempdir())\n"
        "lease = max(folder.glob('grpo-lease-*/message.pid'), key=lambda f: f.stat().st_mtime)\n"
        "os.kill(int(lease.read_text()), signal.SIGSTOP)\n"
        "runs.stop(run_id)\n"
        "row = until('stopped')\n",
        train__steps=10_000,
    )
    assert out["status"] == "stopped"
    assert "continue from its last checkpoint" in out["error"]
    assert out["steps"]


def test_a_lease_calls_tools_in_their_locked_processes(tmp_path, calling_model):
    turns = (
        "until('finished')\n"
        "groups = store.iter_groups(run_id)\n"
        "found = [t for g in groups for r in g.rollouts for t in r.turns]\n"
        "out['said'] = sorted({(t.tool, t.text) for t in found if t.tool and not t.error})"
    )
    out = run(
        tmp_path,
        turns,
        model__name=str(calling_model),
        task__name="products",
        task__heldout_size=0,
        train__steps=1,
        train__max_new_tokens=80,
    )
    assert out["status"] == "finished"
    assert ["calculate", "12"] in out["said"]
