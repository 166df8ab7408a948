"""Curves and groups in experiment trackers: the real ones where they are installed, else stand-ins.

trackio, wandb, tensorboard and mlflow are optional, and the tests of each are skipped without it.
Nothing leaves the machine: wandb is offline, the others write files.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import sqlite3
import sys
import time
from pathlib import Path

import pytest

from grpo_core.cli import main
from grpo_core.config import RunConfig
from grpo_core.errors import StopRequested, StudioError
from grpo_core.runs import mirror
from grpo_core.runs.mirror import check_trackers, mirrored
from grpo_core.training.control import RunControl
from grpo_core.types import Evaluated, GroupsScored, StepCompleted, StepMetrics
from tests.stored import group, rollout

HOSTILE = "<script>|x|\n\x1b[31m"
EVENTS = (
    Evaluated(0, {"heldout/accuracy": 0.25}, (group(),)),
    GroupsScored(1, (group(rollout("5", 1.0, right=1.0), rollout(HOSTILE, 0.0, right=None)),)),
    StepCompleted(1, StepMetrics(reward_mean=0.5, kl=float("nan")), {"score/right": 0.75}),
    StepCompleted(2, StepMetrics(reward_mean=0.625), {}),
)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def mirrored_run(store, said):
    """Emits events of a run to trackers; returns the run's id and what it recorded itself.

    again: a run that is resumed.
    """

    def run(*names: str, events=EVENTS, error: Exception | None = None, again: str = ""):
        def train(config, emit, control):
            for event in events:
                emit(event)
            if error is not None:
                raise error

        run_id, recorded = again or store.create_run(RunConfig(), "a run"), []
        told = mirrored(train, store, names, said.append, wait=60.0)
        with contextlib.suppress(StopRequested):
            told(RunConfig(), recorded.append, RunControl(store.checkpoint_folder(run_id)))
        return run_id, recorded

    return run


@pytest.fixture
def standing_in(tmp_path, monkeypatch):
    """Make a package wandb of this code, whose `init` a mirror calls in its own process."""

    def write(code: str) -> Path:
        folder = tmp_path / "packages"
        folder.mkdir()
        (folder / "wandb.py").write_text(code)
        monkeypatch.setenv("PYTHONPATH", str(folder))
        return folder

    return write


def needs(package: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"not installed: pip install {package}")


# ---- what a run does not notice ------------------------------------------------------------------

WANDB = """
import time, os, sys
class Run:
    url, dir = "http://there/run\\x1b[31m", "."
    def define_metric(self, *a, **k): pass
    def log(self, values): {on_log}
    def finish(self, exit_code): open({log!r}, "a").write(f"finish {{exit_code}}{asked}\\n")
class Table:
    def __init__(self, columns, data): self.shape = (len(columns), len(data))
def Settings(**k): return None
def init(**k):
    print("a greeting"); {on_init}
    return Run()
