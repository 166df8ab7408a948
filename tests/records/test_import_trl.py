"""TRL's completions, written by TRL 1.16: 4 steps of 2 groups of 4, reward weights 1 and 0.5.

golden/trl: an evaluation after steps 2 and 4 overwrote their files. golden/trl_repeats:
num_iterations 2, so that steps 2 and 4 repeat the rows of the steps before.
"""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from processes import until

from grpo_core.analysis.what_if import settings, what_if
from grpo_core.cli import main
from grpo_core.records.importing import Asked, import_folder
from grpo_core.records.watching import Rhythm, watch_folder
from grpo_core.store import Store
from grpo_core.types import GroupKind, RunStatus

GOLDEN = Path(__file__).parent / "golden"
QUICK = Rhythm(look_seconds=0.02, silence_seconds=0.3)


def places(store, run_id, kind):
    return [(g.step, g.position, len(g.rollouts)) for g in store.iter_groups(run_id, kind=kind)]


def test_evaluations_are_told_from_training_by_the_log(store):
    found = import_folder(store, GOLDEN / "trl")
    assert places(store, found.run_id, GroupKind.TRAINING) == [
        (1, 0, 4), (1, 1, 4), (3, 0, 4), (3, 1, 4),
    ]  # fmt: skip
    assert places(store, found.run_id, GroupKind.EVALUATION) == [
        (2, 0, 4), (2, 1, 4), (4, 0, 4), (4, 1, 4),
    ]  # fmt: skip
    assert (found.format, found.steps, found.groups, found.rollouts) == ("trl", 4, 8, 32)


def test_a_batch_that_two_updates_use_is_one_step(store):
    found = import_folder(store, GOLDEN / "trl_repeats")
    assert [step for step, _, _ in places(store, found.run_id, GroupKind.TRAINING)] == [1, 1, 3, 3]
    assert store.run(found.run_id).steps_done == 4  # their metrics are of four steps


def test_rewards_and_advantages_are_those_of_the_files(store):
    run_id = import_folder(store, GOLDEN / "trl").run_id
    row = pq.read_table(GOLDEN / "trl/completions/completions_00001.parquet").to_pylist()[7]
    rollout = list(store.iter_groups(run_id))[1].rollouts[3]
    assert (rollout.text, rollout.advantage) == (row["completion"], row["advantage"])
    assert rollout.scores == {"correct": row["correct"], "short": row["short"]}
    # The weights are in no file: the log's mean rewards tell them.
    assert rollout.reward == pytest.approx(row["correct"] + 0.5 * row["short"], abs=1e-12)
    assert what_if(store, run_id, settings(store.run(run_id).config)).largest_change < 1e-6
    assert store.run(run_id).source.disagreements == 0


def test_without_the_log_weights_can_be_given(store, tmp_path):
    shutil.copytree(GOLDEN / "trl_repeats", tmp_path / "run")
    (tmp_path / "run/trainer_state.json").unlink()
    given = Asked(weights={"short": 0.5})
    assert import_folder(store, tmp_path / "run", given).disagreements == 0


@pytest.mark.parametrize("value", ["0.5", 10**30, [], None])
def test_a_log_with_a_wrong_value_ends_no_import(store, tmp_path, value):
    shutil.copytree(GOLDEN / "trl_repeats", tmp_path / "run")
    state = json.loads((GOLDEN / "trl_repeats/trainer_state.json").read_text())
    state["log_history"][0]["reward"] = state["max_steps"] = value
    (tmp_path / "run/trainer_state.json").write_text(json.dumps(state))
    assert import_folder(store, tmp_path / "run").rollouts == 16


def test_a_damaged_file_costs_only_its_step(store, tmp_path):
    shutil.copytree(GOLDEN / "trl_repeats", tmp_path / "run")
    file = tmp_path / "run/completions/completions_00003.parquet"
    file.write_bytes(file.read_bytes()[:900])
    (tmp_path / "run/completions/completions_00004.parquet").write_bytes(b"PAR1")
    found = import_folder(store, tmp_path / "run")
    assert [step for step, _, _ in places(store, found.run_id, GroupKind.TRAINING)] == [1, 1]
    assert [str(file) in found.left_out[0], len(found.left_out)] == [True, 2]


# ---- command and watching ------------------------------------------------------------------------


def test_the_command_says_in_json_what_came(tmp_path, capsys):
    arguments = ["import", str(GOLDEN / "trl"), "--db", str(tmp_path / "r.sqlite"), "--json"]
    for _ in range(2):
        assert main(arguments) == 0
        last = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert [*last] == [
            "run_id", "format", "steps", "groups", "rollouts", "recorded", "recomputed", "absent",
        ]  # fmt: skip
        assert (last["steps"], last["recomputed"]) == (4, ["reward"])
    assert len(Store(tmp_path / "r.sqlite").runs()) == 1


def test_the_command_refuses_in_one_line(tmp_path, capsys):
    assert main(["import", str(tmp_path), "--db", str(tmp_path / "r"), "--from", "chess"]) == 2
    assert "--from = 'chess': there is no such format" in capsys.readouterr().err
    assert main(["import", str(tmp_path / "no"), "--db", str(tmp_path / "r")]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_a_growing_folder_is_followed_until_its_last_step(store, tmp_path):
    folder, stop = tmp_path / "run", threading.Event()
    (folder / "completions").mkdir(parents=True)
    names = [f"completions/completions_0000{i}.parquet" for i in (1, 2, 3, 4)]
    result = []
    watching = threading.Thread(
        target=lambda: result.append(watch_folder(store, folder, Asked(), stop, rhythm=QUICK))
    )
    watching.start()
    try:
        shutil.copyfile(GOLDEN / "trl_repeats" / names[0], folder / names[0])
        until(lambda: store.runs() and store.runs()[0].steps_done == 1)
        until(lambda: store.runs()[0].status is RunStatus.INTERRUPTED)
        shutil.copyfile(GOLDEN / "trl_repeats" / names[2], folder / names[2])
        until(lambda: store.runs()[0].status is RunStatus.RUNNING)
        shutil.copyfile(GOLDEN / "trl_repeats/trainer_state.json", folder / "trainer_state.json")
        watching.join(120)
    finally:
        stop.set()
        watching.join(120)
    assert (result[0].rollouts, result[0].disagreements) == (16, 0)  # with the weights of the log
    assert store.runs()[0].status is RunStatus.FINISHED


def test_whoever_stops_watching_leaves_a_stopped_run(store):
    stop = threading.Event()
    watched = Asked(key="another")
    found = watch_folder(
        store, GOLDEN / "trl/completions", watched, stop, lambda _: stop.set(), QUICK
    )
    assert store.run(found.run_id).status in (RunStatus.STOPPED, RunStatus.FINISHED)
