"""Faults that really happen: killed processes, full disks, damaged files, no memory, numbers that are none. F1-F15 of the promises.

The short selection runs with every test run; `pytest -m faults` adds the rest, `python -m benchmarks.chaos` is the long form.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from test_control import wait_for
from test_resume import configured, record

from grpo_core.cli import main
from grpo_core.config import flatten, nest, parse
from grpo_core.runs import RunManager
from grpo_core.store import Store
from grpo_core.trainer import train
from grpo_core.types import RunStatus

pytestmark = pytest.mark.faults
ROOT = Path(__file__).parent.parent
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@pytest.fixture
def manager(tmp_path):
    manager = RunManager(Store(tmp_path / "runs.sqlite"), train, device="none")
    yield manager
    manager.close()


def another_process(code: str, *arguments: object, **options) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env=ENV, cwd=ROOT, **options)


def until(ask, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not (found := ask()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert found, "it did not happen in time"
    return found


# ---- F1, F2: killed at any instant --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("variant", "kills"), [("plain", 5), pytest.param("two updates", 5, marks=pytest.mark.long), pytest.param("trust region", 5, marks=pytest.mark.long)])
def test_a_run_killed_at_random_instants_ends_with_the_rows_of_one_that_nobody_disturbed(variant, kills):
    done = subprocess.run([sys.executable, "-m", "benchmarks.chaos", "--kills", str(kills), "--variants", variant], env=ENV, cwd=ROOT, capture_output=True,
                          text=True, timeout=170)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"| {variant} | {kills} |" in done.stdout
    assert "| none |" in done.stdout


# ---- F3: see test_resume.py (cut, flipped, gone, while saving) ------------------------------------------------------------


# ---- F4: disk full --------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 20 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Take all the space that is left."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (2**20, 4096, 1):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)) == size:
                    pass
    return ballast


@pytest.mark.parametrize("kind", ["record", "checkpoint"])
def test_on_a_full_disk_the_run_waits_says_what_it_needs_and_goes_on_once_there_is_room(small_disk, tiny_settings, kind, tmp_path):
    every = 0 if kind == "record" else 2
    config = configured(tiny_settings, **{"train.steps": 30, "train.checkpoint_every": every, "train.token_records": 0, "train.checkpoint_keep_every": 0})
    calm = RunManager(Store(tmp_path / "calm.sqlite"), train)
    alone = calm.start(config)
    wait_for(calm, alone, RunStatus.FINISHED)

    manager = RunManager(Store(small_disk / "runs.sqlite"), train)
    run_id = manager.start(config, conditions="step = 3")
    wait_for(manager, run_id, RunStatus.PAUSED)
    manager.set_breakpoints(run_id, "")
    ballast = fill(small_disk)
    manager.resume(run_id)
    waits = until(lambda: ((r := manager.store.run(run_id)).status is RunStatus.PAUSED and "disk is full" in (r.error or "")) or ("MiB are free" in (r.error or "") and r))
    assert waits
    reason = manager.store.run(run_id).error
    assert "MiB" in reason
    assert "Resume" in reason
    assert sqlite3.connect(small_disk / "runs.sqlite").execute("PRAGMA integrity_check").fetchone() == ("ok",)
    ballast.unlink()
    manager.resume(run_id)
    wait_for(manager, run_id, RunStatus.FINISHED)
    assert record(manager.store, run_id) == record(calm.store, alone)
    manager.close()
    calm.close()


# ---- F5: not enough memory ------------------------------------------------------------------------------------------------


def test_a_run_that_does_not_fit_the_memory_fails_in_one_line_and_the_server_lives_on(tmp_path, tiny_settings):
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps({k: str(v) if isinstance(v, Path) else v for k, v in flatten(configured(tiny_settings)).items()}))
    process = another_process("""
        import json, resource, sys
        import torch
        from grpo_core.config import nest, parse
        from grpo_core.runs import RunManager
        from grpo_core.store import Store
        from grpo_core.trainer import train
        from grpo_core.types import RunStatus
        import time
        torch.set_num_threads(1)
        flat = json.loads(open(sys.argv[2]).read())
        manager = RunManager(Store(sys.argv[1]), train)
        def run(**more):
            run_id = manager.start(parse(nest(flat | {k.replace("__", "."): v for k, v in more.items()})))
            while manager.store.run(run_id).status.is_live: time.sleep(.02)
            return manager.store.run(run_id)
        assert run().status == "finished"
        used = int(open("/proc/self/statm").read().split()[0]) * 4096
        resource.setrlimit(resource.RLIMIT_AS, (used + 120_000_000, resource.RLIM_INFINITY))
        big = run(train__prompts_per_step=512, train__group_size=256, train__max_new_tokens=64, task__heldout_size=0)
        print(big.status, "|", big.error.splitlines()[0])
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        print(run().status)
        manager.close()
    """, tmp_path / "runs.sqlite", settings)
    out, err = process.communicate(timeout=120)
    lines = out.strip().splitlines()
    assert len(lines) == 2, out + err
    assert lines[0].startswith("failed |"), out + err
    assert "memory" in lines[0].lower()
    assert "Lower" in lines[0] or "lower" in lines[0]
    assert lines[1] == "finished"


# ---- F6: numbers that are none --------------------------------------------------------------------------------------------


class Poison:
    """A train() whose model once has a number that is none: in a forward pass (so in log-probabilities and loss) or in a gradient."""

    def __init__(self, where: str, monkeypatch):
        self.where, self.armed, self.before = where, False, None
        import grpo_core.trainer as trainer
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


@pytest.mark.parametrize(("where", "named"), [("gradient", r"model\.layers\.1\.mlp\.up_proj\.weight"), ("loss", "loss"), ("logprob", "loss|weight")])
def test_a_number_that_is_none_is_refused_named_and_skipped_only_when_a_person_says_so(manager, tiny_settings, monkeypatch, where, named):
    poison = Poison(where, monkeypatch)
    run_id = manager.start(configured(tiny_settings), conditions="step = 3")
    wait_for(manager, run_id, RunStatus.PAUSED)
    manager.set_breakpoints(run_id, "")
    before, poison.armed = poison.weights(), True
    manager.step(run_id)
    run = until(lambda: (r := manager.store.run(run_id)).status is RunStatus.PAUSED and "refused" in (r.error or "") and r)
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


# ---- F7: a grader that cannot score ---------------------------------------------------------------------------------------


def test_more_than_half_null_scores_wait_for_a_person_once(manager, tiny_settings, monkeypatch):
    from dataclasses import replace

    import grpo_core.rubric.criteria as criteria

    check = criteria.CHECKS["format"]
    monkeypatch.setitem(criteria.CHECKS, "format", replace(check, score=lambda *_: None))  # a grader that can score nothing, as one whose judge is away
    config = parse(nest({**flatten(configured(tiny_settings)), "rubric.name": "custom", "rubric.criteria": [{"name": "away", "check": "format", "weight": 1}]}))
    run_id = manager.start(config)
    run = wait_for(manager, run_id, RunStatus.PAUSED)
    assert "8 of 8 completions could not be scored (null: away 8 times)" in run.error
    assert run.steps_done == 0
    manager.resume(run_id)
    wait_for(manager, run_id, RunStatus.FINISHED)  # it does not ask again at every step
    assert [s["unscored_frac"] for s in manager.store.steps(run_id)] == [1.0] * 6


# ---- F8: the thread dies --------------------------------------------------------------------------------------------------


def test_a_training_thread_that_dies_leaves_a_failed_run_with_its_traceback_and_the_next_run_starts(manager, tiny_settings):
    run_id = manager.start(configured(tiny_settings, **{"train.steps": 10_000}))
    until(lambda: manager.store.run(run_id).steps_done >= 1)
    # An exception out of nowhere, between any two instructions of the thread: what a bug in C code or a kill of the thread looks like.
    thread = manager._thread
    started = time.monotonic()
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))
    run = wait_for(manager, run_id, RunStatus.FAILED, seconds=5)
    assert time.monotonic() - started < 2.5
    assert "Traceback" in run.error
    again = manager.start(configured(tiny_settings))
    wait_for(manager, again, RunStatus.FINISHED)


# ---- F9: signals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signalled_command_saves_a_checkpoint_and_its_status_and_resumes_to_the_same_numbers(tiny_settings, tmp_path, number):
    config = configured(tiny_settings, **{"train.steps": 100_000, "train.checkpoint_every": 100_000, "train.eval_every": 0, "task.heldout_size": 0})
    (tmp_path / "config.json").write_text(config.model_dump_json())
    db = tmp_path / "runs.sqlite"
    process = subprocess.Popen([sys.executable, "-m", "grpo_core", "train", "--db", str(db), "--config", str(tmp_path / "config.json"), "--json"],
                               stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=ENV, cwd=ROOT)
    until(lambda: db.exists() and (rows := Store(db).runs()) and rows[0].steps_done >= 3, 60)
    process.send_signal(number)
    asked = time.monotonic()
    out, _ = process.communicate(timeout=10)
    assert time.monotonic() - asked < 10
    store = Store(db)
    run = store.runs()[0]
    assert json.loads(out.strip().splitlines()[-1])["status"] == run.status == "stopped"
    assert [c.step for c in store.checkpoints(run.id)] == [run.steps_done]


# ---- F10: two servers -----------------------------------------------------------------------------------------------------


def test_of_two_servers_on_one_file_one_trains_the_other_looks_and_takes_over_when_the_first_was_killed(tmp_path, tiny_settings):
    config = configured(tiny_settings, **{"train.steps": 100_000, "train.checkpoint_every": 2, "train.eval_every": 0, "task.heldout_size": 0})
    (tmp_path / "config.json").write_text(config.model_dump_json())
    db = tmp_path / "runs.sqlite"
    first = another_process("""
        import json, sys, time
        from grpo_core.config import parse
        from grpo_core.runs import RunManager
        from grpo_core.store import Store
        from grpo_core.trainer import train
        manager = RunManager(Store(sys.argv[1]), train)
        config = parse(json.loads(open(sys.argv[2]).read()))
        manager.start(config, "going"); manager.start(config.model_copy(update={"train": config.train.model_copy(update={"steps": 3})}), "waiting")
        time.sleep(600)
    """, db, tmp_path / "config.json")
    try:
        store = until(lambda: db.exists() and Store(db).runs() and Store(db), 60)
        until(lambda: any(r.steps_done >= 5 for r in store.runs()), 60)
        second = RunManager(store, train)
        waiting, going = store.runs()
        assert (going.name, going.status, waiting.status) == ("going", "running", "queued")
        from grpo_core.errors import StoreBusy, StudioError
        with pytest.raises(StoreBusy):
            second.start(config)
        with pytest.raises(StudioError, match="in another process"):
            second.pause(going.id)
        assert second.recover() == []
    finally:
        first.kill()
        first.communicate()
    assert until(second.recover) == [going.id]
    wait_for(second, waiting.id, RunStatus.FINISHED)  # the queue survived its server
    assert store.run(going.id).status is RunStatus.INTERRUPTED
    second.resume(going.id)
    kept = store.run(going.id).steps_done
    until(lambda: store.run(going.id).steps_done > kept + 2)
    second.stop(going.id)
    wait_for(second, going.id, RunStatus.STOPPED)
    assert [s["step"] for s in store.steps(going.id)] == list(range(1, store.run(going.id).steps_done + 1))
    second.close()


# ---- F11, F12: see test_store.py (older and newer versions, damaged files) --------------------------------------------------


# ---- F14: what the run was made from vanishes -------------------------------------------------------------------------------


def test_a_run_goes_on_when_its_model_vanishes_and_resume_says_what_is_missing(manager, tiny_settings, tmp_path):
    folder = shutil.copytree(str(tiny_settings["model.name"]), tmp_path / "model")
    from grpo_core.policy import check_model

    manager._check = lambda config: check_model(config.model)
    config = configured(tiny_settings, **{"model.name": str(folder), "train.steps": 12})
    run_id = manager.start(config, conditions="step = 4")
    wait_for(manager, run_id, RunStatus.PAUSED)
    shutil.rmtree(folder)
    manager.set_breakpoints(run_id, "step = 8")
    manager.resume(run_id)
    run = until(lambda: (r := manager.store.run(run_id)).status is RunStatus.PAUSED and r.steps_done == 7 and r)
    manager.stop(run_id)
    run = wait_for(manager, run_id, RunStatus.STOPPED)
    assert run.steps_done == 7
    with pytest.raises(Exception, match="there is no such folder"):
        manager.resume(run_id)
    assert manager.store.run(run_id).status is RunStatus.STOPPED


# ---- F15: nothing is left behind --------------------------------------------------------------------------------------------


def open_files() -> Counter[str]:
    """How often each file is open in this process."""
    found: Counter[str] = Counter()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found[re.sub(r"\d+", "", os.readlink(f"/proc/self/fd/{name}"))] += 1
    return found


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
    time.sleep(0.3)
    assert threading.active_count() <= before[0]
    more = open_files() - before[1]
    # As many reading connections are kept as threads once read in the same moment: at most those of this thread, trainer and heartbeat.
    assert all(".sqlite" in name and n <= 2 for name, n in more.items()), more


# ---- doctor -----------------------------------------------------------------------------------------------------------------


def test_the_doctor_finds_what_killed_processes_and_damage_left_and_mends_only_when_asked(manager, tiny_settings, tmp_path, capsys):
    store = manager.store
    run_id = manager.start(configured(tiny_settings))
    wait_for(manager, run_id, RunStatus.FINISHED)
    db = str(store.path)
    assert main(["doctor", "--db", db]) == 0, capsys.readouterr().out
    folder = store.checkpoint_folder(run_id)
    (folder / "step-00000002" / "policy.safetensors").write_bytes(b"short")  # damaged
    shutil.copytree(folder / "step-00000004", folder / "step-00000099")  # no row
    shutil.copytree(folder, folder.parent / "20200101-000000-abcd")  # no run
    (folder / ".step-00000100.part").mkdir()  # killed while saving
    (folder.parent / "my own notes").mkdir()  # not ours
    code = "import sys; from grpo_core.store import Store; from grpo_core.config import RunConfig; Store(sys.argv[1]).create_run(RunConfig(), 'lost', status='running')"
    assert another_process(code, db).wait() == 0
    capsys.readouterr()
    assert main(["doctor", "--db", db, "--json"]) == 1
    said = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    wrong = [f["what"] for f in said["findings"] if f["wrong"]]
    assert said["wrong"] == 5, wrong
    for part in ("no process works on it", "policy.safetensors is not as it was saved", "step-00000099", "20200101-000000-abcd", ".step-00000100.part"):
        assert any(part in what for what in wrong), part
    assert (folder / "step-00000099").exists()
    assert main(["doctor", "--db", db, "--fix"]) == 0
    assert main(["doctor", "--db", db]) == 0
    assert sorted(p.name for p in folder.parent.iterdir()) == [run_id, "my own notes"]
    assert [c.step for c in store.checkpoints(run_id)] == [4, 6]
    assert store.runs()[0].status is RunStatus.INTERRUPTED
