"""From log-probabilities to the loss: objective, masks, KL and entropy of one micro-batch, added up. Pure: no model in sight."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from grpo_core.config import AlgorithmConfig
from grpo_core.learner.aggregation import AGGREGATIONS, LossNormalizer, still_on_policy
from grpo_core.learner.kl import KL_ESTIMATORS, Divergence
from grpo_core.learner.objectives import OBJECTIVES, RATIO_LEVELS, Terms


@dataclass(frozen=True, slots=True)
class Tokens:
    """A micro-batch as the loss sees it: B rows, T completion tokens, (B, T) each. What stands on padding is never looked at."""

    new: Tensor  # log-probabilities under the policy, with gradient
    old: Tensor  # under the policy before the batch's first update
    entropy: Tensor  # of the policy's distribution; with gradient when there is an entropy bonus
    exists: Tensor  # bool: tokens and not padding
    mask: Tensor  # bool: those of them that train
    advantages: Tensor  # (B, 1), or (B, T) from a critic
    sampled: Tensor | None = (
        None  # log-probabilities when the tokens were drawn; only for off_policy_threshold
    )
    ref: Tensor | None = None  # under the reference; None when KL is neither trained on nor watched
    policy_distribution: Tensor | None = None  # (B, T, V), only for an estimator that needs it
    ref_distribution: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Coefficients:
    """The weights that move during a run."""

    kl: float
    entropy: float


@dataclass(frozen=True, slots=True)
class Loss:
    """total = policy + kl_loss + entropy_loss, each a micro-batch's share of the step's scalar; and what the metrics need."""

    total: Tensor
    policy: Tensor
    kl_loss: Tensor
    entropy_loss: Tensor
    high_entropy: Tensor  # its share of the mean entropy of the carrying tokens
    kl: Tensor | None  # (B, T) the plain estimator, before coefficient and correction
    ratio: Tensor  # (B, T) detached
    dropped: Tensor  # rows whose policy term fell to off_policy_threshold


def loss_of(x: Tokens, a: AlgorithmConfig, coef: Coefficients, size: LossNormalizer) -> Loss:
    """Per token ℓ where it carries the policy term, + kl_coef·KL, aggregated, - entropy_coef·H.

    H = Σ entropy over the carrying tokens / their number in the step      2505.22312
    """
    log_ratio = torch.where(
        x.exists, x.new - x.old, 0.0
    )  # before exp: inf · 0 is nan, in the gradient too
    ratio = RATIO_LEVELS[a.ratio_level](log_ratio, x.exists)
    high_entropy = x.mask & (x.entropy.detach() >= size.entropy_threshold)
    kept = torch.ones_like(x.mask[:, :1])  # (B, 1)
    if a.off_policy_threshold is not None and x.sampled is not None:
        kept = still_on_policy(x.advantages, x.new, x.sampled, x.mask, a.off_policy_threshold)
    carries = high_entropy & kept
    terms = Terms(
        torch.where(x.exists, x.new, 0.0), log_ratio, ratio, x.advantages, x.mask, carries
    )
    aggregate = AGGREGATIONS[a.aggregation]
    total = policy = aggregate(
        torch.where(carries, OBJECTIVES[a.objective](terms, a), 0.0), x.mask, size
    )

    kl, nothing = None, policy.detach() * 0
    kl_loss = entropy_loss = nothing
    if x.ref is not None:
        kl = KL_ESTIMATORS[a.kl_estimator](
            Divergence(
                torch.where(x.exists, x.ref - x.new, 0.0), x.policy_distribution, x.ref_distribution
            )
        )
        if coef.kl:
            kl_loss = coef.kl * aggregate(kl * ratio if a.kl_ratio_corrected else kl, x.mask, size)
            total = total + kl_loss
    high = torch.where(high_entropy, x.entropy, 0.0).sum() / max(size.num_carrying, 1)
    if coef.entropy:
        entropy_loss = -coef.entropy * high
        total = total + entropy_loss
    return Loss(
        total,
        policy,
        kl_loss,
        entropy_loss,
        high,
        kl,
        ratio.detach().expand_as(x.new),
        (~kept).sum(),
    )
