"""In which number format a model computes on a device, and why."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch

from grpo_core.config import ModelConfig

_CPU_INFO = Path("/proc/cpuinfo")
_CPU_UNITS = {"avx512_bf16", "amx_bf16", "bf16"}  # x86, x86, ARM


def precision(config: ModelConfig, device: torch.device) -> torch.dtype:
    """The dtype of the weights; "auto" is bfloat16 where the device computes in it, else float32.

    NVIDIA cards before Ampere emulate bfloat16, and so do most CPUs: both are slower with it.
    """
    automatic = "bfloat16" if device.type == "cuda" and _computes_bfloat16(device) else "float32"
    return getattr(torch, automatic if config.dtype == "auto" else config.dtype)


def why_precision(config: ModelConfig, device: torch.device) -> str:
    """One sentence on the precision of a run, for the page and the record."""
    name = str(precision(config, device)).removeprefix("torch.")
    if device.type == "cuda":
        has_units, kind = _computes_bfloat16(device), "card"
    elif device.type == "cpu":
        has_units, kind = bool(cpu_bfloat16_units()), "CPU"
    else:
        return f"{name}: {'the default on this device' if config.dtype == 'auto' else 'as set'}."
    if config.dtype == "float32":
        return "float32: as set."
    if config.dtype == "bfloat16":
        slow = "" if has_units else f", but this {kind} only emulates it: float32 is faster"
        return f"bfloat16: as set{slow}."
    if name == "bfloat16":
        return "bfloat16: this card computes in it."
    if has_units:
        return "float32: the default on a CPU, although this one also has bfloat16 units."
    return f"float32: this {kind} only emulates bfloat16, so that would be slower."


def _computes_bfloat16(card: torch.device) -> bool:
    return torch.cuda.get_device_capability(card)[0] >= 8


@cache
def cpu_bfloat16_units() -> frozenset[str]:
    """The flags of this CPU's bfloat16 units, as Linux names them; empty: none, or not known."""
    try:
        return bfloat16_units(_CPU_INFO.read_text())
    except OSError:
        return frozenset()


def bfloat16_units(cpu_info: str) -> frozenset[str]:
    """The flags of bfloat16 units in the text of /proc/cpuinfo."""
    return frozenset(cpu_info.split()) & _CPU_UNITS
