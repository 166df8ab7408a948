"""Two ways to decode: fused, for the architectures it knows, and the model's own forward and cache.

Both read P prompts and then take one token a row and a step; row p·G + g is completion g of
prompt p. Shapes: b rows still decoded, L prompt tokens, T tokens of a completion at most,
K key-value heads, R = heads/K, d head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from grpo_core.errors import FieldProblem, InvalidConfig
from grpo_core.models import Policy
from grpo_core.models.attention_spans import new_angles_after
from grpo_core.models.decoder import FusedDecoder, forward, positions, why_not_fused
from grpo_core.models.once import say_once
from grpo_core.rollout.fused import FixedCaches, GrowingCaches, padded


class Decoder(Protocol):
    moves_at: float  # compact the caches once at most this share of the rows is left

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


def decoder(policy: Policy, longest: int, fixed: bool) -> Decoder:
    """A decoder for texts of at most `longest` tokens. fixed: its steps should have fixed shapes.

    Where FusedDecoder does not know the model, the model's own code decodes, and shapes change.
    """
    family = FusedDecoder.of(policy.model, longest)
    if family is not None:
        return (FixedCaches if fixed else GrowingCaches)(policy, family)
    if fixed:
        reason = why_not_fused(policy.model, longest)
        say_once(
            policy.model,
            f"Sampling uses the model's own code, which is slower on a GPU: {reason}.",
        )
    return OwnForward(policy)


class OwnForward:
    """The model's own forward and cache: read a prompt once, then expand its cache to the group."""

    moves_at = 0.75  # moving the cache costs about one token's work

    def __init__(self, policy: Policy):
        self._policy = policy

    def read(
        self, prompts: Sequence[Sequence[int]], group_size: int, max_new_tokens: int
    ) -> Tensor:
        ids, mask = padded(self._policy, prompts)
        out = forward(
            self._policy.model,
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions(mask),
            use_cache=True,
            logits_to_keep=1,
        )
        self._cache = self._cache_of(out)
        # reorder_cache, made for beam search, is what the caches of all kinds of layers have.
        rows = torch.arange(len(ids), device=ids.device).repeat_interleave(group_size)
        self._cache.reorder_cache(rows)
        self._pads = bool((mask == 0).any())
        self._new_angles_after = new_angles_after(self._policy.model)
        self._ids = ids[rows]  # (b, t), kept up to date where the cache is made anew
        self._mask = mask.repeat_interleave(group_size, 0)
        self._place = self._mask.sum(1, keepdim=True)  # (b, 1): position of the next token
        return out.logits[:, -1].repeat_interleave(group_size, 0)

    def step(self, tokens: Tensor) -> Tensor:
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], 1)
        ids, place, cache = tokens[:, None], self._place, self._cache
        if self._new_angles_after is not None:
            self._ids = torch.cat([self._ids, ids], 1)
            if self._ids.shape[1] == self._new_angles_after + 1:
                ids, place, cache = self._ids, positions(self._mask), None
        out = forward(
            self._policy.model,
            input_ids=ids,
            # Some state-space layers multiply the new token by it, so its width would be wrong.
            attention_mask=self._mask if self._pads else None,
            position_ids=place,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self._cache = self._cache_of(out)
        self._place = self._place + 1
        return out.logits[:, -1]

    def keep(self, rows: Tensor) -> None:
        self._cache.reorder_cache(rows)
        self._ids, self._mask, self._place = self._ids[rows], self._mask[rows], self._place[rows]

    def _cache_of(self, out: Any) -> Any:
        """Named `cache` in newer releases of transformers. Raises InvalidConfig without one."""
        cache = getattr(out, "cache", None) or getattr(out, "past_key_values", None)
        if hasattr(cache, "reorder_cache"):
            return cache
        # RWKV, for instance.
        problem = "its architecture keeps no cache that its completions could share"
        name, hint = self._policy.tokenizer.name_or_path, "Choose another model."
        raise InvalidConfig([FieldProblem("model.name", name, problem, hint)])
