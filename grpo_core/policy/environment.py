"""What a reader of the record needs in order to run it again."""

from __future__ import annotations

import platform
import resource
import sys

import torch
import transformers

import grpo_core
from grpo_core.policy.policy import Policy, describe_device


def environment(policy: Policy, learning_rate: float) -> dict[str, object]:
    """What a reader of the record needs to run it again."""
    return {
        "grpo_studio": grpo_core.__version__, "python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__,
        "device": describe_device(policy.device), "dtype": str(policy.model.dtype).removeprefix("torch."), "threads": torch.get_num_threads(),
        "parameters": policy.num_parameters, "trained_parameters": sum(p.numel() for p in policy.model.parameters() if p.requires_grad),
        "learning_rate": learning_rate, "end_ids": sorted(policy.end_ids),
    }


def peak_memory_mib(policy: Policy) -> float:
    if policy.device.type == "cuda":
        return torch.cuda.max_memory_allocated(policy.device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux, bytes on macOS
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
