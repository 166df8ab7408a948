"""A step's tokens laid end to end, and attention in which the completions of a prompt share it. Nothing is padded but inside attention.

What looks at one token at a time (projections, normalisation, gate) sees (1, N): every prompt once, then every completion. Attention sees
two grids: prompts (P, L), each looking at itself, and completions (P, G, T), each looking at its prompt and at itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from grpo_core.learner.batch import Batch, read
from grpo_core.models.decoder import Attend

SHORT = 96  # tokens that one query may see for whole rows of weights to be kept; beyond, they are made block by block, twice

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True)
class Flat:
    """Arguments of one forward pass over N tokens end to end, and where in it each completion token is predicted."""

    input_ids: Tensor  # (1, N)
    position_ids: Tensor  # (1, N)
    predicted_at: tuple[Tensor, Tensor]  # as in Layout
    attend: Attend


def flat(batch: Batch) -> Flat:
    """Every prompt once, then every completion but its last token, with nothing between them. Made once for a batch: the reference looks at the same tokens."""
    return batch.remembered("flat", lambda: _laid_out(batch))


def _laid_out(batch: Batch) -> Flat:
    texts = [*map(read, batch.completions)]
    ids, positions, at = (
        [*chain.from_iterable(batch.prompts)],
        [i for prompt in batch.prompts for i in range(len(prompt))],
        [],
    )
    for prompt, siblings, end in zip(
        batch.prompts, batch.siblings, accumulate(map(len, batch.prompts)), strict=True
    ):
        for i in siblings:
            num_tokens, text = len(batch.completions[i]), texts[i]
            # The first token of a completion is predicted by its prompt's last, the others by the one before.
            at += [end - 1, *range(len(ids), len(ids) + num_tokens - 1)][:num_tokens]
            ids += text
            positions += range(len(prompt), len(prompt) + len(text))
    where = Where(
        [len(p) for p in batch.prompts],
        [len(text) for text in texts],
        [len(s) for s in batch.siblings],
        batch.device,
    )
    tokens, places = (
        torch.tensor([ids, positions], device=batch.device),
        torch.tensor(at, device=batch.device),
    )
    return Flat(
        tokens[:1],
        tokens[1:],
        (torch.zeros_like(places), places),
        lambda _, q, k, v: _Attention.apply(q, k, v, where),
    )


@dataclass(frozen=True, eq=False)
class Where:
    """Where each token stands in the two grids."""

    prompt_lengths: Sequence[int]  # P
    lengths: Sequence[int]  # B
    sizes: Sequence[int]  # P: completions of each prompt
    device: torch.device

    @cached_property
    def prompts(self) -> Grid:
        return Grid([*enumerate(self.prompt_lengths)], len(self.prompt_lengths), 1, self.device)

    @cached_property
    def completions(self) -> Grid:
        size = max(self.sizes)
        places = [p * size + g for p, s in enumerate(self.sizes) for g in range(s)]
        return Grid([*zip(places, self.lengths, strict=True)], len(self.sizes), size, self.device)

    @property
    def num_prompt_tokens(self) -> int:
        return sum(self.prompt_lengths)

    @property
    def num_tokens(self) -> int:
        return self.num_prompt_tokens + sum(self.lengths)

    def is_short(self, dtype: torch.dtype) -> bool:
        return self.prompts.width + self.completions.width <= SHORT and dtype in (
            torch.float32,
            torch.float64,
        )

    def unseen(self, k: Tensor) -> Tensor | None:
        """(P·K, 1, 1, L) additive: -∞ where a shorter prompt is padding; None: nowhere. k (P·K, …)."""
        real = self.prompts.real
        if real is None:
            return None
        hidden = torch.zeros(real.shape, dtype=k.dtype, device=k.device).masked_fill_(
            ~real, float("-inf")
        )
        return hidden.repeat_interleave(len(k) // len(real), 0)[:, None, None]

    def later(self, q: Tensor, k: Tensor) -> Tensor:
        """(T·R, T) additive: -∞ where a token of a completion stands after the one that looks."""
        width, repeats = k.shape[2], q.shape[-1] // k.shape[-1]
        return (
            torch.full((width, width), float("-inf"), dtype=k.dtype, device=k.device)
            .triu_(1)
            .repeat_interleave(repeats, 0)
        )


class Grid:
    """P x S rows of at most `width` tokens; a token's rows of K key heads stand apart, so that a head's tokens are neighbours."""

    def __init__(
        self, rows: Sequence[tuple[int, int]], num_prompts: int, size: int, device: torch.device
    ):
        """rows: place in the grid and length of each, in the order in which they stand end to end."""
        self.num_prompts, self.size, self.width = num_prompts, size, max(n for _, n in rows)
        self.slots = torch.tensor(
            [*chain.from_iterable(range(r * self.width, r * self.width + n) for r, n in rows)],
            device=device,
        )  # (N,)
        self._indices: dict[int, tuple[Tensor, Tensor, Tensor | None]] = {}
        self.is_full = len(self.slots) == num_prompts * size * self.width

    @cached_property
    def real(self) -> Tensor | None:
        """(P·S, T) bool; None: all of it."""
        if self.is_full:
            return None
        found = torch.zeros(
            self.num_prompts * self.size * self.width, dtype=torch.bool, device=self.slots.device
        )
        found[self.slots] = True
        return found.view(-1, self.width)

    def indices(self, kv_heads: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """For (N·K) rows end to end and the (P·K·S·T) of the grid: grid row of each, row of each grid row, and (P·K·S·T, 1) what is real."""
        if kv_heads not in self._indices:
            across = self.size * self.width
            prompt, rest = self.slots // across, self.slots % across
            to_grid = (
                (prompt[:, None] * kv_heads + torch.arange(kv_heads, device=self.slots.device))
                * across
                + rest[:, None]
            ).flatten()
            from_grid = to_grid.new_zeros(
                self.num_prompts * kv_heads * across
            )  # padding takes the first row's: finite, and looked at by nobody
            from_grid[to_grid] = torch.arange(len(to_grid), device=to_grid.device)
            real = (
                None
                if self.is_full
                else torch.zeros(len(from_grid), 1, device=to_grid.device).index_fill_(
                    0, to_grid, 1.0
                )
            )
            self._indices[kv_heads] = to_grid, from_grid, real
        return self._indices[kv_heads]

    def spread(self, rows: Tensor, kv_heads: int, *, zero: bool = False) -> Tensor:
        """(N·K, R·d) -> (P·K, S, T, R·d). zero: and padding is 0."""
        _, index, real = self.indices(kv_heads)
        out = rows.index_select(0, index)
        if zero and real is not None:
            out.mul_(real)
        return out.view(-1, self.size, self.width, rows.shape[-1])

    def gather(self, grid: Tensor, kv_heads: int, out: Tensor) -> None:
        """(P·K, S, T, R·d) -> out (N·K, R·d)"""
        torch.index_select(grid.reshape(-1, out.shape[-1]), 0, self.indices(kv_heads)[0], out=out)


class _Attention(torch.autograd.Function):
    """q (1, N, K·R, d), k and v (1, N, K, d) -> (1, N, K·R, d): what attends to what is in `where`."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, where: Where) -> Tensor:
        kv_heads, head_dim = k.shape[2:]
        rows, cut = (
            (
                q.reshape(-1, q.shape[2] // kv_heads * head_dim),
                k.reshape(-1, head_dim),
                v.reshape(-1, head_dim),
            ),
            where.num_prompt_tokens * kv_heads,
        )
        prompt = [where.prompts.spread(t[:cut], kv_heads) for t in rows]  # (P·K, 1, L, ·)
        own = [where.completions.spread(t[cut:], kv_heads) for t in rows]  # (P·K, G, T, ·)
        look, ctx.look_backward = (
            (_look, _look_backward)
            if where.is_short(q.dtype)
            else (_look_blockwise, _look_blockwise_backward)
        )
        to_itself, normaliser = _causal(*prompt)
        looked, *kept = look(*own, *prompt[1:], where)
        ctx.save_for_backward(*prompt, to_itself, normaliser, *own, *kept)
        ctx.where, ctx.kv_heads = where, kv_heads
        return _end_to_end(where, kv_heads, to_itself, looked).view(q.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        qp, kp, vp, to_itself, normaliser, qc, kc, vc, *kept = ctx.saved_tensors
        where, kv_heads = ctx.where, ctx.kv_heads
        rows, cut = gradient.reshape(-1, qp.shape[-1]), where.num_prompt_tokens * kv_heads
        of_prompts, of_completions = (
            where.prompts.spread(rows[:cut], kv_heads, zero=True),
            where.completions.spread(rows[cut:], kv_heads, zero=True),
        )
        dq, dk, dv = _causal_backward(of_prompts, qp, kp, vp, to_itself, normaliser)
        dqc, dkc, dvc, dk_seen, dv_seen = ctx.look_backward(
            of_completions, qc, kc, vc, kp, vp, where, *kept
        )
        pairs = (
            (dq, dqc),
            (dk.view_as(dk_seen).add_(dk_seen), dkc),
            (dv.view_as(dv_seen).add_(dv_seen), dvc),
        )
        dq, dk, dv = (
            _end_to_end(where, kv_heads, a, b).view(1, where.num_tokens, -1, kp.shape[-1])
            for a, b in pairs
        )
        return dq, dk, dv, None


def _end_to_end(where: Where, kv_heads: int, of_prompts: Tensor, of_completions: Tensor) -> Tensor:
    """(P·K, 1, L, n) and (P·K, G, T, n) -> (N·K, n)"""
    cut, size = where.num_prompt_tokens * kv_heads, of_completions.shape[-1]
    out = of_completions.new_empty(where.num_tokens * kv_heads, size)
    where.prompts.gather(of_prompts, kv_heads, out[:cut])
    where.completions.gather(of_completions, kv_heads, out[cut:])
    return out


# ---- a text looks at itself: q (…, S, T, R·d), k and v (…, S, T, d) -----------------------------------------------------------


def _heads(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(M, R, T, d) each, as the kernel wants them; the R query heads of a key head look at the same memory."""
    width, head_dim = k.shape[-2:]
    q = q.reshape(-1, width, q.shape[-1] // head_dim, head_dim).transpose(1, 2)
    k, v = (t.reshape(-1, 1, width, head_dim).expand(-1, q.shape[1], -1, -1) for t in (k, v))
    return q, k, v


def _causal(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """What was seen, like q, and the log of all weights' sum, (M, T, R)."""
    out, normaliser = _flash(*_heads(q, k, v), is_causal=True)
    return out.transpose(1, 2).reshape(q.shape), normaliser.transpose(1, 2)


def _causal_backward(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, normaliser: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    by_heads = [
        t.view(-1, *normaliser.shape[1:], k.shape[-1]).transpose(1, 2) for t in (gradient, out)
    ]
    dq, dk, dv = _flash_backward(
        by_heads[0], *_heads(q, k, v), by_heads[1], normaliser.transpose(1, 2), 0.0, True
    )
    return dq.transpose(1, 2).reshape(q.shape), dk.sum(1).view(k.shape), dv.sum(1).view(v.shape)


# ---- completions look at their prompt and at themselves ------------------------------------------------------------------------


def _look(
    q: Tensor, k: Tensor, v: Tensor, prompt_k: Tensor, prompt_v: Tensor, where: Where
) -> tuple[Tensor, Tensor]:
    """All weights of a query in one row, kept for the derivative: the fewest operations."""
    by_prompt, by_text = _shapes(k)
    scaled, unseen = q * k.shape[-1] ** -0.5, where.unseen(k)
    to_prompt = torch.bmm(scaled.view(by_prompt), prompt_k[:, 0].mT)
    if unseen is not None:
        to_prompt += unseen[:, 0]
    to_own = torch.baddbmm(where.later(q, k), scaled.view(by_text), k.flatten(0, 1).mT)
    weights = torch.cat([to_prompt.view(*to_own.shape[:2], -1), to_own], -1).softmax(-1)
    on_prompt, on_own = weights.split([prompt_k.shape[2], k.shape[2]], -1)
    return torch.bmm(on_own, v.flatten(0, 1)).view(by_prompt).baddbmm_(
        on_prompt.reshape(to_prompt.shape), prompt_v[:, 0]
    ).view(q.shape), weights


def _look_backward(
    gradient: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prompt_k: Tensor,
    prompt_v: Tensor,
    where: Where,
    weights: Tensor,
) -> tuple[Tensor, ...]:
    """With w the weights and s the scores: ∂v = wᵀ∂o, ∂w = ∂o·vᵀ, ∂s = w·(∂w - Σ w·∂w), ∂q = ∂s·k/√d, ∂k = ∂sᵀ·q/√d."""
    by_prompt, by_text = _shapes(k)
    split = [prompt_k.shape[2], k.shape[2]]
    of_own = torch.bmm(gradient.view(by_text), v.flatten(0, 1).mT)
    of_weights = torch.cat(
        [
            torch.bmm(gradient.view(by_prompt), prompt_v[:, 0].mT).view(*of_own.shape[:2], -1),
            of_own,
        ],
        -1,
    )
    of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype).mul_(
        k.shape[-1] ** -0.5
    )
    (on_prompt, on_own), (s_prompt, s_own) = weights.split(split, -1), of_scores.split(split, -1)
    on_prompt, s_prompt = (t.reshape(len(k), -1, split[0]) for t in (on_prompt, s_prompt))
    return (
        torch.bmm(s_own, k.flatten(0, 1))
        .view(by_prompt)
        .baddbmm_(s_prompt, prompt_k[:, 0])
        .view(q.shape),
        torch.bmm(s_own.mT, q.view(by_text)),
        torch.bmm(on_own.mT, gradient.view(by_text)),
        torch.bmm(s_prompt.mT, q.view(by_prompt)),
        torch.bmm(on_prompt.mT, gradient.view(by_prompt)),
    )


def _shapes(k: Tensor) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Of queries beside their prompt, (P·K, G·T·R, d), and beside their own text, (P·K·G, T·R, d): the same memory."""
    return (len(k), -1, k.shape[-1]), (len(k) * k.shape[1], -1, k.shape[-1])


def _look_blockwise(
    q: Tensor, k: Tensor, v: Tensor, prompt_k: Tensor, prompt_v: Tensor, where: Where
) -> tuple[Tensor, Tensor, Tensor]:
    """To the prompt and to itself apart, merged by how much weight each had; no weights are kept, so memory grows with length alone.

    o = o_c + σ(ℓ_p - ℓ_c)·(o_p - o_c),  ℓ = log(exp ℓ_p + exp ℓ_c),  ℓ_· = log Σ exp(scores)      FlashAttention, arXiv:2205.14135 §3.1
    """
    seen = _flash(_together(q, k), prompt_k, prompt_v, attn_mask=where.unseen(k))
    own, own_normaliser = _causal(q, k, v)
    normaliser = seen[1].transpose(1, 2).reshape(own_normaliser.shape)
    share = torch.sigmoid(normaliser - own_normaliser).to(q.dtype)[..., None]
    heads = (*own_normaliser.shape, k.shape[-1])
    out = torch.lerp(own.view(heads), seen[0].reshape(heads), share).view(q.shape)
    return out, out, torch.logaddexp(normaliser, own_normaliser)


def _look_blockwise_backward(
    gradient: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prompt_k: Tensor,
    prompt_v: Tensor,
    where: Where,
    out: Tensor,
    normaliser: Tensor,
) -> tuple[Tensor, ...]:
    """Each part's derivative is that of attention whose o and ℓ are the merged ones: its weights exp(score - ℓ) are then what they were."""
    dq, dk, dv = _causal_backward(gradient, q, k, v, out, normaliser)
    seen = _flash_backward(
        _together(gradient, k),
        _together(q, k),
        prompt_k,
        prompt_v,
        _together(out, k),
        normaliser.view(len(k), 1, -1),
        0.0,
        False,
        attn_mask=where.unseen(k),
    )
    return dq + seen[0].reshape(q.shape), dk, dv, seen[1], seen[2]


def _together(q: Tensor, k: Tensor) -> Tensor:
    """All queries that see a key head's prompt in one: (P·K, G, T, R·d) -> (P·K, 1, G·T·R, d)."""
    return q.view(len(k), 1, -1, k.shape[-1])
