"""The flat layout: a step's tokens in one row without padding, and its attention on a CPU.

Projections, normalisation and gate see (1, N): every prompt once, then every completion. Attention
alone pads, to two grids: each prompt attends to itself, each completion to its prompt and itself.
On a GPU the attention is that of varlen_attention.py, which does not pad.

What it gains over the packed layout under one mask, which tests compare it with (docs/diary.md,
2026-11-21): on W2's model, 25 M parameters, forward and backward of attention take 42 in place of
118 ms a layer, and an update 4.4 in place of 5.1 s (one thread). On W1 with completions of 26
tokens, an update takes 180 in place of 218 ms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, chain
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from grpo_core.learner import varlen_attention
from grpo_core.learner.batch import Batch, input_tokens
from grpo_core.learner.token_grids import TokenGrids
from grpo_core.learner.varlen_attention import Kernel
from grpo_core.models.decoder import Attend

# Tokens visible to one query up to which attention weights are kept for the backward pass: short
# texts take 3.9 ms a layer so, and 7.7 blockwise. With prompts of 256 tokens blockwise is faster,
# 44 against 48 ms, and keeps no weights (docs/diary.md, 2026-11-21).
MAX_DENSE_TOKENS = 96

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
_softmax_backward = torch.ops.aten._softmax_backward_data


@dataclass(frozen=True)
class FlatLayout:
    """Arguments of one forward pass over N tokens, and where completion tokens are predicted."""

    input_ids: Tensor  # (1, N)
    position_ids: Tensor  # (1, N)
    predicted_at: tuple[Tensor, Tensor]  # as in batch.Layout
    attend: Attend


# Lengths of P prompts, and for each prompt the lengths of its completions' inputs -> attention of
# all these tokens.
MakeAttend = Callable[[Sequence[int], Sequence[Sequence[int]], torch.device], Attend]

# The number of tokens in a layout is rounded up to a multiple of this. Rows differ in length, so
# every micro-batch would have another number of tokens, and for each new number a GPU chooses the
# kernels of every product anew. It computes products in tiles of this many rows, so the padding
# costs nothing.
MULTIPLE = {"cuda": 128}


def flat_attention(device: torch.device, dtype: torch.dtype, head_dim: int) -> MakeAttend | None:
    """What computes the flat layout's attention there; None: nothing does."""
    if device.type == "cpu":
        return attend_in_grids
    kernel = varlen_attention.kernel_for(device, dtype, head_dim)
    return None if kernel is None else partial(attend_by_kernel, kernel=kernel)


def attend_in_grids(
    prompts: Sequence[int], completions: Sequence[Sequence[int]], device: torch.device
) -> Attend:
    """This module's attention, for a CPU."""
    grids = TokenGrids(prompts, [*chain(*completions)], [*map(len, completions)], device)
    return lambda _, q, k, v: _Attention.apply(q, k, v, grids)


def attend_by_kernel(
    prompts: Sequence[int],
    completions: Sequence[Sequence[int]],
    device: torch.device,
    kernel: Kernel,
) -> Attend:
    """The attention of varlen_attention.py, which does not pad."""
    return varlen_attention.attend(varlen_attention.Spans.of(prompts, completions, device), kernel)


def flat(batch: Batch, make_attend: MakeAttend = attend_in_grids) -> FlatLayout:
    """Every prompt once, then every completion without its last token. Cached in the batch."""
    return batch.cached_layout("flat", lambda: _flat(batch, make_attend))


