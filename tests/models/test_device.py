"""What is decided by the device, decided here with a pretended NVIDIA card."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from grpo_core.config import ModelConfig, nest, parse
from grpo_core.models.device import free_memory, is_out_of_memory, prepare_device
from grpo_core.models.load import precision
from grpo_core.training import memory_estimate
from grpo_core.training.memory_estimate import ModelSize, memory

CUDA = torch.device("cuda")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] can't allocate memory: 9 bytes"), True),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (ValueError("CUDA out of memory"), False),
    ],
)
def test_every_text_of_memory_that_ran_out_is_known(error, expected):
    assert is_out_of_memory(error) is expected


@pytest.mark.parametrize(
    ("device", "capability", "expected"),
    [
        (CUDA, (9, 0), torch.bfloat16),
        (CUDA, (8, 0), torch.bfloat16),
        (CUDA, (7, 5), torch.float32),  # a T4 emulates bfloat16
        (torch.device("cpu"), None, torch.float32),
    ],
)
def test_automatic_precision_is_what_the_device_computes_in(
    monkeypatch, device, capability, expected
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert precision(ModelConfig(), device) == expected


def test_a_card_uses_tf32_and_no_kernels_that_plan_each_shape(monkeypatch):
    calls = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", calls.append)
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", calls.append)
    prepare_device(torch.device("cpu"))
    assert calls == []
    prepare_device(CUDA)
    assert calls == ["high", False]


def test_what_this_process_reserved_is_free_for_it_alone(monkeypatch):
    # 10 GB free on the card; this process holds 6 GB, of which it uses 1 GB.
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10, 80))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 6)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 1)
    assert free_memory(CUDA) == 15
    assert free_memory(CUDA, another_process=True) == 10


def test_the_estimate_counts_masters_and_a_cards_logits(monkeypatch):
    # 1000 trained weights in bfloat16: gradients 2 + 4 bytes, Adam 8 and masters 4 bytes each.
    # A part of 64 tokens and 100 words has 6,400 logits of 10 bytes.
    monkeypatch.setattr(memory_estimate, "pick_device", lambda: CUDA)
    properties = SimpleNamespace(total_memory=80_000_000_000)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    config = parse(nest({"train.micro_batch_tokens": 64}))
    shape = SimpleNamespace(vocab_size=100, hidden_size=8, num_hidden_layers=2)
    parts, _ = memory(config, ModelSize(shape, 1000, 1000, torch.bfloat16), recomputes=False)
    assert parts["gradients"] == 6000
    assert parts["optimiser"] == 12_000
    assert parts["logits"] == 64_000
