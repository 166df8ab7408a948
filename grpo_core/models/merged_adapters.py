"""Adapters merged into a copy of the weights while a model samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from grpo_core.models.device import is_out_of_memory, release_memory, room_for_sampling
from grpo_core.models.lora import adapter_layers
from grpo_core.models.once import say_once

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer

# Of the rounding. A common seed, such as 0, may have drawn the weights too: then the random numbers
# of the rounding would not be independent of them.
SEED = 1502_02551
SHARE = 0.5  # of the room for sampling that the copy may take
TOO_LARGE = (
    "A copy of the weights with the adapters merged does not fit in memory: sampling computes the "
    "adapters apart, more slowly."
)

# Parameters of the plain layers below the adapters, and the weights that belong to them.
Kept = list[tuple[nn.Parameter, Tensor]]


@contextmanager
def adapters_merged(model: nn.Module, num_tokens: int) -> Iterator[None]:
    """Within the context each layer with adapters computes one product: W + s·B·A is its weight.

    Afterwards the layers have the very weights that they had before; they never changed. The
    adapters stay apart where merging does not pay for `num_tokens` tokens, or where the copy does
    not fit in memory. Sampling with merged weights and learning with adapters differ by rounding,
    and log-probabilities at sampling time are those of the merged weights.
    """
    layers = [layer for layer in adapter_layers(model) if _may_merge(layer)]
    kept: Kept = []
    try:
        if _pays(layers, num_tokens) and not _merge_if_it_fits(layers, kept):
            say_once(model, TOO_LARGE)
        yield
    finally:
        _restore(layers, kept)


def _may_merge(layer: LoraLayer) -> bool:
    """Whether the layer below is a plain product, with a weight to which numbers can be added.

    A weight in four bits is not one: rounded to four bits again, small adapters would vanish.
    Adapters of a mixture of experts stay apart too.
    """
    base = layer.get_base_layer()
    is_product = type(base) in (nn.Linear, Conv1D)
    return is_product and cast("nn.Linear", base).weight.is_floating_point()


def _pays(layers: Sequence[LoraLayer], num_tokens: int) -> bool:
    """Whether merging takes fewer operations than it saves.

    Apart, each layer takes 2r·(inputs + outputs) operations more for every token. Merging takes
    2r·inputs·outputs once. So it pays if all rows together have more tokens than about half of the
    layers' width: for Qwen2.5-1.5B more than 1,140, which is 32 rows of 36 tokens. A GPU saves more
    than that: there the number of kernels decides, and adapters that are apart take about five more
    in each layer for every token.
    """
    merging = saved = 0
    for layer in layers:
        for name, a in layer.lora_A.items():
            rank, inputs = cast("nn.Linear", a).weight.shape
            outputs = cast("nn.Linear", layer.lora_B[name]).weight.shape[0]
            merging += rank * inputs * outputs
            saved += num_tokens * rank * (inputs + outputs)
    return saved > merging


def _copy_bytes(layers: Sequence[LoraLayer]) -> int:
    weights = [p for layer in layers for p in layer.get_base_layer().parameters()]
    return sum(p.numel() * p.element_size() for p in weights)


def _merge_if_it_fits(layers: Sequence[LoraLayer], kept: Kept) -> bool:
    """False: there is not enough memory, and the adapters are apart."""
    device = next(layers[0].get_base_layer().parameters()).device
    if _copy_bytes(layers) > SHARE * room_for_sampling(device):
        return False
    try:
        _merge(layers, kept)
        return True
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    # Outside the handler: the traceback would keep the copies alive.
    _restore(layers, kept)
    release_memory()
    return False


@torch.no_grad()
def _merge(layers: Sequence[LoraLayer], kept: Kept) -> None:
    for layer in layers:
        own = [(p, p.data) for p in layer.get_base_layer().parameters()]
        kept += own
        for p, data in own:
            p.data = data.to(torch.promote_types(data.dtype, torch.float32), copy=True)
        layer.merge()
        for p, data in own:
            p.data = dithered(p.data, data.dtype)


def _restore(layers: Sequence[LoraLayer], kept: Kept) -> None:
    for layer in layers:
        layer.merged_adapters.clear()
    for p, data in kept:
        p.data = data
    kept.clear()


def dithered(values: Tensor, dtype: torch.dtype) -> Tensor:
    """`values` in `dtype`; in half precision rounded up or down so that the mean is right.

        P(up) = (value - below) / (above - below)      stochastic rounding; arXiv:1502.02551

    An adapter adds less to most weights than half a step of bfloat16. Rounded to the nearest, it
    would be lost and the sampler would write as the base model does. The random numbers are always
    the same, so equal weights are merged equally.
    """
    near = values.to(dtype)
    if dtype not in (torch.float16, torch.bfloat16):
        return near
    generator = torch.Generator(values.device).manual_seed(SEED)
    error = values - near.float()
    # The bits of a number farther from zero are those of the integer after it.
    outward = error.signbit() == near.signbit()
    step = torch.where(outward, 1, -1).to(torch.int16)
    other = (near.view(torch.int16) + step).view(dtype)
    chance = error / (other.float() - near.float())  # at most a half
    draws = torch.rand(values.shape, generator=generator, device=values.device)
    return torch.where((draws < chance) & (near != 0), other, near)
