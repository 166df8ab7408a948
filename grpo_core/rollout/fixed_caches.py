"""Fused decoding with fixed shapes, for steps that are recorded; shapes as in fused.py."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from grpo_core.rollout.fused import GrowingCaches, additive, below


class FixedCaches(GrowingCaches):
    """The same with fixed shapes, so that a step can be recorded (steps.py).

    A token attends to its row's whole cache; what is not written yet is masked. The places of the
    next tokens are a tensor on the device, because a recorded step repeats the Python numbers that
    it read while it was recorded. Every row has its own, so rows may begin later than others.
    """

    moves_at = 0.5  # recording anew costs several tokens' work
    is_fixed = True
    can_join = True
    _at: Tensor  # (b,) next column of each row's cache
    _own_hidden: Tensor  # (b, t) masks what is not written yet, too
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
        self._written = int(self._at.max())
        super().keep(rows)
        self._at = self._at[rows]
        self._clear()

    def join(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> Tensor:
        size = self._group_size
        new = FixedCaches(self._policy, self._family)
        new._shares = self._shares
        states = new._read(prompts, size, max_new_tokens)
        new._settle()
        logits = self._to_logits(states).repeat_interleave(size, 0)
        lowest = torch.finfo(self._own_hidden.dtype).min
        own = [
            (below(k, more_k, 2), below(v, more_v, 2))
            for (k, v), (more_k, more_v) in zip(self._own, new._own, strict=True)
        ]
        own_hidden = below(self._own_hidden, new._own_hidden, 1, lowest)
        # Prompts whose rows have all ended leave.
        slots = self._alive.tolist()
        groups = sorted({slot // size for slot in slots})
        stay = [groups.index(slot // size) * size + slot % size for slot in slots]

        def needed(cache: Tensor) -> Tensor:
            return cache.unflatten(0, (self._num_prompts, -1))[groups].flatten(0, 1)

        prompt = [
            (below(needed(k), more_k, 2, left=True), below(needed(v), more_v, 1, left=True))
            for (k, v), (more_k, more_v) in zip(self._prompt, new._prompt, strict=True)
        ]
        hidden = self._hidden_prompt(), new._hidden_prompt()
        if new._width + max_new_tokens > self._angles.shape[1]:
            self._set_angles(states, new._width + max_new_tokens)
        # Nothing below takes much memory.
        self._own, self._own_hidden, self._prompt = own, own_hidden, prompt
        if self._shares:
            self._prompt_hidden = below(*hidden, 1, lowest, left=True)
        added = len(groups) * size + new._alive
        self._alive = torch.cat([added.new_tensor(stay), added])
        self._at = torch.cat([self._at, new._at])
        self._place = torch.cat([self._place, new._place])
        self._num_prompts = len(groups) + new._num_prompts
        self._width = max(self._width, new._width)
        return logits

    def _hidden_prompt(self) -> Tensor:
        """(b, L) masks the padding of each row's prompt."""
        if self._prompt_hidden is not None:
            return self._prompt_hidden
        return self._own_hidden.new_zeros(len(self._alive), self._width)

    def changing(self) -> list[Tensor]:
        """The counters that a step advances. If they are reset, the step can be made again.

        It then writes its keys and values to the same places of the caches as before.
        """
        return [self._place, self._at]

    def _settle(self) -> None:
        """After reading: mask what is not written yet."""
        self._clear()
        keys = self._own[0][0]
        self._at = torch.full_like(self._place, self._written)
        written = torch.arange(keys.shape[2], device=keys.device) < self._written
        hidden = additive(written, keys.dtype).repeat(len(keys), 1)
        if self._own_hidden is not None:  # padding
            hidden[:, : self._own_hidden.shape[1]] += self._own_hidden
        self._own_hidden = hidden

    def _clear(self) -> None:
        """Masked numbers must be finite: fill the unwritten cache with zeros."""
        for cache in (t for pair in self._own for t in pair):
            cache[:, :, self._written :] = 0

    def _final(self, states: Tensor) -> Tensor:
        self.states = states
        return super()._final(states)

    def _advance(self) -> None:
        # A full row stays at its last places until it leaves.
        self._place.add_(1).clamp_(max=self._angles.shape[1] - 1)
        self._at.add_(1).clamp_(max=self._own[0][0].shape[2] - 1)

    def _remembered(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = self._own[layer]
        at = self._at[:, None]
        places = at[..., None, None].expand_as(k[:, :, None])
        keys.scatter_(2, places, k[:, :, None])
        values.scatter_(2, places, v[:, :, None])
        if layer == 0:
            self._own_hidden.scatter_(1, at, 0.0)
        return keys, values
