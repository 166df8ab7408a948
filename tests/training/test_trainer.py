"""train() alone: no store, no page. Real model code on a random-weight model."""

from __future__ import annotations

import json
import statistics

import pytest
import torch

from grpo_core.config import RubricConfig, nest, parse
from grpo_core.errors import InvalidConfig, StopRequested
from grpo_core.models import Policy
from grpo_core.rubric import build_rubric
from grpo_core.rubric.predict import wilson_interval
from grpo_core.training.control import RunControl
from grpo_core.training.scoring import group, mean
from grpo_core.training.trainer import train
from grpo_core.types import (
    Completion,
    Evaluated,
    GroupsScored,
    ModelLoaded,
    Noticed,
    Phase,
    PhaseStarted,
    Prompt,
    Rollout,
    StepCompleted,
)


def run(settings, control=None):
    events = []
    train(parse(nest(settings)), events.append, control or RunControl())
    return events


def of(events, kind):
    return [e for e in events if isinstance(e, kind)]


@pytest.fixture(scope="module")
def events(tiny_model):
    return run(
        {
            "model.name": str(tiny_model),
            "task.heldout_size": 8,
            "train.steps": 3,
            "train.prompts_per_step": 2,
            "train.group_size": 4,
            "train.max_new_tokens": 8,
            "train.eval_every": 2,
            "rubric.name": "answer",
        }
    )


def test_events_come_in_the_order_in_which_things_happen(events):
    order = [e.phase if isinstance(e, PhaseStarted) else type(e).__name__ for e in events]
    step = ["sampling", "scoring", "GroupsScored", "updating", "StepCompleted"]
    evaluation = ["evaluating", "Evaluated"]
    assert order == [
        "loading",
        "ModelLoaded",
        *evaluation,
        *step,
        *step,
        *evaluation,
        *step,
        *evaluation,
    ]
    assert [e.step for e in of(events, Evaluated)] == [
        0,
        2,
        3,
    ]  # before, every second step, and after
    assert {e.num_steps for e in of(events, PhaseStarted)} == {3}


def test_every_group_has_its_siblings_and_prompts_differ_within_a_step(events):
    for e in of(events, GroupsScored):
        assert [len(g.rollouts) for g in e.groups] == [4, 4]
        assert e.groups[0].prompt.id != e.groups[1].prompt.id


def test_rewards_and_advantages_equal_plain_python_on_the_scores(events):
    weights = {"accuracy": 1.0, "format": 0.2, "language": 0.1, "reasoning": 0.0}
    for e in of(events, GroupsScored):
        for g in e.groups:
            rewards = [sum(w * r.scores[k] for k, w in weights.items()) for r in g.rollouts]
            assert [r.reward for r in g.rollouts] == pytest.approx(rewards, abs=1e-12)
            centre, spread = statistics.mean(rewards), statistics.stdev(rewards)
            tied = max(rewards) - min(rewards) <= 1e-8
            expected = [0.0 if tied else (r - centre) / (spread + 1e-4) for r in rewards]
            assert [r.advantage for r in g.rollouts] == pytest.approx(expected, abs=1e-9)
            assert (g.reward_mean, g.reward_std) == pytest.approx((centre, spread), abs=1e-12)


def test_step_metrics_follow_from_the_steps_groups(events):
    for scored, done in zip(of(events, GroupsScored), of(events, StepCompleted), strict=True):
        rollouts = [r for g in scored.groups for r in g.rollouts]
        lengths = [r.completion.num_tokens for r in rollouts]
        m = done.metrics
        assert m.reward_mean == pytest.approx(statistics.mean(r.reward for r in rollouts))
        assert m.reward_std == pytest.approx(statistics.stdev(r.reward for r in rollouts))
        assert (m.tokens, m.completion_tokens_max) == (sum(lengths), max(lengths))
        assert m.truncated_frac == sum(r.completion.finish_reason == "length" for r in rollouts) / 8
        assert done.extra["score/language"] == pytest.approx(
            statistics.mean(r.scores["language"] for r in rollouts)
        )
        assert m.step_seconds >= m.sampling_seconds + m.scoring_seconds + m.update_seconds - 1e-6
        assert m.unscored_frac == 0
        assert (m.ratio_mean, m.clip_frac) == (1.0, 0.0)


