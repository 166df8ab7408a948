"""A file of an earlier version opens, and shows what it showed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from grpo_core.analysis import what_if
from grpo_core.runs.resume import where_to_start
from grpo_core.store import Store
from grpo_core.types import Intervention
from ui.render import charts

SAMPLE = Path(__file__).parent / "samples" / "version-5.sqlite"
RUN = "20261128-073645-14f0"
# Version 5 kept these as the metrics edit/0/1, knob/algorithm.kl_coef and knob/train.learning_rate.
MADE = [
    Intervention(2, "reward", 2.5, group=0, completion=1),
    Intervention(3, "setting", 0.5, "algorithm.kl_coef"),
    Intervention(3, "setting", 0.001, "train.learning_rate"),
]


@pytest.fixture
def store(tmp_path):
    shutil.copyfile(SAMPLE, tmp_path / "runs.sqlite")
    return Store(tmp_path / "runs.sqlite")


def test_what_a_person_did_moves_to_its_table(store):
    order = {"reward": 0, "setting": 1}
    made = store.interventions(RUN)
    assert sorted(made, key=lambda i: (i.step, order[i.kind], i.field or "")) == MADE
    assert not [n for n in store.metric_names(RUN) if n.startswith(("edit/", "knob/"))]
    assert (store.path.parent / "runs.sqlite.v5.bak").is_file()


def test_an_old_run_resumes_with_what_a_person_changed(store):
    assert set(where_to_start(store, store.run(RUN)).interventions) == set(MADE)


def test_runs_and_groups_of_an_old_file_read_as_before(store):
    run = store.run(RUN)
    assert (run.name, run.status, run.steps_done) == ("with changes by hand", "finished", 4)
    groups = list(store.iter_groups(RUN))
    assert [(g.step, g.position) for g in groups] == [(s, p) for s in (1, 2, 3, 4) for p in (0, 1)]
    edited = [
        (g.step, g.position, r.position, r.reward) for g in groups for r in g.rollouts if r.edited
    ]
    assert edited == [(2, 0, 1, 2.5)]
    rollouts = [r for g in groups for r in g.rollouts]
    assert all(len(store.token_row(r.id).token_ids) == r.num_tokens for r in rollouts)


def test_stored_advantages_of_an_old_file_are_what_todays_code_computes(store):
    settings = what_if.settings(store.run(RUN).config)
    assert what_if.what_if(store, RUN, settings).largest_change < 1e-9


def test_curves_mark_the_changed_settings_of_an_old_run(store):
    steps, metrics = store.steps_with_spikes(RUN, charts.SPIKED, 100), store.metrics(RUN)
    run = charts.Curves(RUN, "old", steps, metrics, store.interventions(RUN))
    marked = str(charts.FIGURES["reward"]([run], charts.View()))
    assert "from step 3" in marked


def test_checkpoints_of_version_six_are_listed_without_their_seconds(tmp_path):
    shutil.copyfile(SAMPLE.with_name("version-6.sqlite"), tmp_path / "runs.sqlite")
    store = Store(tmp_path / "runs.sqlite")
    [run] = store.runs()
    assert [(c.step, c.seconds) for c in store.checkpoints(run.id)] == [(1, None), (2, None)]
    assert store.saving_seconds(run.id) is None
    assert (run.name, run.status, run.steps_done) == ("with a checkpoint", "finished", 2)


def test_runs_of_an_old_file_have_no_tags_and_no_note_until_given(store):
    assert (store.run(RUN).tags, store.run(RUN).note) == ((), "")
    store.annotate(RUN, ["keep"], "why")
    assert (store.run(RUN).tags, store.run(RUN).note) == (("keep",), "why")


@pytest.mark.parametrize("sample", ["version-5.sqlite", "version-6.sqlite"])
def test_all_groups_of_an_old_file_are_of_training(tmp_path, sample):
    shutil.copyfile(SAMPLE.with_name(sample), tmp_path / "runs.sqlite")
    store = Store(tmp_path / "runs.sqlite")
    for run in store.runs():
        groups = list(store.iter_groups(run.id))
        assert groups
        assert {g.kind for g in groups} == {"training"}
        assert store.groups(run.id).total == len(groups)
        assert store.num_evaluation_groups(run.id) == 0
