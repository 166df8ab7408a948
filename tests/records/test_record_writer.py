"""Runs of another trainer in the store: what is written, filled in, and left empty."""

from __future__ import annotations

import math

import pytest
from foreign_steps import (
    GROUP_MEAN,
    GROUP_STD,
    LEAVE_ONE_OUT,
    NAN,
    as_float32,
    group,
    run,
    step,
)

from grpo_core.analysis.what_if import settings, what_if
from grpo_core.config import parse
from grpo_core.errors import InvalidConfig, StudioError
from grpo_core.exporting.recipes import as_command, as_trl_script
from grpo_core.records.advice import Advice
from grpo_core.records.record import SourceGroup, SourceRollout
from grpo_core.records.writer import RecordWriter
from grpo_core.runs.doctor import examine_store
from grpo_core.runs.resume import plan_branch, plan_resume
from grpo_core.store import Page, Wanted
from grpo_core.types import GroupKind, RunStatus, Turn, TurnRole


def written(store, *steps, source=None, **options):
    """The id of a run with these steps, which has ended."""
    with RecordWriter(store, source or run(), **options) as writer:
        for one in steps:
            writer.write(one)
        writer.finish(RunStatus.FINISHED)
    return writer.run_id


def groups(store, run_id, kind=GroupKind.TRAINING):
    return list(store.iter_groups(run_id, kind=kind))


def advantages(store, run_id):
    return [[r.advantage for r in g.rollouts] for g in groups(store, run_id)]


# ---- once, in any order --------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [0, 1000])
def test_the_same_steps_again_change_nothing(store, batch):
    steps = [step(1), step(2, group("a"), part=1), step(2, group("b"))]
    run_id = written(store, *steps, batch=batch)
    before = (store.cursor(run_id), groups(store, run_id))
    with RecordWriter(store, run(), batch=batch) as writer:
        assert [writer.write(one) for one in steps] == [False] * 3
        writer.finish(RunStatus.FINISHED)
    assert writer.run_id == run_id
    assert (store.cursor(run_id), groups(store, run_id)) == before


def test_parts_stand_in_their_order_whenever_they_come(store):
    run_id = written(
        store,
        step(1, group("e"), part=2),
        step(1, group("a"), group("b"), part=0),
        step(1, group("c"), group("d"), part=1),
    )
    assert [(g.position, g.prompt) for g in groups(store, run_id)] == list(enumerate("abcde"))


def test_a_changed_part_replaces_itself_alone(store):
    run_id = written(store, step(1, group("a")), step(1, group("b"), part=1))
    written(store, step(1, group("c"), group("d"), group("e")))
    assert [g.prompt for g in groups(store, run_id)] == list("cdeb")
    written(store, step(1, group("f")))
    assert [(g.position, g.prompt) for g in groups(store, run_id)] == [(0, "f"), (1, "b")]


def test_metrics_cover_all_parts_of_a_step(store):
    worse = SourceGroup(prompt="q", rollouts=[SourceRollout(text="t", scores={"correct": 0.0})] * 4)
    for key, parts in (("one", 1), ("each", 2)):
        with RecordWriter(store, run(key)) as writer:
            writer.write(step(1, part=1))
            if parts == 2:
                writer.settle()
            writer.write(step(1, worse, metrics={"loss": 0.5, "their_own": 2.0}))
        row = store.steps(writer.run_id)[0]
        assert (row["reward_mean"], row["tied_group_frac"], row["loss"]) == (3 / 8, 0.5, 0.5)
        assert store.metrics(writer.run_id)["score/correct"] == [(1, 3 / 8)]
        assert store.metrics(writer.run_id)["their_own"] == [(1, 2.0)]


def test_a_step_of_very_many_parts_has_its_metrics_at_the_end(store):
    parts = [step(1, *(group(f"{i}-{j}") for j in range(40)), part=i) for i in range(5)]
    run_id = written(store, *parts, batch=10_000)
    assert store.steps(run_id)[0]["reward_mean"] == 0.75
    assert store.steps(run_id)[0]["unique_frac"] == 1.0


