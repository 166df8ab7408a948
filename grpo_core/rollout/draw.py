"""Drawing tokens from logits and prepared random numbers; no result is read from the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

BLOCK = 256  # tokens of the vocabulary that are summed together


class Rows:
    """What the B rows of a decode batch have written, b of which are still decoded.

    All of it is kept in tensors that `draw` changes in place, the columns of the next tokens too.
    So `draw` can be recorded as a part of a CUDA graph. uniforms (B, T): the random numbers of all
    tokens, in [0, 1).
    """

    def __init__(
        self,
        uniforms: Tensor,
        temperature: float,
        end_ids: Sequence[int],
        pad_id: int,
        keep_logprobs: bool,
    ) -> None:
        (num_rows, length), device = uniforms.shape, uniforms.device
        # One column more, for what a full row draws until somebody looks.
        self._uniforms = torch.nn.functional.pad(uniforms, (0, 1))  # (B, T + 1)
        self._temperature = temperature
        self._keeps_logprobs = keep_logprobs
        self._end_ids = torch.tensor(end_ids, dtype=torch.long, device=device)
        self.tokens = torch.full((num_rows, length + 1), pad_id, device=device)  # (B, T + 1)
        self.logprobs = torch.zeros((num_rows, length + 1 if keep_logprobs else 0), device=device)
        self.lengths = torch.full((num_rows,), length, device=device)
        self.ended = torch.zeros(num_rows, dtype=torch.bool, device=device)
        self.finite = torch.ones((), dtype=torch.bool, device=device)  # all logits so far
        self.alive = torch.arange(num_rows, device=device)  # (b,) which rows are still decoded
        self.last = torch.full((num_rows,), pad_id, device=device)  # (b,) their last tokens
        self.top = torch.zeros(0, device=device)  # (b,) their largest logits, of the last draw
        self._column = torch.zeros_like(self.last)  # (b,) of their next tokens

    def draw(self, logits: Tensor) -> None:
        """Draw and note the next token of every row that is still decoded. logits (b, V)."""
        alive, column = self.alive, self._column
        token, logprob, self.top = draw_tokens(
            logits, self._temperature, self._uniforms[alive, column], self._keeps_logprobs
        )
        self.finite &= self.top.isfinite().all()
        self.last.copy_(token)
        self.tokens[alive, column] = token
        if logprob is not None:
            self.logprobs[alive, column] = logprob.float()
        before = self.ended[alive]
        newly_ended = (token[:, None] == self._end_ids).any(-1) & ~before
        column += 1
        self.lengths[alive] = torch.where(newly_ended, column, self.lengths[alive])
        self.ended[alive] = before | newly_ended
        column.clamp_(max=self.tokens.shape[1] - 1)

    def begin(self, rows: Sequence[int], logits: Tensor) -> None:
        """Draw the first token of further rows, and decode them after the present ones."""
        before = self.alive, self.last, self._column
        self.alive = torch.tensor(rows, device=self.alive.device)
        self.last, self._column = torch.zeros_like(self.alive), torch.zeros_like(self.alive)
        self.draw(logits)
        after = self.alive, self.last, self._column
        self.alive, self.last, self._column = map(torch.cat, zip(before, after, strict=True))

    def keep(self, rows: Tensor) -> None:
        """Decode only these of the b rows from now on."""
        self.alive, self.last = self.alive[rows], self.last[rows]
        self._column = self._column[rows]

    def changing(self) -> list[Tensor]:
        """All that `draw` changes in place: everything but `top`."""
        return [
            self.tokens,
            self.logprobs,
            self.lengths,
            self.ended,
            self.finite,
            self.last,
            self._column,
        ]


def draw_tokens(
    logits: Tensor, temperature: float, uniform: Tensor, keep_logprobs: bool
) -> tuple[Tensor, Tensor | None, Tensor]:
    """One token a row from softmax(logits / temperature), and its log-probability. logits (b, V).

    Also returns the largest logits (b,): they are not finite if any logit is nan or inf.

    The token is the first at which the cumulative distribution exceeds `uniform` in [0, 1). It is
    found in two steps, first the block of the vocabulary, then the token in the block, so that the
    whole vocabulary is summed but never accumulated.
    """
    scaled = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if not temperature:
        token = scaled.argmax(-1)
        top = scaled.gather(1, token[:, None])
        if not keep_logprobs:
            return token, None, top
        return token, scaled.log_softmax(-1).gather(1, token[:, None]).squeeze(1), top
    # In place, e^(logit - the largest): nobody else uses these logits, and a second tensor of
    # their size is slow to allocate.
    if temperature != 1:
        scaled.div_(temperature)
    top = scaled.amax(-1, keepdim=True)
    weights = scaled.sub_(top).exp_()
    token, total = _invert_cdf(weights, uniform)
    if not keep_logprobs:
        return token, None, top
    return token, (weights.gather(1, token[:, None]).squeeze(1) / total).log(), top


def _invert_cdf(weights: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Where the running sum of weights first exceeds uniform times the total, and the total.

    weights (b, V), uniform (b,) in [0, 1). Returns (b,) and (b,).
    """
    num_rows, size = weights.shape
    full = size - size % BLOCK
    if full == size:
        sums = weights.view(num_rows, -1, BLOCK).sum(-1)
    else:
        blocks = weights[:, :full].unflatten(1, (-1, BLOCK)).sum(-1)
        sums = torch.cat([blocks, weights[:, full:].sum(-1, keepdim=True)], 1)
    ends = running_sum(sums)  # (b, number of blocks)
    target = uniform[:, None] * ends[:, -1:]
    block = torch.searchsorted(ends, target, right=True).clamp(max=ends.shape[1] - 1)  # (b, 1)
    ids = block * BLOCK + torch.arange(BLOCK, device=weights.device)  # (b, 256)
    inside = torch.where(ids < size, weights.gather(1, ids.clamp(max=size - 1)), 0.0)
    inside = running_sum(inside)
    before = torch.where(block > 0, ends.gather(1, (block - 1).clamp(min=0)), 0.0)
    # Rounding may leave the target just beyond the block's own sum: then take its last token.
    rest = (target - before).clamp(max=inside[:, -1:] * (1 - 1e-12))
    column = torch.searchsorted(inside, rest, right=True).clamp(max=BLOCK - 1)
    # Sums that are not finite lead anywhere, also beyond the last token.
    return ids.gather(1, column).squeeze(1).clamp(max=size - 1), ends[:, -1]


def running_sum(values: Tensor, doubling: bool | None = None) -> Tensor:
    """The sum of each row up to each column, in float64.

    doubling: add the column 1, 2, 4, … places before, which repeats to the last bit on every
    device. None: where torch must repeat its results, because its own sum on CUDA does not.
    """
    values = values.double()
    if doubling is None:
        doubling = values.is_cuda and torch.are_deterministic_algorithms_enabled()
    if not doubling:
        return values.cumsum(-1)
    distance = 1
    while distance < values.shape[-1]:
        values = values + torch.nn.functional.pad(values[..., :-distance], (distance, 0))
        distance *= 2
    return values
