"""Caches that are kept from turn to turn: the own keys and values of rows that go on later.

Rows of one turn share their columns. A row that ended early has written nothing of use in its last
columns, so for the next turn its columns are moved: those of all rows then end together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Caches = list[tuple[Tensor, Tensor]]  # a layer's keys and values, (rows, K, columns, d)


@dataclass(frozen=True, slots=True)
class Part:
    """Caches of some rows of a decode batch, by their numbers in it."""

    rows: list[int]
    caches: Caches


@dataclass(frozen=True, slots=True)
class Move:
    """Which columns of each row go where. All lists are in the order of `rows`.

    rows: numbers in the decode batch. first: a row's first column in use; used: columns in use.
    new: tokens that are read next. width: columns after that, the last of every row among them.
    """

    rows: Sequence[int]
    first: Sequence[int]
    used: Sequence[int]
    new: Sequence[int]

    @property
    def width(self) -> int:
        return max(self.totals)

    @property
    def totals(self) -> list[int]:
        return [u + n for u, n in zip(self.used, self.new, strict=True)]

    def apply(self, parts: Sequence[Part], room: int) -> Caches:
        """The caches of the rows, in their order, with room for so many more columns."""
        where = {row: (part, i) for part in parts for i, row in enumerate(part.rows)}
        found = [where[row] for row in self.rows]
        by_part = [
            (part, [k for k, (p, _) in enumerate(found) if p is part])
            for part in parts
            if any(p is part for p, _ in found)
        ]
        moves = [
            (part, to, self._columns(part, [found[k][1] for k in to], to)) for part, to in by_part
        ]
        num_layers = len(parts[0].caches)
        return [
            (self._moved(moves, layer, 0, room), self._moved(moves, layer, 1, room))
            for layer in range(num_layers)
        ]

    def _columns(self, part: Part, sources: Sequence[int], to: Sequence[int]) -> Tensor:
        """Of a part's columns as one list, those of the moved rows; hidden ones are any."""
        keys = part.caches[0][0]
        _, kv_heads, num_columns, _ = keys.shape
        device, width = keys.device, self.width
        offset = torch.tensor([self.first[k] - (width - self.totals[k]) for k in to], device=device)
        columns = torch.arange(width, device=device) + offset[:, None]  # (m, width)
        columns = columns.clamp(0, num_columns - 1)[:, None]
        heads = torch.tensor(sources, device=device)[:, None] * kv_heads + torch.arange(
            kv_heads, device=device
        )
        return (heads[:, :, None] * num_columns + columns).flatten()  # (m·K·width,)

    def _moved(
        self, moves: Sequence[tuple[Part, list[int], Tensor]], layer: int, which: int, room: int
    ) -> Tensor:
        example = moves[0][0].caches[layer][which]
        _, kv_heads, _, size = example.shape
        out = example.new_empty(len(self.rows), kv_heads, self.width + room, size)
        for part, to, columns in moves:
            cache = part.caches[layer][which]
            moved = cache.reshape(-1, size).index_select(0, columns)
            rows = torch.tensor(to, device=out.device)
            out[rows, :, : self.width] = moved.view(len(to), kv_heads, self.width, size)
        return out


def parked(caches: Caches, rows: Sequence[int], dropped: Tensor, written: int) -> Part:
    """The written columns of rows that leave the decode batch. dropped: their places in it."""
    return Part(
        list(rows),
        [
            (k.index_select(0, dropped)[:, :, :written], v.index_select(0, dropped)[:, :, :written])
            for k, v in caches
        ],
    )
