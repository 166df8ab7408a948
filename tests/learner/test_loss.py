"""The loss as a pure function: what must not change it, and hand values of each objective."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_core.config import AlgorithmConfig
from grpo_core.learner import KL_ESTIMATORS, OBJECTIVES
from grpo_core.learner.aggregation import AGGREGATIONS, LossNormalizer, entropy_threshold
from grpo_core.learner.kl import Divergence
from grpo_core.learner.loss import Coefficients, Tokens, loss_of
from grpo_core.learner.objectives import Terms

SMALL = {
    "objective": st.sampled_from(sorted(OBJECTIVES)),
    "aggregation": st.sampled_from(sorted(AGGREGATIONS)),
    "ratio_level": st.sampled_from(["token", "sequence"]),
    "kl_coef": st.sampled_from([0.0, 0.1]),
    "kl_estimator": st.sampled_from(["k1", "k2", "k3"]),
    "entropy_coef": st.sampled_from([0.0, 0.1]),
    "entropy_quantile": st.sampled_from([1.0, 0.4]),
    "off_policy_threshold": st.sampled_from([None, 0.1]),
    "clip_delta": st.sampled_from([None, 1.4]),
}
algorithms = st.fixed_dictionaries(SMALL).map(lambda kw: AlgorithmConfig(**kw))


def tokens(seed: int, num_rows: int = 5, width: int = 6) -> Tokens:
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    completion_mask = torch.arange(width) < torch.randint(1, width + 1, (num_rows, 1), generator=g)
    trains = torch.rand(num_rows, 1, generator=g) < 0.8
    old = -normal(num_rows, width).abs()
    return Tokens(
        (old + 0.5 * normal(num_rows, width)).requires_grad_(),
        old,
        normal(num_rows, width).abs().requires_grad_(),
        completion_mask,
        completion_mask & trains,
        normal(num_rows, 1),
        old + 0.1 * normal(num_rows, width),
        old + 0.3 * normal(num_rows, width),
    )


def size_of(x: Tokens, a: AlgorithmConfig) -> LossNormalizer:
    entropy = x.entropy.detach()[x.loss_mask]
    threshold = (
        entropy_threshold(entropy, a.entropy_quantile) if a.entropy_quantile < 1 else -math.inf
    )
    return LossNormalizer(
        len(x.logprobs), int(x.loss_mask.sum()), 6, threshold, int((entropy >= threshold).sum())
    )


def run(
    parts: list[Tokens], a: AlgorithmConfig, size: LossNormalizer
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss, and its gradient with respect to log-probabilities and entropies of the parts."""
    leaves = [leaf for x in parts for leaf in (x.logprobs, x.entropy)]
    total = sum(loss_of(x, a, Coefficients(a.kl_coef, a.entropy_coef), size).total for x in parts)
    found = torch.autograd.grad(total, leaves, allow_unused=True)
    return total.detach(), [
        torch.zeros_like(leaf) if g is None else g for g, leaf in zip(found, leaves, strict=True)
    ]


def altered(x: Tokens, change) -> Tokens:
    """Every (B, …) tensor changed in the same way; the two with gradients are leaves again."""
    new = {
        f.name: change(f.name, v.detach())
        for f in fields(Tokens)
        if (v := getattr(x, f.name)) is not None
    }
    return Tokens(
        **new | {name: new[name].clone().requires_grad_() for name in ("logprobs", "entropy")}
    )


