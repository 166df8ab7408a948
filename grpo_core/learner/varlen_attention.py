"""Attention of the flat layout on a GPU: a kernel for sequences of different lengths, no mask.

Prompt tokens attend to their prompt, completion tokens to their prompt and to their completion so
far. That is three calls of one kernel, and the last two are merged by their weight, as in
packed_attention.py. Nothing is padded: memory and time are linear in the tokens of a batch, where a
dense mask is quadratic and forbids every fast kernel.

`flash` is FlashAttention (arXiv:2205.14135, arXiv:2307.08691) as torch carries it. `reference`
computes the same on any device and in any precision; tests compare it with the model's own code.
Its arithmetic is the same, so only the kernel itself is untested without a GPU. Before a run uses
either, `packing_is_exact` compares it with the model's own attention.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from grpo_core.models.decoder import Attend

MAX_HEAD_DIM = 256  # of the flash kernel
_forward = torch.ops.aten._flash_attention_forward
_backward = torch.ops.aten._flash_attention_backward


class Sequences(NamedTuple):
    """S sequences that lie one after another in a tensor of N tokens."""

    ends: Tensor  # (S + 1,) int32: 0 and where each sequence ends
    longest: int

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> Sequences:
        ends = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
        return cls(ends, max(lengths))


@dataclass(frozen=True, slots=True)
class Span:
    """Which keys the queries of each sequence attend to."""

    queries: Sequences
    keys: Sequences
    causal: bool


# q (N, heads, d), k and v (M, kv heads, d), span -> output like q, normaliser log Σ exp(scores)
# (heads, N), and what the backward pass needs besides.
Forward = Callable[[Tensor, Tensor, Tensor, Span], tuple[Tensor, Tensor, tuple[Tensor, ...]]]
# ∂output, (q, k, v), (output, normaliser), the rest, span -> ∂q, ∂k, ∂v
Backward = Callable[
    [
        Tensor,
        tuple[Tensor, Tensor, Tensor],
        tuple[Tensor, Tensor],
        tuple[Tensor, ...],
        Span,
    ],
    tuple[Tensor, Tensor, Tensor],
]


@dataclass(frozen=True, slots=True)
class Kernel:
    forward: Forward
    backward: Backward


def kernel_for(device: torch.device, dtype: torch.dtype, head_dim: int) -> Kernel | None:
    """The kernel for these tensors; None: the flat layout's attention cannot be computed there.

    FlashAttention needs half precision, an NVIDIA card of the Ampere generation or newer, and heads
    of at most 256, a multiple of 8.
    """
    if (
        device.type == "cuda"
        and dtype in (torch.float16, torch.bfloat16)
        and head_dim % 8 == 0
        and head_dim <= MAX_HEAD_DIM
        and torch.cuda.get_device_capability(device)[0] >= 8
    ):
        return Kernel(_flash_forward, _flash_backward)
    return None


@dataclass(frozen=True, slots=True)
class Spans:
    """The three kinds of attention of a flat layout, prompts first."""

    num_prompt_tokens: int
    in_prompts: Span
    in_completions: Span
    to_prompts: Span  # from the completions of each group

    @classmethod
    def of(
        cls, prompts: Sequence[int], completions: Sequence[Sequence[int]], device: torch.device
    ) -> Spans:
        """Lengths of P prompts, and of the completions of each."""
        prompt = Sequences.of(prompts, device)
        own = Sequences.of([n for lengths in completions for n in lengths], device)
        groups = Sequences.of([sum(lengths) for lengths in completions], device)
        return cls(
            num_prompt_tokens=sum(prompts),
            in_prompts=Span(prompt, prompt, causal=True),
            in_completions=Span(own, own, causal=True),
            to_prompts=Span(groups, prompt, causal=False),
        )


def attend(spans: Spans, kernel: Kernel) -> Attend:
    """The attention of `FusedDecoder.states` for one row of N tokens."""
    return lambda _, q, k, v: _Attention.apply(q, k, v, spans, kernel)


class _Attention(torch.autograd.Function):
    """q (1, N, heads, d), k and v (1, N, kv heads, d) -> (1, N, heads, d).

    o = o_c + σ(ℓ_p - ℓ_c)·(o_p - o_c),   ℓ = log(exp ℓ_p + exp ℓ_c),   ℓ_· = log Σ exp(scores)
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, spans: Spans, kernel: Kernel) -> Tensor:
        cut = spans.num_prompt_tokens
        qp, qc, kp, kc, vp, vc = (part for t in (q, k, v) for part in _split(t[0], cut))
        prompt_out, prompt_normalizer, rest_p = kernel.forward(qp, kp, vp, spans.in_prompts)
        to_prompt, to_normalizer, rest_t = kernel.forward(qc, kp, vp, spans.to_prompts)
        own, own_normalizer, rest_c = kernel.forward(qc, kc, vc, spans.in_completions)
        share = torch.sigmoid(to_normalizer - own_normalizer).t()[..., None].to(q.dtype)
        out = torch.lerp(own, to_prompt, share)
        normalizer = torch.logaddexp(to_normalizer, own_normalizer)
        ctx.save_for_backward(q, k, v, prompt_out, prompt_normalizer, out, normalizer)
        ctx.spans, ctx.kernel, ctx.rest = spans, kernel, (rest_p, rest_t, rest_c)
        return torch.cat([prompt_out, out])[None]

    # torch calls this with one gradient for each output; its stub knows only *grad_outputs.
    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, prompt_out, prompt_normalizer, out, normalizer = ctx.saved_tensors
        spans, backward, (rest_p, rest_t, rest_c) = ctx.spans, ctx.kernel.backward, ctx.rest
        cut = spans.num_prompt_tokens
        qp, qc, kp, kc, vp, vc = (part for t in (q, k, v) for part in _split(t[0], cut))
        by_prompt, by_completion = _split(gradient[0].contiguous(), cut)
        prompt, merged = (prompt_out, prompt_normalizer), (out, normalizer)
        dqp, dkp, dvp = backward(by_prompt, (qp, kp, vp), prompt, rest_p, spans.in_prompts)
        # Each part gets the merged output and normaliser: exp(score - ℓ) is then the weight that a
        # score really had.
        dqt, dkt, dvt = backward(by_completion, (qc, kp, vp), merged, rest_t, spans.to_prompts)
        dqc, dkc, dvc = backward(by_completion, (qc, kc, vc), merged, rest_c, spans.in_completions)
        dq = torch.cat([dqp, dqt + dqc])
        dk, dv = torch.cat([dkp + dkt, dkc]), torch.cat([dvp + dvt, dvc])
        return dq[None], dk[None], dv[None], None, None


