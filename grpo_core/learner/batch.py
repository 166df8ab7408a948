"""Token ids of a step's rollouts, and the two ways to lay them out for a forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """B = P·G rollouts; the G siblings of a prompt stand together."""

    prompts: Sequence[Sequence[int]]  # P lists of token ids
    completions: Sequence[Sequence[int]]  # B lists, row p·G + g is completion g of prompt p
    trains: Sequence[bool]  # B: False keeps a row out of the loss
    pad_id: int
    device: torch.device
    sampling_logprobs: Sequence[Sequence[float]] | None = None  # B lists, of each token when it was drawn

    def __len__(self) -> int:
        return len(self.completions)

    @property
    def group_size(self) -> int:
        return len(self.completions) // len(self.prompts)

    def groups(self, start: int, stop: int) -> Batch:
        """The groups [start, stop)."""
        return self.ordered(range(start, stop))

    def ungrouped(self) -> Batch:
        """The same rows, each a group of its own."""
        return replace(self, prompts=[p for p in self.prompts for _ in range(self.group_size)])

    def ordered(self, order: Sequence[int]) -> Batch:
        """These groups, in this order."""
        rows = [p * self.group_size + g for p in order for g in range(self.group_size)]
        return replace(self, prompts=[self.prompts[p] for p in order], completions=[self.completions[i] for i in rows],
                       trains=[self.trains[i] for i in rows],
                       sampling_logprobs=self.sampling_logprobs and [self.sampling_logprobs[i] for i in rows])

    def packed_tokens(self, group: int) -> int:
        """Tokens of a group when its prompt stands only once."""
        size = self.group_size
        return len(self.prompts[group]) + sum(map(len, self.completions[group * size : (group + 1) * size]))

    @cached_property
    def completion_ids(self) -> Tensor:
        """(B, T), padded on the right."""
        return _padded(self.completions, self.pad_id, self.device)

    @cached_property
    def sampled(self) -> Tensor | None:
        """(B, T) log-probabilities when the tokens were drawn, 0 on padding; None if they were not kept."""
        return None if self.sampling_logprobs is None else _padded(self.sampling_logprobs, 0.0, self.device)

    @cached_property
    def completion_mask(self) -> Tensor:
        """(B, T) bool: up to and including the first end token."""
        lengths = torch.tensor([len(c) for c in self.completions], device=self.device)
        return torch.arange(self.completion_ids.shape[1], device=self.device) < lengths[:, None]

    @cached_property
    def loss_mask(self) -> Tensor:
        """(B, T) bool: what of it trains."""
        return self.completion_mask & torch.tensor(self.trains, device=self.device)[:, None]


def micro_batches(batch: Batch, advantages: Tensor, max_tokens: int) -> Iterator[tuple[Batch, Tensor]]:
    """Groups of similar length together, so that little is padding, as many as fit `max_tokens`; at least one.

    advantages (B, …); each part comes with its rows of them.
    """
    lengths = [batch.packed_tokens(p) for p in range(len(batch.prompts))]
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    advantages = advantages.unflatten(0, (len(order), batch.group_size))
    start = 0
    for stop in range(1, len(order) + 1):
        # Sorted, so the next group is the longest, and all would be padded to it.
        if stop == len(order) or (stop + 1 - start) * lengths[order[stop]] > max_tokens:
            yield batch.ordered(order[start:stop]), advantages[order[start:stop]].flatten(0, 1)
            start = stop


@dataclass(frozen=True)
class Layout:
    """Arguments of one forward pass over R rows of W tokens, and where in it each completion token is predicted."""

    input_ids: Tensor  # (R, W)
    attention_mask: Tensor  # (R, W) 0/1, or (R, 1, W, W) additive
    position_ids: Tensor  # (R, W)
    predicted_at: tuple[Tensor, Tensor]  # rows and columns, (B, T) each


def separate(batch: Batch, dtype: torch.dtype) -> Layout:
    """Every rollout in a row of its own, prompt and completion, padded on the right: any causal model understands it."""
    size = batch.group_size
    rows = [[*batch.prompts[i // size], *completion] for i, completion in enumerate(batch.completions)]
    ids = _padded(rows, batch.pad_id, batch.device)
    lengths = torch.tensor([len(r) for r in rows], device=batch.device)
    columns = torch.arange(ids.shape[1], device=batch.device).expand_as(ids)
    starts = torch.tensor([len(batch.prompts[i // size]) for i in range(len(batch))], device=batch.device)
    width = batch.completion_ids.shape[1]
    at = starts[:, None] - 1 + torch.arange(width, device=batch.device)  # token t is predicted one place before its own
    return Layout(ids, (columns < lengths[:, None]).long(), columns, _clipped(at, ids.shape[1]))


def packed(batch: Batch, dtype: torch.dtype) -> Layout:
    """Every group in one row, prompt + completion 1 + … + completion G, so that the prompt is computed once instead of G times.

    A token attends to the prompt and to what stands before it in its own completion; positions count as if that were all there is.
    """
    size = batch.group_size
    rows, segments, positions, at = [], [], [], []
    for p, prompt in enumerate(batch.prompts):
        siblings = batch.completions[p * size : (p + 1) * size]
        rows.append([*prompt, *(t for c in siblings for t in c)])
        segments.append([0] * len(prompt) + [g + 1 for g, c in enumerate(siblings) for _ in c])
        positions.append([*range(len(prompt)), *(len(prompt) + t for c in siblings for t in range(len(c)))])
        starts = [len(prompt)]
        for c in siblings:
            starts.append(starts[-1] + len(c))
        # The first token of each completion is predicted by the prompt's last, the others by the one before.
        at += [[len(prompt) - 1, *range(start, stop - 1)] for start, stop in pairwise(starts)]
    ids, segment = _padded(rows, batch.pad_id, batch.device), _padded(segments, -1, batch.device)
    width = ids.shape[1]
    causal = torch.ones(width, width, dtype=torch.bool, device=batch.device).tril()
    sees = causal & ((segment[:, None, :] == segment[:, :, None]) | (segment[:, None, :] == 0))  # (R, W, W); padding sees padding
    mask = torch.zeros(sees.shape, dtype=dtype, device=batch.device).masked_fill(~sees, torch.finfo(dtype).min)
    columns = _padded(at, 0, batch.device)
    return Layout(ids, mask[:, None], _padded(positions, 0, batch.device), (
        torch.arange(len(batch.prompts), device=batch.device).repeat_interleave(size)[:, None].expand_as(columns), columns))


def _clipped(columns: Tensor, width: int) -> tuple[Tensor, Tensor]:
    rows = torch.arange(len(columns), device=columns.device)[:, None].expand_as(columns)
    return rows, columns.clamp(max=width - 1)  # columns of padding, masked later, must only exist


def _padded(rows: Sequence[Sequence[float]], value: float, device: torch.device) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows], device=device)
