"""Dynamic sampling replaces tied groups by fresh prompts. Real sampling, real rubric."""

from __future__ import annotations

import dataclasses
import threading
import time

import pytest
import torch

from grpo_core.config import nest, parse
from grpo_core.errors import StopRequested, StudioError
from grpo_core.models import load_policy
from grpo_core.rollout import SamplingHooks, SamplingParams, sample_groups
from grpo_core.rubric import build_rubric
from grpo_core.rubric.check import Check, Params
from grpo_core.rubric.criteria import CHECKS
from grpo_core.tasks import TASKS, load_task, train_prompts
from grpo_core.training.control import RunControl
from grpo_core.training.rollout_batch import Session, collect_rollouts
from grpo_core.training.scoring import is_informative
from grpo_core.training.timing import RunTimer
from grpo_core.types import PhaseStarted


@pytest.fixture(scope="module")
def policy(tiny_model):
    return load_policy(parse(nest({"model.name": str(tiny_model)})).model, 0)


def drawn(policy, tiny_settings, **more):
    config = parse(nest({**tiny_settings, "train.prompts_per_step": 3, **more}))
    rubric, events = build_rubric(config.rubric), []
    control = RunControl()
    control.points.timer = RunTimer(events.append)
    return (
        collect_rollouts(
            Session(config, policy, load_task(config.task), rubric, control.points), 1
        ),
        rubric,
        events,
    )


def test_without_dynamic_sampling_groups_are_the_steps_first_prompts(policy, tiny_settings):
    result, _, events = drawn(policy, tiny_settings, **{"rubric.name": "accuracy only"})
    assert [prompt for prompt, _ in result.groups] == train_prompts(TASKS["sums"], 0, 1, 3)
    assert (result.replaced_groups, [e.phase for e in events if isinstance(e, PhaseStarted)]) == (
        0,
        ["sampling", "scoring"],
    )
    assert result.tokens == sum(len(s.completion_ids) for s in result.rollouts)


def test_tied_groups_are_replaced_for_the_set_number_of_rounds(policy, tiny_settings):
    # a random-weight model is never right: every group ties, in every round
    result, _, events = drawn(
        policy, tiny_settings, **{"rubric.name": "accuracy only", "algorithm.dynamic_sampling": 2}
    )
    assert result.replaced_groups == 6
    assert [prompt for prompt, _ in result.groups] == train_prompts(TASKS["sums"], 0, 1, 9)[6:]
    assert len(events) == 6
    assert result.tokens > sum(
        len(s.completion_ids) for s in result.rollouts
    )  # what was thrown away was sampled too


def test_informative_groups_keep_their_positions(policy, tiny_settings):
    criteria = [
        {
            "name": "length",
            "check": "length",
            "weight": 1,
            "params": {"min_tokens": 8, "max_tokens": 8},
        }
    ]
    first, rubric, _ = drawn(
        policy, tiny_settings, **{"rubric.criteria": criteria, "train.group_size": 2}
    )
    again, _, _ = drawn(
        policy,
        tiny_settings,
        **{"rubric.criteria": criteria, "train.group_size": 2, "algorithm.dynamic_sampling": 3},
    )
    kept = [i for i, g in enumerate(first.groups) if is_informative(g[1], rubric, gate=False)]
    assert [again.groups[i] for i in kept] == [first.groups[i] for i in kept]
    assert again.replaced_groups >= len(first.groups) - len(kept)


def test_logprobs_kept_from_sampling_are_those_of_the_policy_that_sampled(policy, tiny_settings):
    from grpo_core.learner import Batch, token_logprobs

    prompts = [policy.encode(p, "") for p in train_prompts(TASKS["sums"], 0, 1, 2)]

    def sampled_with(params):
        return sample_groups(policy, prompts, params, torch.Generator().manual_seed(1))

    sampled = sampled_with(SamplingParams(3, 8, 0.7, keep_logprobs=True))
    again = sampled_with(SamplingParams(3, 8, 0.7))
    assert [s.completion_ids for s in sampled] == [s.completion_ids for s in again]
    batch = Batch(
        prompts,
        [s.completion_ids for s in sampled],
        [True] * 6,
        policy.pad_id,
        policy.device,
        [s.sampling_logprobs for s in sampled],
    )
    again, _ = token_logprobs(policy.model, batch, 0.7)
    assert (batch.padded_sampling_logprobs - again)[batch.completion_mask].abs().max() < 1e-4


# ---- asked ahead ---------------------------------------------------------------------------------


def test_a_group_is_emitted_once_when_its_last_completion_ends(policy):
    prompts = [policy.tokenizer(text)["input_ids"] for text in ("Q: 1", "Q: 2+3", "Q: 77")]
    half = frozenset(
        range(0, len(policy.tokenizer), 4)
    )  # a quarter of all tokens end a completion: at many different places
    told, tokens = [], [0]

    def check_interrupt():
        tokens[0] += 1

    sampled = sample_groups(
        dataclasses.replace(policy, end_ids=half),
        prompts,
        SamplingParams(3, 12, 1.0),
        torch.Generator().manual_seed(0),
        SamplingHooks(
            check_interrupt=check_interrupt,
            on_group_done=lambda p, siblings: told.append((p, siblings, tokens[0])),
        ),
    )
    assert sorted(p for p, _, _ in told) == [0, 1, 2]
    for p, siblings, at in told:
        assert siblings == sampled[3 * p : 3 * p + 3]
        # breathed once before the prompts are read and once before each token
        assert at == 1 + max(len(s.completion_ids) for s in siblings)
    assert len({at for _, _, at in told}) > 1, (
        "the case must have groups that end at different times"
    )


