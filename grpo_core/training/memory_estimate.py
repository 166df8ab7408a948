"""How much memory a run takes, by what it is for, and whether its activations fit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from grpo_core.config import RunConfig
from grpo_core.learner.memory import max_part_tokens
from grpo_core.learner.packed_attention import flat_attention
from grpo_core.models import Policy, pick_device
from grpo_core.models.decoder import ARCHITECTURES
from grpo_core.models.device import cache_bytes, free_memory, head_width, key_width
from grpo_core.models.lm_head import GPU_LOGIT_BYTES, MAX_LOGITS, max_logits
from grpo_core.models.shape import text_config

# The logits that the loss holds at once on a CPU, and two copies of them.
LOGITS_BYTES = 4 * MAX_LOGITS * 3
RESERVE = 0.9  # usable share of the free memory; the rest is for fragmentation and surprises
BYTES_4BIT = 0.516  # a parameter in NF4: half a byte, and 1/60 for the quantisation constants
PROMPT_TOKENS = 128  # assumed length of a prompt


@dataclass(frozen=True, slots=True)
class ModelSize:
    """shape: the model's transformers configuration. trained: parameters that get a gradient."""

    shape: Any
    parameters: int
    trained: int
    dtype: torch.dtype


def memory(config: RunConfig, model: ModelSize, recomputes: bool) -> tuple[dict[str, int], float]:
    """Estimated bytes by purpose, and bytes of activations for one token of a micro-batch.

    Those of one worker: it has the whole model and its gradient, its share of the groups, and of
    trained weights without LoRA its share of the masters and of the optimiser's averages.
    Activations: those of `layer_bytes` and `attention_bytes` for every layer. With `recomputes` the
    inputs of the layers, and one whole layer.
    """
    t, size = config.train, model.dtype.itemsize
    shape = text_config(model.shape)
    hidden = getattr(shape, "hidden_size", None) or 0
    layers = getattr(shape, "num_hidden_layers", None) or 0
    device = pick_device(config.model.device)
    masks, scores = attention_bytes(model, device, _packed_width(config, hidden))
    layer = layer_bytes(shape, size, config.model.lora_rank > 0) + scores
    per_token = masks + (layers * hidden * size + layer if recomputes else layers * layer)
    # Adapters are float32; half-precision weights have float32 masters.
    trained_bytes = model.trained * 4
    half_bytes = model.trained * size if size < 4 and not config.model.lora_rank else 0
    # Of LoRA the reference is the model itself without its adapters.
    has_copy = config.algorithm.measure_kl and not config.model.lora_rank
    groups = math.ceil(t.prompts_per_step / t.workers)
    step_tokens = groups * t.group_size * (t.max_new_tokens + PROMPT_TOKENS)
    optimiser = 2 * trained_bytes + (trained_bytes if half_bytes else 0)
    if t.workers > 1 and not config.model.lora_rank:
        optimiser = 3 * trained_bytes // t.workers  # there float32 weights have masters too
    part_tokens = min(max_part_tokens(t.micro_batch_tokens, device), step_tokens)
    vocabulary = getattr(shape, "vocab_size", None) or 0
    parts = {
        "weights": _weight_bytes(config, model, hidden),
        "reference": model.parameters * size if has_copy else 0,
        "gradients": trained_bytes + half_bytes,
        "optimiser": optimiser,
        "cache while sampling": step_tokens * cache_bytes(model.shape, size),
        "logits": _logits_bytes(part_tokens * vocabulary, device),
        "activations": per_token * part_tokens,
    }
    # The copy of the weights with merged adapters exists only while the run samples, and these do
    # not exist then: the copy counts only as far as it is larger than they are.
    later = parts["gradients"] + parts["logits"] + parts["activations"]
    parts["merged adapters"] = max(0, _merged_bytes(config, model) - later)
    return parts, max(1.0, per_token)


