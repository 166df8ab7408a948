"""A run waits while its record cannot be written: a lock of another program, a file that is away.

The full disk: tests/training/test_faults.py.
"""

from __future__ import annotations

import errno
import os
import resource
import sqlite3
import time
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from processes import another_process, until
from test_runs import Script, config, wait_for

from grpo_core.errors import DiskFull, StoreError, StoreLocked
from grpo_core.rubric import RunningStd
from grpo_core.runs import recording
from grpo_core.runs.manager import RunManager
from grpo_core.store import Store
from grpo_core.types import Checkpointed, RunStatus

pytestmark = pytest.mark.faults


@pytest.fixture
def script():
    return Script()


@pytest.fixture
def manager(tmp_path, script, monkeypatch):
    monkeypatch.setattr("grpo_core.store.connection.BUSY_SECONDS", 0.05)
    monkeypatch.setattr(recording, "RETRY_SECONDS", 0.02)
    manager = RunManager(Store(tmp_path / "runs.sqlite"), script)
    yield manager
    manager.close()


@contextmanager
def locked(path: Path):
    """Another program has the file for itself."""
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        conn.execute("BEGIN EXCLUSIVE")
        yield
        conn.execute("ROLLBACK")


def going(manager: RunManager, script: Script, steps: int = 6) -> str:
    """A run that has recorded one step."""
    run_id = manager.start(config(steps=steps))
    script.go.release(1)
    until(lambda: manager.store.run(run_id).steps_done == 1)
    return run_id


@pytest.mark.slow
def test_a_locked_file_holds_the_run_and_it_goes_on_by_itself(manager, script, caplog):
    run_id, store = going(manager, script), manager.store
    with locked(store.path):
        script.go.release(5)
        until(lambda: "locked by another program" in store.trouble)
        time.sleep(0.5)
        assert store.run(run_id).status is RunStatus.RUNNING
        assert store.run(run_id).steps_done == 1
    wait_for(manager, run_id, RunStatus.FINISHED)
    assert [s["step"] for s in store.steps(run_id)] == [1, 2, 3, 4, 5, 6]
    assert not store.trouble
    assert caplog.text.count("goes on by itself") == 1
    assert "Traceback" not in caplog.text


@pytest.mark.slow
def test_stop_of_a_held_run_ends_it_as_stopped(manager, script):
    run_id, store = going(manager, script), manager.store
    queued = manager.start(config())
    with locked(store.path):
        script.go.release(1)
        until(lambda: store.trouble)
        manager.stop(run_id)
        time.sleep(0.3)
        assert store.run(run_id).steps_done == 1
    wait_for(manager, run_id, RunStatus.STOPPED)
    assert store.run(run_id).steps_done == 2  # what could not be written before is not lost
    script.go.release(2)
    wait_for(manager, queued, RunStatus.FINISHED)


@pytest.mark.slow
def test_a_checkpoint_of_a_held_run_drops_none_before_it_is_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr("grpo_core.store.connection.BUSY_SECONDS", 0.05)
    monkeypatch.setattr(recording, "RETRY_SECONDS", 0.02)
    went_on = []

    def saves(config, emit, control):
        emit(Checkpointed(1, str(tmp_path / "step-1"), 1, "0" * 64))
        while not control.stop_requested:
            time.sleep(0.01)
        emit(Checkpointed(2, str(tmp_path / "step-2"), 1, "0" * 64, dropped=(1,)))
        went_on.append("and would delete the folder of step 1")

    manager = RunManager(Store(tmp_path / "runs.sqlite"), saves)
    run_id, store = manager.start(config()), manager.store
    until(lambda: store.checkpoints(run_id))
    with locked(store.path):
        manager.stop(run_id)
        time.sleep(0.5)
        assert not went_on
    wait_for(manager, run_id, RunStatus.STOPPED)
    assert [c.step for c in store.checkpoints(run_id)] == [1, 2]
    manager.close()


def test_requests_of_a_page_are_refused_soon_and_change_nothing(manager, script):
    run_id, store = going(manager, script), manager.store
    queued = manager.start(config())
    with locked(store.path):
        asked = time.monotonic()
        for request in (
            lambda: manager.start(config(), "new", "kl > 1"),
            lambda: manager.stop(queued),
            lambda: store.rename(run_id, "new"),
            lambda: manager.set_breakpoints(run_id, "kl > 2"),
        ):
            with pytest.raises(StoreLocked, match="Close that program"):
                request()
        manager.pause(run_id)  # commands reach the run, although nobody can record them
        manager.resume(run_id)
        assert time.monotonic() - asked < 30
    script.go.release(7)
    wait_for(manager, queued, RunStatus.FINISHED)  # it was neither stopped nor lost
    assert {r.name for r in store.runs()} == {store.run(run_id).name}
    assert store.run(run_id).breakpoints == ""


