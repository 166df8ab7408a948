"""Decoding by the model's own forward and cache, for the models that FusedDecoder does not know.

Shapes: P prompts, b rows still decoded, L tokens of the longest prompt, W = L + T with T tokens of
a completion at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from grpo_core.errors import FieldProblem, InvalidConfig
from grpo_core.models import Policy
from grpo_core.models.attention_spans import (
    Places,
    layer_masks,
    longest_independent_row,
    new_angles_after,
)
from grpo_core.models.decoder import REFUSALS, forward, positions
from grpo_core.models.device import is_out_of_memory
from grpo_core.models.once import say_once
from grpo_core.rollout.decode_batches import can_pad
from grpo_core.rollout.fused import additive, below, padded

# Two ways to compute the same logits differ by rounding, in half precision by a hundredth of their
# size. Wrong masks or positions change them by about the size itself.
TOLERANCE = 0.05


class OwnForward:
    """Read a prompt once, then expand its cache to the group."""

    moves_at = 0.75  # moving the cache costs about one token's work
    is_fixed = False
    can_join = False  # as in GrowingCaches
    _cache: Any

    def __init__(self, policy: Policy):
        self._policy = policy

    def read(
        self, prompts: Sequence[Sequence[int]], group_size: int, max_new_tokens: int
    ) -> Tensor:
        logits = self._read(prompts)
        self.keep(_siblings(len(logits), group_size, logits.device))
        return logits.repeat_interleave(group_size, 0)

    def _read(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Logits (P, V) of each prompt's first token; the cache has one row a prompt."""
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
        self._pads = bool((mask == 0).any())
        self._new_angles_after = new_angles_after(self._policy.model)
        self._ids = ids  # (b, t), kept up to date where the cache is made anew
        self._mask = mask
        self._place = mask.sum(1, keepdim=True)  # (b, 1): position of the next token
        # A row that is full is decoded until others are: its places must not leave the table.
        self._last_place = (self._policy.context or 2**31) - 1
        return out.logits[:, -1]

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
        self._place = (self._place + 1).clamp(max=self._last_place)
        return out.logits[:, -1]

    def keep(self, rows: Tensor) -> None:
        # Made for beam search; the caches of all kinds of layers have it.
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


