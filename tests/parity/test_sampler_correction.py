"""The correction for another engine's probabilities, against TRL's own lines and loss."""

from __future__ import annotations

import pytest
import torch

from grpo_core.config import AlgorithmConfig
from grpo_core.config.sections import RolloutConfig
from grpo_core.learner.aggregation import LossNormalizer
from grpo_core.learner.loss import Coefficients, Tokens, loss_of
from grpo_core.learner.sampler_gap import correction, gap
from tests.parity import trl_loss

MODES = {"truncate": "token_truncate", "mask": "token_mask"}


def drawn(seed: int):
    g = torch.Generator().manual_seed(seed)
    old = -2 * torch.rand(5, 9, generator=g, dtype=torch.float64)
    sampled = old + 0.8 * torch.randn(5, 9, generator=g, dtype=torch.float64)
    new = old + 0.3 * torch.randn(5, 9, generator=g, dtype=torch.float64)
    mask = torch.arange(9) < torch.randint(1, 10, (5, 1), generator=g)
    return new.requires_grad_(), old, sampled, mask, torch.randn(5, generator=g).double()


@pytest.mark.parametrize("ours", MODES)
@pytest.mark.parametrize("seed", range(20))
def test_correction_and_loss_are_those_of_trl(ours, seed):
    new, old, sampled, mask, advantages = drawn(seed)
    rollout = RolloutConfig(engine="vllm", correction=ours, correction_max=1.5)
    mine = correction(old, sampled, mask, rollout)
    theirs = trl_loss.sampler_ratio(old, sampled, mask, MODES[ours], 1.5)
    assert (mine - theirs).abs().max() <= 1e-12
    if seed == 0:
        assert ((mine == 0) if ours == "mask" else (mine == 1.5)).any()

    entropy = torch.ones_like(old)
    algorithm = AlgorithmConfig(kl_coef=0, aggregation="token_mean")
    size = LossNormalizer(5, int(mask.sum()), 9, num_carrying=int(mask.sum()))
    x = Tokens(new, old, entropy, mask, mask, advantages[:, None], sampled, correction=mine)
    loss = loss_of(x, algorithm, Coefficients(0.0, 0.0), size).total
    trainer = trl_loss.trainer(9, loss_type="dapo", use_vllm=True)
    reference = trl_loss.loss(
        trainer, new, old, entropy, mask, advantages, sampled=sampled, sampler_ratio=theirs
    )
    assert abs(float((loss - reference).detach())) <= 1e-12
    [a], [b] = (torch.autograd.grad(value, new) for value in (loss, reference))
    assert (a - b).abs().max() <= 1e-12


def test_the_gap_is_the_divergence_of_sampler_and_learner():
    """Over all tokens by their probability, k3 is the exact KL(sampler, learner)."""
    g = torch.Generator().manual_seed(0)
    sampler, learner = torch.randn(2, 7, generator=g).double().log_softmax(-1)
    d = learner - sampler
    exact = (sampler.exp() * (sampler - learner)).sum()
    each = torch.stack(
        [gap(learner[i].view(1, 1), sampler[i].view(1, 1), torch.ones(1, 1).bool())[0]
         for i in range(7)]
    )  # fmt: skip
    assert float((sampler.exp() * each).sum()) == pytest.approx(float(exact), abs=1e-12)
    total, largest = gap(learner[None], sampler[None], torch.tensor([[True] * 3 + [False] * 4]))
    assert float(total) == pytest.approx(float((d.exp() - 1 - d)[:3].sum()), abs=1e-12)
    assert float(largest) == pytest.approx(float(d[:3].exp().max()))