def _flat(batch: Batch, make_attend: MakeAttend) -> FlatLayout:
    inputs = [*map(input_tokens, batch.completions)]
    ids = [*chain.from_iterable(batch.prompts)]
    positions = [i for prompt in batch.prompts for i in range(len(prompt))]
    predicted_at: list[int] = []
    lengths: list[list[int]] = []  # of each prompt's completions
    prompt_ends = accumulate(map(len, batch.prompts))
    for prompt, siblings, end in zip(batch.prompts, batch.siblings, prompt_ends, strict=True):
        for i in siblings:
            num_tokens = len(batch.completions[i])
            # The prompt's last token predicts the first, and each token the one after it.
            predicted_at += [end - 1, *range(len(ids), len(ids) + num_tokens - 1)][:num_tokens]
            ids += inputs[i]
            positions += range(len(prompt), len(prompt) + len(inputs[i]))
        lengths.append([len(inputs[i]) for i in siblings])
    if padding := -len(ids) % MULTIPLE.get(batch.device.type, 1):
        # The padding is one more completion, which nobody reads and no other token attends to.
        ids += [batch.pad_id] * padding
        positions += range(len(batch.prompts[-1]), len(batch.prompts[-1]) + padding)
        lengths[-1].append(padding)
    tokens = torch.tensor([ids, positions], device=batch.device)
    columns = torch.tensor(predicted_at, device=batch.device)
    return FlatLayout(
        input_ids=tokens[:1],
        position_ids=tokens[1:],
        predicted_at=batch.of_actions((torch.zeros_like(columns), columns)),
        attend=make_attend([*map(len, batch.prompts)], lengths, batch.device),
    )


@dataclass(frozen=True, slots=True)
class _Inputs:
    """Queries of completions, and the keys and values that they attend to."""

    q: Tensor  # (P·K, G, T, R·d)
    k: Tensor  # (P·K, G, T, d)
    v: Tensor
    prompt_k: Tensor  # (P·K, 1, L, d)
    prompt_v: Tensor


