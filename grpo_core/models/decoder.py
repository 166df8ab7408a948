"""The decoder that Llama, Mistral, Qwen2 and Qwen3 share, written out once: the model's own parameters, fewer and larger operations.

A small model spends most of its time not in matrix products but around them. Here normalisation, rotation and gate are one operation
each, with their derivatives written down; what attends to what is the caller's, so that one forward serves training, prefill and decoding.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from grpo_core.models.products import prepared, product

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")
ROPE_TYPES = (
    "default",
    "linear",
    "llama3",
)  # those whose angles do not depend on how long the text is

# layer, queries (R, W, heads, d), keys and values (R, W, kv heads, d) -> (R, W, heads, d)
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class FusedDecoder:
    """A view of a loaded model; it owns nothing, so every change of the weights is seen."""

    body: nn.Module
    head_dim: int
    eps: Tensor  # (): as a number it would be made a tensor again in every operation

    @classmethod
    def of(cls, model: nn.Module) -> FusedDecoder | None:
        """None for every other architecture, for sliding windows, and where a layer was replaced by one not known here (quantised weights)."""
        config, body = getattr(model, "config", None), getattr(model, "model", None)
        if getattr(config, "model_type", None) not in ARCHITECTURES or not hasattr(body, "layers"):
            return None
        rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
        slides = "sliding_attention" in (getattr(config, "layer_types", None) or ()) or (
            config.model_type == "mistral" and getattr(config, "sliding_window", None) is not None
        )
        plain = all(
            type(getattr(m, "base_layer", m)) is nn.Linear
            for layer in body.layers
            for m in (
                *(getattr(layer.self_attn, f"{n}_proj") for n in "qkvo"),
                *(getattr(layer.mlp, f"{n}_proj") for n in ("gate", "up", "down")),
            )
        )
        if rope not in ROPE_TYPES or slides or not plain or config.hidden_act != "silu":
            return None
        weight = body.norm.weight
        eps = torch.tensor(
            config.rms_norm_eps,
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
        """ids, positions (R, W) -> last hidden states (R, W, H). recompute: see `recomputing`; in_place: see `Embedded`."""
        table = self.body.embed_tokens
        x = (
            Embedded.apply(ids, table.weight, table.padding_idx)
            if in_place and _adds_rows(table)
            else table(ids)
        )
        cos, sin = (
            t[:, :, None, : self.head_dim // 2] for t in self.body.rotary_emb(x, positions)
        )  # (R, W, 1, d/2), both halves are alike
        for i in range(len(self.body.layers)):
            x = (
                again(self._layer, i, x, cos, sin, attend)
                if recompute
                else self._layer(i, x, cos, sin, attend)
            )
        return self._operations()[0](x, self.body.norm.weight, self.eps)

    def _layer(self, i: int, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        layer, (norm, rotate, gated), heads = (
            self.body.layers[i],
            self._operations(),
            (*x.shape[:2], -1, self.head_dim),
        )
        a, mlp = layer.self_attn, layer.mlp
        h = norm(x, layer.input_layernorm.weight, self.eps)
        q, k, v = a.q_proj(h).view(heads), a.k_proj(h).view(heads), a.v_proj(h).view(heads)
        if hasattr(a, "q_norm"):
            q, k = norm(q, a.q_norm.weight, self.eps), norm(k, a.k_norm.weight, self.eps)
        attended = attend(i, rotate(q, cos, sin), rotate(k, cos, sin), v)
        x = x + a.o_proj(attended.reshape(*x.shape[:2], -1))
        h = norm(x, layer.post_attention_layernorm.weight, self.eps)
        return x + mlp.down_proj(gated(mlp.gate_proj(h), mlp.up_proj(h)))

    @staticmethod
    def _operations() -> tuple[Callable[..., Tensor], ...]:
        return (
            (_RMSNorm.apply, _Rotate.apply, _SwiGLU.apply)
            if torch.is_grad_enabled()
            else (rms_norm, turn, swiglu)
        )


again = partial(
    checkpoint, use_reentrant=False, preserve_rng_state=False
)  # keeps what goes in, and computes the rest anew for the gradient


@contextmanager
def recomputing(model: nn.Module) -> Iterator[None]:
    """The decoder's layers keep nothing but their inputs and are computed again for the gradient.      Chen et al. 2016, arXiv:1604.06174

    Not by the model's own switch, which asks for training mode, and that would switch dropout on too.
    """
    layers = next((m for m in model.modules() if isinstance(m, nn.ModuleList)), [])
    before = [vars(layer).get("forward") for layer in layers]
    try:
        for layer in layers:
            layer.forward = partial(again, layer.forward)
        yield
    finally:
        for layer, forward in zip(layers, before, strict=True):
            del layer.forward
            if forward is not None:
                layer.forward = forward


def masked(mask: Tensor) -> Attend:
    """Attention of every token to those that an additive mask (R, 1, W, W) lets it see."""

    def attend(_: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, enable_gqa=q.shape[1] != k.shape[1]
        ).transpose(1, 2)

    return attend


def rms_norm(x: Tensor, weight: Tensor, eps: Tensor) -> Tensor:
    """Without a gradient. weight (…, H) may differ along x's last dimensions but one, so that queries and keys go together."""
    wide, scale = _scale(x, eps)
    return torch.mul(wide, scale).to(x.dtype).mul_(weight)