def _split(tokens: Tensor, cut: int) -> tuple[Tensor, Tensor]:
    return tokens[:cut], tokens[cut:]


# ---- torch's FlashAttention ----------------------------------------------------------------------


def _lengths(span: Span) -> tuple[Tensor, Tensor, int, int]:
    return span.queries.ends, span.keys.ends, span.queries.longest, span.keys.longest


def _flash_forward(
    q: Tensor, k: Tensor, v: Tensor, span: Span
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    if not len(q):  # completions of one token; the kernel cannot be launched for no query
        return q, q.new_empty(q.shape[1], 0, dtype=torch.float32), ()
    out, normalizer, *rest, _ = _forward(q, k, v, *_lengths(span), 0.0, span.causal, False)
    return out, normalizer, tuple(rest)  # the rest: random states of dropout, which is off


def _flash_backward(
    gradient: Tensor,
    qkv: tuple[Tensor, Tensor, Tensor],
    results: tuple[Tensor, Tensor],
    rest: tuple[Tensor, ...],
    span: Span,
) -> tuple[Tensor, Tensor, Tensor]:
    if not len(gradient):
        q, k, v = qkv
        return q, torch.zeros_like(k), torch.zeros_like(v)
    return _backward(gradient, *qkv, *results, *_lengths(span), 0.0, span.causal, *rest)


# ---- the same, one sequence after another --------------------------------------------------------


def _reference_forward(
    q: Tensor, k: Tensor, v: Tensor, span: Span
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """o = softmax(q·kᵀ/√d)·v for each sequence; nothing is left for the backward pass."""
    out, normalizer = torch.empty_like(q), q.new_empty(q.shape[1], len(q))
    for queries, keys in _slices(span):
        scores = _scores(q[queries], k[keys], span.causal)  # (heads, n, m)
        values = _heads(v[keys], q.shape[1])
        normalizer[:, queries] = scores.logsumexp(-1)
        out[queries] = (scores.softmax(-1) @ values).transpose(0, 1)
    return out, normalizer, ()


def _reference_backward(
    gradient: Tensor,
    qkv: tuple[Tensor, Tensor, Tensor],
    results: tuple[Tensor, Tensor],
    rest: tuple[Tensor, ...],
    span: Span,
) -> tuple[Tensor, Tensor, Tensor]:
    """With w = exp(s - ℓ):  ∂v = wᵀ∂o,  ∂s = w·(∂o·vᵀ - Σ ∂o·o),  ∂q = ∂s·k/√d,  ∂k = ∂sᵀ·q/√d"""
    q, k, v = qkv
    out, normalizer = results
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    heads, scale = q.shape[1], q.shape[-1] ** -0.5
    for queries, keys in _slices(span):
        by_out = gradient[queries].transpose(0, 1)  # (heads, n, d)
        weights = (_scores(q[queries], k[keys], span.causal) - normalizer[:, queries, None]).exp()
        delta = (by_out * out[queries].transpose(0, 1)).sum(-1, keepdim=True)
        by_scores = weights * (by_out @ _heads(v[keys], heads).mT - delta) * scale
        dq[queries] = (by_scores @ _heads(k[keys], heads)).transpose(0, 1)
        dk[keys] = _kv_heads(by_scores.mT @ q[queries].transpose(0, 1), k.shape[1])
        dv[keys] = _kv_heads(weights.mT @ by_out, k.shape[1])
    return dq, dk, dv


REFERENCE = Kernel(_reference_forward, _reference_backward)


def _slices(span: Span) -> list[tuple[slice, slice]]:
    queries, keys = span.queries.ends.tolist(), span.keys.ends.tolist()
    return [
        (slice(queries[i], queries[i + 1]), slice(keys[i], keys[i + 1]))
        for i in range(len(queries) - 1)
    ]


def _scores(q: Tensor, k: Tensor, causal: bool) -> Tensor:
    """q (n, heads, d), k (m, kv heads, d) -> (heads, n, m)"""
    scores = q.transpose(0, 1) @ _heads(k, q.shape[1]).mT * q.shape[-1] ** -0.5
    if causal:
        later = torch.ones(scores.shape[1:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(later, float("-inf"))
    return scores


def _heads(tokens: Tensor, heads: int) -> Tensor:
    """(m, kv heads, d) -> (heads, m, d): query heads share the memory of a key head."""
    return tokens.transpose(0, 1).repeat_interleave(heads // tokens.shape[1], 0)


def _kv_heads(by_heads: Tensor, kv_heads: int) -> Tensor:
    """The inverse for gradients: (heads, m, d) -> (m, kv heads, d), summed over query heads."""
    return by_heads.unflatten(0, (kv_heads, -1)).sum(1).transpose(0, 1)
