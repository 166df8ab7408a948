"""What is decided by the device, decided here with a pretended NVIDIA card."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from pretended_cards import pretend_cards

from grpo_core.config import ModelConfig, nest, parse
from grpo_core.models import precision as precisions
from grpo_core.models.device import (
    free_memory,
    is_out_of_memory,
    peak_memory_mib,
    prepare_device,
    reset_peak_memory,
)
from grpo_core.models.precision import bfloat16_units, precision, why_precision
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
    """GPU review, memory.py:79: CUDA and cuBLAS raise other texts than torch."""
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
    """GPU review, load.py:103: a device that only emulates bfloat16 is slower with it."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert precision(ModelConfig(), device) == expected


CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("device", "capability", "dtype", "units", "says"),
    [
        (CUDA, (9, 0), "auto", set(), "bfloat16: this card computes in it."),
        (CUDA, (7, 5), "auto", set(), "float32: this card only emulates bfloat16, so"),
        (CUDA, (7, 5), "bfloat16", set(), "bfloat16: as set, but this card only emulates it"),
        (CPU, None, "auto", set(), "float32: this CPU only emulates bfloat16, so"),
        (CPU, None, "auto", {"amx_bf16"}, "float32: the default on a CPU, although this one"),
        (CPU, None, "bfloat16", set(), "bfloat16: as set, but this CPU only emulates it"),
        (CPU, None, "bfloat16", {"avx512_bf16"}, "bfloat16: as set."),
        (CPU, None, "float32", set(), "float32: as set."),
    ],
)
def test_one_sentence_says_the_precision_and_why(
    monkeypatch, device, capability, dtype, units, says
):
    """GPU review, load.py:103: A T4 emulates bfloat16, and so do most CPUs."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(precisions, "cpu_bfloat16_units", lambda: frozenset(units))
    sentence = why_precision(ModelConfig(dtype=dtype), device)
    assert sentence.startswith(says)
    assert sentence.count(".") == 1


def test_bfloat16_units_are_read_from_the_cpus_flags():
    assert bfloat16_units("flags : fpu avx512f avx512_bf16 amx_bf16") == {"avx512_bf16", "amx_bf16"}
    assert bfloat16_units("Features : fp asimd bf16") == {"bf16"}
    assert bfloat16_units("flags : fpu avx512f avx2") == set()


def test_peak_memory_is_of_the_step_alone(monkeypatch):
    """GPU review, environment.py:31: without the reset each step would report the largest peak of
    the run so far.
    """
    peaks = {"allocated": 9 * 2**20}
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: peaks["allocated"])
    monkeypatch.setattr(
        torch.cuda, "reset_peak_memory_stats", lambda device: peaks.update(allocated=2 * 2**20)
    )
    assert peak_memory_mib(CUDA) == 9
    reset_peak_memory(CUDA)  # 2 MiB are still in use
    assert peak_memory_mib(CUDA) == 2
    reset_peak_memory(CPU)  # the peak of a process only rises
    assert peak_memory_mib(CPU) > 10


def test_a_card_uses_tf32_and_no_kernels_that_plan_each_shape(monkeypatch):
    """GPU review, TF32: the thread is bound to its card, too, and the allocator may grow its
    memory.
    """
    calls = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", calls.append)
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", calls.append)
    monkeypatch.setattr(torch.cuda, "set_device", calls.append)
    prepare_device(torch.device("cpu"))
    assert calls == []
    setter = "_accelerator_setAllocatorSettings"
    monkeypatch.setattr(torch._C, setter, calls.append, raising=False)
    card = torch.device("cuda:1")
    prepare_device(card)
    assert calls == [card, "expandable_segments:True", "high", False]
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "max_split_size_mb:512")
    prepare_device(card)  # what a person set stays
    assert calls[4:] == [card, "high", False]


def test_what_this_process_reserved_is_free_for_it_alone(monkeypatch):
    """GPU review, environment.py:39: memory that one process caches is not free for another."""
    # 10 GB free on the card; this process holds 6 GB, of which it uses 1 GB.
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10, 80))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 6)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 1)
    assert free_memory(CUDA) == 15
    assert free_memory(CUDA, another_process=True) == 10


def test_the_estimate_counts_masters_and_a_cards_logits(monkeypatch):
    # 1000 trained weights in bfloat16: gradients 2 + 4 bytes, Adam 8 and masters 4 bytes each.
    # A part of 64 tokens and 100 words has 6,400 logits of 10 bytes.
    pretend_cards(monkeypatch, 1)
    config = parse(nest({"train.micro_batch_tokens": 64}))
    shape = SimpleNamespace(vocab_size=100, hidden_size=8, num_hidden_layers=2)
    parts, _ = memory(config, ModelSize(shape, 1000, 1000, torch.bfloat16), recomputes=False)
    assert parts["gradients"] == 6000
    assert parts["optimiser"] == 12_000
    assert parts["logits"] == 64_000
