"""The panel “Reward model” without a browser."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from grpo_core.store.reward_models import RewardModelRow
from grpo_core.types import RunStatus
from ui.render.reward_models import reward_models
from ui.tabs.reward_models import use_in_rubric

HELD = {
    "accuracy": 0.9,
    "low": 0.79,
    "high": 0.96,
    "num_pairs": 50,
    "length_share": 0.25,
    "longer_preferred": 0.4,
    "longer_scored": 0.5,
    "calibration_error": 0.05,
    "bins": [{"num_pairs": 50, "predicted": 0.85, "right": 0.9}],
}
RESULT = {
    "heldout": HELD,
    "pairs": {"train": 200, "train_ties": 10, "train_prompts": 80},
    "seconds": 12.0,
}
POINT = {"step": 3, "num_steps": 9, "loss": 0.6, "heldout_accuracy": 0.8, "heldout_loss": 0.5}


@pytest.fixture
def row(tmp_path) -> RewardModelRow:
    return RewardModelRow(
        id="20261128-120000-abcd",
        name="",
        folder=tmp_path,
        base="<b>base</b>",
        status=RunStatus.FINISHED,
        created_at=1.0,
        ended_at=2.0,
        num_pairs=250,
        config={},
        progress=[POINT],
        result=RESULT,
        error=None,
    )


def test_a_finished_model_shows_its_numbers(row):
    html = reward_models([row], 260)
    assert "260 judged pairs" in html
    assert "<b>90 %</b> (95 % interval 79 % to 96 %, 50 pairs)" in html
    assert "Length alone explains 25 % of its score" in html
    assert "85 % → 90 %" in html
    assert "&lt;b&gt;base&lt;/b&gt;" in html
    assert 'data-do="use"' in html


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (RunStatus.RUNNING, "training, step 3 of 9"),
        (RunStatus.INTERRUPTED, "interrupted"),
        (RunStatus.FAILED, "failed"),
    ],
)
def test_a_model_without_weights_is_not_offered(row, status, words):
    html = reward_models([replace(row, status=status, result=None)], 0)
    assert words in html
    assert 'data-do="use"' not in html
    assert ('data-do="remove"' in html) is (status is not RunStatus.RUNNING)


def test_use_in_rubric_adds_one_criterion(row):
    rows, name, message = use_in_rubric(row, [{"name": "preferred", "check": "format"}])
    assert (rows[1]["name"], rows[1]["check"]) == ("preferred_2", "reward_model")
    assert json.loads(rows[1]["params"]) == {"model": str(Path(row.folder).resolve())}
    assert (name, message) == ("custom", "")
    again, *_ = use_in_rubric(row, rows)
    assert again == {"__type__": "update"}  # it is there already
    *_, message = use_in_rubric(None, rows)
    assert "cannot be used" in message
