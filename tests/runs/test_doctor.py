"""The doctor finds the faults of a store, and repairs them only with --fix."""

from __future__ import annotations

import json
import shutil

import pytest
from processes import another_process
from trained_runs import configured, wait_for

from grpo_core.cli import main
from grpo_core.types import RunStatus

pytestmark = pytest.mark.faults


@pytest.mark.slow
def test_the_doctor_finds_damage_and_repairs_it_only_with_fix(
    manager, tiny_settings, tmp_path, capsys
):
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
    code = (
        "import sys; from grpo_core.store import Store; from grpo_core.config import RunConfig; "
        "Store(sys.argv[1]).create_run(RunConfig(), 'lost', status='running')"
    )
    assert another_process(code, db).wait() == 0
    capsys.readouterr()
    assert main(["doctor", "--db", db, "--json"]) == 1
    printed = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    wrong = [f["what"] for f in printed["findings"] if f["wrong"]]
    assert printed["wrong"] == 5, wrong
    for part in (
        "no process works on it",
        "policy.safetensors is not as it was saved",
        "step-00000099",
        "20200101-000000-abcd",
        ".step-00000100.part",
    ):
        assert any(part in what for what in wrong), part
    assert (folder / "step-00000099").exists()
    assert main(["doctor", "--db", db, "--fix"]) == 0
    assert main(["doctor", "--db", db]) == 0
    assert sorted(p.name for p in folder.parent.iterdir()) == [run_id, "my own notes"]
    assert [c.step for c in store.checkpoints(run_id)] == [4, 6]
    assert store.runs()[0].status is RunStatus.INTERRUPTED
