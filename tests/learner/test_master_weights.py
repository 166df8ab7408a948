"""Weights in bfloat16 learn as float32 ones do: small steps are not lost to rounding."""

from __future__ import annotations

import pytest
import torch
from tiny_shapes import make_model, ragged

from grpo_core.config import AlgorithmConfig, TrainConfig
from grpo_core.learner import Learner, LearnerSettings

RATE = 1e-6


def trained(dtype, steps: int = 3, rate: float = RATE, **algorithm) -> Learner:
    """A Llama-shaped model after these steps; both dtypes start from the same numbers."""
    model = make_model("Llama", torch.bfloat16).to(dtype)
    settings = AlgorithmConfig(**{"kl_coef": 0.0, **algorithm})
    learner = Learner(model, None, LearnerSettings(settings, TrainConfig(warmup_steps=0), rate))
    for step in range(steps):
        batch = ragged(4, seed=step)
        learner.update(batch, torch.tensor([1.0, -1.0] * (len(batch) // 2)))
    return learner


def test_small_steps_move_the_masters_of_bfloat16_weights_as_float32():
    # Adam's step is about the learning rate, 1e-6; weights of N(0, 0.3²) have steps of 1e-3 in
    # bfloat16. Without masters nearly all would stay.
    start = dict(make_model("Llama", torch.bfloat16).named_parameters())
    half, whole = trained(torch.bfloat16), trained(torch.float32)
    expected = dict(whole.model.named_parameters())
    moved = with_gradient = 0
    for name, master in half.weights.named_parameters():
        assert master.dtype == torch.float32
        used = master.grad != 0
        with_gradient += int(used.sum())
        moved += int(((master != start[name].float()) & used).sum())
        distance = (master - expected[name]).norm() / expected[name].norm()
        assert distance <= 1e-3, name
        # The steps themselves agree too, as far as bfloat16's gradients allow.
        cosine = torch.cosine_similarity(
            (master - start[name]).flatten(), (expected[name] - start[name]).flatten(), 0
        )
        assert cosine > 0.9, name
    assert moved >= 0.95 * with_gradient


def test_the_weights_are_the_rounded_masters():
    learner = trained(torch.bfloat16, rate=1e-3)
    masters = dict(learner.weights.named_parameters())
    for name, weight in learner.model.named_parameters():
        assert weight.grad is None
        assert torch.equal(weight, masters[name].bfloat16())


def test_gradients_of_micro_batches_are_summed_in_float32():
    # bfloat16 has 8 bits: 256 + 1 is 256 in it, in float32 257.
    learner = Learner(
        make_model("Llama", torch.bfloat16),
        None,
        LearnerSettings(AlgorithmConfig(kl_coef=0.0), TrainConfig(), RATE),
    )
    weight = next(learner.model.parameters())
    for gradient in (256.0, 1.0):
        weight.grad = torch.full_like(weight, gradient)
        learner.weights.collect_gradients()
    master = next(iter(learner.weights.parameters()))
    assert master.grad.unique().tolist() == [257.0]


@pytest.mark.parametrize("kept", [True, False], ids=["saved", "an older checkpoint"])
def test_masters_continue_from_a_checkpoint(kept):
    first = trained(torch.bfloat16, steps=2)
    state = first.state()
    if not kept:
        del state["master_weights"]
    other = trained(torch.bfloat16, steps=0)
    other.model.load_state_dict(first.model.state_dict())
    other.load_state(state)
    for (name, a), (_, b) in zip(
        first.weights.named_parameters(), other.weights.named_parameters(), strict=True
    ):
        expected = a if kept else a.bfloat16().float()
        assert torch.equal(b, expected), name


def test_a_run_goes_on_in_float32_where_its_masters_were():
    first, other = trained(torch.bfloat16, steps=2), trained(torch.float32, steps=0)
    other.load_state(first.state())
    masters = dict(first.weights.named_parameters())
    for name, weight in other.model.named_parameters():
        assert torch.equal(weight, masters[name]), name


def test_a_float32_model_has_no_second_copy():
    learner = trained(torch.float32, steps=1)
    assert learner.weights.state() == {}
    assert all(
        a is b
        for a, b in zip(learner.weights.parameters(), learner.model.parameters(), strict=True)
    )


def test_a_trust_region_moves_masters_and_weights():
    learner = trained(torch.bfloat16, steps=1, objective="trust_region")
    start = dict(make_model("Llama", torch.bfloat16).named_parameters())
    assert any(not torch.equal(p, start[n]) for n, p in learner.model.named_parameters())
    masters = dict(learner.weights.named_parameters())
    for name, weight in learner.model.named_parameters():
        assert torch.equal(weight, masters[name].bfloat16())


def test_a_pass_that_ended_early_leaves_no_gradient_to_the_next():
    # As after a lack of memory: the weights hold a part of a gradient when the pass begins again.
    clean, interrupted = trained(torch.bfloat16, steps=0), trained(torch.bfloat16, steps=0)
    for weight in interrupted.model.parameters():
        weight.grad = torch.ones_like(weight)
    for learner in (clean, interrupted):
        learner.update(ragged(4), torch.tensor([1.0, -1.0] * 6))
    expected = dict(clean.weights.named_parameters())
    for name, master in interrupted.weights.named_parameters():
        assert torch.equal(master, expected[name]), name
