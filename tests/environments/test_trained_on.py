"""What a step of an environment trains on: sampled for real, then compared with float64 loops."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from grpo_core.config import AlgorithmConfig, ModelConfig, nest, parse
from grpo_core.environments.registry import add_environments
from grpo_core.environments.worlds import Worlds
from grpo_core.learner.batch import packed, separate
from grpo_core.models import load_policy
from grpo_core.rubric import build_rubric
from grpo_core.tasks import load_task
from grpo_core.training.control import RunControl
from grpo_core.training.rollout_batch import Session, collect_rollouts
from grpo_core.training.scoring import is_informative
from grpo_core.training.trainer import learner_batch, train
from grpo_core.types import StepCompleted
from tests.environments.conftest import ASKED
from tests.environments.test_environment_runs import GAME
from tests.learner.test_actions import beside, naive_logprobs, ours
from tests.tiny_lm import VOCABULARY, TinyLM

SIZE = 3  # of a group, as naive_logprobs has it


@pytest.fixture(scope="module", autouse=True)
def game(tmp_path_factory):
    file = tmp_path_factory.mktemp("environments") / "game.py"
    file.write_text(GAME.replace("GuessGame", "PaidGame"))  # other files' game has that name
    add_environments([str(file)])


def config_of(tmp_path, **more):
    """Prompts that the model answers with calls; whoever calls well is paid."""
    path = tmp_path / "rows.csv"
    path.write_text("prompt,answer\n" + "".join(f"{ASKED}{c},12\n" for c in "abcdefghijklmnop"))
    settings = {
        "task.path": str(path),
        "task.environment": "PaidGame",
        "task.heldout_size": 0,
        "rubric.criteria": [{"name": "environment", "check": "environment", "weight": 1.0}],
        "train.prompts_per_step": 3,
        "train.group_size": SIZE,
        "train.max_new_tokens": 60,
    }
    return parse(nest({**settings, **more}))


def sampled_in(config, policy):
    """The session of a run, and the scored groups of its first step."""
    control = RunControl()
    task, rubric = load_task(config.task), build_rubric(config.rubric)
    worlds = Worlds(policy, lambda: None)
    session = Session(config, policy, task, rubric, control.points, worlds)
    try:
        return session, collect_rollouts(session, 1)
    finally:
        session.close()


def small(batch):
    """The batch with the few token ids that TinyLM knows."""

    def few(rows):
        return [[i % VOCABULARY for i in row] for row in rows]

    return replace(batch, prompts=few(batch.prompts), completions=few(batch.completions), pad_id=0)


def check_against_a_loop(model, batch, near: float) -> None:
    """Loss and gradient of both layouts equal a loop over the action tokens of trained rows."""
    a, extra = AlgorithmConfig(), beside(batch, 5)
    trained = [p for p in model.parameters() if p.requires_grad]
    rows, old = naive_logprobs(model, batch), iter(extra["old"])
    num = sum(len(r) for r, t in zip(rows, batch.trains, strict=True) if t)
    expected = torch.zeros((), dtype=torch.float64)
    for row, trains, advantage in zip(rows, batch.trains, extra["advantages"], strict=True):
        for logprob, _ in row:
            ratio = (logprob - next(old)).exp()
            bounded = ratio.clamp(1 - a.clip_eps_low, 1 + a.clip_eps_high)
            if trains:
                expected = expected - torch.minimum(ratio * advantage, bounded * advantage) / num
    a = a.model_copy(update={"aggregation": "token_mean", "kl_coef": 0.0})
    slopes = torch.autograd.grad(expected, trained)
    for layout in (packed, separate):
        loss = ours(model, batch, layout, a, extra)
        assert abs((loss - expected).item()) <= near
        for found, slope in zip(torch.autograd.grad(loss, trained), slopes, strict=True):
            assert (found - slope).abs().max() <= near


@pytest.mark.parametrize("masks", [True, False])
def test_cut_trajectories_are_masked_whole(policy, tmp_path, masks):
    config = config_of(
        tmp_path, **{"algorithm.mask_truncated": masks, "rollout.max_turns": 2, "train.seed": 1}
    )
    session, sampled = sampled_in(config, policy)
    ends = [r.completion.finish_reason for r in sampled.rollouts]
    assert {"stop", "length"} == {*ends}
    batch = learner_batch(session, sampled)
    assert list(batch.trains) == [not masks or end == "stop" for end in ends]
    assert not all(map(all, batch.actions))
    check_against_a_loop(TinyLM(), small(batch), 1e-9)


def test_groups_of_dynamic_sampling_keep_the_masks_of_their_own_turns(policy, tmp_path):
    config = config_of(tmp_path, **{"algorithm.dynamic_sampling": 3, "train.seed": 3})
    session, sampled = sampled_in(config, policy)
    assert sampled.replaced_groups > 0
    assert any(is_informative(rollouts, session.rubric, "") for _, rollouts in sampled.groups)
    batch = learner_batch(session, sampled)
    for rollout, actions in zip(sampled.rollouts, batch.actions, strict=True):
        expected = [True] * len(rollout.completion_ids)
        for turn in rollout.completion.turns:
            if turn.role == "observation":
                end = turn.first_token + turn.num_tokens
                expected[turn.first_token : end] = [False] * turn.num_tokens
        assert list(actions) == expected
    check_against_a_loop(TinyLM(), small(batch), 1e-9)


def test_adapters_get_the_gradient_of_action_tokens_alone(policy, calling_model, tmp_path):
    session, sampled = sampled_in(config_of(tmp_path, **{"train.seed": 2}), policy)
    adapted = load_policy(ModelConfig(name=str(calling_model), lora_rank=2), 0)
    model = adapted.model.double()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # 0 at first, which hides the gradient of A
            parameter.data = torch.randn(parameter.shape, generator=generator).double() / 10
    # Angles of positions are float32.
    check_against_a_loop(model, learner_batch(session, sampled), 1e-5)


def test_adapters_learn_to_call_a_tool(calling_model, tmp_path):
    config = config_of(
        tmp_path,
        **{
            "model.name": str(calling_model),
            "model.lora_rank": 4,
            "train.steps": 16,
            "train.group_size": 8,
            "train.learning_rate": 1e-2,
            "train.eval_every": 0,
            "train.checkpoint_every": 0,
        },
    )
    events = []
    train(config, events.append, RunControl())
    rewards = [e.metrics.reward_mean for e in events if isinstance(e, StepCompleted)]
    assert len(rewards) == 16
    assert sum(rewards[:2]) / 2 < 0.5
    assert sum(rewards[-8:]) / 8 > 0.8
