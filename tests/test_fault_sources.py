"""What a run was made from vanishes or changes while it trains: F14 of the promises."""

from __future__ import annotations

import shutil

import pytest
from processes import until
from test_control import wait_for
from test_resume import configured

from grpo_core.types import RunStatus

pytestmark = pytest.mark.faults


# ---- F14: what the run was made from vanishes ------------------------------------------------------------------------


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
