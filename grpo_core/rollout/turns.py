"""Sample again and again: the next part of each text, after more tokens were added to it.

What the model has read of a text is kept from turn to turn, so a turn reads the added tokens only.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

from grpo_core.models import Policy
from grpo_core.models.device import is_out_of_memory, release_memory
from grpo_core.rollout.decode_batches import decode_batches
from grpo_core.rollout.decoders import decoder
from grpo_core.rollout.fused import GrowingCaches
from grpo_core.rollout.sample import (
    DecodeBatch,
    SamplingHooks,
    SamplingParams,
    check_ids,
    sample_with,
)
from grpo_core.rollout.steps import records
from grpo_core.types import Rollout

log = logging.getLogger("grpo_studio")


class TurnSampler:
    """The turns of P·G texts; row p·G + g is text g of prompt p. Use it within `sampling`.

    uniforms (P, G, T): the random number of a token depends on its row and place alone, whatever
    turn it is drawn in. The caches are kept where FusedDecoder knows the model and one decode batch
    holds all rows. Else each turn reads the texts anew.
    """

    def __init__(
        self,
        policy: Policy,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        uniforms: Tensor,
        hooks: SamplingHooks,
    ) -> None:
        self._policy, self._prompts, self._params = policy, prompts, params
        self._uniforms, self._hooks = uniforms, hooks
        self._source: GrowingCaches | None = None  # None: nothing is kept
        self._read = [0] * (len(prompts) * params.group_size)  # own tokens in the caches

    def first(self) -> list[Rollout]:
        """The first turn of every row."""
        params, prompts = self._params, self._prompts
        batch = DecodeBatch(self._policy, prompts, params, self._uniforms)
        if self._keeps() and self._fits(lambda: batch.decode(self._hooks, self._source)):
            return self._noted(range(len(self._read)), batch)
        return sample_with(self._policy, prompts, params, self._uniforms, self._hooks)

    def next(
        self, rows: Sequence[int], texts: Sequence[Sequence[int]], limits: Sequence[int]
    ) -> list[Rollout]:
        """The next turn of these rows, each of `limits` tokens at most.

        texts: all ids of each row: its prompt, what it wrote and what was added.
        """
        most, size = max(limits), self._params.group_size
        params = replace(self._params, group_size=1, max_new_tokens=most)
        uniforms = self._uniforms.new_zeros(len(rows), 1, most)
        for k, (i, limit) in enumerate(zip(rows, limits, strict=True)):
            of_row = self._uniforms[i // size, i % size]
            uniforms[k, 0, :limit] = of_row[len(of_row) - limit :]
        batch = DecodeBatch(self._policy, texts, params, uniforms, limits)
        if self._source and self._fits(lambda: self._go_on(batch, rows, texts)):
            return self._noted(rows, batch)
        return sample_with(self._policy, texts, params, uniforms, self._hooks, limits)

    def _go_on(
        self, batch: DecodeBatch, rows: Sequence[int], texts: Sequence[Sequence[int]]
    ) -> None:
        """Read what is new of the texts, then draw."""
        assert self._source is not None
        read = [self._read[i] for i in rows]
        new = [
            text[len(self._prompts[i // self._params.group_size]) + n :]
            for text, i, n in zip(texts, rows, read, strict=True)
        ]
        logits = self._source.go_on(rows, read, new, batch.params.max_new_tokens)
        self._hooks.check_interrupt()
        batch.draw_all(self._source, logits, self._hooks)

    def _keeps(self) -> bool:
        """Whether there is a decoder that keeps its caches, and one batch holds all rows."""
        policy, prompts, params = self._policy, self._prompts, self._params
        check_ids(policy, prompts)
        batches = [*decode_batches(policy, prompts, params.group_size, params.max_new_tokens)]
        longest = max(map(len, prompts)) + params.max_new_tokens
        source = decoder(policy, longest, records(policy))
        if batches[0][1] < len(prompts) or not isinstance(source, GrowingCaches):
            return False
        source.keeps_ended = True
        self._source = source
        return True

    def _fits(self, work: Callable[[], object]) -> bool:
        """Do the work; False if memory runs out. Then every turn reads its texts anew."""
        try:
            work()
            return True
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        log.warning("Out of memory: each turn reads its texts anew.")
        self._source = None
        release_memory()
        return False

    def _noted(self, rows: Sequence[int], batch: DecodeBatch) -> list[Rollout]:
        """The rollouts of a batch, whose tokens but the last of each row are in the caches now."""
        rollouts = [r for group in batch.groups().values() for r in group]
        for i, r in zip(rows, rollouts, strict=True):
            before = len(r.prompt_ids) - len(self._prompts[i // self._params.group_size])
            self._read[i] = before + len(r.completion_ids) - 1
        return rollouts
