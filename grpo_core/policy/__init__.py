"""The policy: a causal language model with its tokenizer, loaded from the bundled folder, a local one, or the Hub."""

from grpo_core.policy.load import BUNDLED, check_model, load_policy
from grpo_core.policy.policy import Policy, describe_device, pick_device, share_cores

__all__ = ["BUNDLED", "Policy", "check_model", "describe_device", "load_policy", "pick_device", "share_cores"]
