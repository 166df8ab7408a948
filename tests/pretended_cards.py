"""Pretended NVIDIA cards: what torch tells of them, so that decisions can be tested on a CPU."""

from __future__ import annotations

from types import SimpleNamespace

import torch

GB = 2**30


def pretend_cards(monkeypatch, number, *, free=80 * GB, total=80 * GB, capability=(9, 0)):
    """Let torch tell of this many cards. free: of each, or a list; nothing can be computed."""
    each = free if isinstance(free, list) else [free] * number
    properties = SimpleNamespace(name="Pretended card", total_memory=total)
    cuda = {
        "is_available": lambda: True,
        "device_count": lambda: number,
        "get_device_properties": lambda device: properties,
        "get_device_capability": lambda device=None: capability,
        "mem_get_info": lambda device: (each[torch.device(device).index or 0], total),
        "memory_reserved": lambda device: 0,
        "memory_allocated": lambda device: 0,
        "set_device": lambda device: None,
        "empty_cache": lambda: None,
    }
    for name, function in cuda.items():
        monkeypatch.setattr(torch.cuda, name, function)
