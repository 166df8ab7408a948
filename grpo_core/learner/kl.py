"""KL(policy ‖ reference) per token: a table of small pure functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Divergence:
    """Where policy and reference differ on tokens that the policy sampled; Schulman, "Approximating KL divergence". The distributions are only there for an estimator in NEEDS_DISTRIBUTIONS."""

    d: Tensor  # (B, T) ref - new, log-probabilities of the sampled tokens
    policy: Tensor | None = None  # (B, T, V) log-probabilities of all tokens
    reference: Tensor | None = None  # (B, T, V)


def k1(x: Divergence) -> Tensor:
    """-d: unbiased, negative on half the tokens. As a loss its gradient is 0 on average: E[∇ log π] = 0."""
    return -x.d


def k2(x: Divergence) -> Tensor:
    """d²/2: biased as a value, small variance; as a loss it has, on the policy's own tokens, the gradient of the true KL."""
    return x.d.square() / 2


def k3(x: Divergence) -> Tensor:
    """e^d - d - 1: unbiased and never negative; explodes where the reference finds a token far likelier than the policy."""
    return torch.expm1(x.d) - x.d


def exact(x: Divergence) -> Tensor:
    """Σ_v π(v)·(log π(v) - log π_ref(v)): no sampling noise, at the price of two whole distributions a token."""
    assert x.policy is not None
    assert x.reference is not None
    # A token that the policy cannot write has -inf here; its probability of 0 must win over the infinite difference.
    return torch.where(x.policy.isfinite(), x.policy.exp() * (x.policy - x.reference), 0.0).sum(-1)


KL_ESTIMATORS: dict[str, Callable[[Divergence], Tensor]] = {
    "k1": k1,
    "k2": k2,
    "k3": k3,
    "exact": exact,
}
NEEDS_DISTRIBUTIONS = frozenset({"exact"})
