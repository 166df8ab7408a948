"""Stop ends every run: trainers that hang or are stopped by the system, and the queue behind."""

from __future__ import annotations

import contextlib
import os
import signal
import time

import pytest
from processes import ENV, ROOT, another_process, until
from stuck_trainers import hangs

from grpo_core.checkpoint_files import saved_steps
from grpo_core.config import RunConfig, nest, parse
from grpo_core.runs import stop_in_time
from grpo_core.runs.manager import RunManager
from grpo_core.runs.resume import where_to_start
from grpo_core.runs.stop_in_time import Patience
from grpo_core.runs.subprocess_trainer import in_subprocess
from grpo_core.store import Recorder, Store
from grpo_core.training.control import RunControl
from grpo_core.types import Checkpointed, ModelLoaded, RunStatus, StepCompleted, StepMetrics

pytestmark = pytest.mark.faults


def config(**settings) -> RunConfig:
    return parse(nest({"train.steps": 5, **settings}))


@pytest.fixture
def manager(tmp_path, monkeypatch):
    monkeypatch.setattr(stop_in_time, "GRACE_SECONDS", 0.5)
    monkeypatch.setattr("grpo_core.runs.subprocess_trainer.GRACE_SECONDS", 0.5)
    manager = RunManager(Store(tmp_path / "runs.sqlite"), in_subprocess(hangs))
    yield manager
    manager.close()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1], ids=["hangs", "forked and hangs"])
def test_a_stuck_trainer_is_killed_and_the_queue_goes_on(manager, seed):
    stuck = manager.start(config(**{"train.seed": seed}))
    behind = manager.start(config(**{"train.seed": 2}))
    until(lambda: manager.store.run(stuck).steps_done == 1)
    asked = time.monotonic()
    manager.stop(stuck)
    until(lambda: manager.store.run(behind).status is RunStatus.FINISHED, 15)
    assert time.monotonic() - asked < 8
    run = manager.store.run(stuck)
    assert (run.status, run.steps_done) == (RunStatus.STOPPED, 1)
    assert "killed" in run.error
    assert "continue from its last checkpoint" in run.error


@pytest.mark.slow
def test_a_stopped_fork_server_does_not_hold_the_queue(manager):
    from multiprocessing import forkserver

    forkserver.ensure_running()
    server = forkserver._forkserver._forkserver_pid
    os.kill(server, signal.SIGSTOP)
    try:
        held = manager.start(config(**{"train.seed": 2}))
        behind = manager.start(config(**{"train.seed": 2}))
        until(lambda: manager.store.run(held).status is RunStatus.LOADING)
        manager.stop(held)
        until(lambda: manager.store.run(behind).status is RunStatus.FINISHED, 15)
        assert manager.store.run(held).status is RunStatus.STOPPED
    finally:
        if forkserver._forkserver._forkserver_pid == server:  # it was not replaced
            os.kill(server, signal.SIGCONT)


@pytest.mark.slow
def test_a_command_to_a_process_that_does_not_read_is_refused_in_time():
    from multiprocessing import Pipe

    from grpo_core.errors import StudioError
    from grpo_core.runs.command_pipe import CommandPipe

    here, there = Pipe()
    control = RunControl()
    control.forward_to(CommandPipe(here))
    os.set_blocking(here.fileno(), False)
    with contextlib.suppress(BlockingIOError):
        for _ in range(10_000):
            here.send("x" * 1000)
    os.set_blocking(here.fileno(), True)
    with pytest.raises(StudioError, match="takes no commands"):
        control.set_knob("train.temperature", 1.0)
    control.stop()  # is remembered here
    assert control.stop_requested
    there.close()


