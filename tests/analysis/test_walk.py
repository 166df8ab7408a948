"""The walk through one group: every number against plain loops, and changed controls by hand."""

from __future__ import annotations

import math
from array import array

import pytest
from naive_walk import config, record_steps

from grpo_core.analysis.walk import Change, Walker
from grpo_core.analysis.walk_picture import moved, push, ratio_picture
from grpo_core.config import AlgorithmConfig
from grpo_core.config.options import ADVANTAGES
from grpo_core.errors import InvalidConfig
from grpo_core.store import Recorder
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

# How each estimator's run is set, so that together they use every choice.
SETTINGS = {
    "group_std": {},
    "group_mean": {"algorithm.aggregation": "sequence_mean", "algorithm.kl_estimator": "k1"},
    "batch_std": {"algorithm.aggregation": "constant", "algorithm.kl_estimator": "k2"},
    "leave_one_out": {"algorithm.mask_truncated": True},
    "rank": {"algorithm.ratio_level": "sequence"},
    "per_criterion": {"algorithm.clip_eps_low": 0.1, "algorithm.clip_eps_high": 0.4},
}


def test_every_estimator_that_needs_no_critic_is_walked():
    assert set(SETTINGS) == set(ADVANTAGES) - {"value"}


@pytest.mark.parametrize("estimator", SETTINGS)
def test_every_number_of_twenty_groups_equals_plain_loops(store, estimator):
    settings = config(**{"algorithm.advantage": estimator}, **SETTINGS[estimator])
    run_id, steps = record_steps(store, settings, num_steps=4, seed=len(estimator))
    num_groups = 0
    for step, groups in enumerate(steps, 1):
        for group_id, rows in zip(store.group_ids(run_id, step), groups, strict=True):
            walk = Walker(store, store.run(run_id), store.group(group_id)).walk()
            assert walk.mismatch < 1e-9
            for shown, row in zip(walk.rows, rows, strict=True):
                assert_equal(shown, row)
            for name in ("policy_loss", "kl_loss", "loss"):
                total = sum(row.numbers[name] for row in rows)
                assert walk.total(name) == pytest.approx(total, abs=1e-9)
            num_groups += 1
    assert num_groups == 20


def assert_equal(shown, row):
    def near(value):
        return pytest.approx(value, abs=1e-6)

    numbers = row.numbers
    assert shown.reward == row.reward == shown.compared
    assert shown.rollout.scores == row.scores
    assert shown.difference == (None if row.reward is None else near(numbers["difference"]))
    if row.reward is not None:
        assert shown.spread == (numbers["spread"] and near(numbers["spread"]))
        assert shown.baseline == near(row.reward - numbers["difference"])
    assert shown.advantage == near(numbers["advantage"])
    assert shown.ratio_span == near((numbers["ratio_low"], numbers["ratio_high"]))
    for name in ("num_clipped", "policy_loss", "kl_loss", "loss"):
        assert getattr(shown, name) == near(numbers[name]), name
    assert shown.kl == near({name: numbers[name] for name in ("k1", "k2", "k3")})
    assert (shown.effect.before, shown.effect.after) == near((numbers["before"], numbers["after"]))


@pytest.mark.parametrize("grouping", ["task", "batch", "similarity"])
def test_a_wider_grouping_compares_with_the_whole_step(store, grouping):
    # The texts "question 0" … "question 4" are similar; all are of one task.
    settings = config(
        **{"algorithm.advantage": "group_mean", "algorithm.similarity_threshold": 0.1}
    )
    run_id, steps = record_steps(store, settings, num_steps=1, seed=3)
    walker = first_walker(store, run_id)
    known = [r.reward for group in steps[0] for r in group if r.reward is not None]
    walk = walker.walk(Change(fields={"algorithm.grouping": grouping}))
    assert walk.num_compared == sum(map(len, steps[0]))
    for shown, row in zip(walk.rows, steps[0][0], strict=True):
        expected = 0.0 if row.reward is None else row.reward - sum(known) / len(known)
        assert shown.advantage == pytest.approx(expected)
    found = walker.groupings()
    assert found[grouping].advantages == pytest.approx([row.advantage for row in walk.rows])
    assert found["prompt"].num_compared == len(steps[0][0])


