"""Which prompts are decoded together: as many as memory bears, and none before which padding would have to stand where that does harm."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from grpo_core.policy import Policy

SHARE = 0.4  # of the memory that is free: the rest is for the update, which comes while the allocator still holds the cache


def waves(policy: Policy, prompts: Sequence[Sequence[int]], group_size: int, max_new_tokens: int) -> Iterator[list[int]]:
    """Indices of prompts, each wave at least one."""
    by_length: dict[int, list[int]] = {}
    for p, prompt in enumerate(prompts):
        by_length.setdefault(0 if _bears_padding(policy) else len(prompt), []).append(p)
    budget = SHARE * _free_bytes(policy.device)
    for alike in by_length.values():
        longest = max(len(prompts[p]) for p in alike)
        size = max(1, int(budget // (group_size * _row_bytes(policy, longest + max_new_tokens))))
        yield from (alike[start : start + size] for start in range(0, len(alike), size))


def _bears_padding(policy: Policy) -> bool:
    """With a sliding window a row of padding can see nothing at all, which is nan in some attention kernels; and state spaces read it."""
    config = policy.model.config
    kinds = getattr(config, "layer_types", None)
    return all(k == "full_attention" for k in kinds) if kinds else getattr(config, "sliding_window", None) is None


def _row_bytes(policy: Policy, num_tokens: int) -> float:
    """What decoding one row takes: its cache, if each row had the whole of it, and logits with what is made of them in drawing."""
    config, head = policy.model.config, policy.model.get_output_embeddings().weight
    heads = getattr(config, "num_attention_heads", None) or 1  # none in a state-space model
    width = (getattr(config, "num_key_value_heads", None) or heads) * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    return 2 * config.num_hidden_layers * width * num_tokens * head.element_size() + 24 * head.shape[0]


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo") as file:
            return 1024 * next(int(line.split()[1]) for line in file if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return 2**31  # not Linux: 2 GiB
