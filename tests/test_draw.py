"""Dynamic sampling: tied groups make room for fresh prompts. Real sampling on a random-weight model, the rubric real too."""

from __future__ import annotations

import pytest

from grpo_core.clock import Clock
from grpo_core.config import nest, parse
from grpo_core.control import RunControl
from grpo_core.draw import draw_groups, generator
from grpo_core.policy import load_policy
from grpo_core.rollout import sample_groups
from grpo_core.rubric import build_rubric
from grpo_core.scoring import teaches
from grpo_core.tasks import TASKS, load_task, train_prompts
from grpo_core.types import PhaseStarted


@pytest.fixture(scope="module")
def policy(tiny_model):
    return load_policy(parse(nest({"model.name": str(tiny_model)})).model, 0)


def drawn(policy, tiny_settings, **more):
    config = parse(nest({**tiny_settings, "train.prompts_per_step": 3, **more}))
    rubric, events = build_rubric(config.rubric), []
    control = RunControl()
    control.tell = Clock(events.append)
    return draw_groups(1, policy, load_task(config.task), rubric, config, control), rubric, events


def test_without_it_groups_are_those_of_the_steps_first_prompts(policy, tiny_settings):
    result, _, events = drawn(policy, tiny_settings, **{"rubric.name": "accuracy only"})
    assert [g.prompt for g in result.groups] == train_prompts(TASKS["sums"], 0, 1, 3)
    assert (result.replaced_groups, [e.phase for e in events if isinstance(e, PhaseStarted)]) == (0, ["sampling", "scoring"])
    assert result.tokens == sum(len(s.token_ids) for s in result.sampled)


def test_tied_groups_are_replaced_by_the_next_prompts_for_as_many_rounds_as_asked_and_counted(policy, tiny_settings):
    # a random-weight model is never right: every group ties, in every round
    result, _, events = drawn(policy, tiny_settings, **{"rubric.name": "accuracy only", "algorithm.dynamic_sampling": 2})
    assert result.replaced_groups == 6
    assert [g.prompt for g in result.groups] == train_prompts(TASKS["sums"], 0, 1, 9)[6:]
    assert len(events) == 6
    assert result.tokens > sum(len(s.token_ids) for s in result.sampled)  # what was thrown away was sampled too


def test_groups_that_teach_stay_where_they_are(policy, tiny_settings):
    criteria = [{"name": "length", "check": "length", "weight": 1, "params": {"min_tokens": 8, "max_tokens": 8}}]
    first, rubric, _ = drawn(policy, tiny_settings, **{"rubric.criteria": criteria, "train.group_size": 2})
    again, _, _ = drawn(policy, tiny_settings, **{"rubric.criteria": criteria, "train.group_size": 2, "algorithm.dynamic_sampling": 3})
    kept = [i for i, g in enumerate(first.groups) if teaches(g.rollouts, rubric, gate=False)]
    assert [again.groups[i] for i in kept] == [first.groups[i] for i in kept]
    assert again.replaced_groups >= len(first.groups) - len(kept)


def test_logprobs_kept_from_sampling_are_those_of_the_policy_that_sampled(policy, tiny_settings):
    from grpo_core.learner import Batch, token_logprobs

    prompts = [policy.encode(p, "") for p in train_prompts(TASKS["sums"], 0, 1, 2)]
    sampled = sample_groups(policy, prompts, 3, 8, 0.7, generator(policy, 0, 1), keep_logprobs=True)
    assert [s.token_ids for s in sampled] == [s.token_ids for s in sample_groups(policy, prompts, 3, 8, 0.7, generator(policy, 0, 1))]
    batch = Batch(prompts, [s.token_ids for s in sampled], [True] * 6, policy.pad_id, policy.device, [s.logprobs for s in sampled])
    again, _ = token_logprobs(policy.model, batch, 0.7)
    assert (batch.sampled - again)[batch.completion_mask].abs().max() < 1e-4