def test_nobody_adopts_a_run_whose_heartbeat_cannot_be_written(manager, script):
    run_id, store = going(manager, script), manager.store
    with locked(store.path):
        code = "import sys; from grpo_core.store import Store; print(Store(sys.argv[1]).recover())"
        out, _ = another_process(code, store.path).communicate(timeout=120)
        assert out.strip() == "[]"
    script.go.release(5)
    wait_for(manager, run_id, RunStatus.FINISHED)


@pytest.mark.slow
def test_a_server_of_a_locked_file_starts_and_takes_over_later(manager, tmp_path, script):
    path = tmp_path / "other.sqlite"
    code = (
        "import sys; from grpo_core.store import Store; from grpo_core.config import RunConfig; "
        "print(Store(sys.argv[1]).create_run(RunConfig(), 'killed', status='running'))"
    )
    run_id = another_process(code, path).communicate(timeout=120)[0].strip()
    with locked(path):
        later = RunManager(Store(path), script)
        assert later.recover() == []
        assert "locked" in later.store.trouble
    assert later.recover() == [run_id]
    assert not later.store.trouble
    later.close()


def test_a_run_waits_for_a_file_that_was_moved_away(manager, script, caplog):
    run_id, store = going(manager, script), manager.store
    away = store.path.with_name("away")
    store.path.rename(away)
    script.go.release(5)
    until(lambda: "was deleted or replaced" in store.trouble)
    assert not store.path.exists()  # nothing is made in its place
    away.rename(store.path)
    wait_for(manager, run_id, RunStatus.FINISHED)
    assert [s["step"] for s in store.steps(run_id)] == [1, 2, 3, 4, 5, 6]
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("end", ["", "-wal"])
def test_stop_ends_a_run_whose_file_was_deleted(manager, script, caplog, end):
    run_id = going(manager, script)
    Path(f"{manager.store.path}{end}").unlink()
    script.go.release(1)
    until(lambda: manager.store.trouble)
    manager.stop(run_id)
    until(lambda: not manager.running)
    assert "its record cannot be written" in caplog.text
    assert "Traceback" not in caplog.text
    with pytest.raises(StoreError):
        manager.start(config())


def test_an_idle_server_survives_the_deletion_of_its_file(manager, caplog):
    manager.store.path.unlink()
    for _ in range(3):
        assert manager.recover() == []
    assert caplog.text.count("cannot be opened") == 1
    assert not manager.store.path.exists()


def test_a_used_up_quota_holds_the_run_until_there_is_room(manager, script):
    run_id, store = going(manager, script, 30), manager.store
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    size = Path(f"{store.path}-wal").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    try:
        script.go.release(29)
        until(lambda: "quota" in store.trouble)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    wait_for(manager, run_id, RunStatus.FINISHED)
    assert len(store.steps(run_id)) == 30
    assert store.integrity() == []


def test_a_run_that_could_save_no_checkpoint_ends_before_it_trains(manager, script):
    Path(f"{manager.store.path}.checkpoints").write_text("no folder")
    run_id = manager.start(config())
    wait_for(manager, run_id, RunStatus.FAILED)
    error = manager.store.run(run_id).error
    assert "train.checkpoint_every = 20: no checkpoint can be saved" in error
    assert len(error.splitlines()) == 1
    assert not script.started
    script.go.release(2)
    wait_for(manager, manager.start(config(**{"train.checkpoint_every": 0})), RunStatus.FINISHED)


def test_a_run_without_a_folder_for_its_log_goes_on(manager, script, caplog):
    Path(f"{manager.store.path}.logs").write_text("no folder")
    script.go.release(2)
    wait_for(manager, manager.start(config()), RunStatus.FINISHED)
    assert "no log of this run" in caplog.text
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.EDQUOT, "are free (Disk quota exceeded). Free some space"),
        (errno.EROFS, "cannot be written: Read-only file system. Make the folder writable"),
        (errno.EIO, "cannot be written: Input/output error"),
        (errno.EMFILE, "cannot be written: Too many open files"),
    ],
)
def test_a_checkpoint_that_cannot_be_written_waits_for_a_person(
    tmp_path, monkeypatch, number, says
):
    import torch

    from grpo_core.training import checkpoint

    def fails(path):
        raise OSError(number, os.strerror(number))

    state = checkpoint.Snapshot(3, {"w": torch.ones(9)}, {}, RunningStd(), False, None)
    checkpoint.save(tmp_path, replace(state, step=2))
    monkeypatch.setattr(checkpoint, "sync", fails)
    with pytest.raises(DiskFull) as held:
        checkpoint.save(tmp_path, state)
    assert says in str(held.value)
    assert "press Resume" in str(held.value)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000002"]
