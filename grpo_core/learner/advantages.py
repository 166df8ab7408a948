"""Advantages: how much better is a completion than its siblings? One pure function a definition.

Each takes rewards (P, G), nan = could not be scored or an empty place, and returns the parts of an
advantage, (P, G). It is 0 where unscored, and in a group with fewer than two scored rollouts. One
winner in a group of 8 has advantage 2.474 by group_std, 0.875 by group_mean, 1.0 by leave_one_out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from grpo_core.types import TIE_TOLERANCE

EPS = 1e-4  # keeps the advantages of a nearly tied group finite; TRL's value


@dataclass(frozen=True, slots=True)
class Siblings:
    """An estimator's input. Groups shorter than the longest are filled up with nan."""

    rewards: Tensor  # (P, G) totals
    scores: Tensor | None = None  # (P, G, K), nan = could not be scored; only for per_criterion
    weights: Tensor | None = None  # (K,), all above 0


@dataclass(frozen=True, slots=True)
class Parts:
    """A = difference / (spread + eps), or the difference itself where it is not divided."""

    difference: Tensor  # (P, G), 0 where unscored
    spread: Tensor | None = None  # broadcasts to (P, G)
    eps: float = EPS

    @property
    def advantages(self) -> Tensor:
        """A, in the shape of the difference."""
        return (
            self.difference if self.spread is None else self.difference / (self.spread + self.eps)
        )


def group_std(s: Siblings) -> Parts:
    """The difference to the group's mean, in the group's own standard deviations.

        A = (r - mean_G(r)) / (std_G(r) + 1e-4)    sample std (ddof 1); GRPO, arXiv:2402.03300 eq. 3

    A near-tie counts as much as a clear win: rewards .500 and .501 give ±.738.
    """
    centred = _centred(s.rewards)
    return Parts(centred, _std(centred, s.rewards, 1))


def group_mean(s: Siblings) -> Parts:
    """The difference to the group's mean, in the reward's own unit.

    A = r - mean_G(r)      Dr. GRPO, arXiv:2503.20783
    """
    return Parts(_centred(s.rewards))


def batch_std(s: Siblings) -> Parts:
    """The difference to the group's mean, in standard deviations of the whole step.

        A = (r - mean_G(r)) / (std_{P·G}(r) + 1e-4)      sample std; arXiv:2508.08221

    Groups whose rewards differ little keep small advantages.
    """
    r = s.rewards
    return Parts(_centred(r), _std(torch.nan_to_num(r - r.nanmean()), r, (0, 1)))


def leave_one_out(s: Siblings) -> Parts:
    """The difference to the mean of the other siblings.

    A = r - mean_{G minus this one}(r) = n/(n-1) · (r - mean_G(r))      RLOO, arXiv:2402.14740
    """
    num_scored = (~s.rewards.isnan()).sum(1, keepdim=True)  # (P, 1)
    return Parts(_centred(s.rewards) * num_scored / (num_scored - 1).clamp(min=1))


def rank(s: Siblings) -> Parts:
    """The order of the rewards alone; their distances do not matter.

    A = centred rank / sample std of the ranks in the group      ties share their mean rank
    """
    known = ~s.rewards.isnan()
    ordered = torch.where(known, s.rewards, torch.inf).sort(1).values
    num_lower = torch.searchsorted(ordered, s.rewards - TIE_TOLERANCE)
    num_not_higher = torch.searchsorted(ordered, s.rewards + TIE_TOLERANCE, right=True)
    # The number of lower rewards less that of higher ones is twice the centred rank.
    doubled = torch.where(known, num_lower + num_not_higher - known.sum(1, keepdim=True), 0)
    centred = doubled.to(s.rewards.dtype) / 2
    std = _std(centred, s.rewards, 1)
    return Parts(centred, torch.where(std > 0, std, 1.0), eps=0.0)


def per_criterion(s: Siblings) -> Parts:
    """Each criterion standardised in the group before the weighted sum, so that none dominates.

        z_k = (s_k - mean_G)/(std_G + 1e-4),   u = Σ w_k·z_k over the scored criteria
        A = (u - mean(u))/(std_{P·G}(u) + 1e-4)      GDPO, arXiv:2601.05242

    Each z_k sums to 0 in its group, so mean(u) is 0.
    """
    assert s.scores is not None
    assert s.weights is not None
    num_groups, size, _ = s.scores.shape
    # Every criterion of a group is standardised as a group of its own: (K·P, G), 0 where unscored.
    z = group_std(Siblings(s.scores.permute(2, 0, 1).reshape(-1, size))).advantages
    u = (s.weights[:, None, None] * z.view(-1, num_groups, size)).sum(0)
    return Parts(u, _std(u, torch.where(s.scores.isnan().all(-1), torch.nan, u), (0, 1)))


def value(s: Siblings) -> Parts:
    """0 for all: a critic gives every token its advantage, see critic.py."""
    return Parts(torch.zeros_like(s.rewards))


Estimator = Callable[[Siblings], Parts]

ADVANTAGES: dict[str, Estimator] = {
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
    # A tied group differs from its mean by rounding alone, and a tiny std would magnify that.
    lowest = torch.where(rewards.isnan(), torch.inf, rewards).amin(1, keepdim=True)
    highest = torch.where(rewards.isnan(), -torch.inf, rewards).amax(1, keepdim=True)
    return torch.where(highest - lowest <= TIE_TOLERANCE, 0.0, centred)


def _std(centred: Tensor, scored: Tensor, dims: int | tuple[int, ...]) -> Tensor:
    """Sample std of centred values where `scored` is not nan; 0 for fewer than two."""
    known = ~scored.isnan()
    squares = torch.where(known, centred, 0.0).square().sum(dims, keepdim=True)
    return (squares / (known.sum(dims, keepdim=True) - 1).clamp(min=1)).sqrt()


def advantage_parts(
    estimator: Estimator, rewards: Tensor, scores: Tensor, weights: Tensor, keys: Sequence[int]
) -> Parts:
    """The parts of the advantages (B,) of rollouts; those with the same key are siblings.

    rewards (B,), scores (B, K), weights (K,) with 0 = recorded only, keys B numbers. Groups of any
    size share one rectangle filled up with nan, which every estimator reads as "not scored".
    """
    members: dict[int, list[int]] = {}
    for row, key in enumerate(keys):
        members.setdefault(key, []).append(row)
    width = max(map(len, members.values()))
    rows = torch.tensor([group + [-1] * (width - len(group)) for group in members.values()])
    exists = rows >= 0  # (P, G), as rows
    counted = weights > 0
    parts = estimator(
        Siblings(
            torch.where(exists, rewards[rows], torch.nan),
            torch.where(exists[..., None], scores[rows][..., counted], torch.nan),
            weights[counted],
        )
    )

    def of_rows(values: Tensor) -> Tensor:  # (P, G) -> (B,)
        out = torch.zeros_like(rewards)
        out[rows[exists]] = values.expand(rows.shape)[exists]
        return out

    spread = None if parts.spread is None else of_rows(parts.spread)
    return Parts(of_rows(parts.difference), spread, parts.eps)
