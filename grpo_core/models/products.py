"""x·Wᵀ + b on a CPU by the faster of two libraries, oneDNN and MKL, with and without a gradient.

torch's default is MKL. It is slow for the few rows of decoding on every processor, and on AMD's it
does not use AVX-512: there an update's products are half as fast as oneDNN's. Where a processor has
AVX2 only, MKL computes an update's products faster (docs/measurements.md, "Products of an update").
Decoding also keeps each weight in the order that the kernel reads. torch's compiler uses the same
private operations. Without them, and for small products, F.linear computes the product, which is
what the tests compare with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# oneDNN is used if the weight has at least MIN_ELEMENTS elements, or if rows times elements are at
# least MIN_PRODUCTS. A call costs some 20 µs more: 64 rows x 128 x 384 take 90 µs against 68.
MIN_ELEMENTS = 2**17
MIN_PRODUCTS = 2**23
# Rows above which MKL is the faster one on a processor with AVX2 and no AVX-512.
MAX_ROWS_WITH_AVX2 = 128
# Elements of a weight above which no reordered copy is kept: 256 MiB in float32.
MAX_REORDERED_ELEMENTS = 2**26

# Multiplications of the largest operation below which one core computes it faster than all, on two
# cores of the measurement: it takes 140 µs, and a sleeping thread wakes for each operation in 50.
MIN_SHARED_PRODUCTS = 2**24

_has_onednn = torch.backends.mkldnn.is_available() and all(
    hasattr(torch.ops.mkldnn, n) for n in ("_linear_pointwise", "_reorder_linear_weight")
)
_has_fast_mkl = (
    torch.backends.mkl.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX2"
)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x·Wᵀ + b: x (…, H), weight (V, H), bias (V,) -> (…, V). Differentiable once."""
    num_rows = x.numel() // x.shape[-1]
    if not num_rows or not _uses_onednn(weight, num_rows) or torch.is_autocast_enabled("cpu"):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return _Linear.apply(x, weight, bias)
    return _onednn_linear(x, weight, bias)


def apply(layer: nn.Module, x: Tensor) -> Tensor:
    """layer(x), by `linear` for a plain linear layer without hooks."""
    if is_plain(layer):
        return linear(x, layer.weight, layer.bias)
    return layer(x)


def is_plain(layer: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether it computes x·Wᵀ + b and nothing else."""
    return type(layer) is nn.Linear and not (layer._forward_hooks or layer._forward_pre_hooks)


class _Linear(torch.autograd.Function):
    """y = x·Wᵀ + b:   ∂x = ∂y·W,   ∂W = ∂yᵀ·x,   ∂b = Σ ∂y"""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _onednn_linear(x, weight, bias)

    # torch calls this with one gradient for each output; its stub knows only *grad_outputs.
    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        rows = gradient.reshape(-1, len(weight))
        return (
            _onednn_linear(gradient, weight.T) if of_x else None,
            _weight_gradient(rows, x.reshape(-1, x.shape[-1])) if of_weight else None,
            rows.sum(0) if of_bias else None,
        )


def _weight_gradient(rows: Tensor, x: Tensor) -> Tensor:
    """∂yᵀ·x of ∂y (N, V) and x (N, H), as (V, H).

    The kernel copies its first factor if it is transposed. Of a vocabulary that is ∂y, by far the
    larger one: then (xᵀ·∂y)ᵀ copies only x and the result. Of a layer that gains nothing.
    """
    (num_rows, outputs), inputs = rows.shape, x.shape[1]
    if 8 * inputs < outputs and 2 * inputs < num_rows:
        return _onednn_linear(x.T, rows.T).T
    return _onednn_linear(rows.T, x.T)


def prepared_linear(
    weight: Tensor, bias: Tensor | None, num_rows: int
) -> Callable[[Tensor], Tensor]:
    """A function x (b, H) -> x·Wᵀ + b (b, V) for many calls with at most `num_rows` rows.

    It keeps a copy of the weight as it is now, in the kernel's own order.
    """
    if not _uses_onednn(weight, 1) or weight.numel() > MAX_REORDERED_ELEMENTS:
        return lambda x: linear(x, weight, bias)
    reordered = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), num_rows)
    return lambda x: _onednn_linear(x, reordered, bias)


@contextmanager
def one_core_below(num_products: int) -> Iterator[None]:
    """Within the context this thread computes alone, if its largest operation is a small one.

    One core may sum in another order than several, so results differ by rounding.
    """
    threads = torch.get_num_threads()
    if threads > 1 and num_products < MIN_SHARED_PRODUCTS:
        torch.set_num_threads(1)  # takes less than 1 µs
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _uses_onednn(weight: Tensor, num_rows: int) -> bool:
    size = weight.numel()
    return (
        _has_onednn
        and weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and (size >= MIN_ELEMENTS or num_rows * size >= MIN_PRODUCTS)
        and not (_has_fast_mkl and num_rows > MAX_ROWS_WITH_AVX2)
    )


def _onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
