"""Loss term, gradient and clip state of each recorded token.

The learner's own loss functions are applied to stored log-probabilities.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from grpo_core.analysis.learner_import import needs_learner
from grpo_core.config import AlgorithmConfig, RunConfig
from grpo_core.store import ScoredRow, Store, TokenRow

if TYPE_CHECKING:
    from torch import Tensor

    from grpo_core.learner.aggregation import LossNormalizer

KL_MEASURES = ("k1", "k2", "k3")  # those that need no distributions


@dataclass(frozen=True, slots=True)
class TokenTerms:
    """One value for each of the n tokens of a rollout; nan where nothing was computed.

    The `term`s of all tokens of a step add up to its loss; `policy` and `kl_term` are parts of
    them, the rest is the entropy bonus. `gradient` is ∂loss/∂log π(token).

    Of an observation's tokens nothing is computed: their `term` and `gradient` are 0.
    """

    logprob: Sequence[float]
    ratio: Sequence[float]
    kl: Sequence[float]
    entropy: Sequence[float]
    term: Sequence[float]
    policy: Sequence[float]
    kl_term: Sequence[float]
    gradient: Sequence[float]
    clipped: Sequence[bool]
    change: Sequence[float]  # of log π(token) by the step's updates


@dataclass(frozen=True, slots=True)
class LossContext:
    """What a token's loss term depends on beside its own rollout, for one step."""

    config: RunConfig
    num_rows: int  # rollouts of the step
    num_tokens: int  # tokens of the step that train
    kl_coef: float
    entropy_coef: float
    entropy_threshold: float = -math.inf  # tokens below it have no policy term
    num_carrying: int | None = None  # tokens at or above it; None: all that train

    @property
    def normalizer(self) -> LossNormalizer:
        """What the trainer divided the sums of this step by."""
        from grpo_core.learner.aggregation import LossNormalizer

        return LossNormalizer(
            self.num_rows,
            self.num_tokens,
            self.config.train.max_new_tokens,
            self.entropy_threshold,
            self.num_tokens if self.num_carrying is None else self.num_carrying,
        )


def loss_context(
    store: Store, run_id: str, step: int, config: RunConfig, group_size: int | None = None
) -> LossContext:
    """Reads the size of a step, and the coefficients that it used.

    group_size: as if each group had only so many of its completions, the first ones.
    """
    size = math.inf if group_size is None else group_size
    rows = [r for r in store.scored(run_id, step, step) if r.position < size]
    masked = config.algorithm.mask_truncated
    rows_that_train = [r for r in rows if not (masked and r.finish_reason == "length")]
    numbers = next((r for r in store.steps_between(run_id, step, step)), {})
    threshold, num_carrying = -math.inf, None
    if config.algorithm.entropy_quantile < 1:
        threshold, num_carrying = _entropy_threshold(
            store, rows_that_train, config.algorithm.entropy_quantile
        )
    return LossContext(
        config,
        len(rows),
        sum(r.num_tokens or 0 for r in rows_that_train),
        numbers.get("kl_coef") or 0.0,
        numbers.get("entropy_coef") or 0.0,
        threshold,
        num_carrying,
    )


@needs_learner
def _entropy_threshold(
    store: Store, rows: Sequence[ScoredRow], share: float
) -> tuple[float, int | None]:
    """The entropy from which on a token carries the policy term, and the number of such tokens.

    In the last update of the step, over the tokens whose entropy was recorded.
    """
    import torch

    from grpo_core.learner.aggregation import entropy_threshold

    recorded = [store.token_row(r.rollout_id) for r in rows]
    values = [
        v
        for t in recorded
        if t is not None and t.entropy
        for v in t.entropy[-len(t.token_ids) :]
        if not math.isnan(v)  # of an observation
    ]
    entropy = torch.tensor(values, dtype=torch.float64)
    threshold = entropy_threshold(entropy, share)
    return threshold, int((entropy >= threshold).sum())


