"""The policy: a causal language model with its tokenizer, loaded from the bundled folder, a local one, or the Hub."""

from grpo_core.policy.load import BUNDLED, check_model, load_classifier, load_policy, load_reader
from grpo_core.policy.policy import Policy, Reader, describe_device, pick_device, share_cores
from grpo_core.policy.vocabulary import Vocabulary

__all__ = ["BUNDLED", "Policy", "Reader", "Vocabulary", "check_model", "describe_device", "load_classifier", "load_policy", "load_reader", "pick_device", "share_cores"]
