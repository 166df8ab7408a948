"""Token ids of a step's rollouts, how they are cut into micro-batches, and two ways to lay them out for any model's own forward pass."""

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
Segment = tuple[
    int, Sequence[int]
]  # a prompt and those of its completions that are computed with it


@dataclass(frozen=True)
class Batch:
    """B rollouts of P prompts; the siblings of a prompt stand together."""

    prompts: Sequence[Sequence[int]]  # P lists of token ids
    completions: Sequence[Sequence[int]]  # B lists
    trains: Sequence[bool]  # B: False keeps a row out of the loss
    pad_id: int
    device: torch.device
    sampling_logprobs: Sequence[Sequence[float]] | None = (
        None  # B lists, of each token when it was drawn
    )
    sizes: Sequence[int] | None = (
        None  # P: completions of each prompt; None: all prompts have equally many
    )
    places: Sequence[int] | None = (
        None  # B: where each row stands in the step; None: these are the step
    )

    def __len__(self) -> int:
        return len(self.completions)

    @cached_property
    def siblings(self) -> list[range]:
        """P: the rows of each prompt."""
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
        """The first rows, with as many of their prompts as it takes."""
        return self.select(
            [
                (p, rows[: num_rows - rows.start])
                for p, rows in enumerate(self.siblings)
                if rows.start < num_rows
            ]
        )

    def ungrouped(self) -> Batch:
        """The same rows, each a group of its own."""
        return self.select([(p, [i]) for p, rows in enumerate(self.siblings) for i in rows])

    def select(self, segments: Sequence[Segment]) -> Batch:
        """These rows, in this order; those of a strip are siblings in the new batch."""
        rows = [i for _, strip in segments for i in strip]
        return replace(
            self,
            prompts=[self.prompts[p] for p, _ in segments],
            sizes=[len(strip) for _, strip in segments],
            completions=[self.completions[i] for i in rows],
            trains=[self.trains[i] for i in rows],
            sampling_logprobs=self.sampling_logprobs and [self.sampling_logprobs[i] for i in rows],
            places=[self.places[i] for i in rows] if self.places is not None else rows,
        )

    def segment_tokens(self, strip: Segment) -> int:
        """Tokens of a row that holds the prompt once."""
        return len(self.prompts[strip[0]]) + sum(len(self.completions[i]) for i in strip[1])

    @cached_property
    def completion_ids(self) -> Tensor:
        """(B, T), padded on the right."""
        return _padded(self.completions, self.pad_id, self.device)

    @cached_property
    def sampled(self) -> Tensor | None:
        """(B, T) log-probabilities when the tokens were drawn, 0 on padding; None if they were not kept."""
        return (
            None
            if self.sampling_logprobs is None
            else _padded(self.sampling_logprobs, 0.0, self.device)
        )

    @cached_property
    def completion_mask(self) -> Tensor:
        """(B, T) bool: up to and including the first end token."""
        lengths = torch.tensor([len(c) for c in self.completions], device=self.device)
        return torch.arange(self.completion_ids.shape[1], device=self.device) < lengths[:, None]

    @cached_property
    def loss_mask(self) -> Tensor:
        """(B, T) bool: what of it trains."""
        return self.completion_mask & torch.tensor(self.trains, device=self.device)[:, None]

    @cached_property
    def _layouts(self) -> dict[Hashable, Any]:
        return {}

    def remembered(self, key: Hashable, lay_out: Callable[[], T]) -> T:
        """What `lay_out` made of this batch when it was first asked."""
        if key not in self._layouts:
            self._layouts[key] = lay_out()
        return self._layouts[key]

    @cached_property
    def rows(self) -> Tensor:
        """(B,) where each row stands in the step."""
        return torch.tensor(
            range(len(self)) if self.places is None else self.places, device=self.device
        )


def read(completion: Sequence[int]) -> Sequence[int]:
    """What of a completion a model must read: nothing is predicted by its last token, and nothing looks at it. One token is left, a row is never empty."""
    return completion[:-1] or completion


def micro_batches(
    batch: Batch, max_tokens: int, hidden_size: int, handy: int | None = None
) -> list[Batch]:
    """The batch in parts of at most `max_tokens` padded tokens, or of one completion where that has more.

    Rows of similar width stand together, so that little is padding. A part that has `handy` tokens takes no further row that would
    make a tenth of it padding.
    """
    handy = max_tokens if handy is None else handy
    segments = sorted(_strips(batch, max_tokens, hidden_size), key=batch.segment_tokens)
    widths = [batch.segment_tokens(s) for s in segments]
    parts, start = [], 0
    for stop in range(1, len(segments) + 1):
        # Sorted, so the next strip is the widest, and all would be padded to it.
        if (
            stop == len(segments)
            or (padded := (stop + 1 - start) * widths[stop]) > max_tokens
            or (sum(widths[start:stop]) >= handy and padded > 1.1 * sum(widths[start : stop + 1]))
        ):
            parts.append(batch.select(segments[start:stop]))
            start = stop
    return parts


