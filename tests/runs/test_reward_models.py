"""Trainings of reward models that the page starts: in a process of their own, kept in the store."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from grpo_core.errors import InvalidConfig, StudioError
from grpo_core.rubric.check import Notes
from grpo_core.rubric.reward_model import RewardModelParams, reward_model
from grpo_core.runs.limits import Limits
from grpo_core.runs.reward_models import RewardModels
from grpo_core.store import Store, preferences, reward_models
from grpo_core.store.preferences import Preference
from grpo_core.types import Completion, Prompt, RunStatus


def judge(store: Store, count: int = 40) -> None:
    """Judgements for the shorter answer, two for each prompt."""
    rng, rows = random.Random(0), []
    for i in range(count):
        n, prompt = rng.randint(10, 99), f"Q: {10 + i // 2}+7=?"
        texts = [f"<answer>{n}</answer>", f"<think>{n}, again {n}</think><answer>{n}</answer>"]
        left, right = texts[:: 1 if i % 2 else -1]
        verdict = "left" if i % 2 else "right"
        rows.append(
            Preference(
                prompt=prompt,
                left=left,
                right=right,
                verdict=verdict,
                created_at=1.0 + i,
                source="page",
            )
        )
    preferences.add(store, rows)


@pytest.fixture
def store(tmp_path) -> Store:
    store = Store(tmp_path / "runs.sqlite")
    judge(store)
    return store


def test_a_training_ends_with_a_model_that_scores(store):
    models = RewardModels(store)
    model_id = models.start({"epochs": 2})
    with pytest.raises(StudioError, match="is being trained"):
        models.start({})
    assert reward_models.get(store, model_id).status is RunStatus.RUNNING
    models.wait(60)
    row = reward_models.get(store, model_id)
    assert (row.status, row.error, row.num_pairs) == (RunStatus.FINISHED, None, 40)
    assert row.result is not None
    assert row.result["heldout"]["accuracy"] == 1.0
    assert row.progress[-1]["step"] == row.progress[-1]["num_steps"] == 4
    assert reward_models.newest_usable(store) == row
    params = RewardModelParams(model=str(row.folder))
    texts = ("<answer>12</answer>", "<think>12, again 12</think><answer>12</answer>")
    prompts = [Prompt("1", "Q: 14+7=?", "", "")] * 2
    short, long = reward_model([Completion(t, "stop", 5) for t in texts], prompts, params, Notes())
    assert short is not None
    assert long is not None
    assert short > long
    reward_models.remove(store, model_id)
    assert reward_models.read(store) == []
    assert not row.folder.exists()


def test_a_stopped_training_keeps_its_model(store):
    models = RewardModels(store)
    model_id = models.start({"epochs": 100})
    while not reward_models.get(store, model_id).progress:
        models.wait(0.05)
    models.stop()
    models.wait(60)
    row = reward_models.get(store, model_id)
    assert row.status is RunStatus.STOPPED
    assert row.is_usable


def test_a_training_that_fails_says_why(store):
    models = RewardModels(store)
    model_id = models.start({"base": "/no/where"})
    models.wait(60)
    row = reward_models.get(store, model_id)
    assert row.status is RunStatus.FAILED
    assert "there is no such folder" in (row.error or "")
    assert not row.is_usable


def test_a_restart_marks_what_went_on_as_interrupted(store):
    row = reward_models.create(store, "", 40, {"base": "bundled"})
    RewardModels(store)
    found = reward_models.get(store, row.id)
    assert found.status is RunStatus.INTERRUPTED
    assert found.ended_at is not None


def test_models_move_with_their_file(store, tmp_path):
    row = reward_models.create(store, "", 40, {"base": "bundled"})
    store.close()
    moved = tmp_path / "moved.sqlite"
    shutil.copy(store.path, moved)
    assert reward_models.get(Store(moved), row.id).folder == Path(f"{moved}.reward_models", row.id)


def test_a_public_server_offers_only_its_bases(store):
    models = RewardModels(store, lambda s: Limits(models=("bundled",)).check_base(s.base))
    with pytest.raises(InvalidConfig, match="does not offer it"):
        models.start({"base": "some/model"})
    inside = RewardModels(store, lambda s: Limits(roots=(Path("/srv"),)).check_base(s.base))
    with pytest.raises(InvalidConfig, match="does not read files there"):
        inside.start({"base": "/etc"})
    assert reward_models.read(store) == []
