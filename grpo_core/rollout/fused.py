"""Fused decoding: the steps of a decoder that FusedDecoder knows.

Shapes: b rows still decoded, L prompt tokens, T tokens of a completion at most, K key-value heads,
R = heads/K, d head width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from grpo_core.models import Policy
from grpo_core.models.decoder import (
    Attend,
    FusedDecoder,
    masked_attention,
    positions,
    rms_norm,
    rotate,
    swiglu,
)
from grpo_core.models.fused_layers import FusedLayer, fuse_layer
from grpo_core.models.products import one_core_below, prepared_linear
from grpo_core.rollout.kept_caches import Caches, Move, Part, parked

# Tokens up to which copying a prompt to each of its rows costs less than keeping it apart.
SHORT = 64
# An element of a row's cache takes as long as so many multiplications of a product: 2 MB are read
# in 70 µs, in which 8 million multiplications are done.
KEY_COST = 16


def padded(policy: Policy, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Ids and mask, (P, L), padded on the left."""
    longest = max(map(len, prompts))
    ids = torch.tensor(
        [[policy.pad_id] * (longest - len(p)) + list(p) for p in prompts], device=policy.device
    )
    return ids, torch.tensor(
        [[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=policy.device
    )


class GrowingCaches:
    """Fused. All rows of a long prompt share one cache of it; each row caches its own tokens only.

    With long prompts, reading a cache of their own G times is most of the memory traffic of a step.
    The cache of a short prompt is copied to every row: then attention is one product, and for a
    small model the number of operations decides.
    """

    moves_at = 0.75
    is_fixed = False
    # On a CPU it is slower, as measured: who begins late reads as many columns as the longest row.
    can_join = False
    keeps_ended = False  # rows that leave keep their caches, for `go_on`
    _shares: bool | None = None  # None: the length of the prompts decides
    _place: Tensor  # (b,) position of the next token

    def __init__(self, policy: Policy, family: FusedDecoder):
        self._policy, self._family = policy, family
        head = policy.model.get_output_embeddings()
        assert head is not None  # FusedDecoder.of checks it
        self._head = head
        self._to_logits: Callable[[Tensor], Tensor] = self._head

    def read(
        self, prompts: Sequence[Sequence[int]], group_size: int, max_new_tokens: int
    ) -> Tensor:
        states = self._read(prompts, group_size, max_new_tokens)
        num_rows = len(self._alive)
        self._layers = [fuse_layer(layer, num_rows) for layer in self._family.body.layers]
        # A full row is decoded until the others are: its places go on, though nobody reads them.
        self._set_angles(states, self._width + max_new_tokens * (2 if self.keeps_ended else 1))
        if type(self._head) is torch.nn.Linear:
            self._to_logits = prepared_linear(self._head.weight, self._head.bias, num_rows)
        return self._to_logits(states).repeat_interleave(group_size, 0)

    def _set_angles(self, states: Tensor, num_places: int) -> None:
        where = torch.arange(num_places, device=states.device)[None]
        self._angles = torch.stack(self._family.body.rotary_emb(states[:, None], where))[
            :, 0, :, : self._family.head_dim // 2
        ]  # (2, places, d/2)

    def _read(
        self, prompts: Sequence[Sequence[int]], group_size: int, max_new_tokens: int
    ) -> Tensor:
        """Fill the caches. Returns the states of the prompts' last tokens, (P, H)."""
        ids, mask = padded(self._policy, prompts)
        num_prompts, width = ids.shape
        num_rows, dtype, device = len(prompts) * group_size, self._head.weight.dtype, ids.device
        causal = torch.ones(width, width, dtype=torch.bool, device=device).tril()
        sees = causal & mask[:, None, :].bool()  # (P, L, L)
        # Padding attends to itself: a row of nothing but -inf is nan.
        sees |= torch.eye(width, dtype=torch.bool, device=device)
        attend = masked_attention(additive(sees, dtype)[:, None])
        shares = width > SHORT and group_size > 1 if self._shares is None else self._shares
        self._written = 0 if shares else width  # of each row's own cache
        # Of each layer: shared keys (P·K, d, L) and values (P·K, L, d) of the prompts.
        self._prompt: list[tuple[Tensor, Tensor]] = []
        self._own: Caches = []
        self._left: list[Part] = []  # of rows that left

        def keeping(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            kv_heads, head_dim = k.shape[2:]
            own = [
                t.new_empty(num_rows, kv_heads, self._written + max_new_tokens, head_dim)
                for t in (k, v)
            ]
            if shares:
                self._prompt.append(
                    (
                        k.permute(0, 2, 3, 1).reshape(-1, head_dim, width),
                        v.transpose(1, 2).reshape(-1, width, head_dim),
                    )
                )
            else:
                for cache, t in zip(own, (k, v), strict=True):
                    cache.view(num_prompts, group_size, *cache.shape[1:])[:, :, :, :width] = (
                        t.transpose(1, 2)[:, None]
                    )
            self._own.append((own[0], own[1]))
            return attend(layer, q, k, v)

        last = self._family.states(ids, positions(mask), keeping)[:, -1]
        self._num_prompts, self._group_size, self._shares = num_prompts, group_size, shares
        self._width = width  # L
        self._prompt_lengths = mask.sum(1).repeat_interleave(group_size)  # (B,)
        # The first columns of a row's own cache that it does not use.
        self._first = [0] * num_rows
        # (B, L), (b, L) and (b, …): mask the padding of a row's prompt; None: no padding.
        self._all_prompt_hidden = self._prompt_hidden = self._own_hidden = None
        if bool((mask == 0).any()):
            hidden = additive(mask.bool(), dtype).repeat_interleave(group_size, 0)
            if shares:
                self._all_prompt_hidden = self._prompt_hidden = hidden
            else:
                self._own_hidden = hidden
                self._first = (width - self._prompt_lengths).tolist()
        self._alive = torch.arange(num_rows, device=ids.device)
        self._place = self._prompt_lengths.clone()
        return last

    def go_on(
        self,
        rows: Sequence[int],
        used: Sequence[int],
        new: Sequence[Sequence[int]],
        max_new_tokens: int,
    ) -> Tensor:
        """Read more tokens of these rows, of all that were read first; the others end.

        used: own tokens of each row in the caches. Returns logits (b, V) of the next tokens.
        """
        device, dtype = self._place.device, self._head.weight.dtype
        index, size = torch.tensor(rows, device=device), self._group_size
        prompts = self._prompt_lengths[index]  # (b,)
        own = [u if self._shares else u + n for u, n in zip(used, prompts.tolist(), strict=True)]
        move = Move(rows, [self._first[i] for i in rows], own, [*map(len, new)])
        caches = move.apply([*self._left, Part(self._alive.tolist(), self._own)], max_new_tokens)
        ids, mask = padded(self._policy, new)  # (b, N)
        width, count = move.width, ids.shape[1]
        start = width - torch.tensor(move.totals, device=device)  # (b,) a row's first column in use
        columns = torch.arange(width, device=device)
        at = columns[width - count :]
        sees = (columns >= start[:, None, None]) & (columns <= at[:, None])  # (b, N, width)
        sees |= columns == at[:, None]  # padding attends to itself
        to_own = additive(sees, dtype)
        if self._shares:
            to_prompt = to_own.new_zeros(len(rows), 1, self._prompt[0][1].shape[1])
            if self._all_prompt_hidden is not None:
                self._prompt_hidden = self._all_prompt_hidden[index]
                to_prompt += self._prompt_hidden[:, None]
            to_own = torch.cat([to_prompt.expand(-1, count, -1), to_own], 2)
        attend = masked_attention(to_own[:, None])
        is_new = mask.bool()[:, None, :, None]
        group = index // size

        def after(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            read = []
            for which, t in enumerate((k, v)):
                cache = caches[layer][which]
                place = cache[:, :, width - count : width]
                place.copy_(torch.where(is_new, t.transpose(1, 2), place))
                read.append(cache[:, :, :width].transpose(1, 2))  # (b, width, K, d)
            if self._shares:
                keys, values = self._prompt[layer]
                heads = k.shape[2]
                shared = (keys.mT.unflatten(0, (-1, heads)), values.unflatten(0, (-1, heads)))
                read = [
                    torch.cat([p[group].transpose(1, 2), t], 1)
                    for p, t in zip(shared, read, strict=True)
                ]
            return attend(layer, q, *read)

        before = prompts + torch.tensor(used, device=device)
        places = (before[:, None] + positions(mask)).long()
        last = self._family.states(ids, places, after)[:, -1]  # (b, H)
        self._own, self._left, self._alive, self._written = caches, [], index, width
        for i, first in zip(rows, start.tolist(), strict=True):
            self._first[i] = first
        self._own_hidden = additive(columns >= start[:, None], dtype) if start.any() else None
        self._place = before + mask.sum(1)
        return self._to_logits(last)

    def step(self, tokens: Tensor) -> Tensor:
        x = self._family.body.embed_tokens(tokens)  # (b, H)
        cos, sin = self._angles[:, self._place, None].unbind(0)  # (b, 1, d/2)
        # Not kept on self: a reference cycle would keep the caches until it is collected.
        attend = self._with_prompt if self._shares else self._alone
        with one_core_below(len(x) * self._largest_product()):
            for i, layer in enumerate(self._layers):
                x = self._layer(i, layer, x, (cos, sin), attend)
        self._advance()
        states = rms_norm(x, self._family.body.norm.weight, self._family.eps)
        with one_core_below(len(x) * self._head.weight.numel()):
            return self._final(states)

    def _layer(
        self, i: int, layer: FusedLayer, x: Tensor, rotation: tuple[Tensor, Tensor], attend: Attend
    ) -> Tensor:
        """One layer: x (b, H) -> (b, H)."""
        eps = self._family.eps
        h = rms_norm(x, layer.input_norm, eps)
        qkv = layer.qkv(h).view(len(x), -1, self._family.head_dim)  # (b, heads + 2K, d)
        turning, v = qkv[:, : -layer.kv_heads], qkv[:, -layer.kv_heads :]
        if layer.qk_norm is not None:
            turning = rms_norm(turning, layer.qk_norm, eps)
        turning = rotate(turning, *rotation)
        attended = attend(i, turning[:, : -layer.kv_heads], turning[:, -layer.kv_heads :], v)
        x = layer.output(attended).add_(x)
        gate, up = layer.gate_up(rms_norm(x, layer.post_norm, eps)).chunk(2, -1)
        return layer.down(swiglu(gate, up)).add_(x)

    def _largest_product(self) -> int:
        """Multiplications a row of a layer's largest operation.

        A key takes longer than a weight: attention reads it for one row only.
        """
        mlp = self._family.body.layers[0].mlp
        keys = self._own[0][0][0]  # (K, T, d)
        read = len(keys) * keys.shape[-1] * (self._written + 1)
        return max(2 * mlp.up_proj.in_features * mlp.up_proj.out_features, KEY_COST * read)

    def _final(self, states: Tensor) -> Tensor:
        """(b, H) -> logits (b, V)"""
        return self._to_logits(states)

    def _advance(self) -> None:
        self._place += 1
        self._written += 1

    def keep(self, rows: Tensor) -> None:
        if self.keeps_ended:
            stays = torch.zeros(len(self._alive), dtype=torch.bool, device=rows.device)
            stays[rows] = True
            leaves = (~stays).nonzero().flatten()
            self._left.append(
                parked(self._own, self._alive[leaves].tolist(), leaves, self._written)
            )
        self._alive, self._place = self._alive[rows], self._place[rows]
        self._own = [(self._kept(k, rows), self._kept(v, rows)) for k, v in self._own]
        if self._prompt_hidden is not None:
            self._prompt_hidden = self._prompt_hidden[rows]
        if self._own_hidden is not None:
            self._own_hidden = self._own_hidden[rows]

    def _kept(self, cache: Tensor, rows: Tensor) -> Tensor:
        kept = cache.new_empty(len(rows), *cache.shape[1:])
        kept[:, :, : self._written] = cache[:, :, : self._written].index_select(0, rows)
        return kept

    def _remembered(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """All of a row's own keys and values, (b, K, t, d), these (b, K, d) included."""
        keys, values = self._own[layer]
        keys[:, :, self._written], values[:, :, self._written] = k, v
        return keys[:, :, : self._written + 1], values[:, :, : self._written + 1]

    def _alone(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (b, heads, d) -> (b, heads·d); every row has the prompt among its own."""
        keys, values = self._remembered(layer, k, v)
        kv_heads, head_dim = k.shape[1:]
        scores = torch.bmm(
            (q * head_dim**-0.5).view(len(q) * kv_heads, -1, head_dim), keys.flatten(0, 1).mT
        )  # (b·K, R, t)
        if (hidden := self._own_hidden) is not None:
            scores.view(len(q), -1, scores.shape[-1])[..., : hidden.shape[1]] += hidden[:, None]
        return torch.bmm(scores.softmax(-1), values.flatten(0, 1)).view(len(q), -1)

    def _with_prompt(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (b, heads, d) -> (b, heads·d): one softmax over prompt and own tokens."""
        keys, values = self._remembered(layer, k, v)
        prompt_keys, prompt_values = self._prompt[layer]
        kv_heads, head_dim = k.shape[1:]
        q = (q * head_dim**-0.5).view(len(q), kv_heads, -1, head_dim)
        to_prompt = self._rows(torch.bmm(self._grid(q), prompt_keys), kv_heads)
        if self._prompt_hidden is not None:
            to_prompt = to_prompt + self._prompt_hidden[:, None, None]
        to_own = q @ keys.transpose(2, 3)
        if (hidden := self._own_hidden) is not None:
            to_own[..., : hidden.shape[1]] += hidden[:, None, None]
        weights = torch.cat([to_prompt, to_own], -1).softmax(-1)
        on_prompt, on_own = weights.split([to_prompt.shape[-1], keys.shape[2]], -1)
        return (
            self._rows(torch.bmm(self._grid(on_prompt), prompt_values), kv_heads)
            .add_(on_own @ values)
            .reshape(len(q), -1)
        )

    def _grid(self, rows: Tensor) -> Tensor:
        """(b, K, R, n) -> (P·K, G·R, n): the rows of a prompt side by side, ended rows empty."""
        groups, size = self._num_prompts, self._group_size
        if len(rows) < groups * size:
            rows = rows.new_zeros(groups * size, *rows.shape[1:]).index_copy_(0, self._alive, rows)
        return (
            rows.view(groups, size, *rows.shape[1:])
            .transpose(1, 2)
            .reshape(groups * rows.shape[1], -1, rows.shape[-1])
        )

    def _rows(self, grid: Tensor, kv_heads: int) -> Tensor:
        """The inverse."""
        size = self._group_size
        rows = (
            grid.view(-1, kv_heads, size, grid.shape[1] // size, grid.shape[2])
            .transpose(1, 2)
            .reshape(-1, kv_heads, grid.shape[1] // size, grid.shape[2])
        )
        return rows if len(rows) == len(self._alive) else rows[self._alive]


def additive(sees: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where True, the lowest number where False."""
    return torch.zeros(sees.shape, dtype=dtype, device=sees.device).masked_fill(
        ~sees, torch.finfo(dtype).min
    )


def below(rows: Tensor, more: Tensor, dim: int, fill: float = 0.0, *, left: bool = False) -> Tensor:
    """Two tensors below each other; the shorter is filled up along `dim`, on the right or left."""
    width = max(rows.shape[dim], more.shape[dim])
    outside = [0, 0] * (rows.ndim - 1 - dim)

    def filled(t: Tensor) -> Tensor:
        missing = width - t.shape[dim]
        inside = [missing, 0] if left else [0, missing]
        return torch.nn.functional.pad(t, [*outside, *inside], value=fill) if missing else t

    return torch.cat([filled(rows), filled(more)])