def _scale(x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    """x, at least in float32, and 1/√(mean x² + ε)."""
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    return wide, torch.addcmul(eps, norm, norm, value=1 / x.shape[-1]).rsqrt_()


class _RMSNorm(torch.autograd.Function):
    """y = x/√(mean x² + ε)·w      Zhang and Sennrich 2019, arXiv:1910.07467

    with x̂ = x/√…:  ∂w = Σ ∂y·x̂,  ∂x = (∂y·w - x̂·mean(∂y·w·x̂))/√…
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: Tensor) -> Tensor:
        wide, scale = _scale(x, eps)
        ctx.save_for_backward(x, weight, scale)
        return torch.mul(wide, scale).to(x.dtype).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        size, wide = x.shape[-1], gradient.to(scale.dtype)
        unit = torch.mul(x.to(scale.dtype), scale).view(-1, size)
        product = torch.mul(wide.reshape(-1, size), unit)
        shared = torch.mv(product, weight.to(scale.dtype)).div_(size)[:, None]
        out = (
            torch.mul(wide, weight)
            .view(-1, size)
            .addcmul_(unit, shared, value=-1)
            .view(x.shape)
            .mul_(scale)
        )
        return out.to(x.dtype), product.sum(0).to(weight.dtype), None


class Embedded(torch.autograd.Function):
    """Rows of a table (V, H). Their derivative is added to the table's `.grad` where that stands, a few rows, and not first made as large as the table.

    So a backward pass must be meant to leave gradients in `.grad`: to torch.autograd.grad the table seems not to take part.
    """

    @staticmethod
    def forward(ctx: Any, ids: Tensor, table: Tensor, padding_id: int | None) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.table, ctx.padding_id = (
            table,
            padding_id,
        )  # the parameter itself, and not what save_for_backward would unpack
        return F.embedding(ids, table)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, None]:
        [ids] = ctx.saved_tensors
        if ctx.padding_id is not None:  # as nn.Embedding has it: this row never moves by being read
            gradient = gradient.masked_fill((ids == ctx.padding_id)[..., None], 0.0)
        gradient_of(ctx.table).index_add_(0, ids.flatten(), gradient.flatten(0, -2))
        return None, None, None


def _adds_rows(table: nn.Module) -> bool:
    """On a GPU adding rows where they stand would give other sums from run to run."""
    return (
        type(table) is nn.Embedding
        and table.weight.requires_grad
        and table.weight.device.type == "cpu"
    )


def gradient_of(leaf: Tensor) -> Tensor:
    """Where its gradient is summed up; zeros if nothing was yet."""
    if leaf.grad is None:
        leaf.grad = torch.zeros_like(leaf)
    return leaf.grad


class _Rotate(torch.autograd.Function):
    """Rotary positions: the pair (x_i, x_{i+d/2}) turned by its angle.      Su 2021, arXiv:2104.09864

    x (R, W, heads, d); cos, sin (R, W, 1, d/2). The derivative turns back.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return turn(x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return turn(gradient, *ctx.saved_tensors, 1), None, None


def turn(x: Tensor, cos: Tensor, sin: Tensor, sign: int = -1) -> Tensor:
    """Each pair turned by its angle; sign 1 turns back."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    (first, second), (to_first, to_second) = x.chunk(2, -1), out.chunk(2, -1)
    torch.mul(first, cos, out=to_first).addcmul_(second, sin, value=sign)
    torch.mul(second, cos, out=to_second).addcmul_(first, sin, value=-sign)
    return out


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate)·up"""
    return F.silu(gate).mul_(up)


class _SwiGLU(torch.autograd.Function):
    """silu(gate)·up      Shazeer 2020, arXiv:2002.05202. silu(gate) is computed again for the derivative, and not kept."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return swiglu(gate, up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(torch.mul(gradient, up), gate), F.silu(gate).mul_(
            gradient
        )


# ---- for decoding ------------------------------------------------------------------------------------------------------------

FUSED_UP_TO = 2**22  # elements of a weight that is worth a second copy: 16 MiB a layer's matrix


@dataclass(frozen=True, slots=True)
class FusedLayer:
    """A layer's weights as decoding wants them: what reads the same input is one matrix where matrices are small."""

    input_norm: Tensor
    qkv: Callable[[Tensor], Tensor]
    qk_norm: Tensor | None  # (heads + K, d)
    kv_heads: int
    output: Callable[[Tensor], Tensor]
    post_norm: Tensor
    gate_up: Callable[[Tensor], Tensor]
    down: Callable[[Tensor], Tensor]


def fused(layer: nn.Module, num_rows: int) -> FusedLayer:
    """As the weights are now, for at most `num_rows` rows; to be made anew after every update."""
    a, mlp = layer.self_attn, layer.mlp
    heads, kv_heads = (p.out_features // a.head_dim for p in (a.q_proj, a.k_proj))
    norm = (
        torch.cat([a.q_norm.weight.expand(heads, -1), a.k_norm.weight.expand(kv_heads, -1)])
        if hasattr(a, "q_norm")
        else None
    )
    return FusedLayer(
        layer.input_layernorm.weight,
        _side_by_side(num_rows, a.q_proj, a.k_proj, a.v_proj),
        norm,
        kv_heads,
        _side_by_side(num_rows, a.o_proj),
        layer.post_attention_layernorm.weight,
        _side_by_side(num_rows, mlp.gate_proj, mlp.up_proj),
        _side_by_side(num_rows, mlp.down_proj),
    )


def _side_by_side(num_rows: int, *linears: nn.Linear) -> Callable[[Tensor], Tensor]:
    """x -> all their outputs, one after the other in the last dimension. Layers with adapters compute themselves."""
    if any(type(p) is not nn.Linear for p in linears):
        return linears[0] if len(linears) == 1 else lambda x: torch.cat([p(x) for p in linears], -1)
    if sum(p.weight.numel() for p in linears) > FUSED_UP_TO:  # no second copy, in whatever order
        return lambda x: torch.cat([product(x, p.weight, p.bias) for p in linears], -1)
    if len(linears) == 1:
        return prepared(linears[0].weight, linears[0].bias, num_rows)
    weight = torch.cat([p.weight for p in linears])
    bias = torch.cat([p.bias for p in linears]) if linears[0].bias is not None else None
    return prepared(weight, bias, num_rows)


def positions(attention_mask: Tensor) -> Tensor:
    """Position of each token counted from its row's first real one; padding gets 0."""
    return (attention_mask.cumsum(1) - 1).clamp(min=0)


def forward(
    model: nn.Module, weights: Mapping[str, Tensor] | None = None, /, **arguments: Any
) -> Any:
    """model(**arguments), less the arguments that this architecture does not know (e.g. position_ids for ALiBi models).

    weights: by name, in place of the model's own.
    """
    parameters = inspect.signature(model.forward).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        arguments = {k: v for k, v in arguments.items() if k in parameters}
    return (
        model(**arguments)
        if weights is None
        else functional_call(model, dict(weights), (), arguments)
    )
