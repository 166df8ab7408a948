"""Linear layers on a CPU by oneDNN's or MKL's kernels, beside float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from grpo_core.models import products

SHAPES = {
    "many rows": (400, 384, 128),
    "a large weight": (3, 512, 1024),
    "a vocabulary": (400, 64, 4096),  # its weight's gradient is made transposed
    "no row": (0, 512, 1024),
}


def by_linear(product, x, weight, bias, slope):
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
    y = product(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, slope)]


@pytest.mark.parametrize("fast_mkl", [True, False])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_linear_layers_output_and_gradients_are_those_of_float64(shape, fast_mkl, monkeypatch):
    monkeypatch.setattr(products, "_has_fast_mkl", fast_mkl)
    generator = torch.Generator().manual_seed(0)
    rows, width, out = shape
    x, weight, bias, slope = (
        torch.randn(*size, generator=generator)
        for size in ((2, rows, width), (out, width), (out,), (2, rows, out))
    )
    found = by_linear(products.linear, x, weight, bias, slope)
    exact = by_linear(F.linear, *(t.double() for t in (x, weight, bias, slope)))
    for a, b in zip(found, exact, strict=True):
        assert (a.double() - b).norm() <= 2e-6 * b.norm()


@pytest.mark.skipif(not products._has_onednn, reason="torch was built without oneDNN")
def test_without_avx512_mkl_computes_many_rows_and_onednn_few(monkeypatch):
    weight = torch.zeros(512, 512)
    few, many = products.MAX_ROWS_WITH_AVX2, products.MAX_ROWS_WITH_AVX2 + 1
    monkeypatch.setattr(products, "_has_fast_mkl", True)
    assert [products._uses_onednn(weight, n) for n in (few, many)] == [True, False]
    monkeypatch.setattr(products, "_has_fast_mkl", False)
    assert [products._uses_onednn(weight, n) for n in (few, many)] == [True, True]


def test_a_hook_on_a_linear_layer_is_called():
    layer, calls = nn.Linear(512, 512), []
    layer.register_forward_hook(lambda *_: calls.append(1))
    products.apply(layer, torch.randn(4, 512))
    assert calls == [1]


def test_a_gradient_for_the_weight_alone_needs_none_for_the_input():
    layer, x = nn.Linear(512, 512), torch.randn(4, 512)
    products.apply(layer, x).sum().backward()
    # ∂/∂W of Σ x·Wᵀ + b: every row of it is the sum of x's rows; ∂/∂b is the number of rows.
    assert torch.allclose(layer.weight.grad, x.sum(0).expand(512, -1), atol=1e-5)
    assert torch.equal(layer.bias.grad, torch.full((512,), 4.0))


def test_one_core_computes_small_operations_and_all_cores_large_ones(two_threads):
    with products.one_core_below(products.MIN_SHARED_PRODUCTS - 1):
        assert torch.get_num_threads() == 1
    with products.one_core_below(products.MIN_SHARED_PRODUCTS):
        assert torch.get_num_threads() == 2
    with pytest.raises(ZeroDivisionError), products.one_core_below(1):
        raise ZeroDivisionError
    assert torch.get_num_threads() == 2
