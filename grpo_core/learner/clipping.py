"""Gradient clipping, which also refuses a loss or gradient that is not finite."""

from __future__ import annotations

import torch
from torch import nn

from grpo_core.learner.master_weights import MasterWeights


class NonFinite(ArithmeticError):
    """The loss or the gradient is nan or inf. The weights are unchanged."""


def clip_gradient(
    weights: MasterWeights, critic: nn.Module | None, loss: float, max_norm: float
) -> float:
    """Clip the gradient in the weights' `.grad`; returns the policy's norm before clipping.

    Raises NonFinite if the loss or the norm is nan or inf.
    """
    parameters = [p for p in weights.parameters() if p.grad is not None]
    total = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    norm = float(total)
    # Before clipping, which would spread a nan over every gradient.
    if not torch.tensor([loss, norm]).isfinite().all():
        raise NonFinite(
            f"loss {loss}, gradient norm {norm}: first not finite in {_non_finite_name(weights)}"
        )
    nn.utils.clip_grads_with_norm_(parameters, max_norm, total)
    if critic is not None:
        # Separately: the critic's large first errors would shrink the policy's step.
        nn.utils.clip_grad_norm_(critic.parameters(), max_norm)
    return norm


def _non_finite_name(weights: MasterWeights) -> str:
    """The first parameter whose gradient is not finite."""
    for name, p in weights.named_parameters():
        if p.grad is not None and not p.grad.isfinite().all():
            return name
    return "the loss"
