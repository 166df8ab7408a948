"""The output layer: log-probability of one token and entropy, from logits or from hidden states.

Derivatives are hand-written. `LogprobsFromStates` never holds all logits of a large vocabulary and
sums the weight's gradient in one buffer. With 151,936 tokens an update takes 7.3 in place of 11.2 s
and 2,008 in place of 2,266 MiB (docs/diary.md, 2026-11-21). Tests compare both functions with
torch's log_softmax in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from grpo_core.models.decoder import grad_buffer
from grpo_core.models.products import linear

# Logits held at once on a CPU, 128 MiB in float32. More are computed in chunks of a quarter, once
# in the forward and once more in the backward pass.
MAX_LOGITS = 2**25
# Bytes that a logit takes on a GPU: 2 in half precision, and twice 4 in float32.
GPU_LOGIT_BYTES = 10
BLOCK = 2**18  # logits processed at once: what fits a core's cache


def max_logits(device: torch.device) -> int:
    """Logits held at once: on a GPU those of an eighth of its memory.

    A GPU needs large chunks to be busy: of a vocabulary of 152,000 tokens, one of 80 GB computes
    1,700 rows at once, and with a CPU's limit 55.
    """
    if device.type != "cuda":
        return MAX_LOGITS
    memory = torch.cuda.get_device_properties(device).total_memory
    return max(MAX_LOGITS, memory // 8 // GPU_LOGIT_BYTES)


@dataclass(frozen=True, slots=True)
class _Results:
    """Per token, (N,) each, in at least float32."""

    logprobs: Tensor  # log π(chosen)
    normalizer: Tensor  # log Σ e^(logit/T)
    entropy: Tensor | None

    @classmethod
    def empty(cls, like: Tensor, with_entropy: bool) -> _Results:
        """Room for len(like) tokens."""
        dtype = torch.promote_types(like.dtype, torch.float32)
        rows = torch.empty(2 + with_entropy, len(like), dtype=dtype, device=like.device)
        return cls(rows[0], rows[1], rows[2] if with_entropy else None)

    def at(self, rows: slice) -> _Results:
        entropy = None if self.entropy is None else self.entropy[rows]
        return _Results(self.logprobs[rows], self.normalizer[rows], entropy)


@dataclass(frozen=True, slots=True)
class _Saved:
    """What the backward pass needs beside the logits, (N,) each."""

    chosen: Tensor
    normalizer: Tensor
    entropy: Tensor | None
    by_logprob: Tensor | None  # ∂loss/∂ log π(chosen)
    by_entropy: Tensor | None  # ∂loss/∂H
    temperature: float

    def at(self, rows: slice) -> _Saved:
        return _Saved(
            self.chosen[rows],
            self.normalizer[rows],
            None if self.entropy is None else self.entropy[rows],
            None if self.by_logprob is None else self.by_logprob[rows],
            None if self.by_entropy is None else self.by_entropy[rows],
            self.temperature,
        )


# torch calls `backward` with one gradient for each output; its stub knows only *grad_outputs, so
# both overrides carry the same ignore.


class LogprobsFromLogits(torch.autograd.Function):
    """(N, V) logits -> log π(chosen) and entropy H, (N,) each, with π = softmax(logits/T).

        ∂ log π(c)/∂ logits = (e_c - π)/T,   ∂H/∂ logits = -π·(log π + H)/T

    On a CPU one cache-sized block of rows at a time. in_place: the gradient takes the place of the
    logits, so memory holds them once. If anything still needs their values, torch raises an error.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        chosen: Tensor,
        temperature: float,
        with_entropy: bool,
        in_place: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        results = _Results.empty(logits, with_entropy)
        _fill(results, logits, chosen, temperature)
        ctx.save_for_backward(logits, chosen, results.entropy, results.normalizer)
        ctx.temperature, ctx.in_place = temperature, in_place
        ctx.set_materialize_grads(False)
        return results.logprobs, results.entropy

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, by_logprob: Tensor | None, by_entropy: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        logits, chosen, entropy, normalizer = ctx.saved_tensors
        saved = _Saved(chosen, normalizer, entropy, by_logprob, by_entropy, ctx.temperature)
        gradient = _logits_gradient(logits if ctx.in_place else logits.clone(), saved)
        return gradient, None, None, None, None


