"""x·Wᵀ on a CPU, without a gradient, where x has few rows and W is large: oneDNN's kernels in place of the ones that torch takes by itself.

Decoding multiplies a few dozen rows with every weight of the model. There torch's own choice, MKL, is up to two and a half times slower
(docs/runs.md); oneDNN's kernels come with torch too and are what its compiler takes. Elsewhere, or without them, all is torch's own.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

WORTH = 2**17  # elements of a weight from which on the kernels differ
FITS = 2**26  # elements of a weight of which a copy in the kernel's own order is kept: 256 MiB

_has_them = torch.backends.mkldnn.is_available() and all(
    hasattr(torch.ops.mkldnn, n) for n in ("_linear_pointwise", "_reorder_linear_weight")
)


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (…, H), weight (V, H), bias (V,) -> (…, V)"""
    return _onednn(x, weight, bias) if _gains(weight) else F.linear(x, weight, bias)


def prepared(weight: Tensor, bias: Tensor | None, num_rows: int) -> Callable[[Tensor], Tensor]:
    """The same many times over: x (b, H) -> (b, V), b at most `num_rows`. The weight is kept as it is now, in the order in which the kernel reads it."""
    if not _gains(weight) or weight.numel() > FITS:
        return lambda x: product(x, weight, bias)
    ordered = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), num_rows)
    return lambda x: _onednn(x, ordered, bias)


def _gains(weight: Tensor) -> bool:
    return (
        _has_them
        and weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and weight.numel() >= WORTH
    )


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
