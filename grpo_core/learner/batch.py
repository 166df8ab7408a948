"""Token ids of prompts and completions as padded tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """B rows, prompts padded on the left to L and completions on the right to T, so that completions share their columns."""

    input_ids: Tensor  # (B, L + T) int64
    attention_mask: Tensor  # (B, L + T) 0/1
    completion_mask: Tensor  # (B, T) 0/1, up to and including the first end token
    loss_mask: Tensor  # (B, T) 0/1, what of it trains

    @property
    def completion_ids(self) -> Tensor:
        return self.input_ids[:, -self.completion_mask.shape[1] :]

    def rows(self, start: int, stop: int) -> Batch:
        """Rows [start, stop) without the columns that are padding in all of them."""
        attention, completion = self.attention_mask[start:stop], self.completion_mask[start:stop]
        width = completion.shape[1]
        left = int(attention[:, :-width].any(0).to(torch.int8).argmax()) if attention.shape[1] > width else 0
        used = int(completion.any(0).sum())
        right = attention.shape[1] - width + used
        return Batch(self.input_ids[start:stop, left:right], attention[:, left:right], completion[:, :used], self.loss_mask[start:stop, :used])


def collate(prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], trains: Sequence[bool], pad_id: int,
            device: torch.device) -> Batch:
    """Pad B prompts and completions into a Batch; `trains[i]` False keeps a row out of the loss."""
    longest_prompt, longest = max(map(len, prompts)), max(map(len, completions))
    ids, attends, completes = [], [], []
    for prompt, completion in zip(prompts, completions, strict=True):
        left, right = longest_prompt - len(prompt), longest - len(completion)
        ids.append([pad_id] * left + [*prompt, *completion] + [pad_id] * right)
        attends.append([0] * left + [1] * (len(prompt) + len(completion)) + [0] * right)
        completes.append([1] * len(completion) + [0] * right)
    completion_mask = torch.tensor(completes, device=device)
    return Batch(
        torch.tensor(ids, device=device), torch.tensor(attends, device=device), completion_mask,
        completion_mask * torch.tensor(trains, device=device, dtype=completion_mask.dtype)[:, None],
    )