# ---- recorded, recomputed, absent ----------------------------------------------------------------


def test_missing_advantages_are_filled_and_named(store):
    run_id = written(store, step(1))
    assert advantages(store, run_id)[0] == pytest.approx(GROUP_STD, abs=1e-15)
    source = store.run(run_id).source
    assert source.recomputed == {
        "reward": "sum of scores times weights",
        "advantage": "group_std",
    }
    assert source.recorded == ("prompt", "completion", "scores")
    assert {"token_ids", "finish_reason", "answer", "metrics"} <= set(source.absent)


@pytest.mark.parametrize(
    ("name", "values"),
    [("group_std", GROUP_STD), ("group_mean", GROUP_MEAN), ("leave_one_out", LEAVE_ONE_OUT)],
)
def test_the_estimator_is_found_in_the_recorded_advantages(store, name, values):
    run_id = written(store, step(1, group(advantages=as_float32(values))))
    found = store.run(run_id)
    assert found.config["algorithm"]["advantage"] == name
    assert (found.source.estimator, found.source.disagreements) == ("found", 0)
    assert what_if(store, run_id, settings(found.config)).largest_change < 1e-6


def test_settings_choose_the_estimator_and_it_stays(store):
    theirs = run(settings={"scale_rewards": False, "beta": 0.04, "num_generations": 4})
    run_id = written(store, step(1, group(advantages=GROUP_STD)), source=theirs)
    found = store.run(run_id)
    assert found.config["algorithm"]["advantage"] == "group_mean"
    assert found.config["algorithm"]["kl_coef"] == 0.04
    assert found.config["train"]["group_size"] == 4
    assert (found.source.estimator, found.source.disagreements) == ("settings", 1)
    assert store.steps(run_id)[0]["kl_coef"] == 0.04


def test_a_group_whose_advantages_differ_says_so_until_it_is_corrected(store):
    right, wrong = group("a", GROUP_STD), group("b", (0.3, 0.3, 0.3, 0.3))
    run_id = written(store, step(1, right), step(2, wrong))
    assert [g.verdict for g in groups(store, run_id)] == ["healthy", "disagrees"]
    assert store.run(run_id).source.disagreements == 1
    assert advantages(store, run_id)[1] == [0.3] * 4  # what was recorded stays
    written(store, step(2, group("b", GROUP_STD)))
    assert store.run(run_id).source.disagreements == 0


def test_what_is_not_known_is_empty_and_never_zero(store):
    run_id = written(store, step(1))
    assert store.steps(run_id)[0]["kl_coef"] is None
    rollout = groups(store, run_id)[0].rollouts[0]
    assert (rollout.num_tokens, rollout.finish_reason) == (None, None)
    row = store.steps(run_id)[0]
    for name in ("tokens", "completion_tokens_mean", "completion_tokens_max", "truncated_frac"):
        assert row[name] is None
    assert store.find_rollouts(run_id, Wanted(tokens_to=5)).total == 0
    assert len(store.find_rollouts(run_id, Wanted(), Page(sort="tokens")).rows) == 4


def test_tokens_and_their_mask_are_kept(store):
    rollout = SourceRollout(
        text="4 ok", scores={"correct": 1.0}, token_ids=[7, 8, 9], action_mask=[True, False, True],
        logprobs=[-0.5, -9.0, -0.25],
    )  # fmt: skip
    one = step(1, SourceGroup(prompt="p", rollouts=[rollout, rollout]), pieces={7: "4", 8: b"\xe2"})
    kept = groups(store, written(store, one))[0].rollouts[0]
    row = store.token_row(kept.id)
    assert kept.num_tokens == 2  # the policy wrote two of three
    assert row.pieces == (b"4", b"\xe2", b"[9]")
    assert row.logprobs[0] == -0.5
    assert math.isnan(row.logprobs[1])
    assert row.ref_logprobs is None


