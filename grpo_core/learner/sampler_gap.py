"""How far the sampler's log-probabilities are from the learner's own, and the correction for it.

The sampler is another engine, or the same model in other kernels and another precision. d is the
learner's log-probability of a token before the step's first update, minus the sampler's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from grpo_core.config.sections import RolloutConfig


def gap(logprobs: Tensor, sampling_logprobs: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Σ (e^d - 1 - d) over the tokens in the mask, and the largest e^d. All (B, T).

    The sum over the number of tokens estimates KL(sampler, learner) without bias, because the
    sampler drew the tokens, and is never negative: k3 of http://joschu.net/blog/kl-approx.html.
    """
    d = torch.where(mask, logprobs.detach() - sampling_logprobs, 0.0)
    return (torch.expm1(d) - d).sum(), torch.where(mask, d, -torch.inf).amax().exp()


def correction(
    logprobs: Tensor, sampling_logprobs: Tensor, mask: Tensor, rollout: RolloutConfig
) -> Tensor | None:
    """What each token's policy term is multiplied by, (B, T) without gradient; None: nothing.

        truncate: min(e^d, C)      mask: e^d, and 0 where e^d > C

    Truncated importance sampling for token-level mismatch of engines, as TRL's
    vllm_importance_sampling_mode token_truncate and token_mask, and verl's rollout_is. By token,
    because a ratio over a whole completion grows with its length. 1 outside of the mask.
    """
    if rollout.correction == "none":
        return None
    ratio = torch.where(mask, logprobs.detach() - sampling_logprobs, 0.0).exp()
    if rollout.correction == "truncate":
        return ratio.clamp(max=rollout.correction_max)
    return torch.where(ratio > rollout.correction_max, 0.0, ratio)
