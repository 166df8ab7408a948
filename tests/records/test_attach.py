"""attach() on real trainers of TRL: nothing of the run changes, and everything is recorded."""

from __future__ import annotations

import pytest
import torch
from filelock import FileLock
from processes import until
from trl_runs import Logs, assert_same, make_trainer, stored, weights

from grpo_core import attach
from grpo_core.errors import StoreError, StudioError
from grpo_core.records import outbox
from grpo_core.store import Store

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=[1, 2], ids=["1 iteration", "2 iterations"], scope="module")
def both(request, tmp_path_factory):
    """The same run without and with attach: weights, then weights, TRL's logs, store and row."""
    folder = tmp_path_factory.mktemp("attached")
    options = {"num_iterations": request.param}
    plain = make_trainer(folder, **options)
    plain.train()
    trainer = make_trainer(folder, **options)
    logs = Logs(trainer, {})
    attach(trainer, db=folder / "runs.sqlite")
    trainer.train()
    store = Store(folder / "runs.sqlite")
    [run] = store.runs()
    return weights(plain), weights(trainer), logs, store, run


def test_the_weights_are_bitwise_those_of_the_run_without_attach(both):
    before, after, *_ = both
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_every_group_is_there_once_with_trls_scores_and_advantages(both):
    _, _, logs, store, run = both
    # A generation serves as many steps as there are iterations.
    assert len(logs.generations) == 10 // run.source.settings["num_iterations"]
    assert_same(stored(store, run.id), logs.generations)


def test_the_run_says_where_it_comes_from_and_that_it_has_finished(both):
    *_, run = both
    assert (run.status, run.step, run.num_steps, run.error) == ("finished", 10, 10, None)
    assert run.source.trainer == "TRL 1.16.0"
    assert run.source.settings["reward_weights"] == {"is_right": 1.0, "is_short": 0.5}
    assert not any("token" in name for name in run.source.settings)
    assert run.source.disagreements == 0


def test_metrics_of_each_step_have_our_names_and_values(both):
    _, _, logs, store, run = both
    steps = store.steps(run.id)
    assert [row["step"] for row in steps] == list(range(1, 11))
    history = [line for line in logs.history if "loss" in line]
    names = {
        "loss": "loss",
        "kl": "kl",
        "entropy": "entropy",
        "grad_norm": "grad_norm",
        "learning_rate": "learning_rate",
        "clip_low_frac": "clip_ratio/low_mean",
        "clip_high_frac": "clip_ratio/high_mean",
        "clip_frac": "clip_ratio/region_mean",
        "reward_mean": "reward",
        "completion_tokens_mean": "completions/mean_length",
        "truncated_frac": "completions/clipped_ratio",
        "step_seconds": "step_time",
    }
    for ours, theirs in names.items():
        expected = [line.get(theirs) for line in history]
        assert [row[ours] for row in steps] == pytest.approx(expected), ours
    rates = dict(store.metrics(run.id)["score/is_right"])
    assert rates[1] == pytest.approx(history[0]["rewards/is_right/mean"])


def test_evaluations_and_steps_of_several_generations(tmp_path):
    """Two generations a step, a log every four steps, and an evaluation of all eval rows."""
    trainer = make_trainer(
        tmp_path,
        steps=4,
        gradient_accumulation_steps=2,
        steps_per_generation=1,
        logging_steps=4,
        eval_strategy="steps",
        eval_steps=4,
    )
    attach(trainer, db=tmp_path / "runs.sqlite", name="mine")
    trainer.train()
    store = Store(tmp_path / "runs.sqlite")
    [run] = store.runs()
    training = [(g.step, g.position) for g in store.iter_groups(run.id)]
    assert training == [(s, p) for s in (1, 2, 3, 4) for p in range(4)]
    evaluation = list(store.iter_groups(run.id, kind="evaluation"))
    assert [(g.step, g.position) for g in evaluation] == [(4, p) for p in range(4)]
    assert {g.prompt for g in evaluation} == set(trainer.eval_dataset["prompt"])
    assert {r.advantage for g in evaluation for r in g.rollouts} == {None}
    assert run.name == "mine"


