"""Gradient clipping, which also refuses a loss or gradient that is not finite."""

from __future__ import annotations

import torch
from torch import nn

from grpo_core.errors import NonFinite
from grpo_core.learner.master_weights import MasterWeights


def clip_gradient(
    weights: MasterWeights, critic: nn.Module | None, loss: float, max_norm: float
) -> float:
    """Clip the gradient in the weights' `.grad`; returns the policy's norm before clipping.

    Raises NonFinite if the loss or the norm is nan or inf.
    """
    total = weights.gradient_norm()
    norm = float(total)
    # Before clipping, which would spread a nan over every gradient.
    if not torch.tensor([loss, norm]).isfinite().all():
        raise NonFinite(
            f"loss {loss}, gradient norm {norm}: first not finite in {weights.first_non_finite()}"
        )
    scale = (max_norm / (total + 1e-6)).clamp(max=1.0)  # as torch's clip_grad_norm_
    for gradient in weights.gradients().values():
        gradient.mul_(scale)
    if critic is not None:
        # Separately: the critic's large first errors would shrink the policy's step.
        nn.utils.clip_grad_norm_(critic.parameters(), max_norm)
    return norm
