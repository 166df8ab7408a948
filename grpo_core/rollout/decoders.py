"""Two ways to decode: fused, for the architectures it knows, and the model's own forward and cache.

Both read P prompts and then take one token a row and a step; row p·G + g is completion g of
prompt p. Shapes: b rows still decoded, V tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from grpo_core.models import Policy
from grpo_core.models.decoder import FusedDecoder, why_not_fused
from grpo_core.rollout.fixed_caches import FixedCaches
from grpo_core.rollout.fused import GrowingCaches
from grpo_core.rollout.own_forward import FixedOwnForward, OwnForward


class Decoder(Protocol):
    moves_at: float  # compact the caches once at most this share of the rows is left
    is_fixed: bool  # after `read`: whether it is a FixedDecoder
    can_join: bool  # after `read`: whether it is a FixedDecoder that further rows can join

    def read(
        self, prompts: Sequence[Sequence[int]], group_size: int, max_new_tokens: int
    ) -> Tensor:
        """Logits of every row's first token, (P·G, V)."""
        ...

    def step(self, tokens: Tensor) -> Tensor:
        """Logits (b, V) of the next tokens after `tokens` (b,), which were just sampled."""
        ...

    def keep(self, rows: Tensor) -> None:
        """Keep only these of the b rows."""
        ...


class FixedDecoder(Decoder, Protocol):
    """Its steps have fixed shapes, so that they can be recorded (steps.py)."""

    states: Tensor  # of every row, from the last step: what a replay is compared by

    def changing(self) -> list[Tensor]:
        """What a step changes in place, but for the caches. If reset, the step can be repeated."""
        ...

    def join(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> Tensor:
        """`read` further prompts, whose rows follow the b rows. Out of memory changes nothing.

        From then on a row that is full may be decoded further, until it leaves.
        """
        ...


def decoder(policy: Policy, longest: int, fixed: bool) -> Decoder:
    """A decoder for texts of at most `longest` tokens. fixed: its steps should have fixed shapes.

    Where FusedDecoder does not know the model, the model's own code decodes.
    """
    family = FusedDecoder.of(policy.model, longest)
    if family is not None:
        return (FixedCaches if fixed else GrowingCaches)(policy, family)
    if fixed:
        return FixedOwnForward(policy, why_not_fused(policy.model, longest))
    return OwnForward(policy)