class _Attention(torch.autograd.Function):
    """q (1, N, K·R, d), k and v (1, N, K, d) -> (1, N, K·R, d)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, grids: TokenGrids) -> Tensor:
        kv_heads, head_dim = k.shape[2:]
        cut = grids.num_prompt_tokens * kv_heads
        rows = [
            q.reshape(-1, q.shape[2] // kv_heads * head_dim),
            k.reshape(-1, head_dim),
            v.reshape(-1, head_dim),
        ]
        prompt = [grids.prompts.to_grid(t[:cut], kv_heads) for t in rows]  # (P·K, 1, L, ·)
        own = [grids.completions.to_grid(t[cut:], kv_heads) for t in rows]  # (P·K, G, T, ·)
        x = _Inputs(*own, prompt_k=prompt[1], prompt_v=prompt[2])
        ctx.is_dense = _is_dense(grids, q.dtype)
        prompt_out, normalizer = _causal(*prompt)
        out, *kept = (_attend_dense if ctx.is_dense else _attend_blockwise)(x, grids)
        ctx.save_for_backward(*prompt, prompt_out, normalizer, *own, *kept)
        ctx.grids, ctx.kv_heads = grids, kv_heads
        return grids.flatten(kv_heads, prompt_out, out).view(q.shape)

    # torch calls this with one gradient for each output; its stub knows only *grad_outputs.
    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, None]:
        qp, kp, vp, prompt_out, normalizer, *own_and_kept = ctx.saved_tensors
        x = _Inputs(*own_and_kept[:3], prompt_k=kp, prompt_v=vp)
        kept = own_and_kept[3:]
        grids, kv_heads = ctx.grids, ctx.kv_heads
        cut = grids.num_prompt_tokens * kv_heads
        rows = gradient.reshape(-1, qp.shape[-1])
        by_prompts = grids.prompts.to_grid(rows[:cut], kv_heads, zero_padding=True)
        by_completions = grids.completions.to_grid(rows[cut:], kv_heads, zero_padding=True)
        dq, dk, dv = _causal_backward(by_prompts, (qp, kp, vp), prompt_out, normalizer)
        backward = _attend_dense_backward if ctx.is_dense else _attend_blockwise_backward
        by_x = backward(by_completions, x, grids, kept)
        pairs = (
            (dq, by_x.q),
            (dk.view_as(by_x.prompt_k).add_(by_x.prompt_k), by_x.k),
            (dv.view_as(by_x.prompt_v).add_(by_x.prompt_v), by_x.v),
        )
        dq, dk, dv = (
            grids.flatten(kv_heads, *pair).view(1, grids.num_tokens, -1, kp.shape[-1])
            for pair in pairs
        )
        return dq, dk, dv, None


def _is_dense(grids: TokenGrids, dtype: torch.dtype) -> bool:
    visible = grids.prompts.width + grids.completions.width
    return visible <= MAX_DENSE_TOKENS and dtype in (torch.float32, torch.float64)


# ---- causal self-attention: q (…, S, T, R·d), k and v (…, S, T, d) -----------------------------


def _heads(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(M, R, T, d) each, as the kernel takes them; R query heads share the memory of a key head."""
    width, head_dim = k.shape[-2:]
    q = q.reshape(-1, width, q.shape[-1] // head_dim, head_dim).transpose(1, 2)
    k, v = (t.reshape(-1, 1, width, head_dim).expand(-1, q.shape[1], -1, -1) for t in (k, v))
    return q, k, v


def _causal(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The output, like q, and log Σ exp(scores), (M, T, R)."""
    out, normalizer = _flash(*_heads(q, k, v), is_causal=True)
    return out.transpose(1, 2).reshape(q.shape), normalizer.transpose(1, 2)


def _causal_backward(
    gradient: Tensor, qkv: tuple[Tensor, Tensor, Tensor], out: Tensor, normalizer: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = qkv
    gradient, out = (
        t.view(-1, *normalizer.shape[1:], k.shape[-1]).transpose(1, 2) for t in (gradient, out)
    )
    dq, dk, dv = _flash_backward(
        gradient, *_heads(q, k, v), out, normalizer.transpose(1, 2), 0.0, True
    )
    return dq.transpose(1, 2).reshape(q.shape), dk.sum(1).view(k.shape), dv.sum(1).view(v.shape)


# ---- completions attend to their prompt and to themselves: short texts -------------------------


def _attend_dense(x: _Inputs, grids: TokenGrids) -> tuple[Tensor, Tensor]:
    """Output and attention weights; a query's weights are one row, kept for the backward pass."""
    by_prompt, by_completion = _query_shapes(x.k)
    scaled = x.q * x.k.shape[-1] ** -0.5
    padding = grids.prompt_padding_mask(x.k)
    to_prompt = torch.bmm(scaled.view(by_prompt), x.prompt_k[:, 0].mT)
    if padding is not None:
        to_prompt += padding[:, 0]
    causal = _causal_mask(x.q, x.k)
    to_own = torch.baddbmm(causal, scaled.view(by_completion), x.k.flatten(0, 1).mT)
    weights = torch.cat([to_prompt.view(*to_own.shape[:2], -1), to_own], -1).softmax(-1)
    on_prompt, on_own = weights.split([x.prompt_k.shape[2], x.k.shape[2]], -1)
    out = torch.bmm(on_own, x.v.flatten(0, 1)).view(by_prompt)
    out.baddbmm_(on_prompt.reshape(to_prompt.shape), x.prompt_v[:, 0])
    return out.view(x.q.shape), weights


def _attend_dense_backward(
    gradient: Tensor, x: _Inputs, grids: TokenGrids, kept: Sequence[Tensor]
) -> _Inputs:
    """The gradients of all five inputs, with w the weights and s the scores.

    ∂v = wᵀ∂o,  ∂w = ∂o·vᵀ,  ∂s = w·(∂w - Σ w·∂w),  ∂q = ∂s·k/√d,  ∂k = ∂sᵀ·q/√d
    """
    [weights] = kept
    by_prompt, by_completion = _query_shapes(x.k)
    split = [x.prompt_k.shape[2], x.k.shape[2]]
    dw_own = torch.bmm(gradient.view(by_completion), x.v.flatten(0, 1).mT)
    dw_prompt = torch.bmm(gradient.view(by_prompt), x.prompt_v[:, 0].mT)
    dw = torch.cat([dw_prompt.view(*dw_own.shape[:2], -1), dw_own], -1)
    scores = _softmax_backward(dw, weights, -1, weights.dtype)
    scores.mul_(x.k.shape[-1] ** -0.5)
    w_prompt, w_own = weights.split(split, -1)
    s_prompt, s_own = scores.split(split, -1)
    w_prompt, s_prompt = (t.reshape(len(x.k), -1, split[0]) for t in (w_prompt, s_prompt))
    dq = torch.bmm(s_own, x.k.flatten(0, 1)).view(by_prompt)
    return _Inputs(
        q=dq.baddbmm_(s_prompt, x.prompt_k[:, 0]).view(x.q.shape),
        k=torch.bmm(s_own.mT, x.q.view(by_completion)),
        v=torch.bmm(w_own.mT, gradient.view(by_completion)),
        prompt_k=torch.bmm(s_prompt.mT, x.q.view(by_prompt)),
        prompt_v=torch.bmm(w_prompt.mT, gradient.view(by_prompt)),
    )


def _causal_mask(q: Tensor, k: Tensor) -> Tensor:
    """(T·R, T) additive: -∞ where a key comes after the query."""
    width, repeats = k.shape[2], q.shape[-1] // k.shape[-1]
    mask = torch.full((width, width), float("-inf"), dtype=k.dtype, device=k.device).triu_(1)
    return mask.repeat_interleave(repeats, 0)


def _query_shapes(k: Tensor) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Two views of queries: per prompt, (P·K, G·T·R, d), and per completion, (P·K·G, T·R, d)."""
    return (len(k), -1, k.shape[-1]), (len(k) * k.shape[1], -1, k.shape[-1])


# ---- completions attend to their prompt and to themselves: long texts --------------------------


def _attend_blockwise(x: _Inputs, grids: TokenGrids) -> tuple[Tensor, Tensor, Tensor]:
    """Output, and output and normalizer ℓ for the backward pass

        o = o_c + σ(ℓ_p - ℓ_c)·(o_p - o_c),   ℓ = log(exp ℓ_p + exp ℓ_c),   ℓ_· = log Σ exp(scores)

    Attention to the prompt (p) and to the completion itself (c), merged by their weight:
    FlashAttention, arXiv:2205.14135 §3.1. No weights are kept, so memory is linear in length.
    """
    prompt_mask = grids.prompt_padding_mask(x.k)
    to_prompt, prompt_normalizer = _flash(
        _per_prompt(x.q, x.k), x.prompt_k, x.prompt_v, attn_mask=prompt_mask
    )
    own, own_normalizer = _causal(x.q, x.k, x.v)
    prompt_normalizer = prompt_normalizer.transpose(1, 2).reshape(own_normalizer.shape)
    share = torch.sigmoid(prompt_normalizer - own_normalizer).to(x.q.dtype)[..., None]
    heads = (*own_normalizer.shape, x.k.shape[-1])
    out = torch.lerp(own.view(heads), to_prompt.reshape(heads), share).view(x.q.shape)
    return out, out, torch.logaddexp(prompt_normalizer, own_normalizer)


def _attend_blockwise_backward(
    gradient: Tensor, x: _Inputs, grids: TokenGrids, kept: Sequence[Tensor]
) -> _Inputs:
    """The gradients of all five inputs.

    Each part gets the merged o and ℓ: exp(score - ℓ) is then the weight that a score really had.
    """
    out, normalizer = kept
    dq, dk, dv = _causal_backward(gradient, (x.q, x.k, x.v), out, normalizer)
    dq_prompt, dk_prompt, dv_prompt = _flash_backward(
        _per_prompt(gradient, x.k),
        _per_prompt(x.q, x.k),
        x.prompt_k,
        x.prompt_v,
        _per_prompt(out, x.k),
        normalizer.view(len(x.k), 1, -1),
        0.0,
        False,
        attn_mask=grids.prompt_padding_mask(x.k),
    )
    return _Inputs(dq + dq_prompt.reshape(x.q.shape), dk, dv, dk_prompt, dv_prompt)


def _per_prompt(q: Tensor, k: Tensor) -> Tensor:
    """All queries of a prompt's key head in one row: (P·K, G, T, R·d) -> (P·K, 1, G·T·R, d)."""
    return q.view(len(k), 1, -1, k.shape[-1])