@pytest.fixture
def far(monkeypatch):
    """A check that waits for somebody else: what it was asked, and what it does about it."""

    class Far:
        asked: list = []  # noqa: RUF012
        answer = staticmethod(lambda completions: [len(c.text) % 7 / 7 for c in completions])

    def many(completions, prompts, params, notes):
        Far.asked.append([p.id for p in prompts])
        notes["asked"] += 1
        notes.used["requests"] += len(prompts)
        return Far.answer(completions)

    Far.asked = []
    monkeypatch.setitem(
        CHECKS,
        "far",
        Check(
            lambda completion, prompt, params: Far.answer([completion])[0],
            Params,
            "Far away.",
            many=many,
            is_async=True,
        ),
    )
    return Far


FAR = {
    "rubric.criteria": [
        {"name": "far", "check": "far", "weight": 1},
        {
            "name": "length",
            "check": "length",
            "weight": 0.5,
            "params": {"min_tokens": 1, "max_tokens": 8},
        },
    ],
    "train.group_size": 2,
    "train.max_new_tokens": 12,
}


def test_slow_graders_are_called_while_other_groups_are_sampled(policy, tiny_settings, far):
    policy = dataclasses.replace(policy, end_ids=frozenset(range(0, len(policy.tokenizer), 4)))
    config = parse(nest({**tiny_settings, "train.prompts_per_step": 6, **FAR}))
    rubric, control, came, during = build_rubric(config.rubric), RunControl(), threading.Event(), []
    control.points.timer = RunTimer(
        lambda event: (
            during.append(len(far.asked))
            if isinstance(event, PhaseStarted) and event.phase == "scoring"
            else None
        )
    )
    answer, check_interrupt = far.answer, control.points.check_interrupt
    far.answer = lambda completions: came.set() or answer(completions)
    tokens = [0]

    def slowly():  # from the seventh token on sampling waits until somebody was asked
        tokens[0] += 1
        if tokens[0] > 6:
            came.wait(10)
        check_interrupt()

    control.points.check_interrupt = slowly
    drawn = collect_rollouts(
        Session(config, policy, load_task(config.task), rubric, control.points), 1
    )
    assert during[0] > 0, "nobody was asked before all was sampled"
    assert sorted(p for some in far.asked for p in some) == sorted(
        p.id for p, _ in drawn.groups for _ in range(2)
    )  # everybody once
    assert drawn.notes["far"]["asked"] == len(far.asked)
    assert drawn.notes["far"].used["requests"] == 12
    for _, rollouts in drawn.groups:
        assert [r.scores["far"] for r in rollouts] == answer([r.completion for r in rollouts])
        assert [r.reward for r in rollouts] == [
            r.scores["far"] + 0.5 * r.scores["length"] for r in rollouts
        ]


def test_a_step_is_the_same_with_and_without_async_scoring(policy, tiny_settings, far, monkeypatch):
    ahead, _, _ = drawn(policy, tiny_settings, **FAR)
    monkeypatch.setitem(CHECKS, "far", dataclasses.replace(CHECKS["far"], is_async=False))
    afterwards, _, _ = drawn(policy, tiny_settings, **FAR)
    assert ahead.groups == afterwards.groups
    assert len(far.asked[-1]) == 6  # all in one go


def test_errors_in_async_scoring_count_and_a_persons_mistake_ends_the_step(
    policy, tiny_settings, far
):
    threads, answer = threading.active_count(), far.answer

    def broken(error):
        def fail(completions):
            raise error

        return fail

    far.answer = broken(ZeroDivisionError("far away"))
    batch, _, _ = drawn(policy, tiny_settings, **FAR)
    assert {r.scores["far"] for _, rollouts in batch.groups for r in rollouts} == {None}
    [reason] = [text for text in batch.notes["far"] if "far away" in text]
    assert batch.notes["far"][reason] == 6
    far.answer = broken(StudioError("the reward model is missing"))
    with pytest.raises(StudioError, match="is missing"):
        drawn(policy, tiny_settings, **FAR)
    far.answer = answer
    config = parse(nest({**tiny_settings, **FAR}))
    control = RunControl()
    control.points.timer = RunTimer(
        lambda event: control.stop() if isinstance(event, PhaseStarted) else None
    )
    with pytest.raises(StopRequested):
        collect_rollouts(
            Session(
                config, policy, load_task(config.task), build_rubric(config.rubric), control.points
            ),
            1,
        )
    assert threading.active_count() == threads


def test_a_stop_does_not_wait_for_a_judge_in_async_scoring(policy, tiny_settings, far):
    policy = dataclasses.replace(policy, end_ids=frozenset(range(0, len(policy.tokenizer), 4)))
    asked, let_go, control, tokens = threading.Event(), threading.Event(), RunControl(), [0]
    far.answer = lambda completions: asked.set() or (let_go.wait(120) and [0.0] * len(completions))

    def stopped():
        tokens[0] += 1
        if tokens[0] > 8 and asked.wait(60):
            raise StopRequested

    control.points.check_interrupt = stopped
    config = parse(nest({**tiny_settings, "train.prompts_per_step": 6, **FAR}))
    started = time.monotonic()
    with pytest.raises(StopRequested):
        collect_rollouts(
            Session(
                config, policy, load_task(config.task), build_rubric(config.rubric), control.points
            ),
            1,
        )
    assert time.monotonic() - started < 90  # and not the 120 s of the judge
    let_go.set()
    for thread in [t for t in threading.enumerate() if t.name == "async scoring"]:
        thread.join(10)
    assert len(far.asked) == 1