def first_walker(store, run_id):
    return Walker(store, store.run(run_id), store.group(store.group_ids(run_id, 1)[0]))


# ---- changed controls, with numbers worked out by hand ---------------------------------------

HIGHER = math.log(1.5)  # a token whose probability rose by half between two updates


@pytest.fixture
def worked(store):
    """Rewards 1, 0, 0, 1 of completions of two tokens; the first token's ratio is 1.5."""
    run_id = store.create_run(
        config(**{"algorithm.kl_coef": 0.5}), "worked", status=RunStatus.FINISHED
    )
    rewards = [1.0, 0.0, 0.0, 1.0]
    rollouts = tuple(
        Rollout(Completion("x", "stop", 2), {"right": r, "form": None}, r, a)
        for r, a in zip(rewards, advantages_of(rewards), strict=True)
    )
    tokens = TokenRecord(
        array("i", [1, 2]),
        None,
        array("f", [-1.0, -1.0, -1.0 + HIGHER, -1.0]),
        array("f", [-1.0 + HIGHER, -1.2]),  # the reference: d = 0 and −0.2 in the second update
        None,
        None,
    )
    with Recorder(store, run_id) as record:
        group = Group(Prompt("p", "Q", "1", "sums"), rollouts, 0.5, 0.57735, "healthy")
        record(GroupsScored(1, (group,)))
        records = {(0, i): tokens for i in range(4)}
        metrics = StepMetrics(kl_coef=0.5, loss=0.1)
        record(StepCompleted(1, metrics, {}, StepTokens(records, {1: b"a", 2: b"b"})))
    return first_walker(store, run_id)


def advantages_of(rewards):
    m = sum(rewards) / len(rewards)
    s = math.sqrt(sum((r - m) ** 2 for r in rewards) / (len(rewards) - 1))
    return [(r - m) / (s + 1e-4) for r in rewards]


def test_with_two_completions_a_pair_that_differs_gets_seven_tenths(worked):
    # The first two of each group: rewards 1 and 0, mean 1/2, std √½ = 0.70711.
    walk = worked.walk(Change(size=2))
    a = 0.5 / (math.sqrt(0.5) + 1e-4)
    assert [row.advantage for row in walk.rows] == pytest.approx([a, -a])
    assert (walk.num_rows, walk.num_tokens, walk.num_compared) == (2, 4, 2)
    assert worked.walk(Change(size=1)).num_tied == 1


def test_another_reward_moves_mean_std_and_every_advantage(worked):
    # 1, 0, 0, 0: mean 1/4, std 1/2, so A = .75/.5001, and −.25/.5001 three times.
    walk = worked.walk(Change(rewards={3: 0.0}))
    assert [row.baseline for row in walk.rows] == [0.25] * 4
    assert [row.spread for row in walk.rows] == pytest.approx([0.5] * 4)
    assert [row.advantage for row in walk.rows] == pytest.approx(
        [0.75 / 0.5001, -0.25 / 0.5001, -0.25 / 0.5001, -0.25 / 0.5001]
    )


def test_another_estimator_and_another_weight_give_their_own_advantages(worked):
    fields = {"algorithm.advantage": "leave_one_out"}
    # 1 less the mean of 0, 0, 1; 0 less that of 1, 0, 1
    walk = worked.walk(Change(fields=fields))
    assert [row.advantage for row in walk.rows] == pytest.approx([2 / 3, -2 / 3, -2 / 3, 2 / 3])
    walk = worked.walk(Change(fields=fields, weights={"right": 3.0}))
    assert [row.advantage for row in walk.rows] == pytest.approx([2.0, -2.0, -2.0, 2.0])
    assert [row.reward for row in walk.rows] == [3.0, 0.0, 0.0, 3.0]


