"""Causal language models: loading, tokenizers, LoRA, fused decoding, device and memory."""

from grpo_core.models.classifier import load_classifier
from grpo_core.models.device import describe_device, pick_device, share_cores
from grpo_core.models.load import BUNDLED, check_model, load_policy, load_reader
from grpo_core.models.policy import Policy, Reader
from grpo_core.models.vocabulary import Vocabulary

__all__ = [
    "BUNDLED",
    "Policy",
    "Reader",
    "Vocabulary",
    "check_model",
    "describe_device",
    "load_classifier",
    "load_policy",
    "load_reader",
    "pick_device",
    "share_cores",
]
