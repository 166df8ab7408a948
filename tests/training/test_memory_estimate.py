"""The estimate of activations beside what a forward pass really keeps."""

from __future__ import annotations

import pytest
import torch
from tiny_shapes import make_model, with_adapters

from grpo_core.learner import Batch
from grpo_core.learner.logprobs import score_tokens
from grpo_core.training.memory_estimate import layer_bytes

LAYERS = 4
WIDTHS = {
    "a narrow gate": (128, 256, 4, 2),
    "a wide gate": (128, 704, 4, 1),
    "no shared heads": (192, 512, 6, 6),
}


def kept_bytes(model) -> float:
    """Bytes a token that the layers keep for the backward pass; parameters are not counted."""
    prompts = [[2 + (7 * i + p) % 38 for i in range(128)] for p in range(2)]
    completions = [[5] * 128] * 8
    batch = Batch(prompts, completions, [True] * 8, 0, torch.device("cpu"))
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(t: torch.Tensor) -> torch.Tensor:
        if t.untyped_storage().data_ptr() not in own:
            kept[t.untyped_storage().data_ptr()] = t
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        score_tokens(model, batch, 1.0)
    num_tokens = 2 * 128 + 8 * 127
    return sum(t.untyped_storage().nbytes() for t in kept.values()) / num_tokens


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("adapters", [False, True], ids=["whole", "adapters"])
@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize("shape", ["Llama", "Qwen3", "Gemma"])
def test_activations_are_estimated_within_a_quarter(shape, width, adapters, dtype):
    """GPU review, report.py:95: the gate's real width and the adapters' float32 inputs count."""
    hidden, gate, heads, kv_heads = width
    model = make_model(
        shape,
        dtype=dtype,
        hidden_size=hidden,
        intermediate_size=gate,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=hidden // heads,
        num_hidden_layers=LAYERS,
        max_position_embeddings=512,
    )
    if adapters:
        model = with_adapters(model)
    estimated = LAYERS * layer_bytes(model.config, dtype.itemsize, adapters)
    assert 0.8 < estimated / kept_bytes(model) < 1.25
