"""Objectives: a table of pure functions, chosen by name in the configuration.

Each takes the terms of a micro-batch and the algorithm's parameters. It returns the loss ℓ to
minimise, (B, T), or (B, 1) if all tokens of a row share it. A new objective needs its function, its
row here and in options.py, and its test.
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
    """An objective's input. B rows, T completion tokens; 0 on padding."""

    logprobs: Tensor  # (B, T) of the policy, with gradient
    log_ratio: Tensor  # (B, T) logprobs - old_logprobs, with gradient
    ratio: Tensor  # w: (B, T), or (B, 1) if ratio_level is sequence
    advantages: Tensor  # A: (B, 1), or (B, T) from a critic
    loss_mask: Tensor  # m: (B, T) bool, tokens that train
    carries: Tensor  # (B, T) bool, those of them that carry the policy term


Objective = Callable[[Terms, AlgorithmConfig], Tensor]

# ---- ratio levels: log(π/π_old) -> w -----------------------------------------------------------


def token_ratio(log_ratio: Tensor, mask: Tensor) -> Tensor:
    """Each token's own ratio, w = π/π_old, (B, T)."""
    return log_ratio.exp()


def sequence_ratio(log_ratio: Tensor, mask: Tensor) -> Tensor:
    """The completion's geometric mean      GSPO, arXiv:2507.18071 eq. 7

    w = exp(Σ m·log_ratio / max(Σ m, 1)), (B, 1)
    """
    return masked_mean(log_ratio, mask).exp()


RATIO_LEVELS = {"token": token_ratio, "sequence": sequence_ratio}


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over each row's masked tokens, (B, 1); 0 for a row without any."""
    sums = torch.where(mask, values, 0.0).sum(1, keepdim=True)
    return sums / mask.sum(1, keepdim=True).clamp(min=1)


# ---- objectives --------------------------------------------------------------------------------


def clip(t: Terms, a: AlgorithmConfig) -> Tensor:
    """A token stops contributing once its probability has moved by the clip range.

        ℓ = -min(min(w, δ)·A, clip(w, 1 - ε_low, 1 + ε_high)·A)      arXiv:2402.03300 eq. 3

    Two ranges: DAPO, arXiv:2503.14476 eq. 8. δ bounds bad tokens that became likelier:
    INTELLECT-2, arXiv:2505.07291.
    """
    bounded = t.ratio if a.clip_delta is None else t.ratio.clamp(max=a.clip_delta)
    clipped = t.ratio.clamp(1 - a.clip_eps_low, 1 + a.clip_eps_high)
    return -torch.minimum(bounded * t.advantages, clipped * t.advantages)


def cispo(t: Terms, a: AlgorithmConfig) -> Tensor:
    """The weight of a token's gradient is clipped, never the gradient itself.

    ℓ = -sg(min(w, cap))·A·log π      MiniMax-M1, arXiv:2506.13585 eq. 4
    """
    return -t.ratio.clamp(max=a.cispo_cap).detach() * t.advantages * t.logprobs


def sapo(t: Terms, a: AlgorithmConfig) -> Tensor:
    """A soft gate in place of the clip: full gradient at w = 1, decreasing on both sides.

        ℓ = -A·σ(τ(w - 1))·4/τ      τ by the sign of A; arXiv:2511.20347

    It decreases faster for bad tokens.
    """
    tau = torch.where(t.advantages > 0, a.sapo_tau_pos, a.sapo_tau_neg)
    return -torch.sigmoid(tau * (t.ratio - 1)) * 4 / tau * t.advantages


def vespo(t: Terms, a: AlgorithmConfig) -> Tensor:
    """A completion's weight is a gamma density of its sequence ratio W: 1 at W = 1.

    ℓ = -sg(φ)·A·log π,   log φ = λ + k·log W - λ·W      arXiv:2602.10693
    log W = Σ m·clamp(log_ratio, ±20), clamped to [ln 1e-8, 20]; k and λ by the sign of A
    """
    bounded = t.log_ratio.detach().clamp(-20, 20)
    log_w = torch.where(t.loss_mask, bounded, 0.0).sum(1, keepdim=True)
    log_w = log_w.clamp(math.log(1e-8), 20)  # (B, 1)
    good = t.advantages >= 0
    k = torch.where(good, a.vespo_k_pos, a.vespo_k_neg)
    decay = torch.where(good, a.vespo_lambda_pos, a.vespo_lambda_neg)
    return -(decay + k * log_w - decay * log_w.exp()).exp() * t.advantages * t.logprobs


def gmpo(t: Terms, a: AlgorithmConfig) -> Tensor:
    """The geometric mean of a completion's clipped token ratios      arXiv:2507.20673 eq. 4

        ℓ = -A·exp(Σ m·c / Σ m),   c = min(log_ratio, clamp(log_ratio, ±ε)) if A > 0, else max(…)

    The mean is over tokens that carry the policy term, and ℓ is scaled so that `sequence_mean`
    returns it unchanged.
    """
    clamped = t.log_ratio.clamp(-a.gmpo_eps, a.gmpo_eps)
    lower = torch.minimum(t.log_ratio, clamped)
    c = torch.where(t.advantages > 0, lower, torch.maximum(t.log_ratio, clamped))
    # (B, 1); 1 unless entropy_quantile < 1.
    scale = t.loss_mask.sum(1, keepdim=True) / t.carries.sum(1, keepdim=True).clamp(min=1)
    return -t.advantages * masked_mean(c, t.carries).exp() * scale


def spo(t: Terms, a: AlgorithmConfig) -> Tensor:
    """A square penalty in place of the clip: the gradient is 0 at the edge and reverses beyond it.

    ℓ = -(w·A - |A|·(w - 1)²/(2ε))      ε high or low by the sign of A
    Simple Policy Optimization, arXiv:2401.16025
    """
    eps = torch.where(t.advantages > 0, a.clip_eps_high, a.clip_eps_low)
    return -(t.ratio * t.advantages - t.advantages.abs() * (t.ratio - 1).square() / (2 * eps))


def trust_region(t: Terms, a: AlgorithmConfig) -> Tensor:
    """The unclipped surrogate. The step itself keeps KL(π_old ‖ π) ≤ δ, see trust_region.py.

    ℓ = -w·A      TRPO, arXiv:1502.05477 eq. 14
    """
    return -t.ratio * t.advantages


def reinforce(t: Terms, a: AlgorithmConfig) -> Tensor:
    """The plain policy gradient, without any limit.

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
CONSTRAINED = frozenset({"trust_region"})  # steps bounded by KL instead of a learning rate

# The ratios between which an objective does not limit the gradient, for the clip metrics. An
# objective without a row never limits it.
CLIP_RANGES: dict[str, Callable[[AlgorithmConfig], tuple[float, float]]] = {
    "clip": lambda a: (1 - a.clip_eps_low, 1 + a.clip_eps_high),
    "spo": lambda a: (1 - a.clip_eps_low, 1 + a.clip_eps_high),
    "cispo": lambda a: (0.0, a.cispo_cap),
    "gmpo": lambda a: (math.exp(-a.gmpo_eps), math.exp(a.gmpo_eps)),
}


def clip_range(a: AlgorithmConfig) -> tuple[float, float]:
    """The ratios between which the configured objective does not limit the gradient."""
    return CLIP_RANGES[a.objective](a) if a.objective in CLIP_RANGES else (0.0, math.inf)