def test_a_wider_clip_range_lets_a_good_token_gain_more(worked):
    # #1 has A > 0. Its first token: min(1.5·A, 1.2·A), with ε 0.6 it is 1.5·A. N = 8 tokens.
    a = worked.walk().rows[0].advantage
    own, wide = worked.walk(), worked.walk(Change(fields={"algorithm.clip_eps_high": 0.6}))
    assert own.rows[0].policy_loss == pytest.approx(-(1.2 * a + a) / 8)
    assert wide.rows[0].policy_loss == pytest.approx(-(1.5 * a + a) / 8)
    assert [w.rows[0].num_clipped for w in (own, wide)] == [1, 0]
    # #2 has A < 0: a ratio above 1 is not held, so nothing changes.
    assert own.rows[1].policy_loss == wide.rows[1].policy_loss == pytest.approx(2.5 * a / 8)
    assert [row.advantage for row in wide.rows] == [row.advantage for row in own.rows]


def test_another_kl_coefficient_and_aggregation_change_the_loss_alone(worked):
    # k3 of d = 0 and d = −0.2: 0 and e^−.2 + .2 − 1. Over 8 tokens, times 0.5.
    k3 = math.exp(-0.2) + 0.2 - 1
    assert worked.walk().rows[0].kl_loss == pytest.approx(0.5 * k3 / 8, abs=1e-7)
    more = worked.walk(Change(fields={"algorithm.kl_coef": 2.0}))
    assert more.rows[0].kl_loss == pytest.approx(2.0 * k3 / 8, abs=1e-7)
    assert more.rows[0].policy_loss == worked.walk().rows[0].policy_loss
    constant = worked.walk(Change(fields={"algorithm.aggregation": "constant"}))
    assert constant.rows[0].kl_loss == pytest.approx(0.5 * k3 / (4 * 12), abs=1e-7)


def test_a_change_that_no_run_can_have_is_refused(worked):
    with pytest.raises(InvalidConfig, match="clip_eps_low"):
        worked.walk(Change(fields={"algorithm.clip_eps_low": 1.5}))


def test_a_critics_advantages_stay_as_stored_and_have_no_arithmetic(store):
    run_id, steps = record_steps(store, config(), num_steps=1, seed=1)
    run = store.run(run_id)
    by_critic = {**run.config, "algorithm": {**run.config["algorithm"], "advantage": "value"}}
    object.__setattr__(run, "config", by_critic)
    walk = Walker(store, run, store.group(store.group_ids(run_id, 1)[0])).walk(Change(size=2))
    assert [r.advantage for r in walk.rows] == [r.numbers["advantage"] for r in steps[0][0][:2]]
    assert [(r.difference, r.spread) for r in walk.rows] == [(None, None)] * 2


# ---- the picture -----------------------------------------------------------------------------


def test_the_push_ends_where_clipping_forbids_more():
    a = AlgorithmConfig(clip_eps_low=0.2, clip_eps_high=0.3)
    ratios = [0.7, 0.9, 1.0, 1.25, 1.4]
    assert push(a, 1.0, ratios) == pytest.approx([0.7, 0.9, 1.0, 1.25, 0.0])
    assert push(a, -1.0, ratios) == pytest.approx([0.0, -0.9, -1.0, -1.25, -1.4])


def test_what_a_token_adds_to_the_distance_is_w_less_one_less_its_log():
    assert moved([1.0, 2.0, 0.5]) == pytest.approx([0.0, 1 - math.log(2), math.log(2) - 0.5])


def test_the_picture_shows_ratios_after_the_step_if_they_were_measured(store):
    run_id, steps = record_steps(store, config(), num_steps=1, seed=2)
    picture = ratio_picture(first_walker(store, run_id).walk())
    expected = [
        math.exp(after - before)
        for row in steps[0][0]
        for after, before in zip(row.tokens.logprobs_after, row.tokens.logprobs, strict=False)
    ]
    assert [t.ratio for t in picture.tokens] == pytest.approx(expected)
    assert picture.after
    assert (picture.low, picture.high) == (0.8, 1.2)
