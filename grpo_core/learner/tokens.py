"""What the passes over one batch saw of each token, kept for the ratio of later updates and for the record."""

from __future__ import annotations

from array import array

import numpy as np
import torch
from torch import Tensor

from grpo_core.learner.batch import Batch
from grpo_core.types import TokenRecord


class TokenLog:
    """B rows, T tokens, U updates: logprobs and entropy (U, B, T), ref (B, T), nan where nothing was computed.

    logprobs[0] and entropy[0] are of the policy before the first update.
    """

    def __init__(self, batch: Batch, num_updates: int, dtype: torch.dtype = torch.float32):
        self.batch = batch
        shape = batch.completion_ids.shape
        self.logprobs, self.entropy, self.ref = (
            torch.full(s, torch.nan, dtype=dtype, device=batch.device)
            for s in ((num_updates, *shape),) * 2 + (shape,)
        )

    def note(self, values: Tensor, part: Batch, found: Tensor) -> None:
        """Put what was found for a part, (b, t), at its rows of `values`, (B, T)."""
        values[part.rows, : found.shape[1]] = found.detach().to(values.dtype)

    def of(self, values: Tensor, part: Batch) -> Tensor:
        """(B, T) -> (b, t): the rows of a part."""
        return values[part.rows, : part.completion_ids.shape[1]]

    def records(self) -> tuple[TokenRecord, ...]:
        """One for each row of the batch."""
        logprobs, entropy, ref = (
            v.float().cpu().numpy() for v in (self.logprobs, self.entropy, self.ref[None])
        )
        sampled = self.batch.sampling_logprobs or [None] * len(self.batch)
        return tuple(
            TokenRecord(
                array("i", ids),
                kept and array("f", kept),
                *(_floats(v[:, i, : len(ids)]) for v in (logprobs, ref, entropy)),
            )
            for i, (ids, kept) in enumerate(zip(self.batch.completions, sampled, strict=True))
        )


def _floats(values: np.ndarray) -> array[float] | None:
    """(U, n) -> those of the updates in which the row was computed."""
    computed = values[~np.isnan(values[:, 0])]
    return array("f", computed.tobytes()) if computed.size else None
