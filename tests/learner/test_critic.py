"""The critic against naive float64 loops: GAE, whitening, value loss, and the whole step."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_lm import NAN, ROWS, NoMaskLM, TinyLM, make_batch, make_learner

from grpo_core.config import AlgorithmConfig, nest, parse, with_preset
from grpo_core.errors import InvalidConfig
from grpo_core.learner import Batch, packed, separate
from grpo_core.learner.critic import (
    Critic,
    explained_variance,
    gae,
    reward_to_go,
    value_estimates,
    value_loss,
    whiten,
)
from grpo_core.learner.logprobs import ScoreOptions, score_tokens
from grpo_core.learner.packing import GroupSize
from grpo_core.training.control import RunControl
from grpo_core.training.trainer import train
from grpo_core.types import GroupsScored, StepCompleted

VALUE = {"advantage": "value", "kl_coef": 0.0}
REWARDS = torch.tensor([1.0, 0.25, 0.0, 0.5], dtype=torch.float64)


def ragged(lengths: list[int]) -> torch.Tensor:
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def naive_gae(values: list[float], reward: float, gamma: float, lam: float) -> list[float]:
    """Σ_k (γλ)^k δ_{t+k}, as a double sum."""
    n = len(values)
    delta = [
        (reward if t == n - 1 else 0.0) + gamma * (values[t + 1] if t + 1 < n else 0.0) - values[t]
        for t in range(n)
    ]
    return [sum((gamma * lam) ** k * delta[t + k] for k in range(n - t)) for t in range(n)]


# ---- GAE, whitening, value loss ------------------------------------------------------------------


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=5),
    st.floats(0.1, 1),
    st.floats(0, 1),
    st.integers(0, 2**31),
    st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_gae_equals_its_double_sum_on_ragged_completions(lengths, gamma, lam, seed, unscored):
    g = torch.Generator().manual_seed(seed)
    mask = ragged(lengths)
    # Values on padding must not matter
    values = torch.randn(mask.shape, generator=g, dtype=torch.float64)
    rewards = torch.randn(len(lengths), generator=g, dtype=torch.float64)
    if unscored:
        rewards[0] = NAN
    ours = gae(values, rewards, mask, gamma, lam)
    for i, n in enumerate(lengths):
        expected = (
            [0.0] * n
            if math.isnan(rewards[i])
            else naive_gae(values[i, :n].tolist(), float(rewards[i]), gamma, lam)
        )
        assert ours[i].tolist() == pytest.approx(expected + [0.0] * (mask.shape[1] - n), abs=1e-12)


def test_gae_has_its_hand_values_and_its_two_limits():
    # V = .2 .5 .4, r = 1, γ = 1: δ = .3, -.1, .6. λ = .5: A = .3 - .05 + .15, -.1 + .3, .6
    values, mask, one = (
        torch.tensor([[0.2, 0.5, 0.4]]).double(),
        ragged([3]),
        torch.tensor([1.0]).double(),
    )
    assert gae(values, one, mask, 1.0, 0.5)[0].tolist() == pytest.approx([0.4, 0.2, 0.6])
    # λ = 1: the reward less the value
    assert gae(values, one, mask, 1.0, 1.0)[0].tolist() == pytest.approx([0.8, 0.5, 0.6])
    # λ = 0: δ itself
    assert gae(values, one, mask, 1.0, 0.0)[0].tolist() == pytest.approx([0.3, -0.1, 0.6])
    assert reward_to_go(one, mask, 0.5)[0].tolist() == pytest.approx([0.25, 0.5, 1.0])


def test_whitening_is_over_the_tokens_of_the_mask_alone():
    mask = ragged([3, 1])
    values = torch.tensor([[1.0, 2, 6], [3, 99, 99]]).double()
    mean, std = statistics.mean([1, 2, 6, 3]), statistics.stdev([1, 2, 6, 3])
    expected = [[(v - mean) / (std + 1e-4) for v in (1, 2, 6)], [(3 - mean) / (std + 1e-4), 0, 0]]
    torch.testing.assert_close(
        whiten(values, mask), torch.tensor(expected).double(), atol=1e-7, rtol=0
    )
    # All values are equal
    assert torch.equal(whiten(torch.ones(2, 3).double(), mask), torch.zeros(2, 3).double())
    assert torch.equal(
        whiten(values, torch.tensor([[True, False, False], [False] * 3])),
        torch.zeros(2, 3).double(),
    )


def test_the_value_loss_is_the_mean_square_over_step_tokens():
    values, returns = torch.tensor([[1.0, 2, 9]]).double(), torch.tensor([[0.0, 4, 9]]).double()
    assert value_loss(
        values, returns, torch.tensor([[True, True, False]]), 5
    ).item() == pytest.approx((1 + 4) / 5)


def test_explained_variance_is_unknown_where_nothing_varies():
    outcomes, mask = torch.tensor([[1.0, 1], [0, 0]]), torch.ones(2, 2, dtype=torch.bool)
    assert explained_variance(outcomes, outcomes, mask) == pytest.approx(1)
    assert explained_variance(torch.full((2, 2), 0.3), outcomes, mask) == pytest.approx(0)
    # Error ±1 where outcomes are ±.5 around their mean
    assert explained_variance(1 - outcomes, outcomes, mask) == pytest.approx(-3)
    assert explained_variance(torch.zeros(2, 2), torch.ones(2, 2), mask) is None


def test_unscored_rollouts_take_no_part_in_value_estimates():
    algorithm, g = AlgorithmConfig(advantage="value"), torch.Generator().manual_seed(0)
    mask, values = ragged([3, 4, 2]), torch.randn(3, 4, generator=g, dtype=torch.float64)
    rewards = torch.tensor([1.0, NAN, 0.0]).double()
    estimates = value_estimates(values, rewards, mask, algorithm)
    without = value_estimates(values[[0, 2]], rewards[[0, 2]], mask[[0, 2]], algorithm)
    for name in ("advantages", "returns", "values", "row_advantages"):
        torch.testing.assert_close(getattr(estimates, name)[[0, 2]], getattr(without, name))
        assert not getattr(estimates, name)[1].any()
    assert estimates.explained_variance == pytest.approx(without.explained_variance)
    assert estimates.scored.tolist() == [True, False, True]
    assert estimates.row_advantages[0] == pytest.approx(
        statistics.mean(estimates.advantages[0, :3].tolist())
    )


# ---- values of a model ---------------------------------------------------------------------------


def a_critic(model: TinyLM) -> Critic:
    critic = Critic(model)
    critic.weight.data = torch.randn(
        6, generator=torch.Generator().manual_seed(7), dtype=torch.float64
    )
    critic.bias.data.fill_(0.3)
    critic.begun.fill_(True)
    return critic


def values_of(critic: Critic, model, batch: Batch, layout) -> torch.Tensor:
    return critic(score_tokens(model, batch, 1.0, ScoreOptions(layout=layout, states=True)).states)


def naive_value(model: TinyLM, critic: Critic, prompt, completion, t: int) -> torch.Tensor:
    """The value of the state before token t, in a row of its own.

    This model's last hidden state is the input of its output layer.
    """
    seen, states = torch.tensor([[*prompt, *completion[:t]]]), []
    hook = model.head.register_forward_pre_hook(lambda _, arguments: states.append(arguments[0]))
    model(seen, torch.ones_like(seen))
    hook.remove()
    return states[0][0, -1] @ critic.weight + critic.bias


@pytest.mark.parametrize("layout", [separate, packed])
def test_token_values_equal_a_loop_over_single_states(layout):
    model = TinyLM()
    critic = a_critic(model)
    values = values_of(critic, model, make_batch(), layout)
    for row, (prompt, completion) in enumerate(ROWS):
        for t in range(len(completion)):
            assert values[row, t].item() == pytest.approx(
                naive_value(model, critic, prompt, completion, t).item(), abs=1e-12
            )


def test_real_architectures_hand_the_critic_their_last_hidden_state():
    import transformers

    config = transformers.Qwen3Config(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
    critic = Critic(model)
    critic.weight.data = torch.randn(32, generator=torch.Generator().manual_seed(1))
    batch = make_batch([((5, 6, 7), (8, 9)), ((5, 6, 7), (10, 11, 12, 13))])
    with torch.no_grad():
        for layout in (packed, separate):
            values = values_of(critic, model, batch, layout)
            for row in range(2):
                ids = torch.tensor([[*batch.prompts[0], *batch.completions[row]]])
                states = model(ids, output_hidden_states=True).hidden_states[-1][0, 2:-1]
                torch.testing.assert_close(
                    values[row, : len(states)], states @ critic.weight, atol=1e-4, rtol=0
                )


def test_a_new_critic_foresees_the_mean_reward_of_its_first_step_everywhere():
    learner = make_learner(**VALUE, gae_lambda=0.5)
    # Nothing could be scored: not initialised yet
    assert not learner.estimate_values(make_batch(), torch.full((4,), NAN)).values.any()
    estimates = learner.estimate_values(make_batch(), torch.tensor([1.0, NAN, 0.0, 0.5]))
    assert estimates.values[0].tolist() == [0.5, 0.5, 0.5, 0]  # mean of 1, 0, .5; three tokens
    # Initialised only once
    assert learner.estimate_values(make_batch(), REWARDS).values[0, 0] == 0.5


def test_the_first_advantages_are_the_discounted_surprises():
    learner = make_learner(**VALUE, gae_lambda=0.5)
    estimates, mean_reward = learner.estimate_values(make_batch(), REWARDS), REWARDS.mean().item()
    # V is the same everywhere, so δ is 0 except at the end, where it is r - V
    raw = [
        [(r - mean_reward) * 0.5 ** (len(c) - 1 - t) for t in range(len(c))]
        for (_, c), r in zip(ROWS, REWARDS.tolist(), strict=True)
    ]
    flat = [a for row in raw for a in row]
    mean, std = statistics.mean(flat), statistics.stdev(flat)
    for i, row in enumerate(raw):
        assert estimates.advantages[i, : len(row)].tolist() == pytest.approx(
            [(a - mean) / (std + 1e-4) for a in row], abs=1e-6
        )
        assert estimates.returns[i, : len(row)].tolist() == pytest.approx(
            [mean_reward + a for a in row], abs=1e-6
        )


# ---- the step ------------------------------------------------------------------------------------


def a_learner(model=None, train=None, **algorithm):
    learner = make_learner(model, train=train, **{**VALUE, **algorithm})
    learner.critic.load_state_dict(a_critic(learner.model).state_dict())
    return learner


def step(batch: Batch, rewards=REWARDS, model=None, train=None, packs=None, **algorithm):
    """The update, its gradient with the critic's last, and the estimates; the weights stay."""
    learner = a_learner(model, train, **algorithm)
    if packs is False:
        learner.packing.inexact_from = GroupSize(0, 0)
    learner.optimizer.step = lambda: None
    estimates = learner.estimate_values(batch, rewards)
    update = learner.update(batch, estimates)
    return (
        update,
        torch.cat(
            [p.grad.flatten() for p in [*learner.model.parameters(), *learner.critic.parameters()]]
        ),
        estimates,
    )


