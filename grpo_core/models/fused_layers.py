"""A layer's weights for decoding: small matrices that read the same input are one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from grpo_core.models.lora import without_merged
from grpo_core.models.products import linear, prepared_linear

# Elements of a fused weight up to which a second copy is worth its memory: 16 MiB in float32.
MAX_FUSED_ELEMENTS = 2**22


@dataclass(frozen=True, slots=True)
class FusedLayer:
    """A layer's weights for decoding. Small matrices that read the same input are one matrix."""

    input_norm: Tensor
    qkv: Callable[[Tensor], Tensor]
    qk_norm: Tensor | None  # (heads + K, d)
    kv_heads: int
    output: Callable[[Tensor], Tensor]
    post_norm: Tensor
    gate_up: Callable[[Tensor], Tensor]
    down: Callable[[Tensor], Tensor]


def fuse_layer(layer: Any, num_rows: int) -> FusedLayer:
    """Fuse the present weights for at most `num_rows` rows. Fuse again after every update."""
    attention, mlp = layer.self_attn, layer.mlp
    heads = attention.q_proj.out_features // attention.head_dim
    kv_heads = attention.k_proj.out_features // attention.head_dim
    qk_norm = None
    if hasattr(attention, "q_norm"):
        q_norm = attention.q_norm.weight.expand(heads, -1)
        qk_norm = torch.cat([q_norm, attention.k_norm.weight.expand(kv_heads, -1)])
    return FusedLayer(
        input_norm=layer.input_layernorm.weight,
        qkv=_fused_linear(num_rows, attention.q_proj, attention.k_proj, attention.v_proj),
        qk_norm=qk_norm,
        kv_heads=kv_heads,
        output=_fused_linear(num_rows, attention.o_proj),
        post_norm=layer.post_attention_layernorm.weight,
        gate_up=_fused_linear(num_rows, mlp.gate_proj, mlp.up_proj),
        down=_fused_linear(num_rows, mlp.down_proj),
    )


def _fused_linear(num_rows: int, *layers: nn.Module) -> Callable[[Tensor], Tensor]:
    """x -> the outputs of all layers, concatenated.

    Layers with adapters that are not merged, and those in four bits, are called as they are.
    """
    linears: list[Any] = [*map(without_merged, layers)]
    if any(type(p) is not nn.Linear for p in linears):
        return linears[0] if len(linears) == 1 else lambda x: torch.cat([p(x) for p in linears], -1)
    if sum(p.weight.numel() for p in linears) > MAX_FUSED_ELEMENTS:
        return lambda x: torch.cat([linear(x, p.weight, p.bias) for p in linears], -1)
    if len(linears) == 1:
        return prepared_linear(linears[0].weight, linears[0].bias, num_rows)
    weight = torch.cat([p.weight for p in linears])
    bias = torch.cat([p.bias for p in linears]) if linears[0].bias is not None else None
    return prepared_linear(weight, bias, num_rows)
