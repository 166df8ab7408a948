"""Several processes and threads on one store: nothing is lost, nothing is left open, one writes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from stored import FINISHED, group, raw, recorded, rollout

from grpo_core.config import RunConfig
from grpo_core.errors import StudioError
from grpo_core.store import Recorder, Store, schema
from grpo_core.store.connection import Writer
from grpo_core.types import (
    GroupsScored,
    ModelLoaded,
    RunStatus,
    StepCompleted,
    StepMetrics,
)

ROOT = Path(__file__).parents[2]


# ---- several processes and threads ---------------------------------------------------------------


OTHERS_IMPORTS = """
import sys
from grpo_core.config import RunConfig
from grpo_core.store import Recorder, Store
from grpo_core.types import *
from stored import *
"""


def other_process(code: str, *args: object, **options: object) -> subprocess.Popen:
    """Python that may use the helpers of stored.py; its output is a stream of lines."""
    path = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    return subprocess.Popen(
        [sys.executable, "-c", OTHERS_IMPORTS + code, *map(str, args)],
        text=True,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": path},
        **options,
    )


ENDLESS_WRITER = """
store = Store(sys.argv[1])
run_id = store.create_run(RunConfig(), "killed")
print(run_id, flush=True)
with Recorder(store, run_id) as recorder:
    recorder(ModelLoaded({}))
    for step in range(1, 10**9):
        groups = [group(*(rollout("x" * 1300) for _ in range(8))) for _ in range(4)]
        recorder(GroupsScored(step, tuple(groups)))
        print("groups", step, flush=True)
        recorder(StepCompleted(step, StepMetrics(loss=1.0), {"a": 1.0}))
        print("step", step, flush=True)
"""


@pytest.mark.slow
def test_kill_9_at_any_instant_loses_no_acknowledged_event(store: Store) -> None:
    for seed in range(5):
        writer = other_process(ENDLESS_WRITER, store.path)
        run_id = writer.stdout.readline().strip()
        said = [writer.stdout.readline()]  # at least one
        time.sleep(random.Random(seed).uniform(0, 0.3))
        writer.send_signal(signal.SIGKILL)
        said += writer.stdout.readlines()
        writer.wait()
        acknowledged = {
            (kind, int(step))
            for kind, step in (line.split() for line in said if line.endswith("\n"))
        }

        assert store.cursor(run_id).status is RunStatus.RUNNING
        assert store.recover() == [run_id]
        run = store.run(run_id)
        assert (run.status, run.ended_at) == (RunStatus.INTERRUPTED, run.heartbeat_at)
        assert raw(store, "PRAGMA integrity_check") == [("ok",)]
        assert raw(store, "PRAGMA foreign_key_check") == []
        steps = [s["step"] for s in store.steps(run_id, 10**9)]
        with_groups = [
            row[0]
            for row in raw(
                store,
                f"SELECT step FROM groups WHERE run_id = '{run_id}' GROUP BY step ORDER BY step",
            )
        ]
        assert steps == list(range(1, len(steps) + 1))
        assert acknowledged <= {("step", s) for s in steps} | {("groups", s) for s in with_groups}
        assert all(len(store.group_ids(run_id, s)) == 4 for s in with_groups)  # whole, or not there
        assert {len(g.rollouts) for g in store.iter_groups(run_id)} == {8}


@pytest.mark.slow
def test_a_second_process_may_read_but_not_write_during_a_run(store: Store) -> None:
    run_id = store.create_run(RunConfig(), "mine")  # queued: no recorder yet, but already ours
    tries = """
from grpo_core.errors import StoreBusy
store = Store(sys.argv[1])
assert store.recover() == []
assert store.run(sys.argv[2]).status.is_live
writes = (
    lambda: store.rename(sys.argv[2], "x"),
    lambda: store.create_run(RunConfig(), "x"),
    lambda: store.delete(sys.argv[2]),
)
for write in writes[:int(sys.argv[3])]:
    try:
        write()
    except StoreBusy as error:
        print(error)
"""
    busy = (
        f"--db '{store.path}' is in use: another process is writing to it. "
        "Wait until its run has ended, or name another file with --db."
    )
    assert other_process(tries, store.path, run_id, 3).communicate()[0].splitlines() == [busy] * 3
    with Recorder(store, run_id) as recorder:
        recorder(ModelLoaded({}))
        assert other_process(tries, store.path, run_id, 1).communicate()[0].splitlines() == [busy]
        assert store.recover() == []  # nor do we adopt our own
    assert store.recover() == []
    store.set_status(run_id, FINISHED)
    assert (
        other_process("Store(sys.argv[1]).rename(sys.argv[2], 'theirs')", store.path, run_id).wait()
        == 0
    )
    assert store.run(run_id).name == "theirs"


def test_a_forked_worker_does_not_keep_a_killed_servers_runs_alive(store: Store) -> None:
    server = other_process(
        """
import os, time
store = Store(sys.argv[1])
run_id = store.create_run(RunConfig(), "forked", status=RunStatus.RUNNING)
worker = os.fork()
if worker == 0:
    time.sleep(60)
    os._exit(0)
