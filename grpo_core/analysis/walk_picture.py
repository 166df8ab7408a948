"""Curves over a token's ratio, by the learner's own objectives and KL estimate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from grpo_core.analysis.learner_import import needs_learner
from grpo_core.analysis.walk import Walk
from grpo_core.config import AlgorithmConfig


@dataclass(frozen=True, slots=True)
class TokenRatio:
    """One token of the group: its ratio, and the advantage of its completion."""

    ratio: float
    advantage: float


@dataclass(frozen=True, slots=True)
class RatioPicture:
    """Curves over `ratios`, one value a ratio, and where the group's tokens are.

    push: ∂(−loss)/∂log π of a token with A = 1, and of one with A = −1.
    moved: what a token adds to KL(old ‖ new), in nats: w − 1 − log w.
    """

    ratios: Sequence[float]
    push_up: Sequence[float]
    push_down: Sequence[float]
    moved: Sequence[float]
    tokens: Sequence[TokenRatio]
    tokens_moved: Sequence[float]
    low: float  # the ratios between which the objective does not limit the gradient
    high: float
    delta: float  # of a trust region
    after: bool  # the tokens' ratios are those after the step, else those of the last update


@needs_learner
def ratio_picture(walk: Walk, num_points: int = 121) -> RatioPicture:
    """The picture of a group's ratios. Those after the step if they were measured."""
    from grpo_core.learner.objectives import clip_range

    a = walk.config.algorithm
    tokens, after = token_ratios(walk)
    low, high = clip_range(a)
    far = max((abs(math.log(t.ratio)) for t in tokens if t.ratio > 0), default=0.0)
    edge = max(0.0 if low <= 0 else -math.log(low), 0.0 if high == math.inf else math.log(high))
    reach = min(math.exp(max(1.15 * far, 1.6 * edge, 0.3)) - 1, 3.0)
    left = max(0.02, 1 - min(reach, 0.98))
    ratios = [left + i * (1 + reach - left) / (num_points - 1) for i in range(num_points)]
    return RatioPicture(
        ratios=ratios,
        push_up=push(a, 1.0, ratios),
        push_down=push(a, -1.0, ratios),
        moved=moved(ratios),
        tokens=tokens,
        tokens_moved=moved([t.ratio for t in tokens]),
        low=low,
        high=high,
        delta=a.trust_region_delta,
        after=after,
    )


def token_ratios(walk: Walk) -> tuple[list[TokenRatio], bool]:
    """The ratios of the group's tokens, and whether they are those after the step."""
    rows = [(row.terms, row.advantage) for row in walk.rows if row.terms]
    after = [
        TokenRatio(math.exp(change), advantage)
        for terms, advantage in rows
        for change in terms.change
        if math.isfinite(change) and abs(change) < 700
    ]
    if after:
        return after, True
    return [TokenRatio(w, row.advantage) for row in walk.rows for w in row.ratios], False


@needs_learner
def push(a: AlgorithmConfig, advantage: float, ratios: Sequence[float]) -> list[float]:
    """∂(−loss)/∂log π of a single token at each ratio, by the configured objective."""
    import torch

    from grpo_core.learner.objectives import OBJECTIVES, Terms

    logprobs = torch.tensor(ratios, dtype=torch.float64).log()[:, None].requires_grad_()  # (N, 1)
    mask = torch.ones_like(logprobs, dtype=torch.bool)
    advantages = torch.full_like(logprobs, advantage)
    terms = Terms(logprobs, logprobs, logprobs.exp(), advantages.detach(), mask, mask)
    loss = OBJECTIVES[a.objective](terms, a).sum()
    (gradient,) = torch.autograd.grad(loss, logprobs)
    return (-gradient[:, 0]).tolist()


@needs_learner
def moved(ratios: Sequence[float]) -> list[float]:
    """w − 1 − log w for each ratio: the k3 estimate of KL(old ‖ new) on sampled tokens."""
    import torch

    from grpo_core.learner.kl import Divergence, k3

    return k3(Divergence(torch.tensor(ratios, dtype=torch.float64).log())).tolist()
