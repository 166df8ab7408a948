"""Scores for the next pair: kept, never waited for, and never in the way of training."""

from __future__ import annotations

import threading
import time

import pytest
from recorded import record_run

from grpo_core.store import Store, reward_models
from grpo_core.types import Prompt, RunStatus
from ui.server import quick_scorer
from ui.server.quick_scorer import QuickScorer
from ui.server.views import Views
from ui.tabs.pairs import ShowPairs

TEXTS = [(Prompt("p", "1+1=?", "2", "sums"), "x" * n) for n in range(40)]


class Service:
    """Scores a text by its length once it may."""

    def __init__(self):
        self.asked, self.may_score = [], threading.Event()
        self.may_score.set()

    def reward_scorer(self):
        def score(texts):
            assert self.may_score.wait(60)
            self.asked += texts
            return [float(len(text)) for _, text in texts]

        return score


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "runs.sqlite")
    yield store
    store.close()


@pytest.fixture
def patient(monkeypatch):
    """Scores are waited for: a busy machine may be late."""
    monkeypatch.setattr(quick_scorer, "WAIT_SECONDS", 60)


def add_model(store: Store) -> str:
    row = reward_models.create(store, "", 60, {"base": "bundled"})
    row.folder.mkdir(parents=True)
    reward_models.end(store, row.id, RunStatus.FINISHED, {"seconds": 1.0})
    return row.id


def test_without_a_reward_model_pairs_have_no_scores(store):
    assert QuickScorer(Views(store), Service()).now() is None


def test_scores_are_kept_until_a_newer_model(store, patient):
    add_model(store)
    service = Service()
    quick = QuickScorer(Views(store), service)
    for _ in range(2):
        assert quick.now()(TEXTS) == [float(n) for n in range(40)]
    assert len(service.asked) == 40
    add_model(store)
    quick.now()(TEXTS)
    assert len(service.asked) == 80


def test_a_slow_reward_model_does_not_hold_up_a_pair(store):
    add_model(store)
    service = Service()
    service.may_score.clear()
    quick = QuickScorer(Views(store), service)
    start = time.monotonic()
    assert quick.now()(TEXTS) == [None] * 40
    assert time.monotonic() - start < 20  # and not for ever
    service.may_score.set()
    quick._work.result(60)
    assert quick.now()(TEXTS) == [float(n) for n in range(40)]


def test_a_reward_model_that_fails_leaves_pairs_without_scores(store):
    add_model(store)
    service = Service()
    service.reward_scorer = lambda: 1 / 0
    assert QuickScorer(Views(store), service).now()(TEXTS) == [None] * 40


def test_nothing_is_scored_while_a_model_trains(store):
    add_model(store)
    quick = QuickScorer(Views(store), Service())
    assert quick.now() is not None
    run_id = record_run(store, status=RunStatus.RUNNING)
    assert quick.now() is None
    store.set_status(run_id, RunStatus.FINISHED)
    assert quick.now() is not None
    reward_models.create(store, "", 60, {"base": "bundled"})
    assert quick.now() is None


def test_the_pair_shown_is_the_one_the_reward_model_is_least_sure_of(store, patient):
    add_model(store)
    run_id = record_run(store, steps=8)
    service = Service()

    def score(texts):  # an equal score for the answers of step 5 only
        service.asked += texts
        return [0.0 if text in ("<answer>5</answer>", "no idea") else 9.0 for _, text in texts]

    service.reward_scorer = lambda: score
    views = Views(store)
    show = ShowPairs(views, QuickScorer(views, service))
    for seed in range(4):
        html = show("inspect", run_id, "compare", "", False, str(seed), "{}", "[]", "{}")[0]
        assert "&lt;answer&gt;5&lt;/answer&gt;" in html
    without = [
        ShowPairs(views)("inspect", run_id, "compare", "", False, str(seed), "{}", "[]", "{}")[0]
        for seed in range(4)
    ]
    assert not all("&lt;answer&gt;5&lt;/answer&gt;" in html for html in without)
