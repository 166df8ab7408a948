"""Group prompts into decode batches by memory; do not pad models that cannot handle padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from grpo_core.models import Policy
from grpo_core.models.attention_spans import longest_independent_row, text_config
from grpo_core.models.device import cache_bytes, room_for_sampling

# Share of the free memory for decoding. The update comes while the allocator still holds the cache.
SHARE = 0.4


def decode_batches(
    policy: Policy, prompts: Sequence[Sequence[int]], group_size: int, max_new_tokens: int
) -> Iterator[tuple[list[int], int]]:
    """Indices of the prompts of each decode batch, and how many of them memory has room for."""
    pads = can_pad(policy)
    by_length: dict[int, list[int]] = {}
    for p, prompt in enumerate(prompts):
        by_length.setdefault(0 if pads else len(prompt), []).append(p)
    budget = SHARE * room_for_sampling(policy.device)
    for members in by_length.values():
        longest = max(len(prompts[p]) for p in members)
        row_bytes = _row_bytes(policy, longest + max_new_tokens)
        prompt_bytes = group_size * row_bytes + _reading_bytes(policy, longest)
        size = max(1, int(budget // prompt_bytes))
        yield members, min(size, len(members))


def can_pad(policy: Policy) -> bool:
    """Whether padding before a prompt does no harm.

    With a sliding window a padded row can attend to nothing, which gives nan in some attention
    kernels. State-space layers read the padding. Some rotary angles depend on the longest row.
    """
    if longest_independent_row(policy.model) is not None:
        return False
    config = text_config(policy.model)
    kinds = getattr(config, "layer_types", None)
    if kinds:
        return all(kind == "full_attention" for kind in kinds)
    return getattr(config, "sliding_window", None) is None


def _row_bytes(policy: Policy, num_tokens: int) -> int:
    """Memory to decode one row: a cache of its own, its logits and what sampling makes of them."""
    head = policy.model.get_output_embeddings()
    assert head is not None
    cache = num_tokens * cache_bytes(policy.model.config, head.weight.element_size())
    return cache + 24 * head.weight.shape[0]


def _reading_bytes(policy: Policy, length: int) -> int:
    """Memory of a layer's attention while a prompt is read: two masks and the scores of all heads.

    Most kernels on a GPU keep no scores; those of older cards do.
    """
    heads = getattr(text_config(policy.model), "num_attention_heads", None) or 1
    return length**2 * (heads + 2) * policy.model.dtype.itemsize