def test_kl_is_zero_at_the_first_step_and_grows_after(events):
    first, *later = [e.metrics.kl for e in of(events, StepCompleted)]
    assert first == pytest.approx(
        0, abs=1e-7
    )  # the reference is the policy itself: anything else is dropout or a wrong copy
    assert all(kl > 0 for kl in later)


def test_the_environment_record_names_versions_and_device(events):
    [loaded] = of(events, ModelLoaded)
    assert loaded.env["torch"] == torch.__version__
    assert loaded.env["learning_rate"] == 1e-4  # by size: below 50 M parameters
    assert {"python", "transformers", "device", "dtype", "threads", "parameters"} <= set(loaded.env)


def timeless(events):
    kept = []
    for e in events:
        if isinstance(e, StepCompleted):
            kept.append(
                (
                    e.step,
                    {
                        k: getattr(e.metrics, k)
                        for k in e.metrics.__slots__
                        if "seconds" not in k and "memory" not in k
                    },
                    dict(e.extra),
                )
            )
        elif isinstance(e, GroupsScored | Evaluated):
            kept.append(e)
    return kept


def test_the_same_seed_gives_the_same_run_bit_for_bit(tiny_settings):
    first = timeless(run(tiny_settings))
    torch.rand(7)  # somebody else uses the process's random numbers meanwhile
    assert timeless(run(tiny_settings)) == first
    assert timeless(run({**tiny_settings, "train.seed": 1})) != first


def test_micro_batches_change_memory_and_not_the_run(tiny_settings):
    whole, split = run(tiny_settings), run({**tiny_settings, "train.micro_batch_tokens": 40})
    for a, b in zip(of(whole, StepCompleted), of(split, StepCompleted), strict=True):
        assert b.metrics.loss == pytest.approx(a.metrics.loss, abs=1e-5)
        assert b.metrics.grad_norm == pytest.approx(a.metrics.grad_norm, rel=1e-3)


def test_layers_computed_twice_change_memory_and_not_the_run(tiny_settings):
    assert timeless(run({**tiny_settings, "train.gradient_checkpointing": "on"})) == timeless(
        run({**tiny_settings, "train.gradient_checkpointing": "off"})
    )


def test_a_run_without_kl_keeps_no_reference_and_is_otherwise_equal(tiny_settings, monkeypatch):
    copies = []
    kept = Policy.frozen_copy
    monkeypatch.setattr(Policy, "frozen_copy", lambda policy: copies.append(policy) or kept(policy))
    without, measured = (
        timeless(run({**tiny_settings, "algorithm.kl_coef": 0, "algorithm.measure_kl": measure}))
        for measure in (False, True)
    )
    assert len(copies) == 1  # the second run's

    def drawn_and_learned(rows):
        return [e[:2] if isinstance(e, tuple) else e for e in rows]

    assert [e[1].pop("kl") is None for e in without if isinstance(e, tuple)] == [
        True
    ] * tiny_settings["train.steps"]
    assert all(e[1].pop("kl") is not None for e in measured if isinstance(e, tuple))
    assert drawn_and_learned(without) == drawn_and_learned(measured)


@pytest.mark.parametrize("phase", [*list(Phase)[:3], Phase.UPDATING, Phase.EVALUATING])
def test_a_stop_ends_the_run_in_whatever_phase_it_comes(tiny_settings, phase):
    control, seen = RunControl(), []

    def emit(event):
        seen.append(event)
        if isinstance(event, PhaseStarted) and event.phase == phase:
            control.stop()

    with pytest.raises(StopRequested):
        train(parse(nest(tiny_settings)), emit, control)
    assert not of(seen, StepCompleted)


def test_a_prompt_that_leaves_no_room_for_a_completion_is_refused(
    tiny_settings,
):
    # the model's context is 128, "Q: 12+34+56=?" is 13 byte tokens: 115 are left
    with pytest.raises(
        InvalidConfig, match=r"train\.max_new_tokens = 120.*context of 128.*Use 115 or fewer"
    ):
        run({**tiny_settings, "train.max_new_tokens": 120})


