"""Advantages: how much better was a completion than its siblings? One small pure function a definition.

All take rewards (P, G), nan = could not be scored, and return (P, G): 0 where unscored, and 0 for a group with fewer than two
scored rollouts. One winner in a group of 8 gets 2.474, 0.875 or 1.0 by the three definitions.
"""

from __future__ import annotations

import torch
from torch import Tensor

EPS = 1e-4  # keeps a nearly tied group finite; TRL's value
TIE_TOLERANCE = 1e-8  # the verdict's tolerance: rewards closer than this are equal


def group_std(rewards: Tensor) -> Tensor:
    """In the siblings' own standard deviations.

        A = (r - mean_G(r)) / (std_G(r) + 1e-4)      sample std (ddof 1); GRPO, arXiv:2402.03300 eq. 3
    """
    centred = group_mean(rewards)
    num_scored = (~rewards.isnan()).sum(1, keepdim=True)  # (P, 1)
    std = (centred.square().sum(1, keepdim=True) / (num_scored - 1).clamp(min=1)).sqrt()
    return centred / (std + EPS)


def group_mean(rewards: Tensor) -> Tensor:
    """In the reward's own unit.

        A = r - mean_G(r)      Dr. GRPO, arXiv:2503.20783
    """
    centred = torch.nan_to_num(rewards - rewards.nanmean(1, keepdim=True))
    # Rewards of a tied group differ from their mean by rounding only; divided by its tiny std that would look like a lesson.
    lowest = torch.where(rewards.isnan(), torch.inf, rewards).amin(1, keepdim=True)
    highest = torch.where(rewards.isnan(), -torch.inf, rewards).amax(1, keepdim=True)
    return torch.where(highest - lowest <= TIE_TOLERANCE, 0.0, centred)


def leave_one_out(rewards: Tensor) -> Tensor:
    """Against the mean of the other siblings.

        A = r - mean_{G minus this one}(r) = n/(n-1) · (r - mean_G(r))      RLOO, arXiv:2402.14740
    """
    num_scored = (~rewards.isnan()).sum(1, keepdim=True)  # (P, 1)
    return group_mean(rewards) * num_scored / (num_scored - 1).clamp(min=1)


ADVANTAGES = {"group_std": group_std, "group_mean": group_mean, "leave_one_out": leave_one_out}