@pytest.mark.parametrize("kl_coef", [0.0, 0.3])
@pytest.mark.parametrize("entropy_coef", [0.0, 0.2])
def test_loss_and_gradient_equal_a_naive_loop(kl_coef, entropy_coef):
    gamma, lam = 0.9, 0.8
    update, gradient, _ = step(
        make_batch(),
        kl_coef=kl_coef,
        entropy_coef=entropy_coef,
        gae_gamma=gamma,
        gae_lambda=lam,
        value_coef=0.7,
    )

    model, reference = TinyLM(), TinyLM(seed=1)
    critic = a_critic(model)
    values = [[naive_value(model, critic, p, c, t) for t in range(len(c))] for p, c in ROWS]
    raw = [
        naive_gae([v.item() for v in row], r, gamma, lam)
        for row, r in zip(values, REWARDS.tolist(), strict=True)
    ]
    flat = [a for row in raw for a in row]
    mean, std = statistics.mean(flat), statistics.stdev(flat)
    total, squares = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for (prompt, completion), row, advantages in zip(ROWS, values, raw, strict=True):
        for t, token in enumerate(completion):
            seen = torch.tensor([[*prompt, *completion[:t]]])
            p = model(seen, torch.ones_like(seen)).logits[0, -1].log_softmax(-1)
            d = (
                reference(seen, torch.ones_like(seen)).logits[0, -1].log_softmax(-1)[token].detach()
                - p[token]
            )
            squares = squares + (row[t] - (advantages[t] + row[t].item())) ** 2
            total = total - (p[token] - p[token].detach()).exp() * (advantages[t] - mean) / (
                std + 1e-4
            )
            total = total + kl_coef * (d.exp() - d - 1) + entropy_coef * (p.exp() * p).sum()
    total = (total + 0.7 * squares) / 10
    total.backward()
    naive = torch.cat([p.grad.flatten() for p in [*model.parameters(), *critic.parameters()]])
    assert update.loss == pytest.approx(total.item(), abs=1e-5)
    assert update.value_loss == pytest.approx(squares.item() / 10, abs=1e-6)
    torch.testing.assert_close(gradient, naive, atol=1e-5, rtol=1e-4)


