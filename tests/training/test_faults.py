"""Real faults: full disks, no memory, NaN, dead threads. F4-F8 and F15 of the promises.

F1, F2, F9, F10: test_fault_processes.py; F3: test_resume.py; F11, F12: test_store_files.py;
F14: test_fault_sources.py.

A short selection is part of every test run. `pytest -m faults` adds the rest;
`python -m benchmarks.chaos` is the long form.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import sqlite3
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from processes import another_process, until
from trained_runs import configured, fill, record, wait_for

from grpo_core.config import flatten, nest, parse
from grpo_core.runs.manager import RunManager
from grpo_core.store import Store
from grpo_core.training.trainer import train
from grpo_core.types import RunStatus

pytestmark = pytest.mark.faults


# ---- F4: disk full -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["record", "checkpoint"])
def test_a_run_waits_for_a_full_disk_and_continues_with_room(
    small_disk, tiny_settings, kind, tmp_path
):
    every = 0 if kind == "record" else 2
    config = configured(
        tiny_settings,
        **{
            "train.steps": 30,
            "train.checkpoint_every": every,
            "train.token_records": 0,
            "train.checkpoint_keep_every": 0,
        },
    )
    calm = RunManager(Store(tmp_path / "calm.sqlite"), train)
    alone = calm.start(config)
    wait_for(calm, alone, RunStatus.FINISHED)

    manager = RunManager(Store(small_disk / "runs.sqlite"), train)
    run_id = manager.start(config, conditions="step = 3")
    wait_for(manager, run_id, RunStatus.PAUSED)
    manager.set_breakpoints(run_id, "")
    ballast = fill(small_disk)
    manager.resume(run_id)
    waits = until(
        lambda: (
            (
                (r := manager.store.run(run_id)).status is RunStatus.PAUSED
                and "disk is full" in (r.error or "")
            )
            or ("MiB are free" in (r.error or "") and r)
        )
    )
    assert waits
    reason = manager.store.run(run_id).error
    assert "MiB" in reason
    assert "Resume" in reason
    assert sqlite3.connect(small_disk / "runs.sqlite").execute(
        "PRAGMA integrity_check"
    ).fetchone() == ("ok",)
    ballast.unlink()
    manager.resume(run_id)
    wait_for(manager, run_id, RunStatus.FINISHED)
    assert record(manager.store, run_id) == record(calm.store, alone)
    manager.close()
    calm.close()


# ---- F5: not enough memory -----------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_too_large_for_memory_fails_and_the_server_continues(tmp_path, tiny_settings):
    settings = tmp_path / "settings.json"
    settings.write_text(
        json.dumps(
            {
                k: str(v) if isinstance(v, Path) else v
                for k, v in flatten(configured(tiny_settings)).items()
            }
        )
    )
    process = another_process(
        """
        import json, resource, sys
        import torch
        from grpo_core.config import nest, parse
        from grpo_core.runs.manager import RunManager
        from grpo_core.store import Store
        from grpo_core.training.trainer import train
        from grpo_core.types import RunStatus
        import time
        torch.set_num_threads(1)
        flat = json.loads(open(sys.argv[2]).read())
        manager = RunManager(Store(sys.argv[1]), train)
        def run(**more):
            fields = {k.replace("__", "."): v for k, v in more.items()}
            run_id = manager.start(parse(nest(flat | fields)))
            while manager.store.run(run_id).status.is_live: time.sleep(.02)
            return manager.store.run(run_id)
        assert run().status == "finished"
        used = int(open("/proc/self/statm").read().split()[0]) * 4096
        resource.setrlimit(resource.RLIMIT_AS, (used + 120_000_000, resource.RLIM_INFINITY))
        big = run(
            train__prompts_per_step=512,
            train__group_size=256,
            train__max_new_tokens=64,
            task__heldout_size=0,
        )
        print(big.status, "|", big.error.splitlines()[0])
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        print(run().status)
        manager.close()
    """,
        tmp_path / "runs.sqlite",
        settings,
    )
    out, err = process.communicate(timeout=120)
    lines = out.strip().splitlines()
    assert len(lines) == 2, out + err
    assert lines[0].startswith("failed |"), out + err
    assert "memory" in lines[0].lower()
    assert "Lower" in lines[0] or "lower" in lines[0]
    assert lines[1] == "finished"


# ---- F6: numbers that are none -------------------------------------------------------------------


class Poison:
    """A train() whose model gives one NaN: in a forward pass or in a gradient."""

    def __init__(self, where: str, monkeypatch):
        self.where, self.armed, self.before = where, False, None
        import grpo_core.training.trainer as trainer

        load = trainer.load_policy

        def poisoned(*arguments):
            policy = load(*arguments)
            self.model = policy.model
            if where == "gradient":
                policy.model.model.layers[1].mlp.up_proj.weight.register_hook(self._gradient)
            else:
                policy.model.lm_head.register_forward_hook(self._logits)
                policy.model.model.norm.register_forward_hook(self._logits)
            return policy

        monkeypatch.setattr(trainer, "load_policy", poisoned)

    def _gradient(self, gradient):
        if self.armed:
            self.armed = False
            return gradient * torch.nan

    def _logits(self, module, inputs, output):
        if self.armed and torch.is_grad_enabled():
            self.armed = False
            return output * (torch.inf if self.where == "logprob" else torch.nan)

    def weights(self):
        return {n: p.detach().clone() for n, p in self.model.named_parameters()}


@pytest.mark.parametrize(
    ("where", "named"),
    [
        ("gradient", r"model\.layers\.1\.mlp\.up_proj\.weight"),
        ("loss", "loss"),
        ("logprob", "loss|weight"),
    ],
)
def test_a_nan_is_refused_by_name_and_skipped_only_on_request(
    manager, tiny_settings, monkeypatch, where, named
):
    poison = Poison(where, monkeypatch)
    run_id = manager.start(configured(tiny_settings), conditions="step = 3")
    wait_for(manager, run_id, RunStatus.PAUSED)
    manager.set_breakpoints(run_id, "")
    before, poison.armed = poison.weights(), True
    manager.step(run_id)
    run = until(
        lambda: (
            (r := manager.store.run(run_id)).status is RunStatus.PAUSED
            and "refused" in (r.error or "")
            and r
        )
    )
    assert re.search(named, run.error)
    assert "skip" in run.error
    assert all(torch.equal(w, poison.weights()[n]) for n, w in before.items())
    assert run.steps_done == 2
    manager.resume(run_id)
    wait_for(manager, run_id, RunStatus.FINISHED)
    steps = manager.store.steps(run_id)
    assert [s["num_updates"] for s in steps] == [1, 1, 0, 1, 1, 1]
    assert steps[2]["loss"] is None
    assert steps[3]["loss"] is not None


# ---- F7: a grader that cannot score --------------------------------------------------------------


def test_more_than_half_null_scores_wait_for_a_person_once(manager, tiny_settings, monkeypatch):
    from dataclasses import replace

    import grpo_core.rubric.criteria as criteria

    check = criteria.CHECKS["format"]
    monkeypatch.setitem(
        criteria.CHECKS, "format", replace(check, score=lambda *_: None)
    )  # a grader that can score nothing, as one whose judge is away
    config = parse(
        nest(
            {
                **flatten(configured(tiny_settings)),
                "rubric.name": "custom",
                "rubric.criteria": [{"name": "away", "check": "format", "weight": 1}],
            }
        )
    )
    run_id = manager.start(config)
    run = wait_for(manager, run_id, RunStatus.PAUSED)
    assert "8 of 8 completions could not be scored (null: away 8 times)" in run.error
    assert "away gave no reason" in run.error
    assert run.steps_done == 0
    manager.resume(run_id)
    wait_for(manager, run_id, RunStatus.FINISHED)  # it does not ask again at every step
    assert [s["unscored_frac"] for s in manager.store.steps(run_id)] == [1.0] * 6


# ---- F8: the thread dies -------------------------------------------------------------------------


def test_a_dead_training_thread_leaves_a_traceback_and_the_next_run_starts(manager, tiny_settings):
    run_id = manager.start(configured(tiny_settings, **{"train.steps": 10_000}))
    until(lambda: manager.store.run(run_id).steps_done >= 1)
    # An exception between any two instructions of the thread, as a bug in C code or a kill of the
    # thread would cause.
    [thread] = manager._threads

    thrown = [0.0]

    def dead() -> bool:
        # Again after a while: Python swallows an exception inside a finaliser, and the thread lives
        # on. Not at once, which would hit the recording of the first one.
        if time.monotonic() - thrown[0] > 0.7:
            thrown[0] = time.monotonic()
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit)
            )
        return not manager.store.run(run_id).status.is_live

    until(dead)
    run = manager.store.run(run_id)
    assert run.status is RunStatus.FAILED
    assert "Traceback" in run.error
    again = manager.start(configured(tiny_settings))
    wait_for(manager, again, RunStatus.FINISHED)


# ---- F15: nothing is left behind -----------------------------------------------------------------


def open_files() -> Counter[str]:
    """How often each file is open in this process."""
    found: Counter[str] = Counter()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found[re.sub(r"\d+", "", os.readlink(f"/proc/self/fd/{name}"))] += 1
    return found


@pytest.mark.slow
def test_many_runs_leave_no_thread_file_or_connection_behind(manager, tiny_settings):
    config = configured(tiny_settings, **{"train.steps": 2, "task.heldout_size": 0})

    def cycle() -> None:
        wait_for(manager, manager.start(config), RunStatus.FINISHED)

    for _ in range(3):
        cycle()
    time.sleep(0.3)
    before = (threading.active_count(), open_files())
    for _ in range(10):
        cycle()
    until(lambda: threading.active_count() <= before[0])
    more = open_files() - before[1]
    # The store keeps as many reading connections as threads once read at the same moment: at most
    # those of this thread, the trainer and the heartbeat.
    assert all(".sqlite" in name and n <= 2 for name, n in more.items()), more
