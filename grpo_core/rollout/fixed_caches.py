"""Fused decoding with fixed shapes, for steps that are recorded; shapes as in fused.py."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from grpo_core.rollout.fused import GrowingCaches, additive


class FixedCaches(GrowingCaches):
    """The same with fixed shapes, so that a step can be recorded (steps.py).

    A token attends to its row's whole cache; what is not written yet is masked. The place of the
    next token is a tensor on the device, because a recorded step repeats the Python numbers that it
    read while it was recorded.
    """

    moves_at = 0.5  # recording anew costs several tokens' work
    is_fixed = True
    states: Tensor  # (b, H) of the last step, before the output layer

    def read(
        self, prompts: Sequence[Sequence[int]], group_size: int, max_new_tokens: int
    ) -> Tensor:
        logits = super().read(prompts, group_size, max_new_tokens)
        self._settle()
        return logits

    def go_on(
        self,
        rows: Sequence[int],
        used: Sequence[int],
        new: Sequence[Sequence[int]],
        max_new_tokens: int,
    ) -> Tensor:
        logits = super().go_on(rows, used, new, max_new_tokens)
        self._settle()
        return logits

    def keep(self, rows: Tensor) -> None:
        self._written = int(self._at)
        super().keep(rows)
        self._settle()

    def changing(self) -> list[Tensor]:
        """The counters that a step advances. If they are reset, the step can be made again.

        It then writes its keys and values to the same places of the caches as before.
        """
        return [self._place, self._at]

    def _settle(self) -> None:
        """After a change of shapes: fill the unwritten cache with masked zeros."""
        keys = self._own[0][0]
        for cache in (t for pair in self._own for t in pair):
            cache[:, :, self._written :] = 0
        # Where the next token is written.
        self._at = torch.tensor([self._written], device=keys.device)
        written = torch.arange(keys.shape[2], device=keys.device) < self._written
        self._unwritten = additive(written, keys.dtype)  # (t,)

    def _final(self, states: Tensor) -> Tensor:
        self.states = states
        return super()._final(states)

    def _advance(self) -> None:
        self._place += 1
        self._at += 1

    def _remembered(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = self._own[layer]
        keys.index_copy_(2, self._at, k[:, :, None])
        values.index_copy_(2, self._at, v[:, :, None])
        if layer == 0:
            self._unwritten.index_fill_(0, self._at, 0.0)
        return keys, values

    def _of_written(self, scores: Tensor) -> Tensor:
        return scores.add_(self._unwritten)