def test_micro_batches_order_and_layout_change_nothing():
    whole, gradient, estimates = step(make_batch())
    order = [3, 2, 0, 1]
    for batch, rewards, options in [
        *((make_batch(), REWARDS, {"train": {"micro_batch_tokens": n}}) for n in (1, 7, 12, 19)),
        (make_batch(), REWARDS, {"packs": False}),
        (make_batch(), REWARDS, {"model": NoMaskLM()}),
        (make_batch([ROWS[i] for i in order]), REWARDS[order], {}),
        (make_batch().ungrouped(), REWARDS, {}),  # a critic does not use the groups
    ]:
        other, other_gradient, other_estimates = step(batch, rewards, **options)
        torch.testing.assert_close(other_gradient, gradient, atol=1e-6, rtol=0)
        assert other.value_loss == pytest.approx(whole.value_loss, abs=1e-9)
        assert other.loss == pytest.approx(whole.loss, abs=1e-6)
        assert other_estimates.row_advantages.sort().values.tolist() == pytest.approx(
            estimates.row_advantages.sort().values.tolist(), abs=1e-9
        )


def test_an_unscored_rollout_does_not_change_the_step():
    alone = make_batch().ungrouped()
    rest = Batch(alone.prompts[:3], alone.completions[:3], [True] * 3, 0, torch.device("cpu"))
    unscored = torch.tensor([*REWARDS[:3].tolist(), NAN], dtype=torch.float64)
    for kl_coef in (0.0, 0.3):
        with_it, gradient, _ = step(make_batch(), unscored, kl_coef=kl_coef)
        without, expected, _ = step(rest, REWARDS[:3], kl_coef=kl_coef)
        torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=0)
        assert with_it.value_loss == pytest.approx(without.value_loss, abs=1e-9)


