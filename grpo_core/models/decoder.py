"""The decoder that Llama, Mistral, Qwen2 and Qwen3 share, computed with fewer, larger operations.

It reads the parameters of a loaded model. Normalisation, rotation and gate are one operation each,
with hand-written derivatives, because a small model spends most of its time between matrix
products. The caller supplies the attention, so one forward serves training, prefill and decoding.
The plain path that tests compare with is the model's own forward.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from grpo_core.models import products

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")
# Rotary variants whose angles do not depend on the length of the text.
ROPE_TYPES = ("default", "linear", "llama3")

# What a forward pass returns, whatever the configuration says. The routers' loss of a mixture of
# experts, for instance, cannot be computed while decoding.
PLAIN_OUTPUTS = {
    "output_router_logits": False,
    "output_attentions": False,
    "output_hidden_states": False,
}

# What architectures raise that do not accept a mask or a cache of another form than their own.
REFUSALS = (TypeError, ValueError, RuntimeError, IndexError, AttributeError, KeyError)

# layer, queries (R, W, heads, d), keys and values (R, W, kv heads, d) -> (R, W, heads, d)
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class FusedDecoder:
    """A view of a loaded model's layers. It owns no weights, so it always uses the current ones."""

    body: Any  # transformers' base model
    head_dim: int
    eps: Tensor  # (); as a Python number, every operation would convert it to a tensor again

    @classmethod
    def of(cls, model: nn.Module, longest: int | None = None) -> FusedDecoder | None:
        """None where `why_not_fused` gives a reason."""
        if why_not_fused(model, longest):
            return None
        body: Any = model.model
        weight = body.norm.weight
        eps = torch.tensor(
            cast("Any", model.config).rms_norm_eps,
            dtype=torch.promote_types(weight.dtype, torch.float32),
            device=weight.device,
        )
        return cls(body, body.layers[0].self_attn.head_dim, eps)

    def states(
        self,
        ids: Tensor,
        positions: Tensor,
        attend: Attend,
        recompute: bool = False,
        in_place: bool = False,
    ) -> Tensor:
        """ids, positions (R, W) -> last hidden states (R, W, H).

        recompute: see `recomputing`. in_place: see `InPlaceEmbedding`.
        """
        table = self.body.embed_tokens
        if in_place and _adds_rows_in_place(table):
            x = InPlaceEmbedding.apply(ids, table.weight, table.padding_idx)
        else:
            x = table(ids)
        # The two halves are equal, so one is kept: (R, W, 1, d/2).
        cos, sin = (t[:, :, None, : self.head_dim // 2] for t in self.body.rotary_emb(x, positions))
        layer = partial(checkpointed, self._layer) if recompute else self._layer
        for i in range(len(self.body.layers)):
            x = layer(i, x, (cos, sin), attend)
        norm, _, _ = self._operations()
        return norm(x, self.body.norm.weight, self.eps)

    def _layer(self, i: int, x: Tensor, rotation: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        layer = self.body.layers[i]
        attention, mlp = layer.self_attn, layer.mlp
        norm, rotate, gated = self._operations()
        heads = (*x.shape[:2], -1, self.head_dim)
        h = norm(x, layer.input_layernorm.weight, self.eps)
        q = products.apply(attention.q_proj, h).view(heads)
        k = products.apply(attention.k_proj, h).view(heads)
        v = products.apply(attention.v_proj, h).view(heads)
        if hasattr(attention, "q_norm"):
            q = norm(q, attention.q_norm.weight, self.eps)
            k = norm(k, attention.k_norm.weight, self.eps)
        attended = attend(i, rotate(q, *rotation), rotate(k, *rotation), v)
        x = x + products.apply(attention.o_proj, attended.reshape(*x.shape[:2], -1))
        h = norm(x, layer.post_attention_layernorm.weight, self.eps)
        gate, up = products.apply(mlp.gate_proj, h), products.apply(mlp.up_proj, h)
        return x + products.apply(mlp.down_proj, gated(gate, up))

    @staticmethod
    def _operations() -> tuple[Callable[..., Any], ...]:
        """RMS norm, rotation and gate, as autograd functions only where a gradient is recorded."""
        if torch.is_grad_enabled():
            return _RMSNorm.apply, _Rotate.apply, _SwiGLU.apply
        return rms_norm, rotate, swiglu


def why_not_fused(model: nn.Module, longest: int | None = None) -> str:
    """Why only the model's own code can compute it; "" where FusedDecoder can.

    longest: tokens of the longest text. A window of attention that no text exceeds hides nothing.
    """
    config: Any = getattr(model, "config", None)
    body: Any = getattr(model, "model", None)
    kind = getattr(config, "model_type", None)
    if kind not in ARCHITECTURES or not hasattr(body, "layers"):
        return f"there is no fused decoder for {kind or type(model).__name__}"
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope not in ROPE_TYPES:
        return f"its rotary angles are of the kind {rope}"
    window = getattr(config, "sliding_window", None)
    slides = "sliding_attention" in (getattr(config, "layer_types", None) or ()) or (
        kind == "mistral" and window is not None
    )
    if slides and (longest is None or window is None or longest > window):
        return f"its layers see the last {window} tokens only"
    if config.hidden_act != "silu":
        return f"its gate is {config.hidden_act}"
    for layer in body.layers:
        for name in _PROJECTIONS:
            projection: Any = layer.get_submodule(name)
            if not _is_product(getattr(projection, "base_layer", projection)):
                return f"its layers have products of the kind {type(projection).__name__}"
    return ""


_PROJECTIONS = (
    *(f"self_attn.{n}_proj" for n in "qkvo"),
    *(f"mlp.{n}_proj" for n in ("gate", "up", "down")),
)


def _is_product(layer: nn.Module) -> bool:
    """Whether a layer computes x·Wᵀ + b: torch's own, or one whose W is kept in four bits."""
    kind = type(layer)
    return kind is nn.Linear or (kind.__module__, kind.__name__) == _FOUR_BITS


_FOUR_BITS = ("bitsandbytes.nn.modules", "Linear4bit")


# Keeps only the inputs, and computes the rest again in the backward pass.
checkpointed = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)


@contextmanager
def recomputing(model: nn.Module) -> Iterator[None]:
    """Layers keep only their inputs and are computed again in the backward pass.

    Chen et al. 2016, arXiv:1604.06174. The model's own switch needs training mode, which would also
    turn dropout on.
    """
    layers: Any = next((m for m in model.modules() if isinstance(m, nn.ModuleList)), [])
    before = [vars(layer).get("forward") for layer in layers]
    try:
        for layer in layers:
            layer.forward = partial(checkpointed, layer.forward)
        yield
    finally:
        for layer, forward in zip(layers, before, strict=True):
            del layer.forward
            if forward is not None:
                layer.forward = forward


def masked_attention(mask: Tensor) -> Attend:
    """Attention under an additive mask (R, 1, W, W)."""

    def attend(_: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        if q.is_cuda:  # no fast kernel there takes a mask together with shared key heads
            k, v = (t.repeat_interleave(q.shape[1] // k.shape[1], 1) for t in (k, v))
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, enable_gqa=q.shape[1] != k.shape[1]
        ).transpose(1, 2)

    return attend


# ---- fused operations --------------------------------------------------------------------------
# torch calls `backward` with one gradient for each output; its stub knows only *grad_outputs, so
# each override below carries the same ignore.


def rms_norm(x: Tensor, weight: Tensor, eps: Tensor) -> Tensor:
    """x/√(mean x² + ε)·w without a gradient.

    weight (…, H) may differ along x's last dimensions but one: queries and keys share one call.
    """
    wide, scale = _inverse_rms(x, eps)
    return torch.mul(wide, scale).to(x.dtype).mul_(weight)


def _inverse_rms(x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    """x in at least float32, and 1/√(mean x² + ε)."""
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    return wide, torch.addcmul(eps, norm, norm, value=1 / x.shape[-1]).rsqrt_()


class _RMSNorm(torch.autograd.Function):
    """y = x/√(mean x² + ε)·w      Zhang and Sennrich 2019, arXiv:1910.07467

    with x̂ = x/√…:  ∂w = Σ ∂y·x̂,  ∂x = (∂y·w - x̂·mean(∂y·w·x̂))/√…
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: Tensor) -> Tensor:
        wide, scale = _inverse_rms(x, eps)
        ctx.save_for_backward(x, weight, scale)
        return torch.mul(wide, scale).to(x.dtype).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        size = x.shape[-1]
        wide = gradient.to(scale.dtype)
        unit = torch.mul(x.to(scale.dtype), scale).view(-1, size)
        by_unit = torch.mul(wide.reshape(-1, size), unit)
        shared = torch.mv(by_unit, weight.to(scale.dtype)).div_(size)[:, None]
        out = torch.mul(wide, weight).view(-1, size).addcmul_(unit, shared, value=-1)
        out = out.view(x.shape).mul_(scale)
        return out.to(x.dtype), by_unit.sum(0).to(weight.dtype), None


class InPlaceEmbedding(torch.autograd.Function):
    """Rows of a table (V, H). The backward pass adds their gradient to the rows of `table.grad`.

    This avoids a gradient as large as the table, and is part of what took W3 from 2,222 to 1,661
    MiB (docs/diary.md, 2026-11-24). torch.autograd.grad finds no gradient for the table, so use it
    only where the backward pass accumulates in `.grad`.
    """

    @staticmethod
    def forward(ctx: Any, ids: Tensor, table: Tensor, padding_id: int | None) -> Tensor:
        ctx.save_for_backward(ids)
        # The parameter itself: save_for_backward would return another tensor, without its `.grad`.
        ctx.table = table
        ctx.padding_id = padding_id
        return F.embedding(ids, table)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, gradient: Tensor
    ) -> tuple[None, None, None]:
        [ids] = ctx.saved_tensors
        if ctx.padding_id is not None:  # nn.Embedding gives this row no gradient either
            gradient = gradient.masked_fill((ids == ctx.padding_id)[..., None], 0.0)
        grad_buffer(ctx.table).index_add_(0, ids.flatten(), gradient.flatten(0, -2))
        return None, None, None


def _adds_rows_in_place(table: Any) -> bool:
    """On a GPU, index_add_ would give different sums from run to run."""
    return (
        type(table) is nn.Embedding
        and table.weight.requires_grad
        and table.weight.device.type == "cpu"
    )


def grad_buffer(leaf: Tensor) -> Tensor:
    """`leaf.grad`, created as zeros where it is None."""
    if leaf.grad is None:
        leaf.grad = torch.zeros_like(leaf)
    return leaf.grad


class _Rotate(torch.autograd.Function):
    """Rotary positions: rotate the pair (x_i, x_{i+d/2}) by its angle.   Su 2021, arXiv:2104.09864

    x (R, W, heads, d); cos, sin (R, W, 1, d/2). The derivative is the rotation by minus the angle.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return rotate(x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return rotate(gradient, cos, sin, 1), None, None


def rotate(x: Tensor, cos: Tensor, sin: Tensor, sign: int = -1) -> Tensor:
    """Rotate each pair by its angle; with sign 1, by minus the angle."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    first, second = x.chunk(2, -1)
    to_first, to_second = out.chunk(2, -1)
    torch.mul(first, cos, out=to_first).addcmul_(second, sin, value=sign)
    torch.mul(second, cos, out=to_second).addcmul_(first, sin, value=-sign)
    return out


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate)·up without a gradient."""
    return F.silu(gate).mul_(up)


class _SwiGLU(torch.autograd.Function):
    """silu(gate)·up      Shazeer 2020, arXiv:2002.05202

    The backward pass computes silu(gate) again instead of keeping it.
    """

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return swiglu(gate, up)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        by_gate = torch.ops.aten.silu_backward(torch.mul(gradient, up), gate)
        return by_gate, F.silu(gate).mul_(gradient)


# ---- the model's own forward ---------------------------------------------------------------------


def positions(attention_mask: Tensor) -> Tensor:
    """Each token's position from its row's first real token; padding gets 0."""
    return (attention_mask.cumsum(1) - 1).clamp(min=0)


def forward(
    model: nn.Module, weights: Mapping[str, Tensor] | None = None, /, **arguments: Any
) -> Any:
    """model(**arguments) without the arguments that the model does not accept.

    An ALiBi model accepts no position_ids, for instance. weights: by name, used in place of the
    model's own. The configuration may ask for outputs that nothing here reads: they are not made.
    """
    config = getattr(model, "config", None)
    for name, value in PLAIN_OUTPUTS.items():
        if getattr(config, name, value) != value:
            arguments[name] = value
    parameters = inspect.signature(model.forward).parameters
    if "past_key_values" in arguments and "cache" in parameters:  # its newer name
        arguments["cache"] = arguments.pop("past_key_values")
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        arguments = {k: v for k, v in arguments.items() if k in parameters}
    if weights is None:
        return model(**arguments)
    return functional_call(model, dict(weights), (), arguments)