def test_an_unscored_rollout_has_no_reward_and_no_part_in_statistics():
    def rollout(reward):
        return Rollout(Completion("x", "stop", 1), {"accuracy": reward}, reward, 0.0)

    g = group(
        Prompt("p", "?", "", "t"),
        tuple(map(rollout, (1.0, None, 0.0, 0.5))),
        build_rubric(RubricConfig(name="accuracy only")),
    )
    assert g.reward_mean == 0.5
    assert g.reward_std == pytest.approx(0.5)  # of 1, 0, .5 alone
    assert mean([None, None]) is None


def test_wilson_interval_has_its_textbook_values():
    # 45 of 200: centre (.225 + .0096)/(1.0192) and half width as in Wilson 1927: 17.2 % to 28.8 %
    assert wilson_interval(45, 200) == pytest.approx((0.1725, 0.2879), abs=2e-4)
    low, high = wilson_interval(0, 10)
    assert low == pytest.approx(0, abs=1e-12)
    assert 0.27 < high < 0.28


def test_a_run_says_which_rows_it_leaves_out(tiny_settings, tmp_path, monkeypatch):
    monkeypatch.setenv("GRPO_STUDIO_CACHE", str(tmp_path / "cache"))
    rows = [{"question": f"{i}+1?", "answer": i + 1} for i in range(40)]
    rows += [{"answer": 5}, {"question": None}, {"question": "why?"}]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {**tiny_settings, "task.path": str(tmp_path / "p.jsonl"), "train.steps": 1}
    said = of(run({**settings, "task.heldout_size": None}), Noticed)
    assert [(e.code, e.severity, e.message) for e in said if e.code == "prompts"] == [
        (
            "prompts",
            "warning",
            "2 of 43 rows have no prompt: left out. 1 of 41 prompts have no answer.",
        )
    ]


def test_a_second_task_is_evaluated_where_nothing_is_held_out(tiny_settings, tmp_path, monkeypatch):
    monkeypatch.setenv("GRPO_STUDIO_CACHE", str(tmp_path / "cache"))
    one = {"question": "2+1?", "answer": 3}  # one that the split leaves to training
    (tmp_path / "p.jsonl").write_text(json.dumps(one))
    settings = {
        **tiny_settings,
        "task.path": str(tmp_path / "p.jsonl"),
        "task.heldout_size": None,
        "task.second": "sort",
        "train.steps": 1,
        "train.eval_every": 1,
    }
    evaluations = of(run(settings), Evaluated)
    assert [e.step for e in evaluations] == [0, 1]
    for evaluated in evaluations:
        assert not evaluated.groups
        assert {name.partition("/")[0] for name in evaluated.metrics} == {"second"}


def test_kept_evaluation_groups_change_nothing_else(tiny_settings):
    settings = tiny_settings | {"train.eval_every": 2, "rubric.name": "answer"}
    kept, none = (run(settings | {"train.eval_records": n}) for n in (3, 0))
    assert [(e.step, [g.prompt.id for g in e.groups]) for e in of(none, Evaluated)] == [
        (0, []),
        (2, []),
        (3, []),
    ]
    evaluations = of(kept, Evaluated)
    assert [(e.step, len(e.groups)) for e in evaluations] == [(0, 3), (2, 3), (3, 3)]
    first = [g.prompt.id for g in evaluations[0].groups]
    assert [[g.prompt.id for g in e.groups] for e in evaluations[1:]] == [first, first]
    for group_ in evaluations[0].groups:
        [rollout] = group_.rollouts  # eval_samples is 1
        assert (rollout.advantage, group_.verdict) == (None, "evaluation")
        assert group_.reward_mean == rollout.reward
    numbers = [
        [(e.step, e.metrics) for e in of(events, Evaluated)]
        + [(e.step, e.groups) for e in of(events, GroupsScored)]
        + [(e.step, e.metrics.loss, e.metrics.grad_norm) for e in of(events, StepCompleted)]
        for events in (kept, none)
    ]
    assert numbers[0] == numbers[1]
