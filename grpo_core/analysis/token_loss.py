"""What each recorded token did in the loss: its term, its gradient, whether it was clipped. The learner's own functions over stored rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grpo_core.config import RunConfig
from grpo_core.store import Store, TokenRow


@dataclass(frozen=True, slots=True)
class TokenTerms:
    """n numbers each, nan where nothing was computed. `term`s of a whole step add up to its loss; `gradient` is ∂loss/∂log π of the token."""

    logprob: Sequence[float]
    ratio: Sequence[float]
    kl: Sequence[float]
    entropy: Sequence[float]
    term: Sequence[float]
    gradient: Sequence[float]
    clipped: Sequence[bool]


@dataclass(frozen=True, slots=True)
class StepFacts:
    """What a token's weight depends on beside itself: the sizes of its whole step, and the coefficients of that step."""

    num_rows: int
    num_tokens: int
    kl_coef: float
    entropy_coef: float


def step_facts(store: Store, run_id: str, step: int, config: RunConfig) -> StepFacts:
    rows = store.scored(run_id, step, step)
    masked = config.algorithm.mask_truncated
    numbers = next((r for r in store.steps_between(run_id, step, step)), {})
    return StepFacts(
        len(rows),
        sum(r[11] for r in rows if not (masked and r[12] == "length")),
        numbers.get("kl_coef") or 0.0,
        numbers.get("entropy_coef") or 0.0,
    )


def token_terms(
    row: TokenRow,
    advantage: float,
    finish_reason: str,
    facts: StepFacts,
    config: RunConfig,
    update: int = -1,
) -> TokenTerms | None:
    """One rollout, as the given update on its batch saw it (the last one that computed it). None if nothing was recorded but ids.

    Not told: what needs the whole vocabulary (KL estimator exact is shown as k3), and a critic's advantage of single tokens.
    """
    if row.logprobs is None:
        return None
    import torch

    from grpo_core.learner.aggregation import AGGREGATIONS, LossNormalizer
    from grpo_core.learner.kl import KL_ESTIMATORS, NEEDS_DISTRIBUTIONS, Divergence
    from grpo_core.learner.objectives import OBJECTIVES, RATIO_LEVELS, Terms, clip_range

    a, n = config.algorithm, len(row.token_ids)
    passes = torch.tensor(row.logprobs, dtype=torch.float64).view(-1, 1, n)  # (U, 1, n)
    new = passes[update].clone().requires_grad_()  # (1, n)
    exists = torch.ones(1, n, dtype=torch.bool)
    mask = exists & (not (a.mask_truncated and finish_reason == "length"))
    log_ratio = new - passes[0]
    ratio = RATIO_LEVELS[a.ratio_level](log_ratio, exists)
    terms = Terms(
        new, log_ratio, ratio, torch.tensor([[advantage]], dtype=torch.float64), mask, mask
    )
    values = OBJECTIVES[a.objective](terms, a).expand(1, n)
    kl = torch.full((1, n), math.nan, dtype=torch.float64)
    if row.ref_logprobs is not None:
        name = "k3" if a.kl_estimator in NEEDS_DISTRIBUTIONS else a.kl_estimator
        kl = KL_ESTIMATORS[name](
            Divergence(torch.tensor(row.ref_logprobs, dtype=torch.float64)[None] - new)
        )
        if facts.kl_coef:
            values = values + facts.kl_coef * (kl * ratio if a.kl_ratio_corrected else kl)
    # Aggregations are linear, so their derivative is each token's weight, whatever they divide by.
    probe = torch.zeros(1, n, dtype=torch.float64, requires_grad=True)
    AGGREGATIONS[a.aggregation](
        probe, mask, LossNormalizer(facts.num_rows, facts.num_tokens, config.train.max_new_tokens)
    ).backward()
    contributions = probe.grad * values
    contributions.sum().backward()
    entropy = torch.full((1, n), math.nan, dtype=torch.float64)
    if row.entropy is not None:
        entropy = torch.tensor(row.entropy, dtype=torch.float64).view(-1, 1, n)[update]
    bonus = (
        torch.where(mask, entropy, 0.0) * (facts.entropy_coef / max(facts.num_tokens, 1))
        if facts.entropy_coef
        else 0.0
    )
    low, high = clip_range(a)
    wide = ratio.detach().expand(1, n)
    clipped = mask & (((wide > high) & (advantage > 0)) | ((wide < low) & (advantage < 0)))
    told = (passes[update], wide, kl.detach(), entropy, (contributions - bonus).detach(), new.grad)
    return TokenTerms(*(t[0].tolist() for t in told), clipped[0].tolist())


def share_of_gradient(
    rollouts: Sequence[tuple[float, int, str]], config: Mapping[str, Any]
) -> list[float]:
    """Each rollout's share of a step's gradient weight: Σ_t |A|·(weight of a token), over all rollouts of the step.

    rollouts: (advantage, tokens, finish reason). A token weighs 1/N or 1/(B·max) alike, or 1/(B·|o|) under sequence_mean; masked ones nothing.
    """
    a = config.get("algorithm") or {}
    per_row, masked = a.get("aggregation") == "sequence_mean", bool(a.get("mask_truncated"))
    weights = [
        0.0 if masked and reason == "length" else abs(advantage) * (1 if per_row else n)
        for advantage, n, reason in rollouts
    ]
    total = sum(weights)
    return [w / total if total else 0.0 for w in weights]
