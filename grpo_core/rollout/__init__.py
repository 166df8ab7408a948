"""Sampling: many completions of each prompt, fast."""

from grpo_core.rollout.sample import Sampled, Whole, sample_groups

__all__ = ["Sampled", "Whole", "sample_groups"]
