"""Sampling: many completions of each prompt, fast."""

from grpo_core.rollout.sample import OnGroupDone, Sampled, sample_groups

__all__ = ["OnGroupDone", "Sampled", "sample_groups"]
