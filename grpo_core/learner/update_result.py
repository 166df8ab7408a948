"""What the updates on one batch measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from grpo_core.learner.passes import PassMeans, PassResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Update(PassMeans):
    """Means over the passes of a batch, and the state of the optimiser."""

    explained_variance: float | None
    kl_coef: float
    num_updates: int
    grad_norm: float | None  # before clipping; None: no update was made
    learning_rate: float | None  # None: a trust region set the step's length
    micro_batch_tokens: int  # the largest number of tokens in a forward pass
    trust_kl: float | None = None  # the trust region's measurements, see TrustRegionStep
    trust_delta: float | None = None
    trust_step_frac: float | None = None
    trust_residual: float | None = None
    trust_gain: float | None = None


def pass_means(
    passes: Sequence[PassResult], measured_kl: float | None, measured_entropy: float | None
) -> dict[str, Any]:
    """The PassMeans fields of all passes; KL and entropy as measured if no pass has them."""
    means = {f.name: mean_of_known([getattr(p, f.name) for p in passes]) for f in fields(PassMeans)}
    if means["kl"] is None:
        means["kl"] = measured_kl
    if means["entropy"] is None:
        means["entropy"] = measured_entropy
    means["ratio_max"] = max(p.ratio_max for p in passes)
    return means


def mean_of_known(values: Sequence[float | None]) -> float | None:
    """Mean of the values that are not None; None without any."""
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None