class FixedOwnForward(OwnForward):
    """The same with fixed shapes, so that a step can be recorded (steps.py).

    The cache has all W places from the start, also in layers with a sliding window: masks hide what
    a layer does not see. `is_fixed` says after `read` whether the model computes the same so;
    otherwise its steps are those of OwnForward.
    """

    states: Tensor  # (b, V) logits of the last step

    def __init__(self, policy: Policy, why_own: str):
        """why_own: why the model's own code decodes, said once where its steps are not fixed."""
        super().__init__(policy)
        self._why_own = why_own

    def read(
        self, prompts: Sequence[Sequence[int]], group_size: int, max_new_tokens: int
    ) -> Tensor:
        logits = self._read(prompts)
        self._group_size, self._width = group_size, self._ids.shape[1] + max_new_tokens
        rows = _siblings(len(logits), group_size, logits.device)
        self.is_fixed = self._computes_the_same()
        if self.is_fixed:
            self.moves_at = 0.5  # recording anew costs several tokens' work
            self.can_join = can_pad(self._policy)
            self._fix(rows)
        else:
            say_once(
                self._policy.model,
                f"Sampling uses the model's own code, which is slower on a GPU: {self._why_own}.",
            )
            super().keep(rows)
        return logits.repeat_interleave(group_size, 0)

    def step(self, tokens: Tensor) -> Tensor:
        return self._fixed_step(tokens) if self.is_fixed else super().step(tokens)

    def keep(self, rows: Tensor) -> None:
        super().keep(rows)
        if self.is_fixed:
            self._readable, self._key_places = self._readable[rows], self._key_places[rows]
            self._set_at(self._at[rows])

    def join(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> Tensor:
        new, size = FixedOwnForward(self._policy, self._why_own), self._group_size
        logits = new._read(prompts).repeat_interleave(size, 0)
        new._width = new._ids.shape[1] + max_new_tokens
        new._fix(_siblings(len(prompts), size, logits.device))
        caches = [
            (below(mine.keys, more.keys, 2), below(mine.values, more.values, 2))
            for mine, more in zip(self._cache.layers, new._cache.layers, strict=True)
        ]
        # Nothing below takes much memory.
        for layer, (keys, values) in zip(self._cache.layers, caches, strict=True):
            layer.keys, layer.values = keys, values
        self._ids = below(self._ids, new._ids, 1, left=True)
        self._mask = below(self._mask, new._mask, 1, left=True)
        self._place = torch.cat([self._place, new._place])
        self._set_at(torch.cat([self._at, new._at]))
        self._width = max(self._width, new._width)
        self._columns = torch.arange(self._width, device=logits.device)
        first = torch.cat([self._key_places[:, :1], new._key_places[:, :1]])
        self._key_places = first + self._columns
        self._readable = self._key_places >= 0
        return logits

    def _set_at(self, at: Tensor) -> None:
        self._at = at
        for layer in self._cache.layers:
            layer.at = at

    def changing(self) -> list[Tensor]:
        """The counters that a step advances, as in FixedCaches."""
        return [self._place, self._at]

    def _computes_the_same(self) -> bool:
        """Whether a step of fixed shapes has the model's own logits. Leaves the cache as it was."""
        own = self._cache
        layers = getattr(own, "layers", [])
        # Angles that depend on the longest text are chosen by reading it from the device.
        if longest_independent_row(self._policy.model) is not None or not layers:
            return False
        if any(type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers):
            return False
        before = [vars(layer).copy() for layer in layers]
        ids, mask, place = self._ids, self._mask, self._place
        tokens = ids[:, -1]
        expected = super().step(tokens)
        for layer, values in zip(layers, before, strict=True):
            vars(layer).update(values)
        self._ids, self._mask, self._place = ids, mask, place
        try:
            self._fix(torch.arange(len(ids), device=ids.device))
            found = self._fixed_step(tokens)
        except REFUSALS as error:
            if is_out_of_memory(error):
                raise
            return False
        finally:
            self._cache, self._ids, self._mask, self._place = own, ids, mask, place
        size = expected.double().norm()
        return bool((found.double() - expected.double()).norm() <= TOLERANCE * size)

    def _fix(self, rows: Tensor) -> None:
        """Give these rows, each an index of a prompt, a cache of fixed shape."""
        read, device = self._ids.shape[1], rows.device
        # Where a row's next token is written, on the device: a recorded step repeats the Python
        # numbers that it read while it was recorded.
        at = torch.full_like(rows, read)
        layers = [_FixedLayer(layer, rows, read, self._width) for layer in self._cache.layers]
        self._cache = Cache(layers=[*layers])
        self._set_at(at)
        self._ids, self._mask, self._place = self._ids[rows], self._mask[rows], self._place[rows]
        self._columns = torch.arange(self._width, device=device)
        self._key_places = self._columns - (read - self._place)  # (b, W), < 0 on padding
        self._readable = self._key_places >= 0

    def _fixed_step(self, tokens: Tensor) -> Tensor:
        model = self._policy.model
        sees = self._readable & (self._columns <= self._at[:, None])
        mask = additive(sees, model.dtype)[:, None, None]  # (b, 1, 1, W)
        places = Places(self._place, self._key_places, self._width)
        out = forward(
            model,
            input_ids=tokens[:, None],
            attention_mask=layer_masks(model, mask, places),
            position_ids=self._place,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits = out.logits[:, -1]
        self.states = logits.clone()  # drawing changes the logits in place
        self._place.add_(1).clamp_(max=self._last_place)
        self._at.add_(1).clamp_(max=self._width - 1)
        return logits


class _FixedLayer(DynamicLayer):
    """Keys and values of one layer with all W places, of which `read` are written."""

    at: Tensor  # (b,) where each row's next token is written

    def __init__(self, layer: Any, rows: Tensor, read: int, width: int):
        super().__init__()
        self.keys, self.values = (
            _widened(t, rows, read, width) for t in (layer.keys, layer.values)
        )
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        assert self.keys is not None
        assert self.values is not None
        places = self.at[:, None, None, None].expand_as(key_states)
        self.keys.scatter_(2, places, key_states)
        self.values.scatter_(2, places, value_states)
        return self.keys, self.values


def _widened(cache: Tensor, rows: Tensor, stop: int, width: int) -> Tensor:
    """(P, K, n, d) -> (b, K, W, d). The n tokens, the last ones of a window, end before `stop`."""
    _, kv_heads, num_tokens, head_dim = cache.shape
    out = cache.new_zeros(len(rows), kv_heads, width, head_dim)
    out[:, :, stop - num_tokens : stop] = cache[rows]
    return out


def _siblings(num_prompts: int, group_size: int, device: torch.device) -> Tensor:
    """The prompt of each row, (P·G,)."""
    return torch.arange(num_prompts, device=device).repeat_interleave(group_size)
