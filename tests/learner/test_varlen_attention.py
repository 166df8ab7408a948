"""A GPU's attention of the flat layout, computed by its reference kernel on a CPU.

test_attention.py compares it with separate rows in float64.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from tiny_shapes import make_model, ragged, with_adapters

from grpo_core.config import AlgorithmConfig, TrainConfig
from grpo_core.learner import (
    Learner,
    LearnerSettings,
    logprobs,
    memory,
    packed_attention,
    varlen_attention,
)
from grpo_core.learner.batch import separate, whole_groups
from grpo_core.learner.logprobs import token_logprobs
from grpo_core.learner.packed_attention import attend_by_kernel, attend_in_grids
from grpo_core.learner.varlen_attention import REFERENCE, Spans, attend, kernel_for

BY_KERNEL = partial(attend_by_kernel, kernel=REFERENCE)


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """The flat layout uses the kernel for sequences of different lengths."""
    monkeypatch.setattr(logprobs, "make_flat_attention", lambda *_: BY_KERNEL)


@torch.no_grad()
def test_bfloat16_differs_by_its_own_rounding_alone(as_on_a_gpu):
    batch, exact = ragged(5), make_model("Qwen3", torch.bfloat16).double()
    truth, _ = token_logprobs(exact, batch, 0.7, separate)
    model = make_model("Qwen3", torch.bfloat16)
    own, _ = token_logprobs(model, batch, 0.7, separate)
    values, _ = token_logprobs(model, batch, 0.7)
    rounding = (own - truth).abs()[batch.completion_mask]
    error = (values - truth).abs()[batch.completion_mask]
    assert error.mean() <= 1.5 * rounding.mean()
    assert error.max() <= 2 * rounding.max()


@pytest.mark.slow
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_the_formulas_of_the_gradient_are_those_of_autograd(kv_heads):
    g = torch.Generator().manual_seed(0)
    spans = Spans.of([3, 1], [[2, 4], [1]], torch.device("cpu"))
    heads = [torch.randn(1, 11, n, 8, generator=g).double() for n in (4, kv_heads, kv_heads)]
    inputs = tuple(t.requires_grad_() for t in heads)
    assert torch.autograd.gradcheck(lambda q, k, v: attend(spans, REFERENCE)(0, q, k, v), inputs)


@pytest.mark.parametrize("adapters", [False, True], ids=["whole", "adapters"])
def test_an_update_equals_that_of_the_grids(monkeypatch, adapters):
    def updated(on_gpu: bool):
        if on_gpu:
            monkeypatch.setattr(logprobs, "make_flat_attention", lambda *_: BY_KERNEL)
        model = make_model("Qwen3", torch.float64)
        if adapters:
            with_adapters(model)
        learner = Learner(
            model,
            None,
            LearnerSettings(AlgorithmConfig(kl_coef=0.0), TrainConfig(warmup_steps=0), 1e-3),
        )
        batch = ragged(4)
        update = learner.update(batch, torch.tensor([1.0, -1.0, 0.5, 0.0] * 3).double())
        return update, torch.cat([p.detach().flatten() for p in model.parameters()])

    (grids, expected), (varlen, weights) = updated(False), updated(True)
    assert varlen.loss == pytest.approx(grids.loss, abs=1e-9)
    assert varlen.grad_norm == pytest.approx(grids.grad_norm, rel=1e-9)
    assert (weights - expected).abs().max() <= 1e-7  # Adam divides by the square root


def test_without_padding_long_and_short_groups_share_a_micro_batch():
    # 3 prompts and 12 completions; with grids, places beyond twice the tokens split it.
    batch = ragged(4)
    tokens = sum(map(len, batch.prompts)) + sum(map(len, batch.completions))
    assert len(whole_groups(batch, tokens, pads=False)) == 1
    assert memory.MicroBatcher(make_model("Qwen3"), tokens)._allows_flat


def test_no_kernel_is_launched_for_completions_of_one_token(monkeypatch):
    # Their inputs are empty: each token is predicted by the prompt's last one.
    def launched(*_):
        raise AssertionError("a kernel was launched for no query")

    monkeypatch.setattr(varlen_attention, "_forward", launched)
    monkeypatch.setattr(varlen_attention, "_backward", launched)
    spans = Spans.of([3], [[0, 0]], torch.device("cpu"))
    q, k = torch.zeros(0, 4, 8), torch.ones(3, 2, 8)
    out, normalizer, rest = varlen_attention._flash_forward(q, k, k, spans.to_prompts)
    assert (out.shape, normalizer.shape) == ((0, 4, 8), (4, 0))
    gradients = varlen_attention._flash_backward(
        out, (q, k, k), (out, normalizer), rest, spans.to_prompts
    )
    assert [g.shape for g in gradients] == [q.shape, k.shape, k.shape]
    assert not gradients[1].any()


def test_a_cpu_and_float32_have_no_such_kernel():
    assert kernel_for(torch.device("cpu"), torch.bfloat16, 64) is None
    assert kernel_for(torch.device("cuda"), torch.float32, 64) is None
    assert kernel_for(torch.device("cuda"), torch.bfloat16, 100) is None


@pytest.mark.parametrize("make_attend", [attend_in_grids, BY_KERNEL], ids=["grids", "kernel"])
@pytest.mark.parametrize("multiple", [8, 128])
def test_tokens_rounded_up_change_no_number(make_attend, multiple, monkeypatch):
    """GPU review, family.py:106: the padding exists so that a GPU does not choose kernels for each
    new shape.
    """
    monkeypatch.setattr(logprobs, "make_flat_attention", lambda *_: make_attend)
    widths: list[int] = []

    def found():
        model = make_model("Qwen3", torch.float64)
        model.model.layers[0].mlp.down_proj.register_forward_hook(
            lambda _, inputs, __: widths.append(inputs[0].shape[1])
        )
        numbers, _ = token_logprobs(model, ragged(5), 0.7)
        numbers.sum().backward()
        return numbers.detach(), torch.cat([p.grad.flatten() for p in model.parameters()])

    exact, gradient = found()
    monkeypatch.setitem(packed_attention.MULTIPLE, "cpu", multiple)
    padded, padded_gradient = found()
    assert widths[0] % multiple, "the case must have something to round up"
    assert widths[1] == -(-widths[0] // multiple) * multiple
    assert (padded - exact).abs().max() <= 1e-12
    assert (padded_gradient - gradient).norm() <= 1e-12 * gradient.norm()


def test_ragged_steps_have_few_shapes(monkeypatch, as_on_a_gpu):
    """GPU review, family.py:106: a GPU chooses its kernels anew for each new shape."""
    monkeypatch.setitem(packed_attention.MULTIPLE, "cpu", 64)
    sizes = {
        packed_attention.flat(ragged(6, seed), BY_KERNEL).input_ids.shape[1] for seed in range(20)
    }
    plain = {
        sum(map(len, ragged(6, seed).prompts + ragged(6, seed).completions)) for seed in range(20)
    }
    assert len(plain) > 12
    assert len(sizes) <= 3
