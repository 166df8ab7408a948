"""Whether a model computes groups exactly if their completions share one row with the prompt."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from grpo_core.learner.batch import Batch, merged, packed, separate
from grpo_core.learner.logprobs import MakeLayout, token_logprobs
from grpo_core.models.decoder import REFUSALS, FusedDecoder
from grpo_core.models.device import is_out_of_memory

log = logging.getLogger("grpo_studio")

# Largest difference in nats at which packing counts as exact.
PACKING_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
# Logits of 16 to 32 have steps of 0.125 in bfloat16, and one token in many rounds further: in half
# precision this share of the tokens must be within the tolerance.
HALF_QUANTILE, HALF_TOLERANCE = 0.99, 0.25


class GroupSize(NamedTuple):
    """The largest sizes among some groups, in tokens."""

    row: float  # prompt and longest completion: decides what a window of attention hides
    packed: float  # prompt and all completions: the width of the packed row

    def covers(self, other: GroupSize) -> bool:
        return self.row >= other.row and self.packed >= other.packed


ANY_SIZE = GroupSize(math.inf, math.inf)


@dataclass
class Packing:
    """The answers so far for one model, which are asked again when a group is larger.

    parts: the micro-batches in which a batch is computed; a group that they split is tested as far
    as it shares a row. layout None: the fastest that the model allows, as in `score_tokens`.
    """

    model: nn.Module
    parts: Callable[[Batch], list[Batch]]
    layout: MakeLayout | None = None
    exact_to: GroupSize | None = None  # the largest sizes that were tested and exact
    inexact_from: GroupSize | None = None  # the smallest that were not

    def grouped_if_exact(self, batch: Batch) -> Batch:
        """The batch, or each row in a group of its own if this model cannot share prompts."""
        return batch if self.allows(batch) else batch.ungrouped()

    def allows(self, batch: Batch) -> bool:
        """Whether the groups of this batch may share a row; tests it where it is not known."""
        batch = merged(self.parts(batch))
        widest = max(map(batch.segment_tokens, enumerate(batch.siblings)))
        size = GroupSize(batch.longest_row, widest)
        if self.exact_to is not None and self.exact_to.covers(size):
            return True
        if self.inexact_from is not None and size.covers(self.inexact_from):
            return False
        groups = self._groups_to_test(batch)
        if not groups:
            return False
        if all(
            packing_is_exact(self.model, batch.groups(p, p + 1), self.layout)
            for p in sorted(groups)
        ):
            known = self.exact_to or size
            self.exact_to = GroupSize(max(known.row, size.row), max(known.packed, size.packed))
            # Its layers see the whole text, so no length can change the answer.
            if FusedDecoder.of(self.model) is not None:
                self.exact_to = ANY_SIZE
            return True
        if self.inexact_from is None:
            log.warning(
                "This architecture cannot share a prompt between completions in one row; "
                "each is computed in its own row."
            )
        known = self.inexact_from or size
        self.inexact_from = GroupSize(min(known.row, size.row), min(known.packed, size.packed))
        return False

    def _groups_to_test(self, batch: Batch) -> set[int]:
        """The largest groups in each sense. Empty if no group can show anything yet.

        The first test needs a later sibling of two tokens: the prompt alone predicts a sibling's
        only token, which would be right whatever the mask does.
        """
        groups = list(enumerate(batch.siblings))
        telling = [
            (p, rows) for p, rows in groups if any(len(batch.completions[i]) > 1 for i in rows[1:])
        ]
        if self.exact_to is None and not telling:
            return set()
        largest = [max(groups, key=batch.row_tokens), max(groups, key=batch.segment_tokens)]
        if telling:
            largest.append(max(telling, key=batch.segment_tokens))
        return {p for p, _ in largest}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"exact_to": self.exact_to, "inexact_from": self.inexact_from}

    def load_state(self, state: Any) -> None:
        """Continue from `state()`.

        Other checkpoints hold one answer for all lengths, which may be wrong: it is asked again.
        """
        if isinstance(state, dict):
            for name in ("exact_to", "inexact_from"):
                setattr(self, name, state[name] and GroupSize(*state[name]))


@torch.no_grad()
def packing_is_exact(model: nn.Module, batch: Batch, layout: MakeLayout | None = None) -> bool:
    """Whether tokens that share a prompt get the log-probabilities that separate rows give them.

    Measured on these rows: state-space layers and flash kernels that ignore the mask fail. Separate
    rows run the model's own code; shared ones run `layout`, by default what training would run.
    """
    if layout is None and FusedDecoder.of(model) is None:
        layout = packed
    try:
        shared, _ = token_logprobs(model, batch, 1.0, layout)
        alone, _ = token_logprobs(model, batch, 1.0, separate)
    except (*REFUSALS, MemoryError) as error:
        # Or the row is too large for the memory; separate ones are computed in smaller parts.
        if is_out_of_memory(error):
            log.warning("A group in one row does not fit in memory; its rows are computed alone.")
        return False
    difference = (shared - alone)[batch.completion_mask].abs()
    weight = next(model.parameters())
    tolerance = PACKING_TOLERANCE.get(weight.dtype)
    if weight.is_cuda and weight.dtype == torch.float32:
        tolerance = None  # TF32 rounds to ten bits
    if tolerance is not None:
        return bool(difference.max() <= tolerance)
    return bool(difference.quantile(HALF_QUANTILE) <= HALF_TOLERANCE)