@needs_learner
def token_terms(
    row: TokenRow,
    advantage: float,
    finish_reason: str | None,
    context: LossContext,
    update: int = -1,
) -> TokenTerms | None:
    """Loss terms of one rollout in the given update on its batch. None without log-probabilities.

    update: index of the update, the last one by default; each update recorded its own pass.
    Two values need more than is stored. With the KL estimator `exact` the terms use k3. A critic's
    advantages of single tokens are not stored, so the terms use their mean.
    """
    if row.logprobs is None:
        return None
    import torch

    from grpo_core.learner.kl import NEEDS_DISTRIBUTIONS
    from grpo_core.learner.loss import Tokens, token_losses
    from grpo_core.learner.objectives import clip_range

    a, n = context.config.algorithm, len(row.token_ids)
    if a.kl_estimator in NEEDS_DISTRIBUTIONS:
        a = a.model_copy(update={"kl_estimator": "k3"})

    recorded = _of_update(row.logprobs, n, update)  # nan at the tokens of observations
    old_logprobs, logprobs = _of_update(row.logprobs, n).nan_to_num(), recorded.nan_to_num()
    logprobs.requires_grad_()
    nothing = torch.full((1, n), math.nan, dtype=torch.float64)
    entropy = nothing if row.entropy is None else _of_update(row.entropy, n, update)
    completion_mask = ~recorded.isnan()  # (1, n)
    loss_mask = completion_mask & (not (a.mask_truncated and finish_reason == "length"))
    size = context.normalizer
    x = Tokens(
        logprobs=logprobs,
        old_logprobs=old_logprobs,
        # Without a threshold every token carries the policy term, also one of unknown entropy.
        entropy=entropy.nan_to_num(math.inf),
        completion_mask=completion_mask,
        loss_mask=loss_mask,
        advantages=torch.tensor([[advantage]], dtype=torch.float64),
        sampling_logprobs=_if_known(row.sampling_logprobs, n),
        ref_logprobs=_if_known(row.ref_logprobs, n),
    )
    tokens = token_losses(x, a, size)

    weights = _weights(a, loss_mask, size)
    policy, kl_term = weights * tokens.policy, torch.zeros_like(nothing)
    if tokens.kl_term is not None and context.kl_coef:
        kl_term = weights * (context.kl_coef * tokens.kl_term)
    contributions = policy + kl_term
    (gradient,) = torch.autograd.grad(contributions.sum(), logprobs)
    if context.entropy_coef:
        bonus_weight = context.entropy_coef / max(size.num_carrying, 1)
        contributions = contributions - torch.where(tokens.high_entropy, entropy, 0) * bonus_weight

    change = nothing
    if row.logprobs_after is not None:
        change = _of_update(row.logprobs_after, n) - old_logprobs

    low, high = clip_range(a)
    ratio = tokens.ratio.detach().expand(1, n)  # (1, 1) -> (1, n) if the ratio is per sequence
    above, below = (ratio > high) & (advantage > 0), (ratio < low) & (advantage < 0)

    def listed(values: Tensor) -> list[Any]:
        return values.detach()[0].tolist()

    return TokenTerms(
        logprob=listed(recorded),
        ratio=listed(torch.where(completion_mask, ratio, nothing)),
        kl=listed(nothing if tokens.kl is None else tokens.kl.where(completion_mask, nothing)),
        entropy=listed(entropy),
        term=listed(contributions),
        policy=listed(policy),
        kl_term=listed(kl_term),
        gradient=listed(gradient),
        clipped=listed(loss_mask & (above | below)),
        change=listed(change),
    )


def _of_update(values: Sequence[float], n: int, update: int = 0) -> Tensor:
    """Of U·n recorded values those of one update, (1, n) in float64."""
    import torch

    return torch.tensor(values, dtype=torch.float64).view(-1, 1, n)[update]


def _if_known(values: Sequence[float] | None, n: int) -> Tensor | None:
    return None if values is None else _of_update(values, n).nan_to_num()


def _weights(a: AlgorithmConfig, mask: Tensor, size: LossNormalizer) -> Tensor:
    """The weight of each token in the loss, (1, n), by the configured aggregation.

    An aggregation is linear in its values, so its derivative is their weight.
    """
    import torch

    from grpo_core.learner.aggregation import AGGREGATIONS

    probe = torch.zeros(mask.shape, dtype=torch.float64, requires_grad=True)
    (weights,) = torch.autograd.grad(AGGREGATIONS[a.aggregation](probe, mask, size), probe)
    return weights


@needs_learner
def kl_measures(row: TokenRow) -> dict[str, float]:
    """The mean of each KL estimator over the tokens that the policy wrote, in the last update.

    Empty where the policy's or the reference's log-probabilities were not recorded.
    """
    if row.logprobs is None or row.ref_logprobs is None:
        return {}
    import torch

    from grpo_core.learner.kl import KL_ESTIMATORS, Divergence

    logprobs = torch.tensor(row.logprobs[-len(row.token_ids) :], dtype=torch.float64)
    x = Divergence(torch.tensor(row.ref_logprobs, dtype=torch.float64) - logprobs)
    return {name: float(KL_ESTIMATORS[name](x).nanmean()) for name in KL_MEASURES}


def share_of_gradient(
    rollouts: Sequence[tuple[float, int | None, str | None]], config: Mapping[str, Any]
) -> list[float]:
    """Each rollout's share of the gradient weight of a step.

        share = Σ_t |A|·w_t / Σ over all rollouts

    rollouts: (advantage, number of tokens, finish reason). The token weight w_t is 1/(B·|o|) with
    sequence_mean, else the same for all tokens (1/N or 1/(B·max)). It is 0 for masked rollouts.
    Where a number of tokens is not known, each rollout counts as one.
    """
    a = config.get("algorithm") or {}
    per_row = a.get("aggregation") == "sequence_mean" or any(n is None for _, n, _ in rollouts)
    masked = bool(a.get("mask_truncated"))
    weights = [
        0.0
        if masked and reason == "length"
        else abs(advantage) * (1 if per_row else num_tokens or 0)
        for advantage, num_tokens, reason in rollouts
    ]
    total = sum(weights)
    return [w / total if total else 0.0 for w in weights]
