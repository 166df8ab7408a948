"""Runs on a real Ray: two nodes, one of which dies; a person's commands; nothing left behind."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
from processes import ENV, another_process, until
from trained_runs import configured, record, wait_for

from grpo_core.cluster.address import VARIABLE
from grpo_core.runs.manager import RunManager
from grpo_core.runs.subprocess_trainer import in_subprocess, train_later
from grpo_core.store import Store
from grpo_core.training.trainer import train
from grpo_core.types import LOST, RunStatus

pytest.importorskip("ray.train")
pytestmark = pytest.mark.slow

SECONDS = 120.0  # Ray needs some ten processes; on a busy machine they take their time


@pytest.fixture(scope="module")
def cluster():
    """A Ray cluster of two nodes with one core each."""
    from ray.cluster_utils import Cluster

    from grpo_core.cluster.ray_engine import SETTINGS

    os.environ.update(SETTINGS)
    small = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}
    nodes = Cluster(initialize_head=True, head_node_args=small)
    nodes.small = {k: v for k, v in small.items() if k != "include_dashboard"}
    nodes.second = nodes.add_node(**nodes.small)
    os.environ[VARIABLE] = nodes.address
    yield nodes
    del os.environ[VARIABLE]
    nodes.shutdown()


@pytest.fixture
def manager(tmp_path):
    manager = RunManager(Store(tmp_path / "runs.sqlite"), in_subprocess(train_later))
    yield manager
    manager.close()


def of_workers(tiny_settings, **more):
    """Small updates: rounding does not change a text."""
    return configured(tiny_settings, **{"train.learning_rate": 1e-6, "train.steps": 40, **more})


def rows(store: Store, run_id: str, last: int) -> list:
    return [
        [(g["step"], g["prompt"], [(r["text"], r["reward"]) for r in g["rollouts"]])]
        for g in record(store, run_id)["groups"]
        if g["step"] <= last
    ]


def losses(store: Store, run_id: str, last: int) -> list[float]:
    return [s["loss"] for s in store.steps(run_id) if s["step"] <= last]


def workers_of(folder: str = "") -> list[int]:
    """Processes of Ray Train's workers."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if b"ray::RayTrainWorker" in (path / "cmdline").read_bytes():
                found.append(int(path.name))
        except OSError:
            continue
    return found


def test_a_run_goes_on_when_a_node_dies_and_obeys_its_person(
    cluster, manager, tiny_settings, tmp_path
):
    run_id = manager.start(of_workers(tiny_settings, **{"train.workers": 2}), conditions="step = 4")
    wait_for(manager, run_id, RunStatus.PAUSED, SECONDS)
    assert manager.store.run(run_id).env["nodes"] == 1  # both are on this machine
    assert manager.store.run(run_id).env["workers"] == 2
    cluster.remove_node(cluster.second, allow_graceful=False)
    until(lambda: [a for a in manager.store.alerts(run_id) if a.code == LOST], SECONDS)
    cluster.second = cluster.add_node(**cluster.small)
    until(lambda: manager.store.run(run_id).steps_done == 2, SECONDS)  # the checkpoint's
    wait_for(manager, run_id, RunStatus.PAUSED, SECONDS)
    [notice] = [a for a in manager.store.alerts(run_id) if a.code == LOST]
    assert "went on after step 2" in notice.message
    manager.edit_reward(run_id, 4, 1, 0, 5.0)
    manager.set_breakpoints(run_id, "")
    manager.set_knob(run_id, "train.temperature", 0.9)
    manager.resume(run_id)
    until(lambda: manager.store.run(run_id).steps_done >= 6, SECONDS)
    asked = time.monotonic()
    manager.stop(run_id)
    stopped = wait_for(manager, run_id, RunStatus.STOPPED)
    seconds = time.monotonic() - asked
    print(f"stopped in {seconds:.2f} s")
    assert seconds < 30  # 2 on an idle machine
    assert manager.store.checkpoints(run_id)[-1].step == stopped.steps_done

    alone = RunManager(Store(tmp_path / "alone.sqlite"), train)
    other = alone.start(of_workers(tiny_settings, **{"train.steps": 3}))
    wait_for(alone, other, RunStatus.FINISHED)
    assert rows(manager.store, run_id, 3) == rows(alone.store, other, 3) != []
    assert losses(manager.store, run_id, 3) == pytest.approx(
        losses(alone.store, other, 3), abs=1e-5
    )
    alone.close()
    until(lambda: not workers_of(), SECONDS)


