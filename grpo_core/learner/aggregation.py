"""Which tokens count, and how per-token values become the step's one scalar."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class LossNormalizer:
    """What a step's sums are divided by. Of the whole step, never of a micro-batch: otherwise a completion's weight would
    depend on which neighbours it was packed with."""

    num_rows: int
    num_tokens: int
    max_new_tokens: int
    entropy_threshold: float = -math.inf  # tokens below it do not carry the policy term
    num_carrying: int = 0  # tokens at or above it; read only for the entropy bonus


# ---- aggregation: per-token values of a micro-batch -> its share of the step's scalar ------------------------------------


def sequence_mean(values: Tensor, mask: Tensor, size: LossNormalizer) -> Tensor:
    """Each completion weighs the same: Σ_i (Σ_t v·m / max(Σ_t m, 1)) / B      GRPO, arXiv:2402.03300"""
    return (torch.where(mask, values, 0.0).sum(1) / mask.sum(1).clamp(min=1)).sum() / size.num_rows


def token_mean(values: Tensor, mask: Tensor, size: LossNormalizer) -> Tensor:
    """Each token weighs the same: Σ v·m / N      DAPO, arXiv:2503.14476"""
    return torch.where(mask, values, 0.0).sum() / max(size.num_tokens, 1)


def constant(values: Tensor, mask: Tensor, size: LossNormalizer) -> Tensor:
    """Each token weighs the same in every step: Σ v·m / (B · max_new_tokens)      Dr. GRPO, arXiv:2503.20783"""
    return torch.where(mask, values, 0.0).sum() / (size.num_rows * size.max_new_tokens)


AGGREGATIONS = {"sequence_mean": sequence_mean, "token_mean": token_mean, "constant": constant}

# ---- masks ---------------------------------------------------------------------------------------------------------------


def entropy_threshold(entropy: Tensor, share: float) -> float:
    """The (1 - share) quantile, linear between neighbours: tokens at or above it are the forking ones.      arXiv:2506.01939

    entropy (N,) of all tokens of the step. By rank and not by torch.quantile, which refuses more than 2^24 values; in float32, so that
    a share like .3, which is no binary fraction, does not put the threshold a rounding above the token that it falls on.
    """
    if not len(entropy):
        return -math.inf
    at = (1 - share) * (len(entropy) - 1)
    low, high = (
        entropy.float().kthvalue(rank + 1).values for rank in (math.floor(at), math.ceil(at))
    )
    return float(torch.lerp(low, high, at - math.floor(at)))


def still_on_policy(
    advantages: Tensor, new: Tensor, sampled: Tensor, mask: Tensor, threshold: float
) -> Tensor:
    """Which rows keep their policy term: those not worse than their siblings, or still near what they were sampled from.

        A >= 0  or  Σ m·(samp - new) / max(Σ m, 1) <= threshold      off-policy sequence mask, DeepSeek-V3.2, arXiv:2512.02556

    advantages (B, 1), the others (B, T). Returns (B, 1) bool.
    """
    drift = torch.where(mask, sampled - new.detach(), 0.0).sum(1, keepdim=True) / mask.sum(
        1, keepdim=True
    ).clamp(min=1)
    return (advantages >= 0) | (drift <= threshold)
