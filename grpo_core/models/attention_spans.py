"""What a model's configuration says about the reach of its layers and of its rotary angles.

Layers with a sliding window or chunks see only a part of the text, so a packed row needs a mask of
its own for each kind of layer. Some rotary angles depend on the longest text of a forward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from grpo_core.models import shape

# The kinds of layers that see a part of the text -> the field with its length in tokens.
_LENGTH_FIELDS = {
    "sliding_attention": "sliding_window",
    "chunked_attention": "attention_chunk_size",
}
# positions of queries (R, Q, 1) and of keys (R, 1, W), and the length: what a query can see.
_VISIBLE: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "sliding_attention": lambda query, key, length: query - key < length,
    "chunked_attention": lambda query, key, length: query // length == key // length,
}
# Rotary variants (transformers' names) whose angles depend on the longest text of a forward pass.
_LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")


class Places(NamedTuple):
    """Positions in the text: of queries (R, Q) and keys (R, W). longest: tokens of the longest."""

    queries: Tensor
    keys: Tensor
    longest: int


def layer_masks(model: nn.Module, mask: Tensor, places: Places) -> Tensor | dict[str, Tensor]:
    """The masks with which the model's layers see only what their kind sees.

    mask: additive, (R, 1, Q, W), for layers that see the whole text. Returns a dict {kind of layer:
    mask} for models with several kinds, as transformers takes it, else a mask.
    """
    config = text_config(model)
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds & _LENGTH_FIELDS.keys():
        return {kind: _limited(mask, places, kind, config) for kind in sorted(kinds)}
    # The configuration of Mistral, Mixtral or Phi-3 declares a window and no kinds: all layers have
    # it. A window that only stands in the file, as in a Llama made from a Mistral, is not used.
    if config is None or kinds or "sliding_window" not in signature(type(config)).parameters:
        return mask
    return _limited(mask, places, "sliding_attention", config)


def _limited(mask: Tensor, places: Places, kind: str, config: Any) -> Tensor:
    length = getattr(config, _LENGTH_FIELDS.get(kind, ""), None)
    if not isinstance(length, int) or places.longest <= length:
        return mask
    visible = _VISIBLE[kind](places.queries[:, :, None], places.keys[:, None, :], length)
    return mask.masked_fill(~visible[:, None], torch.finfo(mask.dtype).min)


def longest_independent_row(model: nn.Module) -> int | None:
    """Tokens up to which rows of different lengths may share a forward pass; None: any number.

    LongRoPE (arXiv:2402.13753) and dynamic NTK scaling choose the angles of all rows by the longest
    row. A longer row must be computed alone, as the model reads it alone.
    """
    config = text_config(model)
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") not in _LENGTH_DEPENDENT_ROPE:
        return None
    return rope.get("original_max_position_embeddings") or config.max_position_embeddings


def new_angles_after(model: nn.Module) -> int | None:
    """Tokens after which LongRoPE turns all keys by other angles: a cache must be made anew."""
    rope = getattr(text_config(model), "rope_parameters", None) or {}
    return longest_independent_row(model) if rope.get("rope_type") == "longrope" else None


def reset_dynamic_angles(model: nn.Module) -> None:
    """Make dynamic NTK scaling forget longer texts, which it would go on using for shorter ones."""
    for module in model.modules():
        if getattr(module, "rope_type", None) == "dynamic":
            rotary: Any = module
            rotary.inv_freq = rotary.original_inv_freq.to(rotary.inv_freq.device)
            rotary.max_seq_len_cached = rotary.original_max_seq_len


def text_config(model: Any) -> Any:
    """The language model's own part of the configuration; None for a model without one."""
    return shape.text_config(getattr(model, "config", None))
