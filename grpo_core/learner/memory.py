"""Micro-batches that fit in memory: if it runs out, the same rollouts in smaller parts."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from grpo_core.errors import OutOfMemory
from grpo_core.learner.batch import Batch, micro_batches, whole_groups
from grpo_core.learner.logprobs import hidden_size, make_flat_attention
from grpo_core.models.attention_spans import longest_independent_row
from grpo_core.models.decoder import FusedDecoder
from grpo_core.models.device import is_out_of_memory, release_memory

log = logging.getLogger("grpo_studio")

T = TypeVar("T")

# Tokens that keep a CPU's cores busy. A part of the packed layout that has them takes further rows
# only while little of it is padding.
MIN_CPU_TOKENS = 512
# Tokens of a CPU's part. A larger part would cost memory and save no time.
MAX_CPU_TOKENS = 1536
# Except for a group with a long prompt, which every part computes again: its part may have this
# many times the prompt's tokens.
MAX_PROMPT_MULTIPLE = 8


class MicroBatcher:
    """Splits batches into parts of at most `max_tokens` tokens, which it lowers on a shortage."""

    def __init__(self, model: nn.Module, max_tokens: int):
        self.max_tokens = max_tokens
        self._hidden_size = hidden_size(model)
        decoder = FusedDecoder.of(model)
        self._allows_flat = decoder is not None and make_flat_attention(model, decoder) is not None
        self._longest = longest_independent_row(model)

    def parts(self, batch: Batch, allow_flat: bool = True) -> list[Batch]:
        """The batch in parts for the layout that `predict` will use.

        allow_flat False: the caller uses rows of equal width, even if the model has a flat layout.
        """
        if not len(batch):
            return []
        if self._longest is not None and batch.longest_row > self._longest:
            # Rows that share a forward pass would share the longest row's rotary angles.
            return [batch.select([(p, [i])]) for p, rows in enumerate(batch.siblings) for i in rows]
        is_flat = allow_flat and self._allows_flat and batch.is_shared
        if batch.device.type != "cpu":
            if is_flat:
                return whole_groups(batch, self.max_tokens, pads=False)
            return micro_batches(batch, self.max_tokens, self._hidden_size)
        widest = max(batch.segment_tokens((p, rows)) for p, rows in enumerate(batch.siblings))
        if is_flat:
            long_prompt = min(widest, MAX_PROMPT_MULTIPLE * max(map(len, batch.prompts)))
            return whole_groups(batch, min(self.max_tokens, max(MAX_CPU_TOKENS, long_prompt)))
        max_tokens = min(self.max_tokens, max(MAX_CPU_TOKENS, widest))
        return micro_batches(batch, max_tokens, self._hidden_size, MIN_CPU_TOKENS)

    def retry_on_oom(self, batch: Batch, work: Callable[[list[Batch]], T]) -> T:
        """work(parts), called again from the start with half the part size if memory runs out.

        Raises OutOfMemory if a single completion does not fit.
        """
        while True:
            parts = self.parts(batch)
            try:
                return work(parts)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if all(len(part) == 1 for part in parts):
                    raise OutOfMemory(_too_long(parts)) from None
            # Outside the handler: the traceback would keep the failed pass's tensors alive.
            self.max_tokens = max(1, min(self.max_tokens, max(map(_tokens, parts))) // 2)
            log.warning("Out of memory: continuing with %d tokens a micro-batch.", self.max_tokens)
            release_memory()


def _too_long(parts: list[Batch]) -> str:
    """The message when parts of one completion do not fit."""
    longest = max(part.longest_row for part in parts)
    return (
        "train.max_new_tokens: there is not enough memory for one completion of "
        f"{longest} tokens, prompt included. "
        "Lower max_new_tokens, use shorter prompts or a smaller model."
    )


def _tokens(part: Batch) -> int:
    """Tokens without padding: half of them is smaller than the failed part in every layout."""
    return sum(part.segment_tokens((p, rows)) for p, rows in enumerate(part.siblings))


def max_part_tokens(max_tokens: int, device: torch.device) -> int:
    """The largest part on this device, except for one completion or a very long prompt."""
    return min(max_tokens, MAX_CPU_TOKENS) if device.type == "cpu" else max_tokens
