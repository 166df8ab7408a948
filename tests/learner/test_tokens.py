"""Token records: what is written of every token is what the model says of it."""

from __future__ import annotations

import sqlite3
from array import array
from contextlib import closing

import pytest
import torch
from tiny_lm import ROWS, A, TinyLM, make_batch, make_learner
from trained_runs import record as recorded
from trained_runs import train_run

from grpo_core.config import RunConfig, nest, parse
from grpo_core.learner import token_logprobs
from grpo_core.models import Vocabulary, load_policy
from grpo_core.store import Recorder, Store
from grpo_core.training.control import RunControl
from grpo_core.training.trainer import first_informative, train
from grpo_core.types import (
    Completion,
    Group,
    GroupsScored,
    Prompt,
    Rollout,
    RunStatus,
    StepCompleted,
    StepMetrics,
    StepTokens,
    TokenRecord,
)

BOTH = (0, 1)  # the groups of the batch


def test_the_log_has_the_numbers_of_every_pass_and_the_reference():
    before, reference = TinyLM(), TinyLM(seed=1)
    learner = make_learner(TinyLM(), reference, kl_coef=0.1, updates_per_batch=2)
    learner.update(make_batch(), A)
    batch = make_batch()
    old, entropy = token_logprobs(before, batch, 1.0)
    ref, _ = token_logprobs(reference, batch, 1.0)
    for i, record in enumerate(learner.log.records()):
        n = len(batch.completions[i])
        assert list(record.token_ids) == list(batch.completions[i])
        assert list(record.logprobs[:n]) == pytest.approx(old[i, :n].tolist(), abs=1e-5)
        assert list(record.entropy[:n]) == pytest.approx(entropy[i, :n].tolist(), abs=1e-5)
        assert list(record.ref_logprobs) == pytest.approx(ref[i, :n].tolist(), abs=1e-5)
        assert len(record.logprobs) == len(record.entropy) == 2 * n
        assert record.logprobs[:n] != record.logprobs[n:]  # the second update saw another policy


def test_a_skipped_tied_group_has_token_ids_and_numbers_only_with_kl():
    learner = make_learner(kl_coef=0.0)
    learner.update(make_batch(), torch.tensor([0.0, 0.0, 1.0, -1.0]))
    records = learner.log.records()
    # At least two rows are measured: the first group has all numbers, the second only those
    # that the update needed.
    assert [r.ref_logprobs is None for r in records] == [False, False, True, True]
    assert [r.logprobs is None for r in records] == [False] * 4
    learner.update(make_batch(), torch.tensor([1.0, -1.0, 0.0, 0.0]))
    assert [r.logprobs is None for r in learner.log.records()] == [False, False, True, True]


@pytest.mark.parametrize(
    "algorithm",
    [
        {},
        {"updates_per_batch": 3, "clip_eps_low": 0.01, "clip_eps_high": 0.01},
        {"objective": "trust_region", "kl_coef": 0.0},
        {"advantage": "value"},
        {"kl_control": "hard", "kl_target": 1e-9},  # the update is a step back
    ],
)
def test_the_log_after_an_update_is_the_updated_policys(algorithm):
    learner = make_learner(train={"temperature": 0.7}, **algorithm)
    trains = [True, True, False, True]  # a masked row is measured too
    batch = make_batch(trains=trains)
    critic = learner.critic is not None
    advantages = learner.estimate_values(batch, A) if critic else A
    learner.update(batch, advantages)
    learner.measure_after(BOTH)
    after, _ = token_logprobs(learner.model, make_batch(), 0.7)
    for i, record in enumerate(learner.log.records()):
        n = len(ROWS[i][1])
        assert list(record.logprobs_after) == pytest.approx(after[i, :n].tolist(), abs=1e-6)
    assert record.logprobs_after != record.logprobs[:n]


