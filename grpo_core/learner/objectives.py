"""Objectives, KL estimators and aggregations: tables of small pure functions, chosen by name in the configuration.

Shapes: B rows, T completion tokens. Adding one is adding a function, its row of help text and its test.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# ---- objectives: per-token loss ℓ (B, T), to be minimised ------------------------------------------------------------


def clip(logprobs: Tensor, ratio: Tensor, advantages: Tensor, eps_low: float, eps_high: float) -> Tensor:
    """Stop pushing a token once its probability has moved by the clip range.

        ℓ = -min(w·A, clip(w, 1 - ε_low, 1 + ε_high)·A)      arXiv:2402.03300 eq. 3; separate ranges: DAPO, 2503.14476 eq. 8

    logprobs, ratio (B, T); advantages (B, 1).
    """
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - eps_low, 1 + eps_high) * advantages)


def reinforce(logprobs: Tensor, ratio: Tensor, advantages: Tensor, eps_low: float, eps_high: float) -> Tensor:
    """Push by the advantage, without limit.

        ℓ = -A · log π      Williams 1992
    """
    return -advantages * logprobs


def trust_region(logprobs: Tensor, ratio: Tensor, advantages: Tensor, eps_low: float, eps_high: float) -> Tensor:
    """Push by the advantage, unclipped; the step itself is held within KL(π_old ‖ π) ≤ δ, see trust_region.py.

        ℓ = -w·A      TRPO, arXiv:1502.05477 eq. 14
    """
    return -ratio * advantages


OBJECTIVES = {"clip": clip, "reinforce": reinforce, "trust_region": trust_region}
CONSTRAINED = frozenset({"trust_region"})  # their steps are bounded by KL, not by a learning rate

# ---- KL(policy ‖ reference) per token from sampled tokens, d = ref - new (B, T); Schulman, "Approximating KL divergence" ---


def k1(d: Tensor) -> Tensor:
    """-d: unbiased, negative on half the tokens."""
    return -d


def k2(d: Tensor) -> Tensor:
    """d²/2: biased, small variance."""
    return d.square() / 2


def k3(d: Tensor) -> Tensor:
    """e^d - d - 1: unbiased and never negative; explodes where the reference finds a token far likelier than the policy."""
    return torch.expm1(d) - d


KL_ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}

# ---- aggregation: per-token values of a micro-batch -> its share of the step's scalar ------------------------------------


@dataclass(frozen=True, slots=True)
class StepSize:
    """What a step's sums are divided by. Of the whole step, never of a micro-batch: otherwise a completion's weight would
    depend on which neighbours it was packed with."""

    num_rows: int
    num_tokens: int
    max_new_tokens: int


def sequence_mean(values: Tensor, mask: Tensor, size: StepSize) -> Tensor:
    """Each completion weighs the same: Σ_i (Σ_t v·m / max(Σ_t m, 1)) / B      GRPO, arXiv:2402.03300"""
    return ((values * mask).sum(1) / mask.sum(1).clamp(min=1)).sum() / size.num_rows


def token_mean(values: Tensor, mask: Tensor, size: StepSize) -> Tensor:
    """Each token weighs the same: Σ v·m / N      DAPO, arXiv:2503.14476"""
    return (values * mask).sum() / max(size.num_tokens, 1)


def constant(values: Tensor, mask: Tensor, size: StepSize) -> Tensor:
    """Each token weighs the same in every step: Σ v·m / (B · max_new_tokens)      Dr. GRPO, arXiv:2503.20783"""
    return (values * mask).sum() / (size.num_rows * size.max_new_tokens)


AGGREGATIONS = {"sequence_mean": sequence_mean, "token_mean": token_mean, "constant": constant}
