"""Sampling: many completions of each prompt, fast."""

from grpo_core.rollout.sample import Sampled, sample_groups

__all__ = ["Sampled", "sample_groups"]
