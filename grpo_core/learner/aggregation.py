"""Which tokens count in the loss, and how per-token values become one number a step."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class LossNormalizer:
    """What a step's sums are divided by.

    The numbers are those of the whole step, not of a micro-batch: otherwise a completion's weight
    depends on which neighbours it was packed with.
    """

    num_rows: int
    num_tokens: int
    max_new_tokens: int
    entropy_threshold: float = -math.inf  # tokens below it have no policy term
    num_carrying: int = 0  # tokens at or above the threshold; only the entropy bonus uses it


# ---- aggregation: per-token values of a micro-batch -> its share of the step's number ----------


def sequence_mean(values: Tensor, mask: Tensor, size: LossNormalizer) -> Tensor:
    """Equal weight for every completion: Σ_i (Σ_t v·m / max(Σ_t m, 1)) / B

    GRPO, arXiv:2402.03300
    """
    row_means = torch.where(mask, values, 0.0).sum(1) / mask.sum(1).clamp(min=1)
    return row_means.sum() / size.num_rows


def token_mean(values: Tensor, mask: Tensor, size: LossNormalizer) -> Tensor:
    """Equal weight for every token of the step: Σ v·m / N      DAPO, arXiv:2503.14476"""
    return torch.where(mask, values, 0.0).sum() / max(size.num_tokens, 1)


def constant(values: Tensor, mask: Tensor, size: LossNormalizer) -> Tensor:
    """Equal weight for every token of every step: Σ v·m / (B · max_new_tokens)

    Dr. GRPO, arXiv:2503.20783
    """
    return torch.where(mask, values, 0.0).sum() / (size.num_rows * size.max_new_tokens)


AGGREGATIONS = {"sequence_mean": sequence_mean, "token_mean": token_mean, "constant": constant}

# ---- masks -------------------------------------------------------------------------------------


def entropy_threshold(entropy: Tensor, share: float) -> float:
    """The (1 - share) quantile; tokens at or above it carry the policy term.      arXiv:2506.01939

    entropy (N,) of all tokens of the step; linear between neighbours; -inf without tokens. By rank,
    because torch.quantile refuses more than 2^24 values. In float32, because a share like 0.3 has
    no exact binary form and could put the threshold one rounding above its token.
    """
    if not len(entropy):
        return -math.inf
    position = (1 - share) * (len(entropy) - 1)
    ranked = entropy.float().sort().values  # on CUDA kthvalue does not repeat its results
    low, high = ranked[math.floor(position)], ranked[math.ceil(position)]
    return float(torch.lerp(low, high, position - math.floor(position)))


def still_on_policy(
    advantages: Tensor,
    logprobs: Tensor,
    sampling_logprobs: Tensor,
    mask: Tensor,
    threshold: float,
) -> Tensor:
    """Which rows keep their policy term: good ones, and those still near their sampling policy.

        A >= 0  or  Σ m·(sampling_logprobs - logprobs) / max(Σ m, 1) <= threshold

    Off-policy sequence mask, DeepSeek-V3.2, arXiv:2512.02556. advantages (B, 1), the others (B, T).
    Returns (B, 1) bool.
    """
    drift = torch.where(mask, sampling_logprobs - logprobs.detach(), 0.0).sum(1, keepdim=True)
    mean_drift = drift / mask.sum(1, keepdim=True).clamp(min=1)
    return (advantages >= 0) | (mean_drift <= threshold)
