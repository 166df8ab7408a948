"""Advantages: how much better was a completion than its siblings? One small pure function a definition.

All take the siblings' rewards (P, G), nan = could not be scored or nobody stands there, and return (P, G): 0 where unscored, and 0 for
a group with fewer than two scored rollouts. One winner in a group of 8 gets 2.474 by group_std, 0.875 by group_mean, 1.0 by leave_one_out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from grpo_core.types import TIE_TOLERANCE

EPS = 1e-4  # keeps a nearly tied group finite; TRL's value


@dataclass(frozen=True, slots=True)
class Siblings:
    """Groups as an estimator sees them. A group shorter than the longest is filled up with nan."""

    rewards: Tensor  # (P, G) totals
    scores: Tensor | None = (
        None  # (P, G, K), nan = could not be scored; only per_criterion looks at them
    )
    weights: Tensor | None = None  # (K,) above 0


def group_std(s: Siblings) -> Tensor:
    """In the siblings' own standard deviations.

        A = (r - mean_G(r)) / (std_G(r) + 1e-4)      sample std (ddof 1); GRPO, arXiv:2402.03300 eq. 3

    A near-tie counts as much as a clear win: .500 against .501 becomes ±.738.
    """
    centred = _centred(s.rewards)
    return centred / (_std(centred, s.rewards, 1) + EPS)


def group_mean(s: Siblings) -> Tensor:
    """In the reward's own unit.

    A = r - mean_G(r)      Dr. GRPO, arXiv:2503.20783
    """
    return _centred(s.rewards)


def batch_std(s: Siblings) -> Tensor:
    """Centred in the group, in standard deviations of the whole step: groups that differ little stay small.

    A = (r - mean_G(r)) / (std_{P·G}(r) + 1e-4)      sample std; arXiv:2508.08221
    """
    r = s.rewards
    return _centred(r) / (_std(torch.nan_to_num(r - r.nanmean()), r, (0, 1)) + EPS)


def leave_one_out(s: Siblings) -> Tensor:
    """Against the mean of the other siblings.

    A = r - mean_{G minus this one}(r) = n/(n-1) · (r - mean_G(r))      RLOO, arXiv:2402.14740
    """
    num_scored = (~s.rewards.isnan()).sum(1, keepdim=True)  # (P, 1)
    return _centred(s.rewards) * num_scored / (num_scored - 1).clamp(min=1)


def rank(s: Siblings) -> Tensor:
    """By place alone: how far apart the rewards are does not matter.

    A = centred rank / sample std of the ranks in the group      ties share their mean rank
    """
    known = ~s.rewards.isnan()
    inorder = torch.where(known, s.rewards, torch.inf).sort(1).values
    beaten = torch.searchsorted(inorder, s.rewards - TIE_TOLERANCE)
    unbeaten = torch.searchsorted(inorder, s.rewards + TIE_TOLERANCE, right=True)
    # Beaten by it less those that beat it is twice the centred rank.
    centred = torch.where(known, beaten + unbeaten - known.sum(1, keepdim=True), 0).to(
        s.rewards.dtype
    )
    std = _std(centred, s.rewards, 1)
    return torch.where(std > 0, centred / std.clamp(min=TIE_TOLERANCE), 0.0)


def per_criterion(s: Siblings) -> Tensor:
    """Each criterion standardised in the group before the weights add them up, so that none drowns another.

        z_k = (s_k - mean_G)/(std_G + 1e-4),  u = Σ w_k·z_k over the scored,  A = (u - mean(u))/(std_{P·G}(u) + 1e-4)      GDPO, arXiv:2601.05242

    Each z_k sums to 0 in its group, so mean(u) is 0 already.
    """
    assert s.scores is not None
    assert s.weights is not None
    num_groups, size, _ = s.scores.shape
    z = group_std(
        Siblings(s.scores.permute(2, 0, 1).reshape(-1, size))
    )  # (K·P, G): every criterion of a group is a group of its own; 0 where null
    u = (s.weights[:, None, None] * z.view(-1, num_groups, size)).sum(0)
    return u / (_std(u, torch.where(s.scores.isnan().all(-1), torch.nan, u), (0, 1)) + EPS)


def value(s: Siblings) -> Tensor:
    """None by siblings: a critic judges every token, see critic.py. 0 until it has looked."""
    return torch.zeros_like(s.rewards)


ADVANTAGES: dict[str, Callable[[Siblings], Tensor]] = {
    "group_std": group_std,
    "group_mean": group_mean,
    "batch_std": batch_std,
    "leave_one_out": leave_one_out,
    "rank": rank,
    "per_criterion": per_criterion,
    "value": value,
}


def _centred(rewards: Tensor) -> Tensor:
    """r - mean_G(r); 0 where unscored, and exactly 0 in a tied group."""
    centred = torch.nan_to_num(rewards - rewards.nanmean(1, keepdim=True))
    # Rewards of a tied group differ from their mean by rounding only; divided by its tiny std that would look like a lesson.
    lowest = torch.where(rewards.isnan(), torch.inf, rewards).amin(1, keepdim=True)
    highest = torch.where(rewards.isnan(), -torch.inf, rewards).amax(1, keepdim=True)
    return torch.where(highest - lowest <= TIE_TOLERANCE, 0.0, centred)


def _std(centred: Tensor, scored: Tensor, dims: int | tuple[int, ...]) -> Tensor:
    """Sample standard deviation of centred values over those that are scored (not nan); 0 of fewer than two."""
    known = ~scored.isnan()
    return (
        torch.where(known, centred, 0.0).square().sum(dims, keepdim=True)
        / (known.sum(dims, keepdim=True) - 1).clamp(min=1)
    ).sqrt()


def compare(
    estimator: Callable[[Siblings], Tensor],
    rewards: Tensor,
    scores: Tensor,
    weights: Tensor,
    keys: Sequence[int],
) -> Tensor:
    """Advantages (B,) of rollouts whose siblings are all those with the same key.

    rewards (B,), scores (B, K), weights (K,) with 0 = watched only, keys B numbers. Groups of any sizes stand in one rectangle,
    filled up with nan, which every estimator takes for "not scored".
    """
    members: dict[int, list[int]] = {}
    for row, key in enumerate(keys):
        members.setdefault(key, []).append(row)
    width = max(map(len, members.values()))
    at = torch.tensor([rows + [-1] * (width - len(rows)) for rows in members.values()])  # (P, G)
    there = at >= 0
    counted = weights > 0
    siblings = Siblings(
        torch.where(there, rewards[at], torch.nan),
        torch.where(there[..., None], scores[at][..., counted], torch.nan),
        weights[counted],
    )
    advantages = torch.zeros_like(rewards)
    advantages[at[there]] = estimator(siblings)[there]
    return advantages
