"""Random-weight models of the shapes that people train, and ragged batches for them."""

from __future__ import annotations

import torch
import transformers

from grpo_core.config import ModelConfig
from grpo_core.learner import Batch
from grpo_core.models.lora import add_adapters

SHAPES = {
    "Qwen3": ("Qwen3Config", {"head_dim": 16}),
    "Qwen2": ("Qwen2Config", {}),
    "Llama": ("LlamaConfig", {"head_dim": 16}),
    "Llama 3 angles": (
        "LlamaConfig",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 1e4,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            }
        },
    ),
    "Mistral": ("MistralConfig", {"sliding_window": None}),
    "Mistral, sliding": ("MistralConfig", {"sliding_window": 4}),
    "GPT-2": ("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128}),
    "Gemma": ("GemmaConfig", {"head_dim": 16}),
    "Gemma 2": ("Gemma2Config", {"head_dim": 16, "sliding_window": 4, "query_pre_attn_scalar": 16}),
}
WINDOW = {"sliding_window": 16}
# Their layers see a part of the text, or scale their logits, or have angles that depend on length.
UNUSUAL = {
    "Mistral, sliding": ("MistralConfig", WINDOW),
    "Mixtral": ("MixtralConfig", WINDOW | {"num_local_experts": 4}),
    "Gemma 2": ("Gemma2Config", WINDOW | {"head_dim": 16, "query_pre_attn_scalar": 16}),
    "Gemma 3": (
        "Gemma3TextConfig",
        WINDOW | {"head_dim": 16, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "gpt-oss": (
        "GptOssConfig",
        WINDOW | {"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "Cohere": ("CohereConfig", {}),
    "Cohere 2": (
        "Cohere2Config",
        WINDOW | {"layer_types": ["sliding_attention", "full_attention"]},
    ),
    "Granite": ("GraniteConfig", {"logits_scaling": 3.0, "residual_multiplier": 0.5}),
    "Phi-3, LongRoPE": (
        "Phi3Config",
        {
            "sliding_window": None,
            "original_max_position_embeddings": 32,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "short_factor": [1.0] * 8,
                "long_factor": [3.0] * 8,
                "original_max_position_embeddings": 32,
            },
        },
    ),
    "Dynamic NTK": (
        "LlamaConfig",
        {
            "head_dim": 16,
            "max_position_embeddings": 32,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
        },
    ),
    "GPT-Neo": (
        "GPTNeoConfig",
        {
            "num_layers": 2,
            "num_heads": 2,
            "window_size": 16,
            "initializer_range": 0.1,  # its attention does not scale the scores down
            "attention_types": [[["local", "global"], 1]],
        },
    ),
    "Qwen3-Next": (
        "Qwen3NextConfig",
        {
            "head_dim": 16,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16,
            "linear_num_value_heads": 2,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "layer_types": ["linear_attention", "full_attention"],
        },
    ),
    "Mamba": ("MambaConfig", {"state_size": 8}),
    "Bamba": (
        "BambaConfig",
        {
            "mamba_n_heads": 4,
            "mamba_d_head": 16,
            "mamba_d_state": 8,
            "mamba_n_groups": 1,
            "attn_layer_indices": [1],
        },
    ),
    "Llama 4": (
        "Llama4TextConfig",
        {
            "head_dim": 16,
            "attention_chunk_size": 16,
            "intermediate_size_mlp": 48,
            "num_local_experts": 2,
            "layer_types": ["chunked_attention", "full_attention"],
        },
    ),
}
# Computed by this project's own decoder.
OURS = {"Qwen3", "Qwen2", "Llama", "Llama 3 angles", "Mistral"}


class IdsAsText:
    """A tokenizer for models without one: token ids as decimal numbers."""

    bos_token_id = None

    def decode(self, ids, **_):
        return " ".join(map(str, ids))


def make_model(shape: str, dtype=torch.float32, unusual: bool = False, **more):
    name, options = UNUSUAL[shape] if unusual else SHAPES[shape]
    common = {
        "vocab_size": 40,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 128,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "initializer_range": 0.3,
    }
    config = getattr(transformers, name)(**common | options | more)
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config).eval().to(dtype)


def with_adapters(model, seed: int = 0):
    """As in the middle of training: B is no longer 0."""
    add_adapters(model, ModelConfig(lora_rank=4), seed)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            p.data.normal_(0, 0.3, generator=torch.Generator().manual_seed(seed))
    return model


def ragged(group_size: int, seed: int = 0) -> Batch:
    g = torch.Generator().manual_seed(seed)
    draw = lambda low, high: torch.randint(low, high, (), generator=g).item()  # noqa: E731
    prompts = [[draw(2, 40) for _ in range(draw(1, 12))] for _ in range(3)]
    completions = [[draw(2, 40) for _ in range(draw(1, 14))] for _ in range(3 * group_size)]
    return Batch(prompts, completions, [True] * len(completions), 0, torch.device("cpu"))