def test_evaluations_have_neither_advantages_nor_training(store):
    run_id = written(store, step(4, group(kind="evaluation", advantages=GROUP_STD)))
    assert groups(store, run_id) == []
    kept = groups(store, run_id, GroupKind.EVALUATION)[0]
    assert [r.advantage for r in kept.rollouts] == [None] * 4
    assert store.metrics(run_id)["heldout/accuracy"] == [(4, 0.75)]


def test_numbers_that_cannot_be_reckoned_with_are_absent(store):
    rollouts = [
        SourceRollout(text=str(i), scores={"correct": value})
        for i, value in enumerate((NAN, math.inf, 1e300, 1.0, 0.0))
    ]
    one = step(1, SourceGroup(prompt="p", rollouts=rollouts), metrics={"loss": NAN, "tokens": 1.5})
    run_id = written(store, one)
    assert [r.reward for r in groups(store, run_id)[0].rollouts] == [None, None, None, 1.0, 0.0]
    row = store.steps(run_id)[0]
    assert (row["loss"], row["tokens"], row["unscored_frac"]) == (None, None, pytest.approx(3 / 5))


@pytest.mark.parametrize("value", ["x", [], {}, True, -1, NAN, math.inf, 10**400])
def test_settings_that_cannot_be_used_end_no_import(store, value):
    names = ("max_steps", "seed", "temperature", "model", "loss_type", "beta")
    settings = dict.fromkeys(names, value) | {"reward_weights": {"correct": value}}
    run_id = written(store, step(1), source=run(settings=settings))
    assert len(groups(store, run_id)[0].rollouts) == 4


# ---- rubric --------------------------------------------------------------------------------------


def test_weights_of_the_source_make_the_reward(store):
    rollout = SourceRollout(text="t", scores={"correct": 1.0, "my format!": 0.5})
    theirs = run(settings={"reward_weights": {"correct": 2.0, "my format!": 0.5}})
    run_id = written(store, step(1, SourceGroup(prompt="p", rollouts=[rollout] * 2)), source=theirs)
    criteria = {c["name"]: c["weight"] for c in store.run(run_id).config["rubric"]["criteria"]}
    assert criteria == {"correct": 2.0, "my_format": 0.5}
    assert groups(store, run_id)[0].rollouts[0].reward == 2.25


def test_a_reward_that_is_no_sum_becomes_a_criterion(store):
    sums = SourceRollout(text="a", scores={"accuracy": 1.0, "len": 0.5}, reward=1.5)
    product = SourceRollout(text="b", scores={"accuracy": 1.0, "len": 0.5}, reward=0.5)
    tie = SourceGroup(prompt="p", rollouts=[sums, sums])
    run_id = written(
        store, step(1, tie), step(2, SourceGroup(prompt="q", rollouts=[sums, product]))
    )
    criteria = {c["name"]: c["weight"] for c in store.run(run_id).config["rubric"]["criteria"]}
    assert criteria == {"accuracy": 0.0, "len": 0.0, "reward": 1.0}
    assert [r.scores["reward"] for g in groups(store, run_id) for r in g.rollouts] == [
        1.5, 1.5, 1.5, 0.5,
    ]  # fmt: skip
    assert what_if(store, run_id, settings(store.run(run_id).config)).largest_change == 0


# ---- status --------------------------------------------------------------------------------------


def test_only_a_live_run_is_running(store):
    with RecordWriter(store, run()) as writer:
        writer.write(step(1))
        assert store.run(writer.run_id).status is RunStatus.STOPPED
    with RecordWriter(store, run("other", num_steps=9), live=True) as writer:
        assert not writer.is_live  # before the first record
        writer.write(step(4))
        writer.progress(5)
        found = store.run(writer.run_id)
        assert (found.status, found.step, found.num_steps) == (RunStatus.RUNNING, 5, 9)
        writer.finish(RunStatus.INTERRUPTED, "Nothing came.")
        writer.write(step(6))
        assert store.run(writer.run_id).status is RunStatus.RUNNING
        writer.finish(RunStatus.FINISHED)