@given(algorithms, st.integers(0, 1000))
@settings(max_examples=150, deadline=None)
def test_padding_and_row_order_change_neither_loss_nor_gradient(a, seed):
    x = tokens(seed)
    size = size_of(x, a)
    loss, (new, entropy) = run([x], a, size)

    def wider(name, v):
        # Values that would overflow if they were used
        filling = {
            "completion_mask": False,
            "loss_mask": False,
            "old_logprobs": -1e3,
            "ref_logprobs": 1e4,
        }.get(name, 1e3)
        return v if name == "advantages" else torch.cat([v, torch.full_like(v[:, :3], filling)], 1)

    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    for change, back in (
        (lambda name, v: v if name == "advantages" else v.flip(1), lambda g: g.flip(1)),
        (wider, lambda g: g[:, :6]),
        (lambda name, v: v[order], lambda g: g[order.argsort()]),
    ):
        other, gradients = run([altered(x, change)], a, size)
        torch.testing.assert_close(other, loss, atol=1e-9, rtol=0)
        for mine, same in zip((new, entropy), gradients, strict=True):
            torch.testing.assert_close(back(same), mine, atol=1e-9, rtol=0)
            assert not same[:, 6:].any()  # nan counts as true, and would spread to every weight


@given(algorithms, st.integers(0, 1000))
@settings(max_examples=100, deadline=None)
def test_micro_batches_add_up_to_the_whole(a, seed):
    x = tokens(seed)
    size = size_of(x, a)
    loss, (new, entropy) = run([x], a, size)
    parts = [altered(x, lambda name, v, rows=rows: v[rows]) for rows in ([0], [1, 2], [3, 4])]
    split, gradients = run(parts, a, size)
    torch.testing.assert_close(split, loss, atol=1e-9, rtol=0)
    torch.testing.assert_close(torch.cat(gradients[::2]), new, atol=1e-9, rtol=0)
    torch.testing.assert_close(torch.cat(gradients[1::2]), entropy, atol=1e-9, rtol=0)


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
@pytest.mark.parametrize("ratio_level", ["token", "sequence"])
def test_in_the_first_update_every_objective_has_reinforces_gradient(objective, ratio_level):
    x = tokens(3)
    x = replace(x, old_logprobs=x.logprobs.detach())
    gradients = [
        run([x], a, size_of(x, a))[1][0]
        for a in (
            AlgorithmConfig(
                objective=name, ratio_level=ratio_level, aggregation="sequence_mean", kl_coef=0.0
            )
            for name in (objective, "reinforce")
        )
    ]
    torch.testing.assert_close(*gradients, atol=1e-12, rtol=1e-9)


@given(algorithms, st.integers(0, 1000))
@settings(max_examples=100, deadline=None)
def test_a_row_with_advantage_zero_has_no_policy_gradient(a, seed):
    x = tokens(seed)
    x = replace(
        x, advantages=x.advantages * torch.tensor([[1.0], [0], [1], [0], [1]], dtype=torch.float64)
    )
    policy = loss_of(x, a, Coefficients(0.0, 0.0), size_of(x, a)).policy
    [gradient] = torch.autograd.grad(policy, [x.logprobs])
    assert not gradient[[1, 3]].any()


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        # w = 1.5, A = ±2, log p = -1
        ("cispo", 3.0, -3.0),  # -1.5·A·(-1)
        ("sapo", -4.97967, 4.78718),  # -2·σ(.5)·4;  2·σ(1.05·.5)·4/1.05
        (
            "vespo",
            2.0 * 1.5**2 * math.exp(3 - 4.5),
            -2.0 * 1.5**3 * math.exp(2 - 3.0),
        ),  # φ·A with log φ = λ + k·log W - λ·W
        (
            "gmpo",
            -2.0 * math.exp(0.4),
            2.0 * 1.5,
        ),  # log 1.5 = .405 is clipped at .4 for a good one only
        ("spo", -(3.0 - 2 * 0.25 / 0.4), 3.0 + 2 * 0.25 / 0.4),  # -(w·A - |A|·(w - 1)²/(2·.2))
        ("reinforce", 2.0, -2.0),
    ],
)
def test_objectives_have_their_hand_values_for_a_token_half_as_likely_again(name, good, bad):
    some, w = torch.ones(1, 1, dtype=torch.bool), torch.tensor([[1.5]], dtype=torch.float64)
    for advantage, expected in ((2.0, good), (-2.0, bad)):
        terms = Terms(-torch.ones_like(w), w.log(), w, torch.full_like(w, advantage), some, some)
        assert OBJECTIVES[name](terms, AlgorithmConfig()).item() == pytest.approx(
            expected, abs=1e-5
        )


