"""Objectives: a table of small pure functions, chosen by name in the configuration.

Each takes the terms of a micro-batch and the algorithm's parameters and returns the loss ℓ to be minimised, (B, T), or (B, 1) where
all tokens of a row share it. Adding one is adding a function, its row here and in options.py, and its test.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from grpo_core.config import AlgorithmConfig


@dataclass(frozen=True, slots=True)
class Terms:
    """What an objective may look at. B rows, T completion tokens; 0 on padding."""

    logprobs: Tensor  # (B, T) of the policy, with gradient
    log_ratio: Tensor  # (B, T) new - old, with gradient
    ratio: Tensor  # (B, T), or (B, 1) when ratio_level is sequence
    advantages: Tensor  # (B, 1), or (B, T) from a critic
    mask: Tensor  # (B, T) bool: tokens that train
    carries: Tensor  # (B, T) bool: those of them that carry the policy term


Objective = Callable[[Terms, AlgorithmConfig], Tensor]

# ---- ratio levels: log(new/old) -> w -------------------------------------------------------------------------------------


def token_ratio(log_ratio: Tensor, mask: Tensor) -> Tensor:
    """Each token by itself: w = e^(new - old), (B, T)."""
    return log_ratio.exp()


def sequence_ratio(log_ratio: Tensor, mask: Tensor) -> Tensor:
    """Geometric mean over the completion: w = exp(Σ m·log_ratio / max(Σ m, 1)), (B, 1)      GSPO, arXiv:2507.18071 eq. 7"""
    return masked_mean(log_ratio, mask).exp()


RATIO_LEVELS = {"token": token_ratio, "sequence": sequence_ratio}


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over each row's masked tokens, (B, 1); 0 for a row that has none."""
    return torch.where(mask, values, 0.0).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(
        min=1
    )


# ---- objectives ----------------------------------------------------------------------------------------------------------


def clip(t: Terms, a: AlgorithmConfig) -> Tensor:
    """Stop pushing a token once its probability has moved by the clip range.

    ℓ = -min(min(w, δ)·A, clip(w, 1 - ε_low, 1 + ε_high)·A)      arXiv:2402.03300 eq. 3; two ranges: DAPO, 2503.14476 eq. 8;
                                                                 δ bounds bad tokens that grew: INTELLECT-2, 2505.07291
    """
    bounded = t.ratio if a.clip_delta is None else t.ratio.clamp(max=a.clip_delta)
    return -torch.minimum(
        bounded * t.advantages,
        t.ratio.clamp(1 - a.clip_eps_low, 1 + a.clip_eps_high) * t.advantages,
    )


def cispo(t: Terms, a: AlgorithmConfig) -> Tensor:
    """Clip the weight of a token's gradient, never the gradient itself.

    ℓ = -sg(min(w, cap))·A·new      MiniMax-M1, arXiv:2506.13585 eq. 4
    """
    return -t.ratio.clamp(max=a.cispo_cap).detach() * t.advantages * t.logprobs


def sapo(t: Terms, a: AlgorithmConfig) -> Tensor:
    """A soft gate in place of the clip: full push at w = 1, fading on both sides, faster for bad tokens.

    ℓ = -A·σ(τ(w - 1))·4/τ      τ by the sign of A; arXiv:2511.20347
    """
    tau = torch.where(t.advantages > 0, a.sapo_tau_pos, a.sapo_tau_neg)
    return -torch.sigmoid(tau * (t.ratio - 1)) * 4 / tau * t.advantages


