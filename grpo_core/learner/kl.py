"""Estimators of KL(policy ‖ reference) per token: a table of pure functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Divergence:
    """Inputs of an estimator, on tokens that the policy sampled. B rows, T tokens, V vocabulary.

    Names and properties of k1, k2, k3: Schulman 2020, "Approximating KL divergence".
    """

    log_ratio: Tensor  # (B, T) d = ref_logprobs - logprobs of the sampled tokens
    policy: Tensor | None = None  # (B, T, V) log-probabilities; only for NEEDS_DISTRIBUTIONS
    reference: Tensor | None = None  # (B, T, V)


def k1(x: Divergence) -> Tensor:
    """-d: unbiased, negative for some tokens. As a loss its mean gradient is E[∇ log π] = 0."""
    return -x.log_ratio


def k2(x: Divergence) -> Tensor:
    """d²/2: biased, small variance. As a loss it has the gradient of the true KL, on policy."""
    return x.log_ratio.square() / 2


def k3(x: Divergence) -> Tensor:
    """e^d - d - 1: unbiased and never negative.

    Very large where the reference finds a token far likelier than the policy does.
    """
    return torch.expm1(x.log_ratio) - x.log_ratio


def exact(x: Divergence) -> Tensor:
    """Σ_v π(v)·(log π(v) - log π_ref(v)): no sampling noise; needs two distributions a token."""
    assert x.policy is not None
    assert x.reference is not None
    # log π is -inf for an impossible token, and 0 · -inf would be nan.
    terms = x.policy.exp() * (x.policy - x.reference)
    return torch.where(x.policy.isfinite(), terms, 0.0).sum(-1)


KL_ESTIMATORS: dict[str, Callable[[Divergence], Tensor]] = {
    "k1": k1,
    "k2": k2,
    "k3": k3,
    "exact": exact,
}
NEEDS_DISTRIBUTIONS = frozenset({"exact"})
