"""x·Wᵀ without a gradient on a CPU, for few rows x and a large weight W, by oneDNN's kernels.

Decoding multiplies a few dozen rows with every weight of the model. There MKL, torch's default,
is slow: 32 x 384 x 32,000 takes 11.3 ms, oneDNN 9.1, and 6.4 with the weight reordered (two
threads; docs/measurements.md). Sampling on W2 (25 M parameters) takes 2.5 in place of 3.4 s a step
(docs/diary.md, 2026-11-24). torch's compiler uses the same private operations. Without them, and
for all other weights, F.linear computes the product, which is what the tests compare with.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# Elements of a weight. Below this the kernels are no faster: 64 x 128 x 384 takes 90 µs against 68.
MIN_ELEMENTS = 2**17
# Elements of a weight above which no reordered copy is kept: 256 MiB in float32.
MAX_REORDERED_ELEMENTS = 2**26

_has_onednn = torch.backends.mkldnn.is_available() and all(
    hasattr(torch.ops.mkldnn, n) for n in ("_linear_pointwise", "_reorder_linear_weight")
)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x·Wᵀ + b: x (…, H), weight (V, H), bias (V,) -> (…, V)."""
    return _onednn_linear(x, weight, bias) if _uses_onednn(weight) else F.linear(x, weight, bias)


def prepared_linear(
    weight: Tensor, bias: Tensor | None, num_rows: int
) -> Callable[[Tensor], Tensor]:
    """A function x (b, H) -> x·Wᵀ + b (b, V) for many calls with at most `num_rows` rows.

    It keeps a copy of the weight as it is now, in the kernel's own order.
    """
    if not _uses_onednn(weight) or weight.numel() > MAX_REORDERED_ELEMENTS:
        return lambda x: linear(x, weight, bias)
    reordered = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), num_rows)
    return lambda x: _onednn_linear(x, reordered, bias)


def _uses_onednn(weight: Tensor) -> bool:
    return (
        _has_onednn
        and weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and weight.numel() >= MIN_ELEMENTS
    )


def _onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