def test_an_exception_ends_the_run_as_failed_with_its_reason(tmp_path):
    trainer = make_trainer(tmp_path, steps=3)

    def breaks():
        raise ZeroDivisionError("a reward function divides by zero")

    Logs(trainer, {2: breaks})
    attach(trainer, db=tmp_path / "runs.sqlite")
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    store = Store(tmp_path / "runs.sqlite")
    [run] = store.runs()
    assert run.status == "failed"
    assert run.error.startswith("ZeroDivisionError: a reward function divides by zero\n")
    assert [made["step"] for made in stored(store, run.id)] == [1, 2]


def test_a_training_that_goes_on_from_its_checkpoint_is_the_same_run(tmp_path):
    options = {"steps": 4, "save_strategy": "steps", "save_steps": 2}
    trainer = make_trainer(tmp_path, **options)

    def interrupted():
        raise KeyboardInterrupt

    Logs(trainer, {3: interrupted})
    attach(trainer, db=tmp_path / "runs.sqlite")
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    store = Store(tmp_path / "runs.sqlite")
    assert store.runs()[0].status == "stopped"
    trainer = make_trainer(tmp_path, **options)
    logs = Logs(trainer, {})
    attach(trainer, db=tmp_path / "runs.sqlite")
    trainer.train(resume_from_checkpoint=True)
    [run] = store.runs()
    assert run.status == "finished"
    recorded = stored(store, run.id)
    assert [made["step"] for made in recorded] == [1, 2, 3, 4]
    assert_same(recorded[2:], logs.generations)  # step 3 as it was made the second time


def test_a_file_that_is_held_delays_the_record_and_not_the_training(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(outbox, "LAST_RETRY", 0.2)
    db = tmp_path / "runs.sqlite"
    Store(db)
    lock = FileLock(f"{db}.lock", thread_local=False)
    trainer = make_trainer(tmp_path, steps=4)
    logs = Logs(trainer, {3: lock.release})
    attach(trainer, db=db)
    lock.acquire()
    trainer.train()
    store = Store(db)
    [run] = store.runs()
    assert_same(stored(store, run.id), logs.generations)
    assert run.status == "finished"


def test_a_file_that_cannot_be_written_loses_nothing_but_the_record(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(outbox, "PATIENCE_SECONDS", 0.2)
    db = tmp_path / "runs.sqlite"
    trainer = make_trainer(tmp_path, steps=2)
    attach(trainer, db=db)
    with FileLock(f"{db}.lock", thread_local=False):
        assert trainer.train().global_step == 2
    assert "is in use" in caplog.text
    assert "parcels of this run wait in" in caplog.text
    # The next trainer of this folder sends them.
    trainer = make_trainer(tmp_path, steps=1)
    attach(trainer, db=db)
    trainer.train()
    store = Store(db)
    assert sorted(len(stored(store, run.id)) for run in store.runs()) == [1, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either db"),
        ({"db": "a", "url": "http://b"}, "either db"),
        ({"url": "localhost:7860", "token": "t"}, "no address of a page"),
        ({"url": "http://localhost:7860"}, "token is empty"),
        ({"url": "http://localhost:7860", "token": "t\n"}, "printable"),
    ],
)
def test_wrong_arguments_are_told_at_once(tmp_path, arguments, message):
    trainer = make_trainer(tmp_path, steps=1)
    with pytest.raises(StudioError, match=message):
        attach(trainer, **arguments)


def test_what_cannot_be_attached_is_told_at_once(tmp_path):
    with pytest.raises(StudioError, match="makes no groups"):
        attach(object(), db=tmp_path / "runs.sqlite")
    trainer = make_trainer(tmp_path, steps=1)
    with pytest.raises(StoreError, match="does not exist"):
        attach(trainer, db=tmp_path / "no" / "folder" / "runs.sqlite")
    attach(trainer, db=tmp_path / "runs.sqlite")
    with pytest.raises(StudioError, match="attached already"):
        attach(trainer, db=tmp_path / "runs.sqlite")


def test_a_second_training_is_a_second_run(tmp_path):
    trainer = make_trainer(tmp_path, steps=1)
    attach(trainer, db=tmp_path / "runs.sqlite")
    trainer.train()
    trainer.train()
    store = Store(tmp_path / "runs.sqlite")
    assert until(lambda: len(store.runs()) == 2)
