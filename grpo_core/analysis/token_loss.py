"""Loss term, gradient and clip state of each recorded token.

The learner's own loss functions are applied to stored log-probabilities.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grpo_core.config import RunConfig
from grpo_core.store import Store, TokenRow


@dataclass(frozen=True, slots=True)
class TokenTerms:
    """One value for each of the n tokens of a rollout; nan where nothing was computed.

    The `term`s of all tokens of a step add up to its loss. `gradient` is ∂loss/∂log π(token).
    """

    logprob: Sequence[float]
    ratio: Sequence[float]
    kl: Sequence[float]
    entropy: Sequence[float]
    term: Sequence[float]
    gradient: Sequence[float]
    clipped: Sequence[bool]


@dataclass(frozen=True, slots=True)
class LossContext:
    """What a token's loss term depends on beside its own rollout, for one step."""

    config: RunConfig
    num_rows: int  # rollouts of the step
    num_tokens: int  # tokens of the step that train
    kl_coef: float
    entropy_coef: float


def loss_context(store: Store, run_id: str, step: int, config: RunConfig) -> LossContext:
    """Reads the size of a step, and the coefficients that it used."""
    rows = store.scored(run_id, step, step)
    masked = config.algorithm.mask_truncated
    numbers = next((r for r in store.steps_between(run_id, step, step)), {})
    return LossContext(
        config,
        len(rows),
        sum(r.num_tokens for r in rows if not (masked and r.finish_reason == "length")),
        numbers.get("kl_coef") or 0.0,
        numbers.get("entropy_coef") or 0.0,
    )


def token_terms(
    row: TokenRow, advantage: float, finish_reason: str, context: LossContext, update: int = -1
) -> TokenTerms | None:
    """Loss terms of one rollout in the given update on its batch. None without log-probabilities.

    update: index of the update, the last one by default; each update recorded its own pass.
    Two values need more than is stored. With the KL estimator `exact` the terms use k3. A critic's
    advantages of single tokens are not stored, so the terms use their mean.
    """
    if row.logprobs is None:
        return None
    import torch

    from grpo_core.learner.aggregation import AGGREGATIONS, LossNormalizer
    from grpo_core.learner.kl import KL_ESTIMATORS, NEEDS_DISTRIBUTIONS, Divergence
    from grpo_core.learner.objectives import OBJECTIVES, RATIO_LEVELS, Terms, clip_range

    config = context.config
    a, n = config.algorithm, len(row.token_ids)
    passes = torch.tensor(row.logprobs, dtype=torch.float64).view(-1, 1, n)  # (U, 1, n)
    logprobs = passes[update].clone().requires_grad_()  # (1, n)
    completion_mask = torch.ones(1, n, dtype=torch.bool)
    loss_mask = completion_mask & (not (a.mask_truncated and finish_reason == "length"))
    log_ratio = logprobs - passes[0]
    ratio = RATIO_LEVELS[a.ratio_level](log_ratio, completion_mask)
    advantages = torch.tensor([[advantage]], dtype=torch.float64)
    terms = Terms(logprobs, log_ratio, ratio, advantages, loss_mask, loss_mask)
    values = OBJECTIVES[a.objective](terms, a).expand(1, n)

    kl = torch.full((1, n), math.nan, dtype=torch.float64)
    if row.ref_logprobs is not None:
        name = "k3" if a.kl_estimator in NEEDS_DISTRIBUTIONS else a.kl_estimator
        ref_logprobs = torch.tensor(row.ref_logprobs, dtype=torch.float64)[None]
        kl = KL_ESTIMATORS[name](Divergence(ref_logprobs - logprobs))
        if context.kl_coef:
            values = values + context.kl_coef * (kl * ratio if a.kl_ratio_corrected else kl)

    # An aggregation is linear in its values, so its derivative is the weight of each token.
    probe = torch.zeros(1, n, dtype=torch.float64, requires_grad=True)
    size = LossNormalizer(context.num_rows, context.num_tokens, config.train.max_new_tokens)
    (weights,) = torch.autograd.grad(AGGREGATIONS[a.aggregation](probe, loss_mask, size), probe)
    contributions = weights * values
    (gradient,) = torch.autograd.grad(contributions.sum(), logprobs)

    entropy = torch.full((1, n), math.nan, dtype=torch.float64)
    if row.entropy is not None:
        entropy = torch.tensor(row.entropy, dtype=torch.float64).view(-1, 1, n)[update]
    if context.entropy_coef:
        bonus_weight = context.entropy_coef / max(context.num_tokens, 1)
        contributions = contributions - torch.where(loss_mask, entropy, 0.0) * bonus_weight

    low, high = clip_range(a)
    ratio = ratio.detach().expand(1, n)  # (1, 1) -> (1, n) if the ratio is per sequence
    above, below = (ratio > high) & (advantage > 0), (ratio < low) & (advantage < 0)
    return TokenTerms(
        logprob=passes[update][0].tolist(),
        ratio=ratio[0].tolist(),
        kl=kl.detach()[0].tolist(),
        entropy=entropy[0].tolist(),
        term=contributions.detach()[0].tolist(),
        gradient=gradient[0].tolist(),
        clipped=(loss_mask & (above | below))[0].tolist(),
    )


def share_of_gradient(
    rollouts: Sequence[tuple[float, int, str]], config: Mapping[str, Any]
) -> list[float]:
    """Each rollout's share of the gradient weight of a step.

        share = Σ_t |A|·w_t / Σ over all rollouts

    rollouts: (advantage, number of tokens, finish reason). The token weight w_t is 1/(B·|o|) with
    sequence_mean, else the same for all tokens (1/N or 1/(B·max)). It is 0 for masked rollouts.
    """
    a = config.get("algorithm") or {}
    per_row, masked = a.get("aggregation") == "sequence_mean", bool(a.get("mask_truncated"))
    weights = [
        0.0 if masked and reason == "length" else abs(advantage) * (1 if per_row else num_tokens)
        for advantage, num_tokens, reason in rollouts
    ]
    total = sum(weights)
    return [w / total if total else 0.0 for w in weights]