print(run_id, worker, flush=True)
time.sleep(60)
""",
        store.path,
    )
    run_id, worker = server.stdout.readline().split()
    try:
        assert store.recover() == []
        server.kill()
        server.wait()
        until = time.monotonic() + 60
        while not (recovered := store.recover()) and time.monotonic() < until:
            time.sleep(0.05)  # until the worker has got so far as to let go of what it inherited
        assert recovered == [run_id]
    finally:
        os.kill(int(worker), signal.SIGKILL)


def test_an_orphan_is_deleted_but_a_live_run_is_not(store: Store) -> None:
    orphan = (
        other_process("print(Store(sys.argv[1]).create_run(RunConfig(), 'orphan'))", store.path)
        .communicate()[0]
        .strip()
    )
    live = store.create_run(RunConfig(), "live", status=RunStatus.RUNNING)
    with pytest.raises(StudioError, match="Stop it first"):
        store.delete(live)
    store.delete(orphan)
    assert [run.id for run in store.runs()] == [live]
    store.set_status(live, RunStatus.STOPPED)


@pytest.mark.slow
def test_eight_threads_read_while_one_writes_without_losing_a_row(store: Store) -> None:
    run_id = store.create_run(RunConfig(), "busy", status=RunStatus.RUNNING)
    acknowledged, errors, reads = [0], [], [0] * 8
    done = threading.Event()

    def read(i: int) -> None:
        try:
            while not done.is_set():
                at_least = acknowledged[0]
                steps = store.steps(run_id, 10**6)
                assert [s["step"] for s in steps] == list(range(1, len(steps) + 1))
                assert len(steps) >= at_least
                page = store.groups(run_id, search="x", limit=5)
                assert page.total >= at_least
                assert all(len(g.rewards) == 2 for g in page.rows)
                store.cursor(run_id), store.runs(), store.runs_token(), store.metrics(run_id)
                reads[i] += 1
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=read, args=(i,)) for i in range(8)]
    with Recorder(store, run_id) as recorder:
        for thread in threads:
            thread.start()
        for step in range(1, 61):
            recorder(GroupsScored(step, (group(rollout("x"), rollout("y")),)))
            recorder(StepCompleted(step, StepMetrics(loss=1.0), {"a": 1.0}))
            acknowledged[0] = step
        done.set()
        for thread in threads:
            thread.join()
    store.set_status(run_id, FINISHED)
    assert not errors
    assert min(reads) > 0
    assert len(store.steps(run_id)) == store.groups(run_id).total == 60


def test_four_threads_writing_through_one_store_lose_nothing(store: Store) -> None:
    """One connection shared without a lock silently loses rows: 742 of 800 were left once."""
    ids = [store.create_run(RunConfig(), str(i)) for i in range(4)]

    def write(run_id: str) -> None:
        with Recorder(store, run_id) as recorder:
            for step in range(1, 51):
                recorder(StepCompleted(step, StepMetrics(), {"a": 1.0, "b": 2.0}))
                recorder.heartbeat()
        store.set_status(run_id, FINISHED)

    threads = [threading.Thread(target=write, args=(run_id,)) for run_id in ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(store.metrics(run_id)["b"]) for run_id in ids] == [50] * 4


def test_the_file_is_locked_exactly_while_a_writer_is_open(store: Store) -> None:
    def held() -> bool:
        return Writer.of(store.path).connection is not None

    other = Store(store.path)  # of the same process: shares the writer
    with store.writing(), other.writing():
        assert held()
    assert not held()
    run_id = store.create_run(RunConfig(), "a")
    assert held()
    other.set_status(run_id, RunStatus.RUNNING)
    other.set_status(run_id, RunStatus.RUNNING)
    assert held()
    other.set_status(run_id, FINISHED)
    assert not held()


@pytest.mark.slow
def test_a_hundred_runs_leave_no_open_file_behind(store: Store) -> None:
    recorded(store)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for _ in range(100):
        recorded(store, ModelLoaded({}))
    after = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    assert after <= before


def test_a_closed_store_is_readable_without_its_log_file(
    tmp_path: Path,
) -> None:
    other_process(
        "recorded(Store(sys.argv[1]), StepCompleted(1, StepMetrics(loss=2.0), {}))",
        tmp_path / "a.db",
    ).wait()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.db", "a.db.lock"]
    store = Store(tmp_path / "a.db")
    assert store.steps(store.runs()[0].id)[0]["loss"] == 2.0


@pytest.mark.slow
def test_a_file_that_another_process_just_made_opens_at_once(tmp_path, monkeypatch):
    # The first look finds an empty file; then the other process has made it, and goes on writing.
    db, look, looks = tmp_path / "runs.sqlite", schema._is_current, []
    writer = other_process(
        "with Store(sys.argv[1]).writing():\n    print('made', flush=True)\n    sys.stdin.read()",
        db,
        stdin=subprocess.PIPE,
    )

    def first_empty(path, newest):
        looks.append(path)
        return len(looks) > 1 and look(path, newest)

    try:
        assert writer.stdout.readline() == "made\n"
        monkeypatch.setattr(schema, "_is_current", first_empty)
        started = time.monotonic()
        assert Store(db).runs() == []
        assert time.monotonic() - started < 3
    finally:
        writer.kill()
        writer.communicate()
