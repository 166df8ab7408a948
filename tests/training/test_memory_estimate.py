"""The estimate of activations beside what a forward pass really keeps."""

from __future__ import annotations

import pytest
import torch
from pretended_cards import pretend_cards
from tiny_shapes import make_model, with_adapters
from torch.nn.attention import SDPBackend, sdpa_kernel

from grpo_core.learner import Batch
from grpo_core.learner.logprobs import score_tokens
from grpo_core.training.memory_estimate import ModelSize, attention_bytes, layer_bytes

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


def size_of(model) -> ModelSize:
    return ModelSize(model.config, 0, 0, model.dtype)


def test_a_kernel_that_keeps_scores_keeps_what_is_counted(monkeypatch):
    """GPU review, report.py:95: heads whose width no fast kernel takes cost their scores."""
    pretend_cards(monkeypatch, 1, capability=(7, 5))
    model = make_model("Gemma", num_attention_heads=2, head_dim=18, max_position_embeddings=1024)
    plain = kept_bytes(model)
    with sdpa_kernel(SDPBackend.MATH):
        kept = kept_bytes(model)
    # Rows of a prompt of 128 tokens and four completions of 128, of which the last token is no
    # input: 636 tokens.
    _, scores = attention_bytes(size_of(model), torch.device("cuda:0"), 128 + 4 * 127)
    assert scores == 4 * 636 * 2
    assert (kept - plain) / 2 == pytest.approx(scores, rel=0.25), "two layers"


@pytest.mark.parametrize(
    ("shape", "capability", "dtype", "width", "masks", "scores"),
    [
        ("Qwen3", (8, 0), torch.bfloat16, 64, 0, 0),  # FlashAttention, flat
        ("Qwen3", (7, 5), torch.float16, 64, 5 * 500, 0),
        ("Qwen3", (7, 5), torch.float16, 20, 5 * 500, 4 * 500 * 2),  # 40 bytes a head
        ("Qwen3", (8, 0), torch.float32, 64, 9 * 500, 0),
        ("Gemma", (9, 0), torch.bfloat16, 64, 5 * 500, 0),
    ],
)
def test_masks_and_scores_count_where_attention_has_them(
    monkeypatch, shape, capability, dtype, width, masks, scores
):
    """GPU review, report.py:95: a card before Ampere has no kernel for the flat layout."""
    pretend_cards(monkeypatch, 1, capability=capability)
    model = make_model(shape, dtype, head_dim=width)
    card = torch.device("cuda:0")
    assert attention_bytes(size_of(model), card, 500) == (masks, scores)
    flat = shape == "Qwen3"
    assert attention_bytes(size_of(model), torch.device("cpu"), 500)[0] == (0 if flat else masks)