def test_a_step_in_which_nothing_could_be_scored_changes_nothing():
    update, gradient, estimates = step(make_batch(), torch.full((4,), NAN, dtype=torch.float64))
    assert (update.loss, update.value_loss, update.explained_variance, update.grad_norm) == (
        0,
        0,
        None,
        0,
    )
    assert not gradient.any()
    assert not estimates.row_advantages.any()


def test_a_masked_row_trains_nothing_but_counts_in_the_whitening():
    _, masked, estimates = step(make_batch(trains=[True, True, True, False]))
    _, _, whole = step(make_batch())
    assert torch.equal(estimates.advantages, whole.advantages)
    # Other tokens, nothing else
    other = make_batch([*ROWS[:3], ((3,), (5, 5, 5, 5))], trains=[True, True, True, False])
    learner = a_learner()
    learner.optimizer.step = lambda: None
    learner.update(other, estimates)
    torch.testing.assert_close(
        torch.cat(
            [p.grad.flatten() for p in [*learner.model.parameters(), *learner.critic.parameters()]]
        ),
        masked,
        atol=1e-6,
        rtol=0,
    )


def test_one_update_has_ratio_one_and_several_clip_against_sampling():
    first = step(make_batch())[0]
    assert (first.ratio_mean, first.ratio_max, first.clip_low_frac, first.clip_high_frac) == (
        1.0,
        1.0,
        0.0,
        0.0,
    )

    learner = a_learner(updates_per_batch=3)
    for group in learner.optimizer.param_groups:
        group["speed"] = 300.0  # large enough to leave the clip range
    estimates = learner.estimate_values(make_batch(), REWARDS)
    several = learner.update(make_batch(), estimates)
    assert several.num_updates == 3
    assert several.ratio_max > 1.2
    assert several.clip_low_frac + several.clip_high_frac > 0


def test_the_second_update_uses_the_stored_log_probabilities():
    """With a frozen optimiser both updates are equal: the ratio stays 1."""
    once, gradient, _ = step(make_batch(), kl_coef=0.1)
    twice, again, _ = step(make_batch(), kl_coef=0.1, updates_per_batch=2)
    assert twice.loss == pytest.approx(once.loss, abs=1e-6)
    assert twice.ratio_mean == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(again, gradient, atol=1e-6, rtol=0)


def test_the_critic_learns_to_foresee_the_rewards():
    learner = make_learner(advantage="value", kl_coef=0.0, gae_lambda=1.0)
    batch, seen = make_batch(), []
    for _ in range(60):
        estimates = learner.estimate_values(batch, REWARDS)
        seen.append(learner.update(batch, estimates))
    assert seen[0].explained_variance == pytest.approx(0, abs=1e-6)  # a constant
    assert seen[-1].explained_variance > 0.3  # limited, because siblings start in the same state
    assert seen[-1].value_loss < 0.6 * seen[0].value_loss


