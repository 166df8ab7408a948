"""What the passes over one batch compute for each token, kept for later ratios and the record."""

from __future__ import annotations

from array import array

import numpy as np
import torch
from torch import Tensor

from grpo_core.learner.batch import Batch
from grpo_core.types import TokenRecord


class TokenLog:
    """B rows, T tokens, U updates; nan where nothing was computed.

    logprobs and entropy (U, B, T), where [0] is the policy before the first update. ref_logprobs
    and logprobs_after (B, T).
    """

    def __init__(self, batch: Batch, num_updates: int, dtype: torch.dtype = torch.float32):
        self.batch = batch
        shape = tuple(batch.completion_ids.shape)

        def empty(*size: int) -> Tensor:
            return torch.full(size, torch.nan, dtype=dtype, device=batch.device)

        self.logprobs = empty(num_updates, *shape)
        self.entropy = empty(num_updates, *shape)
        self.ref_logprobs = empty(*shape)
        self.logprobs_after = empty(*shape)

    def write(self, values: Tensor, part: Batch, computed: Tensor) -> None:
        """Store what was computed for a part, (b, t), in its rows of `values`, (B, T)."""
        values[part.rows, : computed.shape[1]] = computed.detach().to(values.dtype)

    def read(self, values: Tensor, part: Batch) -> Tensor:
        """The rows of a part: (B, T) -> (b, t)."""
        return values[part.rows, : part.completion_ids.shape[1]]

    @property
    def computed(self) -> Tensor:
        """(B,) bool: the rows whose log-probabilities the first update computed."""
        return ~self.logprobs[0, :, 0].isnan()

    def records(self) -> tuple[TokenRecord, ...]:
        """One record for each row of the batch."""
        logprobs = self.logprobs.float().cpu().numpy()
        ref_logprobs = self.ref_logprobs[None].float().cpu().numpy()
        entropy = self.entropy.float().cpu().numpy()
        after = self.logprobs_after[None].float().cpu().numpy()
        sampling_logprobs = self.batch.sampling_logprobs or [None] * len(self.batch)
        if self.batch.actions is not None:
            observed = ~self.batch.completion_mask.cpu().numpy()
            logprobs, ref_logprobs, entropy, after = (
                np.where(observed, np.nan, values)
                for values in (logprobs, ref_logprobs, entropy, after)
            )
            sampling_logprobs = [
                values and [v if acts else np.nan for v, acts in zip(values, mask, strict=True)]
                for values, mask in zip(sampling_logprobs, self.batch.actions, strict=True)
            ]
        records = []
        for i, (ids, sampling) in enumerate(
            zip(self.batch.completions, sampling_logprobs, strict=True)
        ):
            records.append(
                TokenRecord(
                    array("i", ids),
                    array("f", sampling) if sampling else None,
                    _floats(logprobs[:, i, : len(ids)]),
                    _floats(ref_logprobs[:, i, : len(ids)]),
                    _floats(entropy[:, i, : len(ids)]),
                    _floats(after[:, i, : len(ids)]),
                )
            )
        return tuple(records)


def _floats(values: np.ndarray) -> array[float] | None:
    """(U, n) -> the numbers of the updates that computed this row; None if none did."""
    computed = values[~np.isnan(values[:, 0])]
    return array("f", computed.astype("f").tobytes()) if computed.size else None