@pytest.mark.parametrize(("advantage", "edge"), [(2.0, 1.3), (-2.0, 0.9)])
def test_spo_pushes_to_the_clip_edge_and_back_beyond_it(advantage, edge):
    some, a = (
        torch.ones(1, 1, dtype=torch.bool),
        AlgorithmConfig(objective="spo", clip_eps_low=0.1, clip_eps_high=0.3),
    )

    def slope(ratio):
        w = torch.tensor([[ratio]], dtype=torch.float64, requires_grad=True)
        OBJECTIVES["spo"](
            Terms(w.log(), w.log(), w, torch.full_like(w, advantage), some, some), a
        ).sum().backward()
        return w.grad.item() * math.copysign(1, advantage)

    assert slope(1.0) == pytest.approx(-2.0)  # the whole advantage, as in every objective
    assert slope(edge) == pytest.approx(0, abs=1e-6)
    assert slope(edge + math.copysign(0.05, advantage)) > 0.3


def test_the_second_side_of_the_clip_bounds_a_bad_token_that_grew():
    some, w = torch.ones(1, 1, dtype=torch.bool), torch.tensor([[3.0]], dtype=torch.float64)
    terms = Terms(w.log(), w.log(), w, -torch.ones_like(w), some, some)
    # a bad token that became likelier counts with its whole ratio
    assert OBJECTIVES["clip"](terms, AlgorithmConfig()).item() == 3.0
    assert OBJECTIVES["clip"](terms, AlgorithmConfig(clip_delta=1.5)).item() == 1.5


def test_exact_kl_sums_the_vocabulary_and_is_the_estimators_average():
    g = torch.Generator().manual_seed(0)
    policy, reference = (
        torch.randn(1, 1, 7, generator=g, dtype=torch.float64).log_softmax(-1) for _ in range(2)
    )
    true = torch.distributions.kl_divergence(
        *(torch.distributions.Categorical(logits=x) for x in (policy, reference))
    ).item()
    assert KL_ESTIMATORS["exact"](
        Divergence(torch.zeros(1, 1), policy, reference)
    ).item() == pytest.approx(true)
    for name in ("k1", "k3"):
        assert (
            policy.exp() * KL_ESTIMATORS[name](Divergence(reference - policy))
        ).sum().item() == pytest.approx(true)
    impossible = torch.tensor([[[0.0, -math.inf]]])
    assert KL_ESTIMATORS["exact"](
        Divergence(torch.zeros(1, 1), impossible, torch.tensor([[[0.5, 0.5]]]).log())
    ).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize(
    ("name", "corrected", "true_gradient"),
    [("k1", False, False), ("k2", False, True), ("k3", False, False), ("k3", True, True)],
)
def test_which_estimators_have_the_gradient_of_the_true_kl_when_trained_on(
    name, corrected, true_gradient
):
    """Σ_v π_old(v)·∇ estimator(v) against ∇ KL at π = π_old, as the help texts describe it."""
    logits = torch.tensor([0.3, -0.2, 0.9], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([0.1, 0.5, -0.4], dtype=torch.float64).log_softmax(-1)
    policy = logits.log_softmax(-1)
    [true] = torch.autograd.grad(
        (policy.exp() * (policy - reference)).sum(), logits, retain_graph=True
    )
    estimate = KL_ESTIMATORS[name](Divergence((reference - policy)[None]))[0] * (
        (policy - policy.detach()).exp() if corrected else 1
    )
    [found] = torch.autograd.grad((policy.exp().detach() * estimate).sum(), logits)
    assert torch.allclose(found, true, atol=1e-12) == true_gradient
    if name == "k1":
        assert found.abs().max() < 1e-12
