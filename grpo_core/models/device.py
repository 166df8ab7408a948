"""The machine: device choice, free and peak memory, and the environment recorded with a run."""

from __future__ import annotations

import gc
import os
import platform
import resource
import sys
from pathlib import Path

import psutil
import torch
import transformers
from transformers import PreTrainedConfig

import grpo_core
from grpo_core.config import devices
from grpo_core.models.policy import Policy
from grpo_core.models.shape import text_config

CGROUP = Path("/sys/fs/cgroup")


def environment(policy: Policy, learning_rate: float) -> dict[str, object]:
    """Versions, device and model facts that a reader needs to repeat the run."""
    return {
        "grpo_studio": grpo_core.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": describe_device(policy.device),
        "device_name": str(policy.device),
        "dtype": str(policy.model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "parameters": policy.num_parameters,
        "trained_parameters": sum(p.numel() for p in policy.model.parameters() if p.requires_grad),
        "learning_rate": learning_rate,
        "end_ids": sorted(policy.end_ids),
    }


def reset_peak_memory(device: torch.device) -> None:
    """Measure a GPU's peak memory from here on. That of a process on a CPU only ever rises."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_mib(device: torch.device) -> float:
    """Peak memory in MiB: allocated on the GPU since the reset, else resident in the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux, bytes on macOS
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def free_memory(device: torch.device, another_process: bool = False) -> int:
    """Bytes that can still be allocated: on the GPU, else in the machine or its container.

    another_process: by a process that does not exist yet, such as that of a run. What torch
    reserved here and does not use is available to this process alone.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if another_process:
            return free
        reserved = torch.cuda.memory_reserved(device)
        return free + reserved - torch.cuda.memory_allocated(device)
    _, free = host_memory()
    return free


def total_memory(device: torch.device) -> int:
    """Bytes of the GPU's memory, else of the machine's or its container's."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    total, _ = host_memory()
    return total


def room_for_sampling(device: torch.device) -> float:
    """Bytes that sampling may plan with.

    They are the free ones. A run that must repeat takes half of all memory instead: free memory
    differs from run to run, and decode batches of another size round differently.
    """
    if torch.are_deterministic_algorithms_enabled():
        return total_memory(device) / 2
    return free_memory(device)


def host_memory(drops_caches: bool = False) -> tuple[int, int]:
    """Bytes of the machine's memory or of its container's, and how many of them are free.

    drops_caches: count as free also the cached files of a container that were read lately.
    """
    memory = psutil.virtual_memory()
    total, free = memory.total, memory.available
    limit = CGROUP / "memory.max"
    if not limit.is_file() or (text := limit.read_text().strip()) == "max":
        return total, free
    used = int((CGROUP / "memory.current").read_text())
    stat = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
    # The kernel counts cached files as used, and drops them when a process needs the memory.
    cached = int(stat.get("inactive_file", 0))
    if drops_caches:
        cached += int(stat.get("active_file", 0))
    free = min(free, int(text) - used + cached)
    return min(total, int(text)), free


def cache_bytes(shape: PreTrainedConfig, element_bytes: int) -> int:
    """Bytes of the keys and values of one token in all layers. shape: a model's configuration."""
    shape = text_config(shape)
    layers = getattr(shape, "num_hidden_layers", None) or 0
    return 2 * layers * key_width(shape) * element_bytes


def key_width(shape: PreTrainedConfig) -> int:
    """Elements of one token's keys in a layer. shape: the configuration of a text model."""
    heads = getattr(shape, "num_attention_heads", None) or 1  # a state-space model has none
    kv_heads = getattr(shape, "num_key_value_heads", None) or heads
    return kv_heads * head_width(shape)


def head_width(shape: PreTrainedConfig) -> int:
    """Elements of one attention head. shape: the configuration of a text model."""
    heads = getattr(shape, "num_attention_heads", None) or 1
    return getattr(shape, "head_dim", None) or (getattr(shape, "hidden_size", None) or 0) // heads


def device_names() -> tuple[str, ...]:
    """The devices of this machine by the names of `model.device`, the fastest kind first.

    Only those that the environment variable GRPO_DEVICE names, if it names any.
    """
    if only := devices.only_devices(os.environ):
        return only
    if torch.cuda.is_available():
        return (*(f"cuda:{n}" for n in range(torch.cuda.device_count())), devices.CPU)
    return ("mps", devices.CPU) if torch.backends.mps.is_available() else (devices.CPU,)


def pick_device(wanted: str = devices.AUTO) -> torch.device:
    """The first device that is wanted, by default the first of the fastest kind.

    Raises InvalidConfig on `model.device` if it is not there.
    """
    return torch.device(devices.candidates(wanted, device_names())[0])


ALLOCATOR_VARIABLES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
# torch's function since version 2.9, and the one before. They are called at run time, because a
# run's process is forked from one in which torch has already read the environment variables.
_ALLOCATOR_SETTERS = (
    "_accelerator_setAllocatorSettings",
    "_cuda_cudaCachingAllocator_set_allocator_settings",
)

# Texts of errors that torch, CUDA's libraries and the CPU's allocator raise as a RuntimeError.
_OUT_OF_MEMORY = (
    "can't allocate memory",
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on whatever device."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(t in str(error) for t in _OUT_OF_MEMORY)


def release_memory() -> None:
    """Return what nothing uses any more to the device, after memory ran out."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def prepare_device(device: torch.device) -> None:
    """Bind this thread to an NVIDIA card and choose its kernels; nothing on other devices.

    float32 products use TF32. Attention does not use cuDNN, which plans each new shape for a second
    or more: a step of training has as many shapes as micro-batches.
    """
    if device.type == "cuda":
        # By index, never by CUDA_VISIBLE_DEVICES. That variable renumbers the cards, so `cuda:1`
        # would name one card in the form and another in the run's process; and it counts only if
        # it is set before CUDA starts. A run's process inherits the server's, so both number the
        # cards alike. A graph is captured on the thread's current card, so each thread is bound.
        torch.cuda.set_device(device)
        _grow_segments()
        torch.set_float32_matmul_precision("high")
        torch.backends.cuda.enable_cudnn_sdp(False)


def _grow_segments() -> None:
    """Let CUDA's allocator grow its blocks of memory in place: changing lengths leave no gaps.

    Settings that a person made by torch's own environment variables stay.
    """
    if any(map(os.environ.get, ALLOCATOR_VARIABLES)):
        return
    for name in _ALLOCATOR_SETTERS:
        if (set_allocator := getattr(torch._C, name, None)) is not None:
            set_allocator("expandable_segments:True")
            return


def share_cores(num_parameters: int, num_processes: int = 1) -> None:
    """Set torch's CPU threads: one for every two million parameters, at most all cores.

    num_processes: those that share the cores.

    A tiny model gains a third from a second thread on an idle machine. Beside a browser it loses
    more than half (docs/measurements.md), because each small operation waits for both threads.
    Applies to the whole process. A forked process gets one thread: OpenMP's threads do not
    survive the fork, and torch would wait for them for ever.
    """
    if os.environ.get(devices.VARIABLE) == "lent":
        torch.set_num_threads(1)
        return
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    torch.set_num_threads(max(1, min(cores // num_processes, num_parameters // 2_000_000)))


def describe_device(device: torch.device) -> str:
    """The device's kind for the page: "CPU, 2 cores" or "NVIDIA H200, 139 GB"."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name}, {properties.total_memory / 2**30:.0f} GB"
    return "Apple GPU (MPS)" if device.type == "mps" else devices.describe_cpu()


def describe_machine() -> str:
    """The devices that runs train on unless a run names another: "2 GPUs: …" or one device."""
    names = devices.candidates(devices.AUTO, device_names())
    kinds = [describe_device(torch.device(name)) for name in names]
    if len(kinds) == 1:
        return kinds[0]
    return f"{len(kinds)} GPUs: " + " · ".join(
        f"{kinds.count(kind)} × {kind}" for kind in dict.fromkeys(kinds)
    )