def test_the_time_to_stop_is_grace_update_and_longest_save():
    patience = Patience(config(), None)
    assert patience.seconds == 9
    # 1e9 parameters x 12 bytes / 1e8 bytes per second = 120 s, until a save was measured
    patience.note(ModelLoaded({"trained_parameters": 10**9}))
    assert patience.seconds == 9 + 120
    patience.note(StepCompleted(1, StepMetrics(update_seconds=4.0), {}))
    patience.note(StepCompleted(2, StepMetrics(update_seconds=3.0), {}))
    patience.note(Checkpointed(2, "", 1, "", (), 30.0))
    patience.note(Checkpointed(4, "", 1, "", (), 20.0))
    assert patience.seconds == 9 + 4 + 30
    assert Patience(config(), 50.0).seconds == 9 + 50
    assert Patience(config(**{"train.checkpoint_every": 0}), 50.0).seconds == 9


def test_the_time_of_saving_is_recorded_and_known_at_resume(store):
    run_id = store.create_run(RunConfig(), "saves")
    with Recorder(store, run_id) as record:
        assert store.saving_seconds(run_id) is None
        record(Checkpointed(1, "a", 1, "0" * 64, (), 2.5))
        record(Checkpointed(2, "b", 1, "0" * 64, (), 1.5))
        record(Checkpointed(3, "c", 1, "0" * 64))
    assert [c.seconds for c in store.checkpoints(run_id)] == [2.5, 1.5, None]
    assert store.saving_seconds(run_id) == 2.5
    store.set_status(run_id, RunStatus.STOPPED)


COMMAND = """
import sys, time
import grpo_core.training.trainer as trainer
from stuck_trainers import hangs
trainer.train = hangs
from grpo_core.cli import main
sys.exit(main(["train", "--db", sys.argv[1], "--set", f"train.seed={sys.argv[2]}"]))
"""


@pytest.mark.slow
def test_a_second_ctrl_c_ends_a_stuck_command_at_once(tmp_path):
    db = tmp_path / "runs.sqlite"
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "tests" / "runs")))
    process = another_process(COMMAND, db, 0, env=ENV | {"PYTHONPATH": path})
    try:
        until(lambda: db.exists() and (rows := Store(db).runs()) and rows[0].steps_done == 1, 60)
        process.send_signal(signal.SIGINT)
        time.sleep(0.7)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=8)
    finally:
        process.kill()
    assert process.returncode == 1
    assert "Traceback" not in err
    [run] = Store(db).runs()
    assert (run.status, run.steps_done) == (RunStatus.STOPPED, 1)
    assert "Ended at once" in run.error


SLOW_SAVE = """
import sys, time
import torch
import grpo_core.training.trainer as trainer
from grpo_core.checkpoint_files import MANIFEST, file_hash
from grpo_core.rubric import RunningStd
from grpo_core.runs import stop_in_time
from grpo_core.training import checkpoint
from grpo_core.types import Checkpointed, ModelLoaded, StepCompleted, StepMetrics

stop_in_time.GRACE_SECONDS = 0.5

def saves(config, emit, control):
    emit(ModelLoaded({}))
    for step in (1, 2):
        emit(StepCompleted(step, StepMetrics(), {}))
        state = checkpoint.Snapshot(step, {"w": torch.ones(9)}, {}, RunningStd(), False, None)
        if step == 2:  # a disk that hangs
            checkpoint.sync = lambda path: (print("saving", flush=True), time.sleep(600))
        path = checkpoint.save(control.folder, state)
        emit(Checkpointed(step, str(path), 1, file_hash(path / MANIFEST)))

trainer.train = saves
from grpo_core.cli import main
sys.exit(main(["train", "--db", sys.argv[1]]))
"""


@pytest.mark.slow
def test_sigterm_while_saving_leaves_the_checkpoint_before(tmp_path):
    db = tmp_path / "runs.sqlite"
    process = another_process(SLOW_SAVE, db)
    try:
        assert process.stdout.readline() == "saving\n"
        asked = time.monotonic()
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=10)
    finally:
        process.kill()
    assert time.monotonic() - asked < 6
    assert "Traceback" not in err
    store = Store(db)
    [run] = store.runs()
    assert (run.status, run.steps_done) == (RunStatus.STOPPED, 2)
    assert "continue from its last checkpoint" in run.error
    assert list(saved_steps(store.checkpoint_folder(run.id))) == [1]
    assert where_to_start(store, run).step == 1