def test_only_rows_that_the_update_computed_are_measured_after_it():
    learner = make_learner(kl_coef=0.0, measure_kl=False)
    learner.reference = None
    learner.update(make_batch(), torch.tensor([0.0, 0.0, 1.0, -1.0]))
    learner.measure_after(BOTH)
    records = learner.log.records()
    assert [r.logprobs_after is None for r in records] == [True, True, False, False]
    learner.update(make_batch(), torch.zeros(4))  # all tied: nothing to measure
    learner.measure_after(BOTH)
    assert [r.logprobs_after for r in learner.log.records()] == [None] * 4


def test_groups_with_advantages_are_measured_first():
    def group(*advantages: float | None) -> Group:
        rollouts = tuple(Rollout(Completion("", "stop", 1), advantage=a) for a in advantages)
        return Group(Prompt("p", "p", "", "sums"), rollouts, 0.0, 0.0, "")

    groups = [group(0.0, 0.0), group(1.0, -1.0), group(None, None), group(0.0, 0.5)]
    assert [first_informative(groups, n) for n in (0, 1, 3, 9)] == [
        [],
        [1],
        [1, 3, 0],
        [1, 3, 0, 2],
    ]
    learner = make_learner()
    learner.update(make_batch(), A)
    learner.measure_after([1])
    records = learner.log.records()
    assert [r.logprobs_after is None for r in records] == [True, True, False, False]


def test_measuring_after_updates_changes_no_bit_of_training():
    one, two = make_learner(kl_coef=0.1), make_learner(kl_coef=0.1)
    random_state = torch.get_rng_state()
    for _ in range(3):
        assert one.update(make_batch(), A) == two.update(make_batch(), A)
        two.measure_after(BOTH)
    assert torch.equal(torch.get_rng_state(), random_state)
    for p, q in zip(one.model.parameters(), two.model.parameters(), strict=True):
        assert torch.equal(p, q)
    for p, q in zip(tensors(one.state()), tensors(two.state()), strict=True):
        assert torch.equal(p, q)


def test_a_run_is_the_same_with_and_without_token_records(store, tiny_settings):
    settings = {**tiny_settings, "train.learning_rate": 1e-2, "algorithm.updates_per_batch": 2}
    runs = [train_run(store, {**settings, "train.token_records": n}, f"{n}") for n in (0, 1)]
    without, with_records = (recorded(store, run_id) for run_id in runs)
    # Only for the records the sampler's log-probabilities are kept.
    for run, is_kept in ((without, False), (with_records, True)):
        gaps = [s.pop(n) for s in run["steps"] for n in ("sampler_kl", "sampler_ratio_max")]
        assert [gap is not None for gap in gaps] == [is_kept] * 6
    assert with_records == without
    measured = [
        [store.token_row(r.id) for g in store.iter_groups(run_id) for r in g.rollouts]
        for run_id in runs
    ]
    assert measured[0] == [None] * 24
    assert [row.logprobs_after is not None for row in measured[1]] == [
        row.logprobs is not None for row in measured[1]
    ]


def tensors(state) -> list[torch.Tensor]:
    """Every tensor of a nested state, in order."""
    if isinstance(state, torch.Tensor):
        return [state]
    values = state.values() if isinstance(state, dict) else state
    return [t for v in values if isinstance(v, (dict, list, torch.Tensor)) for t in tensors(v)]


def test_measuring_after_an_update_continues_in_smaller_parts(monkeypatch):
    learner = make_learner()
    learner.update(make_batch(), A)
    learner.measure_after(BOTH)
    expected = [list(r.logprobs_after) for r in learner.log.records()]
    learner.log.logprobs_after.fill_(torch.nan)
    score, failed = TinyLM.forward, []

    def short_of_memory(self, input_ids, attention_mask):
        if len(input_ids) > 1:
            failed.append(len(input_ids))
            raise MemoryError
        return score(self, input_ids, attention_mask)

    monkeypatch.setattr(TinyLM, "forward", short_of_memory)
    calls = []
    learner.measure_after(BOTH, lambda: calls.append(1))
    assert failed
    assert len(calls) > 2  # a person's commands are looked at before every part
    for record, values in zip(learner.log.records(), expected, strict=True):
        assert list(record.logprobs_after) == pytest.approx(values, abs=1e-6)