class LogprobsFromStates(torch.autograd.Function):
    """The same from states (N, H), and the weight (V, H) and bias (V,) of a linear output layer.

    At most max_logits/4 logits exist at a time; the backward pass computes them again. The weight's
    gradient, as large as the layer, is summed in one buffer: in `weight.grad` itself if in_place,
    as in decoder.InPlaceEmbedding.
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
        results = _Results.empty(states, with_entropy)
        for rows in _chunks(states, weight):
            logits = linear(states[rows], weight, bias)
            _fill(results.at(rows), logits, chosen[rows], temperature)
        normalizer = results.normalizer
        ctx.save_for_backward(states, weight, bias, chosen, results.entropy, normalizer)
        ctx.temperature = temperature
        in_place = in_place and weight.is_leaf and weight.dtype == normalizer.dtype
        ctx.leaf = weight if in_place else None
        ctx.set_materialize_grads(False)
        return results.logprobs, results.entropy

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, by_logprob: Tensor | None, by_entropy: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        states, weight, bias, chosen, entropy, normalizer = ctx.saved_tensors
        saved = _Saved(chosen, normalizer, entropy, by_logprob, by_entropy, ctx.temperature)
        by_states = torch.empty_like(states)
        # Sums in float32: bfloat16 would lose the later of a hundred chunks.
        wide = normalizer.dtype
        by_weight = by_bias = None
        if ctx.needs_input_grad[1]:
            in_place = ctx.leaf is not None
            by_weight = grad_buffer(ctx.leaf) if in_place else torch.zeros_like(weight, dtype=wide)
        if ctx.needs_input_grad[2]:
            by_bias = torch.zeros_like(bias, dtype=wide)
        for rows in _chunks(states, weight):
            logits = linear(states[rows], weight, bias)
            slope = _logits_gradient(logits, saved.at(rows))
            by_states[rows] = linear(slope, weight.T)
            if by_weight is not None and slope.dtype == wide:
                by_weight.addmm_(slope.T, states[rows])
            elif by_weight is not None:  # a GPU multiplies half precision faster
                by_weight += slope.T @ states[rows]
            if by_bias is not None:
                by_bias += slope.sum(0)
            del logits, slope  # frees them before the next chunk is computed
        # None where the gradient was added to weight.grad already.
        returned = None if by_weight is None or ctx.leaf is not None else by_weight.to(weight.dtype)
        by_bias = None if by_bias is None else by_bias.to(bias.dtype)
        return by_states, returned, by_bias, None, None, None, None


def _fill(results: _Results, logits: Tensor, chosen: Tensor, temperature: float) -> None:
    """Write the results of logits (n, V) and chosen tokens (n,)."""
    for rows in _blocks(logits):
        block = _scaled(logits[rows].to(results.logprobs.dtype), temperature)
        logprobs = block.log_softmax(-1)
        results.logprobs[rows] = logprobs.gather(-1, chosen[rows, None])[:, 0]
        results.normalizer[rows] = block[:, 0] - logprobs[:, 0]
        if results.entropy is not None:
            results.entropy[rows] = logprobs.exp().mul_(logprobs).sum(-1).neg_()


def _logits_gradient(logits: Tensor, saved: _Saved) -> Tensor:
    """∂loss/∂ logits (n, V), written in place of the logits."""
    normalizer, temperature = saved.normalizer, saved.temperature
    by_logprob = torch.zeros_like(normalizer) if saved.by_logprob is None else saved.by_logprob
    for rows in _blocks(logits):
        scaled = _scaled(logits[rows].to(normalizer.dtype), temperature)
        logprobs = scaled.sub_(normalizer[rows, None])
        weight = by_logprob[rows, None]
        if saved.by_entropy is not None:
            assert saved.entropy is not None
            surprise = logprobs + saved.entropy[rows, None]
            weight = weight + saved.by_entropy[rows, None] * surprise
        torch.mul(logprobs.exp_(), weight / -temperature, out=logits[rows])
    at_chosen = (by_logprob / temperature).to(logits.dtype)[:, None]
    return logits.scatter_add_(-1, saved.chosen[:, None], at_chosen)


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    return logits if temperature == 1 else logits / temperature


def _chunks(states: Tensor, weight: Tensor) -> list[slice]:
    return _slices(len(states), max_logits(weight.device) // 4 // len(weight))


def _blocks(logits: Tensor) -> list[slice]:
    on_cpu = logits.device.type == "cpu"
    return _slices(len(logits), BLOCK // logits.shape[-1] if on_cpu else len(logits))


def _slices(length: int, size: int) -> list[slice]:
    return [slice(start, start + max(1, size)) for start in range(0, length, max(1, size))]
