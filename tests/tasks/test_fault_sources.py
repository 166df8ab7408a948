"""What a run was made from vanishes or changes while it trains: F14 of the promises."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest
from hub_server import Hub
from processes import ENV, another_process, until
from trained_runs import configured, record, wait_for

from grpo_core.errors import InvalidConfig
from grpo_core.types import RunStatus

pytestmark = pytest.mark.faults


# ---- F14: what the run was made from vanishes ----------------------------------------------------


@pytest.mark.slow
def test_a_run_continues_when_its_model_vanishes_and_resume_reports_it(
    manager, tiny_settings, tmp_path
):
    folder = shutil.copytree(str(tiny_settings["model.name"]), tmp_path / "model")
    from grpo_core.models import check_model

    manager._check = lambda config: check_model(config.model)
    config = configured(tiny_settings, **{"model.name": str(folder), "train.steps": 12})
    run_id = manager.start(config, conditions="step = 4")
    wait_for(manager, run_id, RunStatus.PAUSED)
    shutil.rmtree(folder)
    manager.set_breakpoints(run_id, "step = 8")
    manager.resume(run_id)
    run = until(
        lambda: (
            (r := manager.store.run(run_id)).status is RunStatus.PAUSED and r.steps_done == 7 and r
        )
    )
    manager.stop(run_id)
    run = wait_for(manager, run_id, RunStatus.STOPPED)
    assert run.steps_done == 7
    with pytest.raises(Exception, match="there is no such folder"):
        manager.resume(run_id)
    assert manager.store.run(run_id).status is RunStatus.STOPPED


def questions(path, first, count=60):
    path.write_text(
        "".join(
            json.dumps({"question": f"{i}+1?", "answer": str(i + 1)}) + "\n"
            for i in range(first, first + count)
        )
    )
    return path


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["gone", "other prompts", "only touched"])
def test_a_run_continues_when_its_prompts_change_and_only_resume_refuses(
    manager, tiny_settings, tmp_path, monkeypatch, fault
):
    monkeypatch.setenv("GRPO_STUDIO_CACHE", str(tmp_path / "cache"))
    file = questions(tmp_path / "mine.jsonl", 0)
    settings = {
        "task.name": "file",
        "task.path": str(file),
        "task.heldout_size": 0,
        "train.steps": 8,
        "train.eval_every": 0,
    }
    config = configured({**tiny_settings, **settings})
    alone = manager.start(config)
    wait_for(manager, alone, RunStatus.FINISHED)
    run_id = manager.start(config, conditions="step = 3")
    wait_for(manager, run_id, RunStatus.PAUSED)
    if fault == "gone":
        file.unlink()
    else:
        questions(file, 100 if fault == "other prompts" else 0)
    manager.set_breakpoints(run_id, "step = 6")
    manager.resume(run_id)
    until(lambda: (r := manager.store.run(run_id)).status is RunStatus.PAUSED and r.steps_done == 5)
    manager.set_breakpoints(run_id, "")
    manager.stop(run_id)
    wait_for(manager, run_id, RunStatus.STOPPED)
    if fault != "only touched":
        with pytest.raises(
            InvalidConfig,
            match=r"task\.path.*"
            + {
                "gone": "there is no such file",
                "other prompts": "its prompts have changed since the run started",
            }[fault],
        ):
            manager.resume(run_id)
        assert manager.store.run(run_id).status is RunStatus.STOPPED
        questions(file, 0)  # put back
    manager.resume(run_id)
    wait_for(manager, run_id, RunStatus.FINISHED)
    assert record(manager.store, run_id) == record(manager.store, alone)


@pytest.mark.slow
def test_a_run_on_a_hub_dataset_continues_and_resumes_without_the_hub(tiny_settings, tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    questions(folder / "train.jsonl", 0)
    hub = Hub(folder, folder)
    settings = {
        **tiny_settings,
        "model.name": str(tiny_settings["model.name"]),
        "task.name": "file",
        "task.path": "owner/good",
        "task.heldout_size": 0,
        "train.steps": 6,
        "train.checkpoint_every": 2,
    }
    process = another_process(
        """
        import json, sys, time
        from grpo_core.config import nest, parse
        from grpo_core.runs.manager import RunManager
        from grpo_core.store import Store
        from grpo_core.training.trainer import train
        manager = RunManager(Store(sys.argv[1]), train)
        run_id = manager.start(parse(nest(json.loads(sys.argv[2]))), conditions="step = 3")
        def wait(*ends):
            while (run := manager.store.run(run_id)).status not in ends: time.sleep(.02)
            print(run.status, run.steps_done, run.error or "", flush=True)
        wait("paused", "failed")
        sys.stdin.readline()  # the Hub goes away
        manager.set_breakpoints(run_id, "step = 5")
        manager.resume(run_id)
        while manager.store.run(run_id).steps_done < 4: time.sleep(.02)
        wait("paused", "failed")
        manager.set_breakpoints(run_id, "")
        manager.stop(run_id)
        wait("stopped", "failed")
        manager.resume(run_id)
        wait("finished", "failed")
        manager.close()
    """,
        tmp_path / "runs.sqlite",
        json.dumps(settings),
        stdin=subprocess.PIPE,
        env={
            **{k: v for k, v in ENV.items() if not k.startswith("HF_")},
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_XET": "1",
            "GRPO_STUDIO_CACHE": str(tmp_path / "cache"),
        },
    )
    try:
        assert process.stdout.readline().startswith("paused 2 Breakpoint"), process.stderr.read()
    finally:
        hub.close()
    out, err = process.communicate("gone\n", timeout=60)
    assert [line.split(" ")[:2] for line in out.strip().splitlines()] == [
        ["paused", "4"],
        ["stopped", "4"],
        ["finished", "6"],
    ], out + err
