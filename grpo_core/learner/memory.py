"""Micro-batches that fit the memory there is: halved when it does not suffice, and the same rollouts tried again."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from grpo_core.errors import OutOfMemory
from grpo_core.learner.batch import Batch, micro_batches, whole_groups
from grpo_core.learner.logprobs import hidden_size
from grpo_core.models.decoder import FusedDecoder

log = logging.getLogger("grpo_studio")

T = TypeVar("T")

HANDY = 512  # rows of a packed layout: tokens that keep a CPU's cores busy; beyond, a part grows only as long as little is padding
ENOUGH = (
    1536  # beyond this a CPU's part does not grow at all: it would cost memory and save nothing
)
PROMPTS = 8  # unless it is a group whose prompt, computed once a part, would be more than about an eighth of it


class MicroBatcher:
    """How many tokens a forward pass may hold: what it was given, less what turned out to be too many."""

    def __init__(self, model: nn.Module, max_tokens: int):
        self.max_tokens = max_tokens
        self._hidden_size, self._end_to_end = hidden_size(model), FusedDecoder.of(model) is not None

    def parts(self, batch: Batch, end_to_end: bool = True) -> list[Batch]:
        """end_to_end: for the layout of that name, where this model on this device has it; else for rows of equal width."""
        if not len(batch):
            return []
        if batch.device.type != "cpu":
            return micro_batches(batch, self.max_tokens, self._hidden_size)
        widest = max(batch.segment_tokens((p, rows)) for p, rows in enumerate(batch.siblings))
        if end_to_end and self._end_to_end and batch.is_shared:
            return whole_groups(
                batch,
                min(
                    self.max_tokens,
                    max(ENOUGH, min(widest, PROMPTS * max(map(len, batch.prompts)))),
                ),
            )
        return micro_batches(
            batch, min(self.max_tokens, max(ENOUGH, widest)), self._hidden_size, HANDY
        )

    def retry_on_oom(self, batch: Batch, work: Callable[[list[Batch]], T]) -> T:
        """work(parts); when memory runs out, again from the start with parts half as large. `work` must bear being begun anew.

        Raises OutOfMemory when a single completion does not fit.
        """
        while True:
            parts = self.parts(batch)
            try:
                return work(parts)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if all(len(part) == 1 for part in parts):
                    longest = max(
                        len(c) + len(p)
                        for part in parts
                        for p, c in zip(part.prompts, part.completions, strict=True)
                    )
                    raise OutOfMemory(
                        f"train.max_new_tokens: there is not enough memory for one completion of {longest} tokens, prompt included. "
                        "Lower max_new_tokens, use shorter prompts or a smaller model."
                    ) from None
            # Outside of the handler, so that the failed pass is not kept alive by its traceback.
            self.max_tokens = max(1, min(self.max_tokens, max(map(_tokens, parts))) // 2)
            log.warning("Out of memory: going on with micro-batches of %d tokens.", self.max_tokens)
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def _tokens(part: Batch) -> int:
    """Without padding: half of them is less than what has just failed, whatever the layout."""
    return sum(part.segment_tokens((p, rows)) for p, rows in enumerate(part.siblings))


def most_tokens(max_tokens: int, device: torch.device) -> int:
    """What a part holds at most on this device, but for a single completion or a group with a very long prompt."""
    return min(max_tokens, ENOUGH) if device.type == "cpu" else max_tokens


def is_out_of_memory(error: BaseException) -> bool:
    """CUDA's own error class, Python's, and what torch's allocator for the CPU says."""
    return isinstance(
        error, (torch.OutOfMemoryError, MemoryError)
    ) or "can't allocate memory" in str(error)