def test_a_checkpoint_brings_the_critic_back():
    learner, other = a_learner(), make_learner(**VALUE)
    learner.update(make_batch(), learner.estimate_values(make_batch(), REWARDS))
    other.model.load_state_dict(learner.model.state_dict())
    other.load_state(learner.state())
    assert torch.equal(
        other.estimate_values(make_batch(), REWARDS).values,
        learner.estimate_values(make_batch(), REWARDS).values,
    )


def test_without_a_critic_nothing_is_judged_and_nothing_recorded():
    learner = make_learner()
    assert learner.estimate_values(make_batch(), REWARDS) is None
    update = learner.update(make_batch(), torch.tensor([1.0, -1, 1, -1]))
    assert (update.value_loss, update.explained_variance) == (None, None)


# ---- configuration and the whole run -------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "field", "says"),
    [
        (
            {"algorithm.advantage": "value", "algorithm.value_coef": 0},
            "algorithm.value_coef",
            "group_std",
        ),
        (
            {"algorithm.objective": "reinforce", "algorithm.updates_per_batch": 2},
            "algorithm.updates_per_batch",
            "set algorithm.objective to clip",
        ),
        (
            {"algorithm.advantage": "value", "algorithm.ratio_level": "sequence"},
            "algorithm.ratio_level",
            "Use token",
        ),
        (
            {"algorithm.advantage": "value", "algorithm.objective": "gmpo"},
            "algorithm.objective",
            "Use clip",
        ),
        (
            {
                "algorithm.advantage": "value",
                "algorithm.off_policy_threshold": 0.1,
                "algorithm.updates_per_batch": 2,
            },
            "algorithm.off_policy_threshold",
            "Leave it empty",
        ),
        (
            {"algorithm.advantage": "value", "algorithm.grouping": "task"},
            "algorithm.grouping",
            "Use prompt",
        ),
        (
            {"algorithm.advantage": "value", "algorithm.dynamic_sampling": 1},
            "algorithm.dynamic_sampling",
            "Use 0",
        ),
        ({"algorithm.gae_lambda": 1.1}, "algorithm.gae_lambda", "0.95 is usual"),
        ({"algorithm.gae_gamma": 0}, "algorithm.gae_gamma", "1 is usual"),
    ],
)
def test_senseless_combinations_are_refused_with_a_hint(given, field, says):
    with pytest.raises(InvalidConfig) as caught:
        parse(nest(given))
    [problem] = caught.value.problems
    assert problem.field == field
    assert says in problem.hint


def events_of(settings):
    events = []
    train(parse(nest(with_preset(settings, "PPO (critic)"))), events.append, RunControl())
    return events


def test_a_run_records_mean_token_advantages_and_critic_metrics(tiny_settings):
    events = events_of(tiny_settings)
    for e in (e for e in events if isinstance(e, GroupsScored)):
        rollouts = [r for g in e.groups for r in g.rollouts]
        # Whitened over tokens: they sum to 0
        weighted = sum(r.advantage * r.completion.num_tokens for r in rollouts)
        assert weighted == pytest.approx(0, abs=1e-3)
        assert len({r.reward for r in rollouts}) == 1 or any(r.advantage != 0 for r in rollouts)
    for e in (e for e in events if isinstance(e, StepCompleted)):
        assert e.metrics.value_loss is not None
        assert (e.metrics.ratio_mean, e.metrics.clip_frac) == (1.0, 0.0)


def test_a_run_does_not_depend_on_the_micro_batch(tiny_settings):
    whole, split = (
        [
            replace(e.metrics)
            for e in events_of({**tiny_settings, **more})
            if isinstance(e, StepCompleted)
        ]
        for more in ({}, {"train.micro_batch_tokens": 40})
    )
    for a, b in zip(whole, split, strict=True):
        assert (b.loss, b.value_loss) == pytest.approx((a.loss, a.value_loss), abs=1e-5)


def test_a_critic_learns_from_groups_that_grpo_would_call_tied(tiny_settings):
    """A tied group gives GRPO no gradient; a critic still compares it with its own estimate."""
    learner = a_learner()
    tied = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    estimates = learner.estimate_values(make_batch(), tied)
    assert estimates.row_advantages[:2].mean() > estimates.row_advantages[2:].mean()