def whole_groups(batch: Batch, max_tokens: int) -> list[Batch]:
    """The batch in parts of at most `max_tokens` tokens, prompts counted once, or of one completion where that has more.

    For tokens laid end to end, where only attention is padded: the grids of a part may have twice `max_tokens` places. Completions of
    similar length stand together; groups are whole where they fit.
    """

    def fits(segments: Sequence[Segment]) -> bool:
        completions = [[len(batch.completions[i]) for i in rows] for _, rows in segments]
        prompts = [len(batch.prompts[p]) for p, _ in segments]
        places = len(segments) * (
            max(prompts) + max(map(len, completions)) * max(map(max, completions))
        )
        return sum(prompts) + sum(map(sum, completions)) <= max_tokens and places <= 2 * max_tokens

    segments: list[Segment] = []
    for p, rows in enumerate(batch.siblings):
        strip: list[int] = []
        for i in (
            rows if fits([(p, rows)]) else sorted(rows, key=lambda i: len(batch.completions[i]))
        ):
            if strip and not fits([(p, [*strip, i])]):
                segments.append((p, strip))
                strip = []
            strip = [*strip, i]
        segments.append((p, strip))
    segments.sort(key=lambda s: max(len(batch.completions[i]) for i in s[1]))
    parts: list[list[Segment]] = [[]]
    for s in segments:
        if parts[-1] and not fits([*parts[-1], s]):
            parts.append([])
        parts[-1].append(s)
    return [batch.select(part) for part in parts]


def _strips(batch: Batch, max_tokens: int, hidden_size: int) -> list[Segment]:
    """Each group cut into rows of a width at which computing the prompt once more costs what siblings' needless attention does.

    A token of a row of width W costs 12h² in the layers and 2hW in attention, so with a prompt of L tokens the cost per completion
    token, (L + S)·(6h + L + S)/S for S completion tokens in the row, is least at S = √(L·(L + 6h)).
    """
    segments = []
    for p, rows in enumerate(batch.siblings):
        prompt = len(batch.prompts[p])
        room = min(math.sqrt(prompt * (prompt + 6 * hidden_size)), max_tokens - prompt)
        lengths = [len(batch.completions[i]) for i in rows]
        # Equal shares: a last row with one completion would still pay for the whole prompt.
        num_strips = min(len(rows), math.ceil(sum(lengths) / max(room, 1)))
        share, start, filled = sum(lengths) / num_strips, 0, 0
        for k, n in enumerate(lengths):
            over = filled + n > max_tokens - prompt or filled + n / 2 > share
            if k > start and over:
                segments.append((p, rows[start:k]))
                start, filled = k, 0
            filled += n
        segments.append((p, rows[start:]))
    return segments


@dataclass(frozen=True)
class Layout:
    """Arguments of one forward pass over R rows of W tokens, and where in it each of the N completion tokens is predicted."""

    input_ids: Tensor  # (R, W)
    attention_mask: Tensor  # (R, W) 0/1, or (R, 1, W, W) additive
    position_ids: Tensor  # (R, W)
    predicted_at: tuple[
        Tensor, Tensor
    ]  # rows and columns, (N,) each, in the order of completion_ids[completion_mask]


def separate(batch: Batch, dtype: torch.dtype) -> Layout:
    """Every rollout in a row of its own, prompt and completion, padded on the right: any causal model understands it."""
    prompts = [batch.prompts[p] for p, rows in enumerate(batch.siblings) for _ in rows]
    rows = [
        [*prompt, *completion]
        for prompt, completion in zip(prompts, batch.completions, strict=True)
    ]
    ids = _padded(rows, batch.pad_id, batch.device)
    lengths = torch.tensor([len(r) for r in rows], device=batch.device)
    columns = torch.arange(ids.shape[1], device=batch.device).expand_as(ids)
    # A token is predicted one place before its own.
    at = [
        (i, len(prompt) - 1 + t)
        for i, (prompt, c) in enumerate(zip(prompts, batch.completions, strict=True))
        for t in range(len(c))
    ]
    return Layout(ids, (columns < lengths[:, None]).long(), columns, _index(at, batch.device))


def packed(batch: Batch, dtype: torch.dtype) -> Layout:
    """Every group in one row, prompt + completion 1 + … + completion G, so that the prompt is computed once instead of G times.

    A token attends to the prompt and to what stands before it in its own completion; positions count as if that were all there is.
    Made once for a batch: the reference looks at the same rows as the policy.
    """
    return batch.remembered(dtype, lambda: _packed(batch, dtype))


def _packed(batch: Batch, dtype: torch.dtype) -> Layout:
    rows, segments, positions, at = [], [], [], []
    for p, (prompt, siblings) in enumerate(zip(batch.prompts, batch.siblings, strict=True)):
        completions = batch.completions[siblings.start : siblings.stop]
        texts = [*map(read, completions)]
        rows.append([*prompt, *(t for text in texts for t in text)])
        segments.append([0] * len(prompt) + [g + 1 for g, text in enumerate(texts) for _ in text])
        positions.append(
            [*range(len(prompt)), *(len(prompt) + t for text in texts for t in range(len(text)))]
        )
        starts = accumulate(map(len, texts), initial=len(prompt))
        # The first token of each completion is predicted by the prompt's last, the others by the one before.
        at += [
            (p, place)
            for start, c in zip(starts, completions, strict=False)
            for place in [len(prompt) - 1, *range(start, start + len(c) - 1)][: len(c)]
        ]
    ids, segment = _padded(rows, batch.pad_id, batch.device), _padded(segments, -1, batch.device)
    width = ids.shape[1]
    causal = torch.ones(width, width, dtype=torch.bool, device=batch.device).tril()
    sees = causal & (
        (segment[:, None, :] == segment[:, :, None]) | (segment[:, None, :] == 0)
    )  # (R, W, W); padding sees padding
    mask = torch.zeros(sees.shape, dtype=dtype, device=batch.device).masked_fill(
        ~sees, torch.finfo(dtype).min
    )
    return Layout(ids, mask[:, None], _padded(positions, 0, batch.device), _index(at, batch.device))


def _index(at: Sequence[tuple[int, int]], device: torch.device) -> tuple[Tensor, Tensor]:
    rows, columns = torch.tensor(at, device=device).reshape(-1, 2).unbind(1)
    return rows, columns


def _padded(rows: Sequence[Sequence[float]], value: float, device: torch.device) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows], device=device)
