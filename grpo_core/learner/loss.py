"""The loss of a micro-batch from log-probabilities: objective, KL term and entropy bonus."""

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
    """A micro-batch: B rows, T completion tokens, (B, T) each. Values on padding are ignored."""

    logprobs: Tensor  # under the policy, with gradient
    old_logprobs: Tensor  # under the policy before the batch's first update
    entropy: Tensor  # of the policy's distribution; with gradient if there is an entropy bonus
    completion_mask: Tensor  # bool: tokens, not padding
    loss_mask: Tensor  # bool: those of them that train
    advantages: Tensor  # (B, 1), or (B, T) from a critic
    sampling_logprobs: Tensor | None = None  # at sampling time; only for off_policy_threshold
    ref_logprobs: Tensor | None = None  # None: the KL is neither trained on nor measured
    policy_distribution: Tensor | None = None  # (B, T, V), only for an estimator that needs it
    ref_distribution: Tensor | None = None
    correction: Tensor | None = None  # of the policy term, see sampler_gap.correction


@dataclass(frozen=True, slots=True)
class Coefficients:
    """The weights of the loss's terms that change during a run."""

    kl: float
    entropy: float


@dataclass(frozen=True, slots=True)
class Loss:
    """total = policy + kl_loss + entropy_loss, a micro-batch's share of the step's loss."""

    total: Tensor
    policy: Tensor
    kl_loss: Tensor
    entropy_loss: Tensor
    high_entropy: Tensor  # share of the mean entropy of tokens at or above the threshold
    kl: Tensor | None  # (B, T) the estimate, before coefficient and ratio correction
    ratio: Tensor  # (B, T) detached
    num_dropped: Tensor  # rows that off_policy_threshold excluded from the policy term


@dataclass(frozen=True, slots=True)
class TokenLosses:
    """The loss of each token before the aggregation; (B, T), or (B, 1) if a row shares it."""

    # The objective, corrected for the sampler; 0 where a token does not carry the policy term.
    policy: Tensor
    kl: Tensor | None  # the estimate
    kl_term: Tensor | None  # that, times the ratio if the algorithm corrects it
    ratio: Tensor
    high_entropy: Tensor  # bool: tokens at or above the threshold
    kept: Tensor  # (B, 1) bool: rows that off_policy_threshold leaves in the policy term


def loss_of(x: Tokens, a: AlgorithmConfig, coef: Coefficients, size: LossNormalizer) -> Loss:
    """aggregate(ℓ where a token carries the policy term + coef.kl·KL) - coef.entropy·H

    H = Σ entropy of tokens at or above the threshold / their number in the step; arXiv:2505.22312.
    ℓ, KL and the aggregation are those that the algorithm names.
    """
    tokens = token_losses(x, a, size)
    aggregate = AGGREGATIONS[a.aggregation]
    total = policy = aggregate(tokens.policy, x.loss_mask, size)
    kl_loss = entropy_loss = policy.detach() * 0
    if tokens.kl_term is not None and coef.kl:
        kl_loss = coef.kl * aggregate(tokens.kl_term, x.loss_mask, size)
        total = total + kl_loss
    entropy = torch.where(tokens.high_entropy, x.entropy, 0.0).sum() / max(size.num_carrying, 1)
    if coef.entropy:
        entropy_loss = -coef.entropy * entropy
        total = total + entropy_loss
    return Loss(
        total=total,
        policy=policy,
        kl_loss=kl_loss,
        entropy_loss=entropy_loss,
        high_entropy=entropy,
        kl=tokens.kl,
        ratio=tokens.ratio.detach().expand_as(x.logprobs),
        num_dropped=(~tokens.kept).sum(),
    )


def token_losses(x: Tokens, a: AlgorithmConfig, size: LossNormalizer) -> TokenLosses:
    """The objective and the KL estimate of each token, as the algorithm names them."""
    mask = x.completion_mask
    # Before exp: on padding inf · 0 would be nan, in the gradient too.
    log_ratio = torch.where(mask, x.logprobs - x.old_logprobs, 0.0)
    ratio = RATIO_LEVELS[a.ratio_level](log_ratio, mask)
    high_entropy = x.loss_mask & (x.entropy.detach() >= size.entropy_threshold)
    kept = torch.ones_like(x.loss_mask[:, :1])  # (B, 1)
    if a.off_policy_threshold is not None and x.sampling_logprobs is not None:
        kept = still_on_policy(
            x.advantages, x.logprobs, x.sampling_logprobs, x.loss_mask, a.off_policy_threshold
        )
    carries = high_entropy & kept
    terms = Terms(
        logprobs=torch.where(mask, x.logprobs, 0.0),
        log_ratio=log_ratio,
        ratio=ratio,
        advantages=x.advantages,
        loss_mask=x.loss_mask,
        carries=carries,
    )
    losses = OBJECTIVES[a.objective](terms, a)
    if x.correction is not None:
        losses = losses * torch.where(mask, x.correction, 0.0)
    policy = torch.where(carries, losses, 0.0)
    kl = kl_term = None
    if x.ref_logprobs is not None:
        ref_log_ratio = torch.where(mask, x.ref_logprobs - x.logprobs, 0.0)
        divergence = Divergence(ref_log_ratio, x.policy_distribution, x.ref_distribution)
        kl = KL_ESTIMATORS[a.kl_estimator](divergence)
        kl_term = kl * ratio if a.kl_ratio_corrected else kl
    return TokenLosses(policy, kl, kl_term, ratio, high_entropy, kept)
