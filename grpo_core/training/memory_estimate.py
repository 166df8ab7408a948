"""How much memory a run takes, by what it is for, and whether its activations fit."""

from __future__ import annotations

from typing import Any

import torch

from grpo_core.config import RunConfig
from grpo_core.learner.memory import most_tokens
from grpo_core.models import Policy, pick_device
from grpo_core.models.device import cache_bytes, free_memory
from grpo_core.models.lm_head import MAX_LOGITS

LOGITS_BYTES = (
    4 * MAX_LOGITS * 3
)  # what the loss holds of logits at once, with what is made of them
RESERVE = 0.9  # of what is free; the rest is for fragments and for what was forgotten


def memory(
    config: RunConfig,
    shape: Any,
    parameters: int,
    trained: int,
    dtype: torch.dtype,
    recomputes: bool,
) -> tuple[dict[str, int], float]:
    """Bytes by what they are for, and bytes of activations for one token of a micro-batch. Estimates: a step that was measured is better.

    Activations: 34 bytes x hidden size x layers a token in half precision (arXiv:2205.05198 eq. 2, without attention scores), twice that in
    float32; `recomputes`: 2 x hidden size x layers for the layers' inputs, and one layer whole.
    """
    t, size = config.train, dtype.itemsize
    trained_size = 4 if config.model.lora_rank else size
    hidden, layers = (
        getattr(shape, name, None) or 0 for name in ("hidden_size", "num_hidden_layers")
    )
    length = t.max_new_tokens + 128  # of a row while sampling; prompts are not known here
    per_token = hidden * size * (layers + 17 if recomputes else 17 * layers)
    weights = parameters * size
    if (
        config.model.base_bits == "4"
    ):  # of the linear layers, half a byte and 1/60 for constants; embeddings and head stay as they are
        whole = 2 * (getattr(shape, "vocab_size", None) or 0) * hidden
        weights = int(0.516 * max(0, parameters - whole)) + min(parameters, whole) * size
    return {
        "weights": weights,
        "reference": parameters * size
        if config.algorithm.measure_kl and not config.model.lora_rank
        else 0,
        "gradients": trained * trained_size,
        "optimiser": 2 * trained * trained_size,
        "cache while sampling": t.prompts_per_step
        * t.group_size
        * length
        * cache_bytes(shape, size),
        "logits": LOGITS_BYTES,
        "activations": per_token
        * min(
            most_tokens(t.micro_batch_tokens, pick_device()),
            t.prompts_per_step * t.group_size * length,
        ),
    }, max(1.0, per_token)


def recomputes_layers(config: RunConfig, policy: Policy) -> bool:
    """Whether the run keeps of each layer only its input: as set, or when what an update takes beside the loaded weights would not fit."""
    if config.train.gradient_checkpointing != "auto":
        return config.train.gradient_checkpointing == "on"
    trained = sum(p.numel() for p in policy.model.parameters() if p.requires_grad)
    parts, _ = memory(
        config,
        policy.model.config,
        policy.num_parameters,
        trained,
        policy.model.dtype,
        recomputes=False,
    )
    return sum(
        parts[name] for name in ("gradients", "optimiser", "logits", "activations")
    ) > RESERVE * free_memory(policy.device)