@pytest.mark.faults
@pytest.mark.long
def test_ten_random_kills_lose_no_row(cluster, manager, tiny_settings, tmp_path):
    settings = {"train.steps": 120, "train.checkpoint_every": 1, "train.eval_every": 0}
    run_id = manager.start(of_workers(tiny_settings, **settings, **{"train.workers": 2}))
    seed = random.Random(0)
    kills = 0
    until(lambda: manager.store.run(run_id).steps_done, SECONDS)
    while kills < 10 and manager.store.run(run_id).status.is_live:
        before = manager.store.run(run_id).steps_done
        time.sleep(seed.uniform(0, 3))
        if victims := workers_of():
            os.kill(seed.choice(victims), signal.SIGKILL)
            kills += 1
        committed = manager.store.run(run_id).steps_done
        assert committed >= before
        until(lambda c=committed: manager.store.run(run_id).steps_done > c, SECONDS)
    assert kills == 10
    wait_for(manager, run_id, RunStatus.FINISHED, SECONDS)
    alone = RunManager(Store(tmp_path / "alone.sqlite"), train)
    other = alone.start(of_workers(tiny_settings, **settings))
    wait_for(alone, other, RunStatus.FINISHED, SECONDS)
    assert rows(manager.store, run_id, 120) == rows(alone.store, other, 120)
    alone.close()


SERVER = """
import sys, time
sys.path.insert(0, "tests")
from trained_runs import configured
from grpo_core.runs.manager import RunManager
from grpo_core.runs.subprocess_trainer import in_subprocess, train_later
from grpo_core.store import Store
if __name__ == "__main__":
    manager = RunManager(Store(sys.argv[1]), in_subprocess(train_later))
    manager.start(configured({SETTINGS}))
    time.sleep(1000)
"""
COMMAND = """
import sys
from grpo_core.cli import main
sets = [f"--set={name}={value}" for name, value in {SETTINGS}.items()]
sys.exit(main(["train", "--db", sys.argv[1], "--workers", "2", *sets]))
"""


def processes_with(text: str) -> list[str]:
    """Command lines of living processes whose environment or command line names `text`."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            environment = (path / "environ").read_bytes()
            if text.encode() in environment and path.name != str(os.getpid()):
                found.append((path / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:60])
        except OSError:
            continue
    return [name for name in found if name]


@pytest.mark.faults
@pytest.mark.long
@pytest.mark.parametrize("code", [SERVER, COMMAND], ids=["server", "command"])
def test_a_killed_process_leaves_nothing_and_its_run_resumes_with_one_worker(
    code, tiny_settings, tmp_path, monkeypatch
):
    monkeypatch.delenv(VARIABLE, raising=False)
    settings = {**tiny_settings, "train.steps": 400, "train.checkpoint_every": 2}
    settings |= {"train.workers": 2, "train.learning_rate": 1e-6}
    db, mark = tmp_path / "runs.sqlite", f"{time.time()}"
    process = another_process(
        code.replace("{SETTINGS}", repr(settings)), db, env={**ENV, "GRPO_TEST_MARK": mark}
    )
    try:
        until(lambda: db.exists() and (r := Store(db).runs()) and r[0].steps_done > 4, SECONDS)
        assert any("RayTrainWorker" in name for name in processes_with(mark))
    finally:
        process.kill()
        process.wait()
    until(lambda: not processes_with(mark), 30)
    manager = RunManager(Store(db), train)
    [run] = manager.store.runs()
    assert run.status is RunStatus.INTERRUPTED
    committed = run.steps_done
    kept = manager.store.checkpoints(run.id)[-1].step
    assert committed - kept <= 2
    before = rows(manager.store, run.id, kept)
    manager.resume(run.id)
    until(lambda: manager.store.run(run.id).steps_done > committed, SECONDS)
    assert rows(manager.store, run.id, kept) == before != []
    manager.close()