def test_a_run_records_its_sampled_tokens_and_their_text(tiny_model, tmp_path):
    events = []
    settings = {
        "model.name": str(tiny_model),
        "task.heldout_size": 0,
        "train.steps": 3,
        "train.prompts_per_step": 2,
        "train.group_size": 2,
        "train.max_new_tokens": 8,
        "train.token_records": 2,
    }
    train(parse(nest(settings)), events.append, RunControl())
    # Every second step
    assert [e.tokens is None for e in events if isinstance(e, StepCompleted)] == [
        True,
        False,
        True,
    ]

    store = Store(tmp_path / "s.db")
    run_id = store.create_run(RunConfig(), "a run")
    with Recorder(store, run_id) as recorder:
        for event in events:
            recorder(event)
    policy = load_policy(parse(nest(settings)).model, 0)
    with closing(sqlite3.connect(store.path)) as conn:
        rows = conn.execute(
            "SELECT r.text, r.num_tokens, t.token_ids, t.sampling_logprobs, t.logprobs "
            "FROM token_records t JOIN rollouts r ON r.id = t.rollout_id"
        ).fetchall()
        pieces = dict(
            conn.execute(
                "SELECT token_id, piece FROM token_pieces WHERE run_id = ?", (run_id,)
            ).fetchall()
        )
    assert len(rows) == 4
    for text, num_tokens, ids, sampled, logprobs in rows:
        ids = array("i", ids)
        assert len(ids) == num_tokens
        assert policy.decode(ids) == text
        assert (
            b"".join(pieces[t] for t in ids if t not in policy.end_ids)
            .decode("utf-8", "replace")
            .strip()
            == text.strip()
        )
        # Sampling and update compute the same numbers by two paths through the model.
        assert list(array("f", sampled)) == pytest.approx(list(array("f", logprobs)), abs=1e-4)


def test_token_records_are_replaced_with_their_step_and_go_with_their_run(tmp_path):
    store = Store(tmp_path / "s.db")
    run_id = store.create_run(RunConfig(), "a run")
    rollouts = tuple(Rollout(Completion(t, "stop", 2), {}, 1.0, 0.0) for t in "ab")
    scored = GroupsScored(1, (Group(Prompt("p", "p", "", "sums"), rollouts, 1.0, 0.0, "tied"),))
    with Recorder(store, run_id) as recorder:
        for first in (1, 7):  # a resumed run emits its step again
            records = {
                (0, i): TokenRecord(array("i", [first + i, 9]), logprobs=array("f", [-0.5, -1.5]))
                for i in (1, 0)  # the position says whose tokens they are, not the order
            }
            recorder(scored)
            recorder(
                StepCompleted(
                    1, StepMetrics(), {}, StepTokens(records, {first: b"\xe2", 9: b"</s>"})
                )
            )
    with closing(sqlite3.connect(store.path)) as conn:
        kept = conn.execute(
            "SELECT token_ids, sampling_logprobs, logprobs FROM token_records ORDER BY rollout_id"
        ).fetchall()
    assert [(list(array("i", ids)), s, list(array("f", p))) for ids, s, p in kept] == [
        ([7, 9], None, [-0.5, -1.5]),
        ([8, 9], None, [-0.5, -1.5]),
    ]
    store.set_status(run_id, RunStatus.FINISHED)
    store.delete(run_id)
    with closing(sqlite3.connect(store.path)) as conn:
        assert conn.execute(
            "SELECT (SELECT COUNT(*) FROM token_records), (SELECT COUNT(*) FROM token_pieces)"
        ).fetchone() == (0, 0)


@pytest.mark.parametrize("text", ["12 + 5 = 17", "naïve 数学 🙂", "\n\t  x"])
def test_byte_level_pieces_join_to_the_text_across_split_characters(text):
    tokenizer = load_policy(RunConfig().model, 0).tokenizer
    vocabulary = Vocabulary(tokenizer)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert b"".join(vocabulary.piece(t) for t in ids).decode() == text
    assert set(vocabulary.new_pieces([ids])) == set(ids)
    assert vocabulary.new_pieces([ids]) == {}
