"""The machine: what a reader of the record needs in order to run it again, and the memory that there is and that decoding takes."""

from __future__ import annotations

import os
import platform
import resource
import sys
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers

import grpo_core
from grpo_core.models.policy import Policy


def environment(policy: Policy, learning_rate: float) -> dict[str, object]:
    """What a reader of the record needs to run it again."""
    return {
        "grpo_studio": grpo_core.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": describe_device(policy.device),
        "dtype": str(policy.model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "parameters": policy.num_parameters,
        "trained_parameters": sum(p.numel() for p in policy.model.parameters() if p.requires_grad),
        "learning_rate": learning_rate,
        "end_ids": sorted(policy.end_ids),
    }


def peak_memory_mib(policy: Policy) -> float:
    if policy.device.type == "cuda":
        return torch.cuda.max_memory_allocated(policy.device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux, bytes on macOS
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def free_memory(device: torch.device) -> int:
    """Bytes that a run could still take: of the GPU, else of the machine or of the container, whichever has less."""
    if device.type == "cuda":  # what torch holds and does not use is free too
        return (
            torch.cuda.mem_get_info(device)[0]
            + torch.cuda.memory_reserved(device)
            - torch.cuda.memory_allocated(device)
        )
    free = psutil.virtual_memory().available
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    if limit.is_file() and (text := limit.read_text().strip()) != "max":
        # Files just read count as used, and are given up when somebody needs the room.
        stat = dict(line.split() for line in used.with_name("memory.stat").read_text().splitlines())
        free = min(free, int(text) - int(used.read_text()) + int(stat.get("inactive_file", 0)))
    return free


def cache_bytes(shape: Any, element_bytes: int) -> int:
    """Keys and values of one token in all layers. shape: a model's configuration."""
    heads = getattr(shape, "num_attention_heads", None) or 1  # none in a state-space model
    hidden, layers = (
        getattr(shape, name, None) or 0 for name in ("hidden_size", "num_hidden_layers")
    )
    width = (getattr(shape, "num_key_value_heads", None) or heads) * (
        getattr(shape, "head_dim", None) or hidden // heads
    )
    return 2 * layers * width * element_bytes


DEVICE_VARIABLE = (
    "GRPO_DEVICE"  # "cpu": leave the GPU alone. "lent": in the forked process of a ZeroGPU lease
)


def pick_device() -> torch.device:
    if os.environ.get(DEVICE_VARIABLE) == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def share_cores(num_parameters: int) -> None:
    """Let torch use as many CPU threads as the model can keep busy: one for every two million parameters, at most all cores.

    A tiny model gains a third from a second thread on an idle machine, and loses more than half to it beside a browser
    (docs/runs.md), because every one of its small operations then waits for both. Process-wide, like torch's own setting.
    One in a forked process: OpenMP's threads stayed with its parent, and it would wait for them for ever.
    """
    if os.environ.get(DEVICE_VARIABLE) == "lent":
        torch.set_num_threads(1)
        return
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    torch.set_num_threads(max(1, min(cores, num_parameters // 2_000_000)))


def describe_device(device: torch.device) -> str:
    """For people: "CPU, 2 threads" or "NVIDIA H200, 139 GB"."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name}, {properties.total_memory / 2**30:.0f} GB"
    return "Apple GPU (MPS)" if device.type == "mps" else f"CPU, {os.cpu_count()} cores"
