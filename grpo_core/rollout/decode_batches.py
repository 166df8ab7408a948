"""Which prompts are decoded together: as many as memory bears, and none before which padding would have to stand where that does harm."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from grpo_core.models import Policy
from grpo_core.models.device import cache_bytes, free_memory

SHARE = 0.4  # of the memory that is free: the rest is for the update, which comes while the allocator still holds the cache


def decode_batches(
    policy: Policy, prompts: Sequence[Sequence[int]], group_size: int, max_new_tokens: int
) -> Iterator[list[int]]:
    """Indices of prompts, each wave at least one."""
    by_length: dict[int, list[int]] = {}
    for p, prompt in enumerate(prompts):
        by_length.setdefault(0 if _bears_padding(policy) else len(prompt), []).append(p)
    budget = SHARE * free_memory(policy.device)
    for alike in by_length.values():
        longest = max(len(prompts[p]) for p in alike)
        size = max(1, int(budget // (group_size * _row_bytes(policy, longest + max_new_tokens))))
        yield from (alike[start : start + size] for start in range(0, len(alike), size))


def _bears_padding(policy: Policy) -> bool:
    """With a sliding window a row of padding can see nothing at all, which is nan in some attention kernels; and state spaces read it."""
    config = policy.model.config
    kinds = getattr(config, "layer_types", None)
    return (
        all(k == "full_attention" for k in kinds)
        if kinds
        else getattr(config, "sliding_window", None) is None
    )


def _row_bytes(policy: Policy, num_tokens: int) -> int:
    """What decoding one row takes: its cache, if each row had the whole of it, and logits with what is made of them in drawing."""
    head = policy.model.get_output_embeddings().weight
    return num_tokens * cache_bytes(policy.model.config, head.element_size()) + 24 * head.shape[0]
