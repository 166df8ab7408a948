"""Sampling: many completions of each prompt, fast."""

from grpo_core.rollout.sample import (
    Draws,
    OnGroupDone,
    OnLook,
    SamplingHooks,
    SamplingParams,
    random_numbers,
    sample_groups,
    sample_with,
    sampling,
)
from grpo_core.rollout.turns import TurnSampler

__all__ = [
    "Draws",
    "OnGroupDone",
    "OnLook",
    "SamplingHooks",
    "SamplingParams",
    "TurnSampler",
    "random_numbers",
    "sample_groups",
    "sample_with",
    "sampling",
]