WRONG = [-a for a in GROUP_STD]
NAMED = {"scale_rewards": "group"}  # by which the advantages are wrong


def test_a_live_run_is_advised_on_as_it_comes_and_at_its_end(store):
    def codes(run_id):
        return [notice.code for notice in store.alerts(run_id)]

    with RecordWriter(store, run(settings=NAMED), live=True) as writer:
        writer.write(step(1, group(advantages=WRONG)))
        assert codes(writer.run_id) == ["disagreement"]
    with RecordWriter(store, run("other", settings=NAMED), live=True) as writer:
        writer.write(step(1))
        writer.write(step(2, group(advantages=WRONG)))
        assert codes(writer.run_id) == []  # the last look was just now
        writer.finish(RunStatus.FINISHED)
        assert codes(writer.run_id) == ["disagreement"]


def test_rows_that_came_after_a_look_are_read_at_the_next_sign_of_life(store):
    run_id, now = written(store, step(1), source=run(settings=NAMED)), [100.0]
    advice = Advice(store, run_id, lambda: now[0])
    advice.look(is_news=True)
    written(store, step(2, group(advantages=WRONG)), source=run(settings=NAMED))
    store.set_alerts(run_id, [])
    for seconds, num in ((4.9, 0), (0.1, 1), (60.0, 1)):
        now[0] += seconds
        advice.look(is_news=num == 0)
        assert len(store.alerts(run_id)) == num


def test_recovery_and_doctor_leave_an_imported_run_alone(store):
    run_id = written(store, step(1))
    assert store.recover() == []
    assert not [f for f in examine_store(store) if f.wrong]
    assert store.run(run_id).status is RunStatus.FINISHED
    assert store.run(run_id).duration_seconds is None  # nobody knows how long it took there


def test_a_run_of_another_trainer_is_not_resumed(store):
    run_id = written(store, step(1))
    for plan in (lambda: plan_resume(store, run_id), lambda: plan_branch(store, run_id, None, {})):
        with pytest.raises(StudioError, match=r"trained with TRL 1\.16\.0"):
            plan()


@pytest.mark.parametrize("recipe", [as_command, as_trl_script])
def test_no_recipe_is_written_for_rewards_that_are_not_here(store, recipe):
    config = parse(store.run(written(store, step(1))).config)
    with pytest.raises(StudioError, match="trained elsewhere"):
        recipe(config)


@pytest.mark.parametrize(
    ("rollout", "place"),
    [
        ({"token_ids": [1, 2], "logprobs": [-0.1]}, "step.groups.0.rollouts.0.logprobs"),
        ({"token_ids": [2**40]}, "step.groups.0.rollouts.0.token_ids"),
        ({"num_tokens": 10**30}, "step.groups.0.rollouts.0.num_tokens"),
        (
            {"turns": (Turn(TurnRole.ACTION, "4", 0, 10**30),)},
            "step.groups.0.rollouts.0.turns.0.num_tokens",
        ),
    ],
)
def test_sequences_and_counts_that_do_not_fit_are_refused_by_name(store, rollout, place):
    one = step(1, SourceGroup(prompt="p", rollouts=[SourceRollout(text="t", **rollout)]))
    with RecordWriter(store, run()) as writer, pytest.raises(InvalidConfig) as error:
        writer.write(one)
    assert error.value.problems[0].field == place
    assert groups(store, writer.run_id) == []


def test_a_number_of_steps_that_does_not_fit_is_refused(store):
    with pytest.raises(InvalidConfig, match=r"run\.num_steps"):
        RecordWriter(store, run(num_steps=10**30))
