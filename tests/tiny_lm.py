"""A causal model small enough for float64 loops, with a batch and a learner for it."""

from __future__ import annotations

import math
from types import SimpleNamespace

import torch
from torch import nn

from grpo_core.config import AlgorithmConfig, TrainConfig
from grpo_core.learner import Batch, Learner, LearnerSettings

NAN = math.nan
VOCABULARY = 11
ROWS = [
    ((1, 2), (4, 5, 6)),
    ((1, 2), (7,)),
    ((3,), (8, 9)),
    ((3,), (4, 4, 4, 4)),
]  # two groups of two
# Advantages of those rows.
A = torch.tensor([1.0, -0.5, 0.25, -0.75])


class TinyLM(nn.Module):
    """A causal model small enough for float64 loops.

    A token's logits depend on the token and on the mean of those before it.
    """

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float64):
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.embed = nn.Parameter(torch.randn(VOCABULARY, 6, generator=g, dtype=dtype))
        self.head = nn.Linear(6, VOCABULARY, bias=False, dtype=dtype)
        self.head.weight.data = torch.randn(VOCABULARY, 6, generator=g, dtype=dtype)

    def get_output_embeddings(self) -> nn.Linear:
        return self.head

    def forward(self, input_ids, attention_mask):
        x = self.embed[input_ids]
        if attention_mask.dim() == 2:  # every token attends to itself and to those before it
            weights = (
                torch.ones(x.shape[1], x.shape[1], dtype=x.dtype).tril()
                * attention_mask[:, None, :]
            )
        else:  # additive, from the packed layout
            weights = attention_mask[:, 0].softmax(-1)
        context = (weights / weights.sum(-1, keepdim=True).clamp(min=1e-9)) @ x
        return SimpleNamespace(logits=self.head(torch.tanh(x + context)))


class NoMaskLM(TinyLM):
    """An architecture that ignores the caller's mask, as state-space models do."""

    def forward(self, input_ids, attention_mask):
        return super().forward(input_ids, torch.ones_like(input_ids))


def make_batch(rows=tuple(ROWS), group_size=2, trains=None) -> Batch:
    prompts, completions = [r[0] for r in rows][::group_size], [r[1] for r in rows]
    return Batch(
        prompts, completions, trains or [True] * len(rows), pad_id=0, device=torch.device("cpu")
    )


def make_learner(model=None, reference=None, train=None, **algorithm) -> Learner:
    settings = TrainConfig(
        **{"warmup_steps": 0, "max_grad_norm": 1e6, "max_new_tokens": 6, **(train or {})}
    )
    return Learner(
        model or TinyLM(),
        (reference or TinyLM(seed=1)).requires_grad_(False),
        LearnerSettings(AlgorithmConfig(**algorithm), settings, learning_rate=1e-3),
    )
