"""The model of Bradley and Terry: how likely one answer is preferred to another, and its loss."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def bradley_terry_loss(
    chosen: Tensor, rejected: Tensor, is_tie: Tensor, margin: Tensor | None = None
) -> Tensor:
    """Minus the log-likelihood of each judged pair, with d = r_chosen - r_rejected:

        decided: -log σ(d - m)          tie: -½ [log σ(d) + log σ(-d)]

    All (B,). Bradley and Terry 1952, as a loss in Ouyang et al. 2022 (arXiv:2203.02155 eq. 1); the
    margin m is that of Llama 2 (arXiv:2307.09288 eq. 2). A tie counts as half a win of each, as in
    Chatbot Arena (arXiv:2403.04132): unlike Rao and Kupper 1967 it needs no further parameter.
    """
    d = chosen - rejected
    decided = -logsigmoid(d if margin is None else d - margin)
    tied = -(logsigmoid(d) + logsigmoid(-d)) / 2
    return torch.where(is_tie, tied, decided)


def centre_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """(r_chosen + r_rejected)² of each pair, (B,): keeps scores near 0, where a sigmoid is steep.

    Differences alone leave the level of the scores open. Eisenstein et al. 2023, arXiv:2312.09244.
    """
    return (chosen + rejected).square()
