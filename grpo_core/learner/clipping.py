"""Gradient clipping, which also refuses a loss or gradient that is not finite."""

from __future__ import annotations

import torch
from torch import nn


class NonFinite(ArithmeticError):
    """The loss or the gradient is nan or inf. The weights are unchanged."""


def clip_gradient(
    model: nn.Module, critic: nn.Module | None, loss: float, max_norm: float
) -> float:
    """Clip the gradient in `.grad`; returns the policy's norm before clipping.

    Raises NonFinite if the loss or the norm is nan or inf.
    """
    parameters = [p for p in model.parameters() if p.grad is not None]
    total = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    norm = float(total)
    # Before clipping, which would spread a nan over every gradient.
    if not torch.tensor([loss, norm]).isfinite().all():
        raise NonFinite(
            f"loss {loss}, gradient norm {norm}: first not finite in {_non_finite_name(model)}"
        )
    nn.utils.clip_grads_with_norm_(parameters, max_norm, total)
    if critic is not None:
        # Separately: the critic's large first errors would shrink the policy's step.
        nn.utils.clip_grad_norm_(critic.parameters(), max_norm)
    return norm


def _non_finite_name(model: nn.Module) -> str:
    """The first parameter whose gradient is not finite."""
    for name, p in model.named_parameters():
        if p.grad is not None and not p.grad.isfinite().all():
            return name
    return "the loss"
