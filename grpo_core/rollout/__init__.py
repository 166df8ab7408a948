"""Sampling: many completions of each prompt, fast."""

from grpo_core.rollout.sample import (
    OnGroupDone,
    OnLook,
    SamplingHooks,
    SamplingParams,
    sample_groups,
)

__all__ = ["OnGroupDone", "OnLook", "SamplingHooks", "SamplingParams", "sample_groups"]
