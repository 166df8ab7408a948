"""Real processes that are killed, signalled, or share a store: the promises F1, F2, F9 and F10."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import gradio as gr
import pytest
from browser.live_server import Server
from gradio_client import Client
from processes import ENV, ROOT, another_process, until
from trained_runs import configured, wait_for

from grpo_core.runs.manager import RunManager
from grpo_core.store import Store
from grpo_core.training.trainer import train
from grpo_core.types import RunStatus
from ui.tabs.run_control import states

pytestmark = [pytest.mark.slow, pytest.mark.faults]


# ---- F1, F2: killed at any instant -----------------------------------------------------------


@pytest.mark.parametrize(
    ("variant", "kills"),
    [
        ("plain", 5),
        pytest.param("two updates", 5, marks=pytest.mark.long),
        pytest.param("trust region", 5, marks=pytest.mark.long),
    ],
)
def test_a_run_killed_at_random_instants_ends_with_the_same_rows(variant, kills):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.chaos", "--kills", str(kills), "--variants", variant],
        env=ENV,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"| {variant} | {kills} |" in done.stdout
    assert "| none |" in done.stdout


# ---- F9: signals -----------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signalled_command_saves_its_run_and_resumes_exactly(tiny_settings, tmp_path, number):
    config = configured(
        tiny_settings,
        **{
            "train.steps": 100_000,
            "train.checkpoint_every": 100_000,
            "train.eval_every": 0,
            "task.heldout_size": 0,
        },
    )
    (tmp_path / "config.json").write_text(config.model_dump_json())
    db = tmp_path / "runs.sqlite"
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "grpo_core",
            "train",
            "--db",
            str(db),
            "--config",
            str(tmp_path / "config.json"),
            "--json",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=ENV,
        cwd=ROOT,
    )
    until(lambda: db.exists() and (rows := Store(db).runs()) and rows[0].steps_done >= 3, 60)
    process.send_signal(number)
    asked = time.monotonic()
    out, _ = process.communicate(timeout=10)
    assert time.monotonic() - asked < 10
    store = Store(db)
    run = store.runs()[0]
    assert json.loads(out.strip().splitlines()[-1])["status"] == run.status == "stopped"
    assert [c.step for c in store.checkpoints(run.id)] == [run.steps_done]


def test_a_terminated_server_saves_its_run_in_time_for_the_next(tiny_settings, tmp_path):
    server = Server(tmp_path / "runs.sqlite")
    try:
        settings = {
            **tiny_settings,
            "model.name": str(tiny_settings["model.name"]),
            "train.steps": 100_000,
            "train.checkpoint_every": 100_000,
        }
        run_id = Client(server.url, verbose=False).predict(
            settings=settings, name="going", wait_when="kl > 1e9", api_name="/start"
        )["id"]
        store = Store(server.db)
        until(lambda: store.run(run_id).steps_done >= 3, 60)
        asked = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=10) == 0
        assert time.monotonic() - asked < 10
        run = store.run(run_id)
        assert (run.status, run.error) == (RunStatus.STOPPED, None)
        assert [c.step for c in store.checkpoints(run_id)] == [run.steps_done]
        assert store.is_free()
        server.start()
        assert states(store.run(run_id))[2] == gr.update(interactive=True)  # Resume
        client = Client(server.url, verbose=False)
        client.predict(run=run_id, api_name="/resume")
        until(lambda: store.run(run_id).steps_done > run.steps_done, 60)
        assert store.run(run_id).breakpoints == "kl > 1000000000"
        client.predict(run=run_id, api_name="/stop")
        assert [s["step"] for s in store.steps(run_id, 10**6)][: run.steps_done + 1] == list(
            range(1, run.steps_done + 2)
        )
    finally:
        server.close()


# ---- F10: two servers ------------------------------------------------------------------------


def test_a_second_server_reads_and_takes_over_after_a_kill(tmp_path, tiny_settings):
    config = configured(
        tiny_settings,
        **{
            "train.steps": 100_000,
            "train.checkpoint_every": 2,
            "train.eval_every": 0,
            "task.heldout_size": 0,
        },
    )
    (tmp_path / "config.json").write_text(config.model_dump_json())
    db = tmp_path / "runs.sqlite"
    first = another_process(
        """
        import json, sys, time
        from grpo_core.config import parse
        from grpo_core.runs.manager import RunManager
        from grpo_core.store import Store
        from grpo_core.training.trainer import train
        manager = RunManager(Store(sys.argv[1]), train)
        config = parse(json.loads(open(sys.argv[2]).read()))
        short = config.train.model_copy(update={"steps": 3})
        manager.start(config, "going")
        manager.start(config.model_copy(update={"train": short}), "waiting")
        time.sleep(600)
    """,
        db,
        tmp_path / "config.json",
    )
    try:
        until(lambda: db.exists() and Store(db).runs(), 60)
        store = Store(db)
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
    assert [s["step"] for s in store.steps(going.id)] == list(
        range(1, store.run(going.id).steps_done + 1)
    )
    second.close()
