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
from grpo_core.learner.logprobs import hidden_size, lies_flat

log = logging.getLogger("grpo_studio")

T = TypeVar("T")

HANDY = 512  # tokens that keep a CPU's cores busy: beyond it a part grows only as long as little is padding
ENOUGH = 1536  # and beyond this not at all: it would cost memory and save nothing
PROMPTS = 8  # unless the prompt, which is computed once a part, would be more than about an eighth of it


class Fitting:
    """How many padded tokens a forward pass may hold: what it was given, less what turned out to be too many."""

    def __init__(self, model: nn.Module, max_tokens: int):
        self.max_tokens = max_tokens
        self._hidden_size, self._lies_flat = hidden_size(model), lies_flat(model) is not None

    def parts(self, batch: Batch) -> list[Batch]:
        if not len(batch):
            return []
        if self._lies_flat and batch.is_shared:
            return whole_groups(batch, min(self.max_tokens, max(ENOUGH, PROMPTS * max(map(len, batch.prompts)))))
        if batch.device.type != "cpu":
            return micro_batches(batch, self.max_tokens, self._hidden_size)
        widest = max(batch.strip_tokens((p, rows)) for p, rows in enumerate(batch.siblings))
        return micro_batches(batch, min(self.max_tokens, max(ENOUGH, widest)), self._hidden_size, HANDY)

    def attempt(self, batch: Batch, work: Callable[[list[Batch]], T]) -> T:
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
                    longest = max(len(c) + len(p) for part in parts for p, c in zip(part.prompts, part.completions, strict=True))
                    raise OutOfMemory(f"train.max_new_tokens: there is not enough memory for one completion of {longest} tokens, prompt included. "
                                      "Lower max_new_tokens, use shorter prompts or a smaller model.") from None
            # Outside of the handler, so that the failed pass is not kept alive by its traceback.
            self.max_tokens = max(1, min(self.max_tokens, max(map(_padded_tokens, parts))) // 2)
            log.warning("Out of memory: going on with micro-batches of %d tokens.", self.max_tokens)
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def _padded_tokens(part: Batch) -> int:
    return len(part.prompts) * max(part.strip_tokens((p, rows)) for p, rows in enumerate(part.siblings))


def is_out_of_memory(error: BaseException) -> bool:
    """CUDA's own error class, Python's, and what torch's allocator for the CPU says."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
