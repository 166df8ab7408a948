"""Sampling against the plainest possible loop, and against the model's own distribution."""

from __future__ import annotations

import dataclasses
import gc
import weakref

import pytest
import torch

from grpo_core.config import ModelConfig
from grpo_core.models import Policy, load_policy, products
from grpo_core.rollout import SamplingHooks, SamplingParams, fused, sample_groups

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def policy(tiny_model) -> Policy:
    return load_policy(ModelConfig(name=str(tiny_model)), seed=0, device=CPU)


def ends_at(policy: Policy, *ids: int) -> Policy:
    return dataclasses.replace(policy, end_ids=frozenset(ids))


def naive_greedy(policy: Policy, prompt: list[int], max_new_tokens: int) -> list[int]:
    """One row, no cache, no padding: the likeliest token again and again."""
    out: list[int] = []
    while len(out) < max_new_tokens:
        logits = policy.model(torch.tensor([prompt + out])).logits[0, -1]
        out.append(int(logits.argmax()))
        if out[-1] in policy.end_ids:
            break
    return out


def test_near_temperature_zero_rows_equal_a_loop_without_cache_or_padding(policy):
    prompts = [
        policy.tokenizer(text)["input_ids"]
        for text in ("Q: 1+2+3=?", "Q: 7", "a much longer prompt than these")
    ]
    greedy = [naive_greedy(ends_at(policy, -1), prompt, 12) for prompt in prompts]
    # End where row 0 writes its fourth token: rows then end at different times, which exercises
    # both compaction and padding.
    stopping = ends_at(policy, greedy[0][3])
    sampled = sample_groups(
        stopping, prompts, SamplingParams(2, 12, 1e-6), torch.Generator().manual_seed(0)
    )
    expected = [naive_greedy(stopping, prompt, 12) for prompt in prompts for _ in range(2)]
    assert [s.completion_ids for s in sampled] == expected
    assert [s.completion.finish_reason for s in sampled] == [
        "stop" if e[-1] == greedy[0][3] else "length" for e in expected
    ]
    assert len({len(e) for e in expected}) > 1, "the case must have rows of different lengths"


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 7, 64])
def test_products_with_large_weights_are_those_of_float64_whichever_kernel_makes_them(
    rows, bias, monkeypatch
):
    generator = torch.Generator().manual_seed(rows)
    x, weight, b = (
        torch.randn(*shape, generator=generator) for shape in ((rows, 48), (160, 48), (160,))
    )
    expected = torch.nn.functional.linear(
        x.double(), weight.double(), b.double() if bias else None
    ).float()
    for worth in (0, 10**9):  # oneDNN's kernels, and torch's own choice
        monkeypatch.setattr(products, "MIN_ELEMENTS", worth)
        torch.testing.assert_close(
            products.linear(x, weight, b if bias else None), expected, atol=1e-5, rtol=1e-5
        )
        ready = products.prepared_linear(weight, b if bias else None, 64)
        torch.testing.assert_close(ready(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("longer", [0, 80])
def test_decoding_with_reordered_weights_draws_the_same_tokens(policy, longer, monkeypatch):
    prompts = [
        policy.tokenizer("Q: 1+2=?" + "1+" * longer)["input_ids"],
        policy.tokenizer("Q: 7" + "2+" * longer)["input_ids"],
    ]

    def drawn():
        return sample_groups(
            policy,
            prompts,
            SamplingParams(4, 24, 1.0, keep_logprobs=True),
            torch.Generator().manual_seed(0),
        )

    expected = drawn()
    ordered, reorder = [], torch.ops.mkldnn._reorder_linear_weight
    monkeypatch.setattr(products, "MIN_ELEMENTS", 0)
    monkeypatch.setattr(
        torch.ops.mkldnn, "_reorder_linear_weight", lambda *a: ordered.append(a) or reorder(*a)
    )
    found = drawn()
    assert ordered
    for s, e in zip(found, expected, strict=True):
        assert s.completion_ids == e.completion_ids
        assert s.sampling_logprobs == pytest.approx(e.sampling_logprobs, abs=1e-4)


def test_one_long_prompt_is_continued_as_without_a_cache(policy):
    prompt = policy.tokenizer("Q: " + "1+2*" * 30)["input_ids"]
    assert len(prompt) > fused.SHORT, "the case must be of those whose cache stands once"
    sampled = sample_groups(
        ends_at(policy, -1), [prompt], SamplingParams(3, 6, 0.0), torch.Generator().manual_seed(0)
    )
    assert [s.completion_ids for s in sampled] == [naive_greedy(ends_at(policy, -1), prompt, 6)] * 3


@pytest.mark.parametrize(
    "longer", [0, 80]
)  # a short prompt is copied to its rows, a long one stands once
def test_a_steps_caches_are_freed_without_garbage_collection(policy, longer, monkeypatch):
    made, settle = [], fused.GrowingCaches.read

    def read(self, *arguments):
        logits = settle(self, *arguments)
        made.extend(weakref.ref(cache) for pair in self._own for cache in pair)
        return logits

    monkeypatch.setattr(fused.GrowingCaches, "read", read)
    gc.collect()
    gc.disable()
    try:
        sample_groups(
            policy,
            [policy.tokenizer("Q: " + "1+" * longer)["input_ids"]],
            SamplingParams(2, 4, 1.0),
            torch.Generator().manual_seed(0),
        )
        assert made
        assert [cache() for cache in made] == [None] * len(made)
    finally:
        gc.enable()


def test_tokens_follow_the_models_distribution(policy):
    prompt, temperature, draws = policy.tokenizer("Q: ")["input_ids"], 0.3, 20_000
    sampled = sample_groups(
        policy, [prompt], SamplingParams(draws, 1, temperature), torch.Generator().manual_seed(0)
    )
    counts = torch.bincount(
        torch.tensor([s.completion_ids[0] for s in sampled]), minlength=len(policy.tokenizer)
    ).double()
    p = (policy.model(torch.tensor([prompt])).logits[0, -1].double() / temperature).softmax(-1)
    sure = p * draws >= 5
    chi2 = ((counts - p * draws).square() / (p * draws))[sure].sum().item()
    freedom = int(sure.sum()) - 1
    assert freedom > 20
    assert chi2 < freedom + 5 * (2 * freedom) ** 0.5  # five standard deviations of chi-square


def test_the_same_generator_draws_the_same_and_global_state_is_untouched(policy):
    prompts = [policy.tokenizer("Q: 1")["input_ids"]] * 2
    before = torch.get_rng_state()
    first, again, other = (
        sample_groups(policy, prompts, SamplingParams(3, 6, 1.0), torch.Generator().manual_seed(s))
        for s in (1, 1, 2)
    )
    assert first == again
    assert first != other
    assert torch.equal(before, torch.get_rng_state())


def test_siblings_differ_and_come_in_the_order_of_their_prompts(policy):
    texts = ("Q: 1", "something else")
    sampled = sample_groups(
        policy,
        [policy.tokenizer(t)["input_ids"] for t in texts],
        SamplingParams(4, 8, 1.0),
        torch.Generator().manual_seed(0),
    )
    assert len(sampled) == 8
    assert (
        len({tuple(s.completion_ids) for s in sampled}) == 8
    )  # eight random 8-token texts: equal ones would mean shared noise


def test_any_end_token_ends_a_completion_and_counts_as_its_last(policy):
    everything = frozenset(range(len(policy.tokenizer)))
    sampled = sample_groups(
        dataclasses.replace(policy, end_ids=everything),
        [[1]],
        SamplingParams(5, 9, 1.0),
        torch.Generator().manual_seed(0),
    )
    assert [(len(s.completion_ids), s.completion.finish_reason) for s in sampled] == [
        (1, "stop")
    ] * 5


def test_a_stop_is_noticed_before_the_next_token(policy):
    calls = []

    def check_interrupt() -> None:
        calls.append(1)
        if len(calls) == 4:
            raise KeyError("stop")

    with pytest.raises(KeyError):
        sample_groups(
            policy,
            [[1]],
            SamplingParams(2, 100, 1.0),
            torch.Generator().manual_seed(0),
            SamplingHooks(check_interrupt=check_interrupt),
        )
    assert len(calls) == 4
