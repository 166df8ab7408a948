"""The output layer: from logits, or from the states that make them, to the log-probability of one token each. Derivatives written down."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from grpo_core.models.decoder import gradient_of
from grpo_core.models.products import product

MAX_LOGITS = (
    2**25
)  # logits held at once, 128 MiB in float32; beyond that they are made in chunks of a quarter as many, twice
BLOCK = 2**18  # logits worked on at once: what fits a core's cache


class Chosen(torch.autograd.Function):
    """(N, V) logits -> log π(chosen) and the entropy H of π = softmax(logits/T), (N,) each, a cache-sized block of rows at a time.

    ∂ log π(c)/∂ logits = (e_c - π)/T,  ∂H/∂ logits = -π·(log π + H)/T
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, chosen: Tensor, temperature: float, with_entropy: bool
    ) -> tuple[Tensor, Tensor | None]:
        picked, normaliser, entropy = _results(logits, with_entropy)
        _look_up(logits, chosen, temperature, picked, normaliser, entropy)
        ctx.save_for_backward(logits, chosen, entropy, normaliser)
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)
        return picked, entropy

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, by_logprob: Tensor | None, by_entropy: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        logits, chosen, entropy, normaliser = ctx.saved_tensors
        return (
            _slope(
                logits,
                chosen,
                entropy,
                normaliser,
                by_logprob,
                by_entropy,
                ctx.temperature,
                torch.empty_like(logits),
            ),
            None,
            None,
            None,
        )


class ThroughHead(torch.autograd.Function):
    """The same from states (N, H) and the weight (V, H) and bias of a linear output layer; at most MAX_LOGITS/4 logits exist at a time.

    They are made once more for the gradient; that of the weight is summed up in one place, as it is as large as the layer: in its own `.grad`
    if `in_place`, see family.Embedded.
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        chosen: Tensor,
        temperature: float,
        with_entropy: bool,
        in_place: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        picked, normaliser, entropy = results = _results(states, with_entropy)
        for at in _chunks(states, weight):
            _look_up(
                product(states[at], weight, bias),
                chosen[at],
                temperature,
                *(None if t is None else t[at] for t in results),
            )
        ctx.save_for_backward(states, weight, bias, chosen, entropy, normaliser)
        ctx.temperature = temperature
        ctx.leaf = (
            weight if in_place and weight.is_leaf and weight.dtype == normaliser.dtype else None
        )
        ctx.set_materialize_grads(False)
        return picked, entropy

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, by_logprob: Tensor | None, by_entropy: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        states, weight, bias, chosen, entropy, normaliser = ctx.saved_tensors
        by_states = torch.empty_like(states)
        # In single precision: bfloat16 would lose the later of a hundred chunks.
        by_weight = None
        if ctx.needs_input_grad[1]:
            by_weight = (
                torch.zeros_like(weight, dtype=normaliser.dtype)
                if ctx.leaf is None
                else gradient_of(ctx.leaf)
            )
        by_bias = (
            torch.zeros_like(bias, dtype=normaliser.dtype) if ctx.needs_input_grad[2] else None
        )
        for at in _chunks(states, weight):
            logits = product(states[at], weight, bias)
            slope = _slope(
                logits,
                *(
                    None if t is None else t[at]
                    for t in (chosen, entropy, normaliser, by_logprob, by_entropy)
                ),
                ctx.temperature,
                logits,
            )
            torch.mm(slope, weight, out=by_states[at])
            if by_weight is not None:
                by_weight.addmm_(slope.T.to(by_weight.dtype), states[at].to(by_weight.dtype))
            if by_bias is not None:
                by_bias += slope.sum(0)
            del logits, slope  # before the next are made
        given = None if by_weight is None or ctx.leaf is not None else by_weight.to(weight.dtype)
        return (
            by_states,
            given,
            None if by_bias is None else by_bias.to(bias.dtype),
            None,
            None,
            None,
            None,
        )


def _results(like: Tensor, with_entropy: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Log-probability, log Σ e^(logit/T) and entropy of N tokens, in at least single precision."""
    empty = torch.empty(
        2 + with_entropy,
        len(like),
        dtype=torch.promote_types(like.dtype, torch.float32),
        device=like.device,
    )
    return (*empty, None) if not with_entropy else tuple(empty)


def _look_up(
    logits: Tensor,
    chosen: Tensor,
    temperature: float,
    picked: Tensor,
    normaliser: Tensor,
    entropy: Tensor | None,
) -> None:
    """Fill the last three, (n,) each."""
    for at in _blocks(logits):
        block = _scaled(logits[at].to(picked.dtype), temperature)
        logprobs = block.log_softmax(-1)
        picked[at] = logprobs.gather(-1, chosen[at, None])[:, 0]
        normaliser[at] = block[:, 0] - logprobs[:, 0]
        if entropy is not None:
            entropy[at] = logprobs.exp().mul_(logprobs).sum(-1).neg_()


def _slope(
    logits: Tensor,
    chosen: Tensor,
    entropy: Tensor | None,
    normaliser: Tensor,
    by_logprob: Tensor | None,
    by_entropy: Tensor | None,
    temperature: float,
    out: Tensor,
) -> Tensor:
    """∂/∂ logits, into `out`, which may be the logits."""
    by_logprob = torch.zeros_like(normaliser) if by_logprob is None else by_logprob
    for at in _blocks(logits):
        logprobs = _scaled(logits[at].to(normaliser.dtype), temperature) - normaliser[at, None]
        weight = by_logprob[at, None]
        if by_entropy is not None:
            weight = weight + by_entropy[at, None] * (logprobs + entropy[at, None])
        torch.mul(
            logprobs.exp_(),
            weight / -temperature,
            out=out[at] if out.dtype == logprobs.dtype else logprobs,
        )
        if out.dtype != logprobs.dtype:
            out[at] = logprobs
    return out.scatter_add_(-1, chosen[:, None], (by_logprob / temperature).to(out.dtype)[:, None])


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    return logits if temperature == 1 else logits / temperature


def _chunks(states: Tensor, weight: Tensor) -> list[slice]:
    return _slices(len(states), MAX_LOGITS // 4 // len(weight))


def _blocks(logits: Tensor) -> list[slice]:
    return _slices(
        len(logits), BLOCK // logits.shape[-1] if logits.device.type == "cpu" else len(logits)
    )


def _slices(length: int, size: int) -> list[slice]:
    return [slice(start, start + max(1, size)) for start in range(0, length, max(1, size))]
