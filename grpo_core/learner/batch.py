"""A step's rollouts as token ids, their micro-batches, and two layouts for any model's forward."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
# The index of a prompt, and the rows of those of its completions that are computed with it.
Segment = tuple[int, Sequence[int]]


@dataclass(frozen=True)
class Batch:
    """B rollouts of P prompts. The rows of a group are consecutive."""

    prompts: Sequence[Sequence[int]]  # P lists of token ids
    completions: Sequence[Sequence[int]]  # B lists of token ids
    trains: Sequence[bool]  # B; False keeps a row out of the loss
    pad_id: int
    device: torch.device
    sampling_logprobs: Sequence[Sequence[float]] | None = None  # B lists, one number a token
    sizes: Sequence[int] | None = None  # P group sizes; None: all groups are equally large
    step_rows: Sequence[int] | None = None  # B: each row's index in the step; None: 0 to B - 1
    # B masks, True where the policy wrote the token and False where its environment did; None: no
    # row has an environment.
    actions: Sequence[Sequence[bool]] | None = None

    def __len__(self) -> int:
        return len(self.completions)

    @cached_property
    def siblings(self) -> list[range]:
        """P ranges: the rows of each group."""
        sizes = self.sizes or [len(self) // len(self.prompts)] * len(self.prompts)
        return [
            range(stop - size, stop) for size, stop in zip(sizes, accumulate(sizes), strict=True)
        ]

    @property
    def is_shared(self) -> bool:
        """Whether any prompt has more than one completion."""
        return len(self) > len(self.prompts)

    def groups(self, start: int, stop: int) -> Batch:
        """The groups [start, stop)."""
        return self.select([(p, self.siblings[p]) for p in range(start, stop)])

    def first(self, num_rows: int) -> Batch:
        """The first rows, with the prompts that they need."""
        return self.select(
            [
                (p, rows[: num_rows - rows.start])
                for p, rows in enumerate(self.siblings)
                if rows.start < num_rows
            ]
        )

    def ungrouped(self) -> Batch:
        """The same rows, each in a group of its own."""
        return self.select([(p, [i]) for p, rows in enumerate(self.siblings) for i in rows])

    def select(self, segments: Sequence[Segment]) -> Batch:
        """The rows of these segments in this order; each segment becomes a group."""
        rows = [i for _, segment_rows in segments for i in segment_rows]
        return replace(
            self,
            prompts=[self.prompts[p] for p, _ in segments],
            sizes=[len(segment_rows) for _, segment_rows in segments],
            completions=[self.completions[i] for i in rows],
            trains=[self.trains[i] for i in rows],
            sampling_logprobs=self.sampling_logprobs and [self.sampling_logprobs[i] for i in rows],
            step_rows=rows if self.step_rows is None else [self.step_rows[i] for i in rows],
            actions=self.actions and [self.actions[i] for i in rows],
        )

    def segment_tokens(self, segment: Segment) -> int:
        """Tokens of a segment, with its prompt counted once."""
        p, rows = segment
        return len(self.prompts[p]) + sum(len(self.completions[i]) for i in rows)

    def row_tokens(self, segment: Segment) -> int:
        """Tokens of a segment's prompt and its longest completion."""
        p, rows = segment
        return len(self.prompts[p]) + max(len(self.completions[i]) for i in rows)

    @cached_property
    def longest_row(self) -> int:
        """Tokens of the longest prompt and completion together."""
        return max(map(self.row_tokens, enumerate(self.siblings)))

    @cached_property
    def completion_ids(self) -> Tensor:
        """(B, T), padded on the right."""
        return _padded(self.completions, self.pad_id, self.device)

    @cached_property
    def padded_sampling_logprobs(self) -> Tensor | None:
        """(B, T) log-probabilities at sampling time, 0 on padding; None if they were not kept."""
        if self.sampling_logprobs is None:
            return None
        return _padded(self.sampling_logprobs, 0.0, self.device)

    @cached_property
    def token_mask(self) -> Tensor:
        """(B, T) bool: tokens, not padding; observations are among them."""
        lengths = torch.tensor([len(c) for c in self.completions], device=self.device)
        return torch.arange(self.completion_ids.shape[1], device=self.device) < lengths[:, None]

    @cached_property
    def completion_mask(self) -> Tensor:
        """(B, T) bool: what the policy wrote. Nothing is computed of observations."""
        if self.actions is None:
            return self.token_mask
        return self.token_mask & _padded(self.actions, False, self.device)

    @cached_property
    def loss_mask(self) -> Tensor:
        """(B, T) bool: completion tokens of the rows that train."""
        return self.completion_mask & torch.tensor(self.trains, device=self.device)[:, None]

    def of_actions(self, predicted_at: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Those of the places of all tokens, in the order of `token_mask`, that predict actions."""
        if self.actions is None:
            return predicted_at
        wanted = self.completion_mask[self.token_mask]
        return predicted_at[0][wanted], predicted_at[1][wanted]

    @cached_property
    def rows(self) -> Tensor:
        """(B,) each row's index in the step."""
        indices = range(len(self)) if self.step_rows is None else self.step_rows
        return torch.tensor(indices, device=self.device)

    @cached_property
    def _layouts(self) -> dict[Hashable, Any]:
        return {}

    def cached_layout(self, key: Hashable, make: Callable[[], T]) -> T:
        """The layout of that key, made at the first call: policy and reference use the same one."""
        if key not in self._layouts:
            self._layouts[key] = make()
        return self._layouts[key]

    def forget_layouts(self) -> None:
        """Free the layouts: a mask is as large as the square of its row."""
        self._layouts.clear()


def merged(parts: Sequence[Batch]) -> Batch:
    """The groups of all parts, in one batch for forward passes only."""
    completions = [c for part in parts for c in part.completions]
    return Batch(
        prompts=[prompt for part in parts for prompt in part.prompts],
        completions=completions,
        trains=[True] * len(completions),
        pad_id=parts[0].pad_id,
        device=parts[0].device,
        sizes=[len(rows) for part in parts for rows in part.siblings],
    )


def input_tokens(completion: Sequence[int]) -> Sequence[int]:
    """A completion without its last token, which predicts nothing; one token is always kept."""
    return completion[:-1] or completion


# ---- micro-batches -----------------------------------------------------------------------------


def micro_batches(
    batch: Batch, max_tokens: int, hidden_size: int, min_tokens: int | None = None
) -> list[Batch]:
    """Split the batch into parts of at most `max_tokens` padded tokens, or of one completion.

    Rows of similar width share a part, which keeps padding small. A part that already has
    `min_tokens` takes no further row that would make more than a tenth of it padding.
    """
    min_tokens = max_tokens if min_tokens is None else min_tokens
    segments = sorted(_segments(batch, max_tokens, hidden_size), key=batch.segment_tokens)
    widths = [batch.segment_tokens(s) for s in segments]
    parts, start = [], 0
    for stop in range(1, len(segments) + 1):
        is_full = stop == len(segments)
        if not is_full:
            # Sorted by width, so every row would be padded to the next segment's width.
            padded = (stop + 1 - start) * widths[stop]
            wasteful = padded > 1.1 * sum(widths[start : stop + 1])
            is_full = padded > max_tokens or (sum(widths[start:stop]) >= min_tokens and wasteful)
        if is_full:
            parts.append(batch.select(segments[start:stop]))
            start = stop
    return parts


def whole_groups(batch: Batch, max_tokens: int, pads: bool = True) -> list[Batch]:
    """Split the batch into parts of at most `max_tokens` tokens, or of one completion.

    For the flat layout: prompts count once, and only attention pads, if it does. The attention
    grids of a part then have at most 2 · max_tokens places. Completions of similar length share a
    part; a group is split only where it does not fit.
    """

    def fits(segments: Sequence[Segment]) -> bool:
        completions = [[len(batch.completions[i]) for i in rows] for _, rows in segments]
        prompts = [len(batch.prompts[p]) for p, _ in segments]
        if sum(prompts) + sum(map(sum, completions)) > max_tokens:
            return False
        places = len(segments) * (
            max(prompts) + max(map(len, completions)) * max(map(max, completions))
        )
        return not pads or places <= 2 * max_tokens

    def length(i: int) -> int:
        return len(batch.completions[i])

    segments: list[Segment] = []
    for p, rows in enumerate(batch.siblings):
        segment: list[int] = []
        for i in rows if fits([(p, rows)]) else sorted(rows, key=length):
            if segment and not fits([(p, [*segment, i])]):
                segments.append((p, segment))
                segment = []
            segment = [*segment, i]
        segments.append((p, segment))
    segments.sort(key=lambda s: max(map(length, s[1])))
    parts: list[list[Segment]] = [[]]
    for s in segments:
        if parts[-1] and not fits([*parts[-1], s]):
            parts.append([])
        parts[-1].append(s)
    return [batch.select(part) for part in parts]


def _segments(batch: Batch, max_tokens: int, hidden_size: int) -> list[Segment]:
    """Split each group into rows of the width that costs least.

    A token in a row of width W costs 12h² in the layers and 2hW in attention. With a prompt of L
    tokens and S completion tokens a row, the cost per completion token is (L + S)·(6h + L + S)/S,
    which is least at S = √(L·(L + 6h)).
    """
    segments = []
    for p, rows in enumerate(batch.siblings):
        prompt = len(batch.prompts[p])
        room = min(math.sqrt(prompt * (prompt + 6 * hidden_size)), max_tokens - prompt)
        lengths = [len(batch.completions[i]) for i in rows]
        # Equal shares: a last row with one completion would still compute the whole prompt.
        num_segments = min(len(rows), math.ceil(sum(lengths) / max(room, 1)))
        share = sum(lengths) / num_segments
        start = filled = 0
        for k, n in enumerate(lengths):
            over = filled + n > max_tokens - prompt or filled + n / 2 > share
            if k > start and over:
                segments.append((p, rows[start:k]))
                start, filled = k, 0
            filled += n
        segments.append((p, rows[start:]))
    return segments


# ---- layouts -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """Arguments of a forward pass over R rows of W tokens, and where completions are predicted."""

    input_ids: Tensor  # (R, W)
    attention_mask: Tensor  # (R, W) 0/1, or (R, 1, W, W) additive
    position_ids: Tensor  # (R, W)
    # Rows and columns, (N,) each, in the order of completion_ids[completion_mask].
    predicted_at: tuple[Tensor, Tensor]


def separate(batch: Batch, dtype: torch.dtype) -> Layout:
    """One row per rollout, prompt and completion, padded on the right. Any causal model fits."""
    prompts = [batch.prompts[p] for p, rows in enumerate(batch.siblings) for _ in rows]
    pairs = list(zip(prompts, batch.completions, strict=True))
    rows = [[*prompt, *completion] for prompt, completion in pairs]
    ids = _padded(rows, batch.pad_id, batch.device)
    lengths = torch.tensor([len(r) for r in rows], device=batch.device)
    columns = torch.arange(ids.shape[1], device=batch.device).expand_as(ids)
    # A token is predicted at the position before its own.
    predicted_at = [
        (i, len(prompt) - 1 + t)
        for i, (prompt, completion) in enumerate(pairs)
        for t in range(len(completion))
    ]
    mask = (columns < lengths[:, None]).long()
    places = batch.of_actions(_index(predicted_at, batch.device))
    return Layout(ids, mask, columns, places)


def packed(batch: Batch, dtype: torch.dtype) -> Layout:
    """One row per group, prompt + completion 1 + … + completion G: the prompt is computed once.

    A token attends to the prompt and to its own completion up to itself, and its position counts
    only these. The layout is cached in the batch.
    """
    return batch.cached_layout(dtype, lambda: _packed(batch, dtype))


def _packed(batch: Batch, dtype: torch.dtype) -> Layout:
    rows, segments, positions, predicted_at = [], [], [], []
    for p, (prompt, siblings) in enumerate(zip(batch.prompts, batch.siblings, strict=True)):
        completions = batch.completions[siblings.start : siblings.stop]
        inputs = [*map(input_tokens, completions)]
        rows.append([*prompt, *(t for tokens in inputs for t in tokens)])
        segments.append(
            [0] * len(prompt) + [g + 1 for g, tokens in enumerate(inputs) for _ in tokens]
        )
        positions.append(
            [
                *range(len(prompt)),
                *(len(prompt) + t for tokens in inputs for t in range(len(tokens))),
            ]
        )
        starts = accumulate(map(len, inputs), initial=len(prompt))
        for start, completion in zip(starts, completions, strict=False):
            # The prompt's last token predicts each completion's first, and so on from there.
            columns = [len(prompt) - 1, *range(start, start + len(completion) - 1)]
            predicted_at += [(p, column) for column in columns[: len(completion)]]
    ids = _padded(rows, batch.pad_id, batch.device)
    segment = _padded(segments, -1, batch.device)
    width = ids.shape[1]
    causal = torch.ones(width, width, dtype=torch.bool, device=batch.device).tril()
    same_segment = segment[:, None, :] == segment[:, :, None]
    is_prompt = segment[:, None, :] == 0
    visible = causal & (same_segment | is_prompt)  # (R, W, W); padding attends to padding
    mask = torch.zeros(visible.shape, dtype=dtype, device=batch.device)
    mask = mask.masked_fill(~visible, torch.finfo(dtype).min)[:, None]
    position_ids = _padded(positions, 0, batch.device)
    places = batch.of_actions(_index(predicted_at, batch.device))
    return Layout(ids, mask, position_ids, places)


def _index(places: Sequence[tuple[int, int]], device: torch.device) -> tuple[Tensor, Tensor]:
    rows, columns = torch.tensor(places, device=device).reshape(-1, 2).unbind(1)
    return rows, columns


def _padded(rows: Sequence[Sequence[float]], value: float, device: torch.device) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows], device=device)
