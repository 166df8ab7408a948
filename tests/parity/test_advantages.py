"""Our advantages against TRL 1.16's own lines, on random rewards with scores missing."""

from __future__ import annotations

import math

import pytest
import torch

from grpo_core.learner.advantages import ADVANTAGES, advantage_parts
from tests.parity import trl_loss

PEERS = {
    "group_std": ("group", "sum_then_normalize"),
    "group_mean": ("none", "sum_then_normalize"),
    "batch_std": ("batch", "sum_then_normalize"),
    "per_criterion": ("group", "normalize_then_sum"),
}


def totals(scores: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return torch.where(scores.isnan().all(1), torch.nan, (scores * weights).nansum(1))


def both(
    name: str, scores: torch.Tensor, weights: torch.Tensor, group_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    keys = [i // group_size for i in range(len(scores))]
    return advantage_parts(
        ADVANTAGES[name], totals(scores, weights), scores, weights, keys
    ).advantages, trl_loss.advantages(scores, weights, group_size, *PEERS[name])


@pytest.mark.parametrize("name", list(PEERS))
def test_advantages_equal_trl_over_fifty_draws_with_missing_scores(name):
    for seed in range(50):
        g = torch.Generator().manual_seed(seed)
        num_groups, size, criteria = (
            int(torch.randint(low, high, (), generator=g)) for low, high in ((1, 5), (2, 9), (1, 4))
        )
        scores = torch.rand(num_groups * size, criteria, generator=g, dtype=torch.float64)
        scores[torch.rand(scores.shape, generator=g) < 0.3] = torch.nan
        mine, theirs = both(
            name, scores, 0.1 + torch.rand(criteria, generator=g, dtype=torch.float64), size
        )
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", list(PEERS))
def test_rewards_that_are_all_null_have_advantages_of_zero_on_both_sides(name):
    mine, theirs = both(
        name,
        torch.full((8, 2), math.nan, dtype=torch.float64),
        torch.ones(2, dtype=torch.float64),
        4,
    )
    assert not mine.any()
    assert not theirs.any()