def layer_bytes(shape: Any, size: int, adapters: bool) -> int:
    """Bytes of one token that one layer keeps for the backward pass. size: bytes of an element.

    With hidden size h, heads x head width A, key heads x head width K and width I of the gate:

        4h + 3A + 2K + 3I elements, and A + K more with norms of queries and keys

    They are the inputs of both norms and of what follows them; queries, keys, values, result and
    its flat copy; gate, up and their product. The model's own code, where no fused decoder knows
    it, keeps 4h + I more. Adapters under half precision keep their layers' inputs in float32,
    5h + A + I, in place of 2h + A + I elements. Without a known width I it is 17h
    (arXiv:2205.05198 eq. 2, without attention scores, which `attention_bytes` counts).
    """
    h = getattr(shape, "hidden_size", None) or 0
    width = getattr(shape, "intermediate_size", None)
    if not width or not h:
        return 17 * h * size
    queries = (getattr(shape, "num_attention_heads", None) or 1) * head_width(shape)
    keys = key_width(shape)
    elements = 4 * h + 3 * queries + 2 * keys + 3 * width
    kind = getattr(shape, "model_type", None)
    if kind == "qwen3":
        elements += queries + keys
    if kind not in ARCHITECTURES:
        elements += 4 * h + width
    if not adapters or size >= 4:
        return elements * size
    inputs = queries + width
    return (elements - 2 * h - inputs) * size + (5 * h + inputs) * 4


def attention_bytes(model: ModelSize, device: torch.device, width: int) -> tuple[int, int]:
    """Bytes of one token: of masks, and of the scores that a layer keeps for the backward pass.

    width: tokens of a packed row. The flat layout has neither. Elsewhere a row has a mask of its
    own, and a copy while it is made. Scores, float32, are kept by the one kernel of torch that
    takes heads of every width: on NVIDIA cards the others need a multiple of 16 bytes.
    """
    shape, size = text_config(model.shape), model.dtype.itemsize
    head = head_width(shape)
    if getattr(shape, "model_type", None) in ARCHITECTURES and (
        flat_attention(device, model.dtype, head) is not None
    ):
        return 0, 0
    masks = width * (2 * size + 1)
    keeps_none = head * size % 16 == 0 and torch.backends.cuda.mem_efficient_sdp_enabled()
    if device.type != "cuda" or keeps_none:
        return masks, 0
    return masks, 4 * width * (getattr(shape, "num_attention_heads", None) or 1)


def _packed_width(config: RunConfig, hidden: int) -> int:
    """Tokens of a row that holds a prompt and as many completions as its group's share of a part.

    As in batch.py: with a prompt of L tokens, √(L·(L + 6h)) tokens of completions.
    """
    t = config.train
    completions = min(t.group_size * t.max_new_tokens, t.micro_batch_tokens - PROMPT_TOKENS)
    fewest = math.sqrt(PROMPT_TOKENS * (PROMPT_TOKENS + 6 * hidden))
    return PROMPT_TOKENS + max(t.max_new_tokens, min(int(fewest), completions))


def _logits_bytes(num_logits: int, device: torch.device) -> int:
    """Of a micro-batch with so many logits; too many are made in chunks."""
    if device.type != "cuda":
        return LOGITS_BYTES
    most = max_logits(device)
    return GPU_LOGIT_BYTES * (num_logits if num_logits <= most else most // 4)


def _weight_bytes(config: RunConfig, model: ModelSize, hidden: int) -> int:
    if config.model.base_bits != "4":
        return model.parameters * model.dtype.itemsize
    # Only linear layers are quantised; embeddings and output layer keep their precision.
    whole = 2 * (getattr(text_config(model.shape), "vocab_size", None) or 0) * hidden
    quantised = int(BYTES_4BIT * max(0, model.parameters - whole))
    return quantised + min(model.parameters, whole) * model.dtype.itemsize


def _merged_bytes(config: RunConfig, model: ModelSize) -> int:
    """Of the linear layers' weights with adapters merged; 4-bit weights are never merged."""
    if not config.model.lora_rank or config.model.base_bits == "4":
        return 0
    shape = text_config(model.shape)
    vocabulary = getattr(shape, "vocab_size", None) or 0
    hidden = getattr(shape, "hidden_size", None) or 0
    tables = 1 if getattr(shape, "tie_word_embeddings", False) else 2
    return max(0, model.parameters - tables * vocabulary * hidden) * model.dtype.itemsize


def recomputes_layers(config: RunConfig, policy: Policy) -> bool:
    """Whether the run keeps only each layer's input and computes the rest again.

    As set; with "auto", if the gradient, the optimiser and the activations would not fit.
    """
    if config.train.gradient_checkpointing != "auto":
        return config.train.gradient_checkpointing == "on"
    trained = sum(p.numel() for p in policy.model.parameters() if p.requires_grad)
    model = ModelSize(policy.model.config, policy.num_parameters, trained, policy.model.dtype)
    parts, _ = memory(config, model, recomputes=False)
    needed = sum(parts[name] for name in ("gradients", "optimiser", "logits", "activations"))
    return needed > RESERVE * free_memory(policy.device)