"""


def test_a_run_goes_on_when_its_tracker_fails(standing_in, mirrored_run, said, tmp_path):
    log = str(tmp_path / "log")
    standing_in(
        WANDB.format(on_log="raise OSError('no\\nroute')", on_init="pass", log=log, asked="")
    )
    _, recorded = mirrored_run("wandb")
    assert recorded == [*EVENTS]
    assert said == [
        "wandb: http://there/run [31m",
        "wandb failed: OSError: no route. The run goes on without it.",
    ]


@pytest.mark.parametrize(
    "what",
    ["time.sleep(60)", "while True: pass"],
    ids=["sleeps", "spins"],
)
def test_a_tracker_that_hangs_is_left_out(
    standing_in, mirrored_run, said, what, tmp_path, monkeypatch
):
    monkeypatch.setattr(mirror, "LOG_SECONDS", 0.5)
    log = str(tmp_path / "log")
    code = WANDB.format(on_log="hang()", on_init="pass", log=log, asked="")
    standing_in(f"{code}\ndef hang():\n    {what}\n")
    started = time.monotonic()
    _, recorded = mirrored_run("wandb")
    assert recorded == [*EVENTS]
    assert time.monotonic() - started < 50
    assert said[1:] == ["wandb failed: it took longer than 0.5 s. The run goes on without it."]


def test_a_tracker_that_ends_its_process_ends_no_run(standing_in, mirrored_run, said, tmp_path):
    log = str(tmp_path / "log")
    standing_in(WANDB.format(on_log="pass", on_init="os._exit(3)", log=log, asked=""))
    _, recorded = mirrored_run("wandb")
    assert recorded == [*EVENTS]
    assert said == ["wandb failed: the process died. The run goes on without it."]


def test_a_slow_tracker_loses_steps_and_never_the_end(
    standing_in, mirrored_run, said, tmp_path, monkeypatch
):
    monkeypatch.setattr(mirror, "MAX_WAITING", 2)
    log = tmp_path / "log"
    standing_in(WANDB.format(on_log="time.sleep(0.3)", on_init="pass", log=str(log), asked=""))
    events = [StepCompleted(i, StepMetrics(reward_mean=0.5), {}) for i in range(200)]
    started = time.monotonic()
    _, recorded = mirrored_run("wandb", events=events)
    assert len(recorded) == 200
    assert said[0] == "wandb does not keep up, so it lacks some steps of the run."
    assert len(said) == 2
    assert log.read_text() == "finish 0\n"
    assert time.monotonic() - started < 40  # 200 steps would sleep for 60 s


def test_a_package_reports_nothing_to_its_makers_unasked(
    standing_in, mirrored_run, tmp_path, monkeypatch
):
    log = tmp_path / "log"
    asked = "{os.environ['WANDB_ERROR_REPORTING'], os.environ['MLFLOW_DISABLE_TELEMETRY']}"
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "false")  # its user wants to
    standing_in(WANDB.format(on_log="pass", on_init="pass", log=str(log), asked=asked))
    mirrored_run("wandb")
    assert log.read_text() == "finish 0('false', 'false')\n"


def test_a_tracker_learns_how_the_run_ended(standing_in, mirrored_run, tmp_path):
    log = tmp_path / "log"
    standing_in(WANDB.format(on_log="pass", on_init="pass", log=str(log), asked=""))
    mirrored_run("wandb", error=StopRequested("enough"))
    assert log.read_text() == "finish 1\n"


def test_a_tracker_that_is_named_twice_is_told_once(standing_in, mirrored_run, said, tmp_path):
    log = tmp_path / "log"
    standing_in(WANDB.format(on_log="pass", on_init="pass", log=str(log), asked=""))
    mirrored_run("wandb", "wandb")
    assert len(said) == 1
    assert log.read_text() == "finish 0\n"


def test_without_trackers_training_is_what_it_was(store):
    def train(config, emit, control):
        raise NotImplementedError

    assert mirrored(train, store, ()) is train


def test_a_missing_package_is_named_with_its_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(StudioError) as caught:
        check_trackers(["mlflow"])
    assert str(caught.value) == (
        "--report-to mlflow needs the package mlflow. Install it: pip install mlflow."
    )
    with pytest.raises(StudioError, match="'swanlab': there is no such tracker"):
        check_trackers(["swanlab"])


# ---- the real trackers ---------------------------------------------------------------------------


@needs("trackio")
def test_trackio_gets_curves_and_traces_and_goes_on_in_its_run(
    mirrored_run, said, tmp_path, monkeypatch
):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    run_id, _ = mirrored_run("trackio")
    assert said == ["trackio: trackio show --project grpo-studio"]
    with sqlite3.connect(tmp_path / "trackio" / "grpo-studio.db") as db:
        traces = db.execute("SELECT messages, metadata FROM traces WHERE step = 1").fetchall()
        metrics = dict(db.execute("SELECT step, metrics FROM metrics WHERE metrics != '{}'"))
    db.close()
    written = [(json.loads(m)[-1]["content"], json.loads(d)) for m, d in traces]
    assert [text for text, _ in written] == ["5", HOSTILE]
    assert written[0][1]["rewards/right"] == 1.0
    assert [(d["reward"], d["advantage"], d["group_id"]) for _, d in written] == [
        (1.0, 0.5, 0),
        (0.0, 0.5, 0),
    ]
    assert json.loads(metrics[2]) == {"train/reward_mean": 0.625}
    mirrored_run("trackio", again=run_id, events=[StepCompleted(3, StepMetrics(loss=0.5), {})])
    with sqlite3.connect(tmp_path / "trackio" / "grpo-studio.db") as db:
        runs = db.execute("SELECT DISTINCT run_name FROM metrics").fetchall()
    db.close()
    assert runs == [(f"a run ({run_id})",)]


@needs("wandb")
def test_wandb_gets_curves_and_tables_offline(mirrored_run, said, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    run_id, _ = mirrored_run("wandb")
    (folder,) = (tmp_path / "wandb").glob(f"offline-run-*-{run_id}")
    assert said == [f"wandb: wandb sync {folder}"]
    (table,) = (folder / "files" / "media" / "table").glob("groups_*.json")
    written = json.loads(table.read_text())
    assert written["columns"][2:5] == ["prompt", "completion", "reward"]
    assert [row[3:5] for row in written["data"]] == [["5", 1.0], [HOSTILE, 0.0]]
    (log,) = folder.glob("*.wandb")
    assert b"train/reward_mean" in log.read_bytes()


@needs("tensorboard")
def test_tensorboard_gets_curves_and_tables(mirrored_run, said, store):
    run_id, _ = mirrored_run("tensorboard")
    root = Path(f"{store.path.resolve()}.tensorboard")
    assert said == [f"tensorboard: tensorboard --logdir {root}"]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(root / run_id), {"tensors": 0, "scalars": 0})
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/reward_mean")] == [
        (1, 0.5),
        (2, 0.625),
    ]
    assert "train/kl" not in events.Tags()["scalars"]  # it was not finite
    text = events.Tensors("groups")[0].tensor_proto.string_val[0].decode()
    assert text.splitlines()[3] == (
        "| 0 | informative | 2+2= | <script>\\|x\\| ⏎ \x1b[31m | 0 | 0.5 | 3 |  |"
    )


@needs("mlflow")
def test_mlflow_gets_curves_and_tables_and_goes_on_in_its_run(mirrored_run, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'mlruns'}")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    run_id, _ = mirrored_run("mlflow", error=StopRequested())
    mirrored_run("mlflow", again=run_id, events=[StepCompleted(3, StepMetrics(loss=0.5), {})])
    import mlflow

    client = mlflow.MlflowClient(f"file:{tmp_path / 'mlruns'}")
    experiment = client.get_experiment_by_name("grpo-studio")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["train.group_size"] == "8"
    history = client.get_metric_history(run.info.run_id, "train/reward_mean")
    assert [(m.step, m.value) for m in history] == [(1, 0.5), (2, 0.625)]
    (artifact,) = (tmp_path / "mlruns").rglob("groups/step_000001.json")
    written = json.loads(artifact.read_text())
    assert written["data"][1][written["columns"].index("completion")] == HOSTILE


def test_the_command_names_the_package_that_is_missing(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["train", "--db", str(tmp_path / "a.sqlite"), "--report-to", "wandb"]) == 2
    assert capsys.readouterr().err == (
        "error: --report-to wandb needs the package wandb. Install it: pip install wandb.\n"
    )
    assert not (tmp_path / "a.sqlite").exists()
