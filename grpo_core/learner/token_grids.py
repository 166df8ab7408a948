"""Two padded grids for the attention of the flat layout: prompts, and completions per prompt.

P prompts of at most L tokens and G completions each of at most T. Attention has K key heads, R
query heads for each of them, and head width d. In a grid, a head's tokens are neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class TokenGrids:
    """Where the tokens of a flat layout, prompts first, belong in the two grids."""

    prompt_lengths: Sequence[int]  # P
    lengths: Sequence[int]  # B
    sizes: Sequence[int]  # P: completions of each prompt
    device: torch.device

    @cached_property
    def prompts(self) -> Grid:
        rows = list(enumerate(self.prompt_lengths))
        return Grid(rows, (len(self.prompt_lengths), 1), self.device)

    @cached_property
    def completions(self) -> Grid:
        size = max(self.sizes)
        indices = [p * size + g for p, n in enumerate(self.sizes) for g in range(n)]
        rows = list(zip(indices, self.lengths, strict=True))
        return Grid(rows, (len(self.sizes), size), self.device)

    @property
    def num_prompt_tokens(self) -> int:
        return sum(self.prompt_lengths)

    @property
    def num_tokens(self) -> int:
        return self.num_prompt_tokens + sum(self.lengths)

    def prompt_padding_mask(self, k: Tensor) -> Tensor | None:
        """(P·K, 1, 1, L) additive: -∞ on padding; None without padding. k (P·K, …)."""
        real = self.prompts.real
        if real is None:
            return None
        mask = torch.zeros(real.shape, dtype=k.dtype, device=k.device)
        mask.masked_fill_(~real, float("-inf"))
        return mask.repeat_interleave(len(k) // len(real), 0)[:, None, None]

    def flatten(self, kv_heads: int, prompts: Tensor, completions: Tensor) -> Tensor:
        """Both grids to one sequence: (P·K, 1, L, n) and (P·K, G, T, n) -> (N·K, n)."""
        cut, size = self.num_prompt_tokens * kv_heads, completions.shape[-1]
        out = completions.new_empty(self.num_tokens * kv_heads, size)
        self.prompts.from_grid(prompts, kv_heads, out[:cut])
        self.completions.from_grid(completions, kv_heads, out[cut:])
        return out


class Grid:
    """P x S rows of `width` tokens, as many as the longest row has."""

    def __init__(
        self, rows: Sequence[tuple[int, int]], shape: tuple[int, int], device: torch.device
    ):
        """rows: grid index and length of each row, in the flat layout's order. shape: P, S."""
        self.num_prompts, self.size = shape
        self.width = max(n for _, n in rows)
        slots = chain.from_iterable(range(r * self.width, r * self.width + n) for r, n in rows)
        self.slots = torch.tensor([*slots], device=device)  # (N,)
        self.is_full = len(self.slots) == self.num_prompts * self.size * self.width
        self._indices: dict[int, tuple[Tensor, Tensor, Tensor | None]] = {}

    @cached_property
    def real(self) -> Tensor | None:
        """(P·S, width) bool: tokens, not padding; None without padding."""
        if self.is_full:
            return None
        num_places = self.num_prompts * self.size * self.width
        real = torch.zeros(num_places, dtype=torch.bool, device=self.slots.device)
        real[self.slots] = True
        return real.view(-1, self.width)

    def indices(self, kv_heads: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Indices between the (N·K) flat rows and the (P·K·S·width) grid rows.

        Returns the grid row of each flat row, the flat row of each grid row, and what is real,
        (P·K·S·width, 1), or None without padding.
        """
        if kv_heads not in self._indices:
            device = self.slots.device
            across = self.size * self.width
            prompt, rest = self.slots // across, self.slots % across
            head = prompt[:, None] * kv_heads + torch.arange(kv_heads, device=device)
            to_grid = (head * across + rest[:, None]).flatten()
            # Padding copies the first row: finite, and masked in attention.
            from_grid = to_grid.new_zeros(self.num_prompts * kv_heads * across)
            from_grid[to_grid] = torch.arange(len(to_grid), device=device)
            real = None
            if not self.is_full:
                real = torch.zeros(len(from_grid), 1, device=device)
                real.index_fill_(0, to_grid, 1.0)
            self._indices[kv_heads] = to_grid, from_grid, real
        return self._indices[kv_heads]

    def to_grid(self, rows: Tensor, kv_heads: int, *, zero_padding: bool = False) -> Tensor:
        """(N·K, R·d) -> (P·K, S, width, R·d)"""
        _, index, real = self.indices(kv_heads)
        out = rows.index_select(0, index)
        if zero_padding and real is not None:
            out.mul_(real)
        return out.view(-1, self.size, self.width, rows.shape[-1])

    def from_grid(self, grid: Tensor, kv_heads: int, out: Tensor) -> None:
        """(P·K, S, width, R·d) -> out (N·K, R·d)"""
        torch.index_select(grid.reshape(-1, out.shape[-1]), 0, self.indices(kv_heads)[0], out=out)
