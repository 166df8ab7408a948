"""Lost workers on record: rows after the checkpoint go, and the page says it. Addresses."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from processes import ENV, ROOT, cli

from grpo_core.cluster.address import VARIABLE, new_folder, remove_folders, use_cluster
from grpo_core.config import RunConfig
from grpo_core.errors import StudioError
from grpo_core.store import Recorder
from grpo_core.types import (
    LOST,
    RESTART,
    Checkpointed,
    Group,
    GroupsScored,
    Intervened,
    Intervention,
    Paused,
    Prompt,
    Restarted,
    Resumed,
    RunStatus,
    StepCompleted,
    StepMetrics,
)
from ui.render.advice import advice


def steps(store, run_id):
    return [s["step"] for s in store.steps(run_id)]


@pytest.mark.parametrize(
    ("after", "left"), [(2, [1, 2]), (-1, [])], ids=["checkpoint", "beginning"]
)
def test_rows_after_the_place_where_workers_go_on_are_dropped(store, after, left):
    run_id = store.create_run(RunConfig(), "lost")
    group = Group(Prompt("1", "2+2", "4", "sums"), (), 0.5, 0.1, "learns")
    intervention = Intervention(3, "setting", 0.5, field="train.temperature")
    with Recorder(store, run_id) as record:
        for n in (1, 2, 3):
            record(GroupsScored(n, (group,)))
            record(StepCompleted(n, StepMetrics(), {}))
        record(Checkpointed(2, "a", 1, "0" * 64))
        record(Intervened((intervention,)))
        record(Paused("wait"))
        record(Resumed())
        record(Restarted(after, "Worker 2 was lost: killed."))
        assert steps(store, run_id) == left
        assert len(list(store.iter_groups(run_id))) == len(left)
        assert [c.step for c in store.checkpoints(run_id)] == left[1:]
        restarts, others = [], []
        for i in store.interventions(run_id):
            (restarts if i.kind == RESTART else others).append(i)
        assert (len(restarts), others) == (1, [intervention])
        run = store.run(run_id)
        assert (run.steps_done, run.error) == (len(left), None)
        assert run.status in (RunStatus.LOADING, RunStatus.RUNNING)
        [notice] = [a for a in store.alerts(run_id) if a.code == LOST]
        place = "after step 2" if left else "from the beginning"
        assert notice.message.endswith(
            f"killed. Ray started the workers again, and the run went on {place}."
        )
        assert "Workers were lost" in advice([notice], {})
    store.set_status(run_id, RunStatus.STOPPED)


@pytest.mark.parametrize("address", ["ray://host:10001", "host", "http://host:6379", "a b:1"])
def test_an_address_that_cannot_train_is_refused(address, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(StudioError, match="HOST:PORT"):
        use_cluster(address)
    assert VARIABLE not in os.environ


@pytest.mark.parametrize("address", ["auto", "local", "10.0.0.1:6379", "[::1]:6379"])
def test_the_address_of_a_cluster_is_for_all_runs_of_a_process(address, monkeypatch):
    monkeypatch.setenv(VARIABLE, "before")
    use_cluster(None)
    assert os.environ[VARIABLE] == "before"
    use_cluster(address)
    assert os.environ[VARIABLE] == address


def test_without_ray_workers_are_refused_with_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(StudioError, match=r"pip install -r requirements-cluster\.txt"):
        use_cluster("auto")


def test_the_files_of_a_dead_process_go_when_another_starts():
    code = "from grpo_core.cluster.address import new_folder; print(new_folder())"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENV)
    left = run.stdout.strip()
    assert os.path.isdir(left)
    mine = new_folder()
    assert mine.is_dir()
    assert not os.path.exists(left)
    remove_folders(os.getpid())
    assert not mine.exists()


@pytest.mark.slow
def test_the_command_line_names_workers_that_are_too_many(tmp_path):
    done = cli("train", "--db", str(tmp_path / "a.sqlite"), "--workers", "4000")
    assert done.returncode == 2
    assert "train.workers = 4000" in done.stderr
    assert "Traceback" not in done.stderr


IMPORTS = """
import sys
import app, ui.page
from grpo_core.runs.subprocess_trainer import in_subprocess, train_later
import grpo_core.training.trainer
import grpo_core.cli
assert not any(m == "ray" or m.startswith("ray.") for m in sys.modules)
print("no Ray")
"""


@pytest.mark.slow
def test_page_command_line_and_trainer_import_no_ray():
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS], capture_output=True, text=True, env=ENV, cwd=ROOT
    )
    assert done.stdout == "no Ray\n", done.stderr