def vespo(t: Terms, a: AlgorithmConfig) -> Tensor:
    """Weigh a completion by a gamma density of its sequence ratio W: 1 at W = 1, falling on both sides.

    ℓ = -sg(φ)·A·new,  log φ = λ + k·log W - λ·W,  log W = Σ m·clamp(log_ratio, ±20), in [ln 1e-8, 20]      arXiv:2602.10693
    """
    log_w = (
        torch.where(t.mask, t.log_ratio.detach().clamp(-20, 20), 0.0)
        .sum(1, keepdim=True)
        .clamp(math.log(1e-8), 20)
    )  # (B, 1)
    good = t.advantages >= 0
    k, decay = (
        torch.where(good, a.vespo_k_pos, a.vespo_k_neg),
        torch.where(good, a.vespo_lambda_pos, a.vespo_lambda_neg),
    )
    return -(decay + k * log_w - decay * log_w.exp()).exp() * t.advantages * t.logprobs


def gmpo(t: Terms, a: AlgorithmConfig) -> Tensor:
    """Push a completion by the geometric mean of its clipped token ratios.

        ℓ = -A·exp(Σ m·c / Σ m),  c = min(log_ratio, clamp(log_ratio, ±ε)) if A > 0, else max(…)      arXiv:2507.20673 eq. 4

    With few tokens carrying the term the mean is over those; ℓ is spread over them so that `sequence_mean` gives it back whole.
    """
    clamped = t.log_ratio.clamp(-a.gmpo_eps, a.gmpo_eps)
    c = torch.where(
        t.advantages > 0, torch.minimum(t.log_ratio, clamped), torch.maximum(t.log_ratio, clamped)
    )
    spread = t.mask.sum(1, keepdim=True) / t.carries.sum(1, keepdim=True).clamp(
        min=1
    )  # (B, 1); 1 unless entropy_quantile < 1
    return -t.advantages * masked_mean(c, t.carries).exp() * spread


def spo(t: Terms, a: AlgorithmConfig) -> Tensor:
    """A square penalty in place of the clip: the push ends at the edge of the range, and beyond it turns back.

    ℓ = -(w·A - |A|·(w - 1)²/(2ε))      ε high or low by the sign of A; Simple Policy Optimization, arXiv:2401.16025
    """
    eps = torch.where(t.advantages > 0, a.clip_eps_high, a.clip_eps_low)
    return -(t.ratio * t.advantages - t.advantages.abs() * (t.ratio - 1).square() / (2 * eps))


def trust_region(t: Terms, a: AlgorithmConfig) -> Tensor:
    """Push by the advantage, unclipped; the step itself is held within KL(π_old ‖ π) ≤ δ, see trust_region.py.

    ℓ = -w·A      TRPO, arXiv:1502.05477 eq. 14
    """
    return -t.ratio * t.advantages


def reinforce(t: Terms, a: AlgorithmConfig) -> Tensor:
    """Push by the advantage, without limit.

    ℓ = -A · log π      Williams 1992
    """
    return -t.advantages * t.logprobs


OBJECTIVES: dict[str, Objective] = {
    "clip": clip,
    "cispo": cispo,
    "sapo": sapo,
    "vespo": vespo,
    "gmpo": gmpo,
    "spo": spo,
    "reinforce": reinforce,
    "trust_region": trust_region,
}
CONSTRAINED = frozenset({"trust_region"})  # their steps are bounded by KL, not by a learning rate

# Beyond which ratios an objective stops pushing, for the clip metrics. One without a row never stops.
CLIP_RANGES: dict[str, Callable[[AlgorithmConfig], tuple[float, float]]] = {
    "clip": lambda a: (1 - a.clip_eps_low, 1 + a.clip_eps_high),
    "spo": lambda a: (1 - a.clip_eps_low, 1 + a.clip_eps_high),
    "cispo": lambda a: (0.0, a.cispo_cap),
    "gmpo": lambda a: (math.exp(-a.gmpo_eps), math.exp(a.gmpo_eps)),
}


def clip_range(a: AlgorithmConfig) -> tuple[float, float]:
    """Ratios between which the chosen objective pushes without limit."""
    return CLIP_RANGES[a.objective](a) if a.objective in CLIP_RANGES else (0.0, math.inf)
