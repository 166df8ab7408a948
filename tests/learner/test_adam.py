"""The optimiser when memory runs out: early averages, and steps that are whole or not made."""

from __future__ import annotations

import pytest
import torch
from tiny_lm import A, TinyLM, make_batch, make_learner
from tiny_shapes import make_model, ragged

from grpo_core.config import AlgorithmConfig, TrainConfig
from grpo_core.errors import OutOfMemory
from grpo_core.learner import Learner, LearnerSettings, adam
from grpo_core.learner.packing import ANY_SIZE

ERRORS = ["CUDA error: out of memory", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling …"]


def weights_of(learner) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in learner.weights.parameters()])


def updated(learner, steps: int = 2):
    learner.packing.exact_to = ANY_SIZE
    for _ in range(steps):
        rewards = torch.tensor([1.0, 0.0, 0.5, 0.25])
        batch = make_batch()
        learner.update(batch, learner.estimate_values(batch, rewards) if learner.critic else A)
    return learner


@pytest.mark.parametrize("text", ERRORS)
@pytest.mark.parametrize("options", [{}, {"advantage": "value"}], ids=["policy", "with a critic"])
@pytest.mark.parametrize("failing", [1, 2], ids=["first call", "second call"])
def test_a_step_without_memory_moves_weight_after_weight(
    text, options, failing, monkeypatch, caplog
):
    """GPU review, update.py:161: Adam's own step, too, may find no memory."""
    options = {"kl_coef": 0.0, **options}
    expected = updated(make_learner(TinyLM(), **options))
    calls, kernel = [], torch._fused_adamw_

    def full(*arguments, **named):
        calls.append(1)
        if len(calls) == failing:  # as a kernel that is loaded at its first launch
            raise RuntimeError(text)
        return kernel(*arguments, **named)

    monkeypatch.setattr(torch, "_fused_adamw_", full)
    found = updated(make_learner(TinyLM(), **options))
    assert len(calls) == (4 if found.critic is not None else 2)
    # Rounding alone: the same formula in another order.
    assert (weights_of(found) - weights_of(expected)).abs().max() <= 1e-12
    assert {int(s["step"]) for s in found.optimizer.state.values()} == {2}
    assert all(group["fused"] for group in found.optimizer.param_groups), "tried again later"
    [record] = caplog.records
    assert "Out of memory in the optimiser's step" in record.getMessage()


def test_half_precision_weights_stay_those_of_their_masters(monkeypatch):
    """GPU review, update.py:161: a failed step must leave no parameter half updated."""

    def trained():
        model = make_model("Llama", torch.bfloat16)
        settings = LearnerSettings(AlgorithmConfig(kl_coef=0.0), TrainConfig(warmup_steps=0), 1e-3)
        learner = Learner(model, None, settings)
        batch = ragged(4)
        learner.update(batch, torch.tensor([1.0, -1.0] * (len(batch) // 2)))
        return learner

    expected = weights_of(trained())

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "_fused_adamw_", full)
    learner = trained()
    assert (weights_of(learner) - expected).abs().max() <= 1e-6
    masters = dict(learner.weights.named_parameters())
    for name, weight in learner.model.named_parameters():
        assert torch.equal(weight, masters[name].bfloat16())


def test_averages_are_there_before_the_first_pass():
    """GPU review, update.py:161: otherwise Adam would ask for them when the passes have filled the
    memory.
    """
    seen = []

    class Watched(TinyLM):
        def forward(self, input_ids, attention_mask):
            seen.append(len(learner.optimizer.state))
            return super().forward(input_ids, attention_mask)

    learner = make_learner(Watched(), kl_coef=0.0)
    updated(learner, steps=1)
    assert set(seen) == {2}


def test_early_averages_are_those_adam_makes_itself(monkeypatch):
    early = updated(make_learner(TinyLM(), kl_coef=0.0))
    monkeypatch.setattr("grpo_core.learner.update.allocate_averages", lambda optimizer: None)
    late = updated(make_learner(TinyLM(), kl_coef=0.0))
    assert torch.equal(weights_of(early), weights_of(late))
    pairs = zip(early.optimizer.state.values(), late.optimizer.state.values(), strict=True)
    for a, b in pairs:
        assert a.keys() == b.keys()
        assert all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def test_a_trust_region_and_frozen_weights_get_no_averages():
    learner = updated(make_learner(TinyLM(), kl_coef=0.0, objective="trust_region"), steps=1)
    assert not learner.optimizer.state
    model = TinyLM()
    model.embed.requires_grad_(False)
    learner = updated(make_learner(model, kl_coef=0.0), steps=1)
    assert list(learner.optimizer.state) == [model.head.weight]


@pytest.mark.parametrize("failures", [1, 2])
def test_too_little_memory_for_adam_names_a_remedy(failures, monkeypatch):
    tries, make = [], adam._averages

    def full(p):
        tries.append(1)
        if len(tries) <= failures:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return make(p)

    monkeypatch.setattr(adam, "_averages", full)
    learner = make_learner(TinyLM(), kl_coef=0.0)
    before = weights_of(learner).clone()
    if failures == 1:  # sampling's caches are given back, and then it fits
        updated(learner)
        return
    with pytest.raises(OutOfMemory, match=r"lora_rank.*optimiser.*132 trained parameters"):
        updated(learner)
    assert torch.equal(weights_of(learner), before)
    assert not learner.midway


def test_other_errors_of_a_step_are_raised(monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("expected all tensors to be on the same device")

    monkeypatch.setattr(torch, "_fused_adamw_", broken)
    learner = make_learner(TinyLM(), kl_coef=0.0)
    with pytest.raises(RuntimeError, match="same device"):
        updated(learner)
    assert len(learner.optimizer.param_groups) == 1
