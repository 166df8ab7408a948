"""The fast paths against the plain ones, on random-weight models of common shapes."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from tiny_shapes import OURS, SHAPES, IdsAsText, make_model, ragged, with_adapters

from grpo_core.config import AlgorithmConfig, TrainConfig
from grpo_core.learner import Learner, LearnerSettings
from grpo_core.learner.batch import separate
from grpo_core.learner.logprobs import token_logprobs
from grpo_core.learner.packing import GroupSize
from grpo_core.models import Policy, products
from grpo_core.models.decoder import (
    FusedDecoder,
    _RMSNorm,
    _Rotate,
    _SwiGLU,
    rms_norm,
    rotate,
    swiglu,
)
from grpo_core.models.lora import AdapterOff, adapter_layers, merge_adapters
from grpo_core.rollout import (
    SamplingHooks,
    SamplingParams,
    decoders,
    fused,
    sample,
    sample_groups,
    steps,
)
from grpo_core.rollout import decode_batches as decode_batches

EPS = torch.tensor(1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_only_known_architectures_use_the_fast_path(shape):
    assert (FusedDecoder.of(make_model(shape)) is not None) == (shape in OURS)


def test_a_model_with_a_replaced_layer_is_computed_by_its_own_code():
    class Adapted(torch.nn.Linear):
        pass

    model = make_model("Llama")
    layer = model.model.layers[1].self_attn
    layer.q_proj = Adapted(32, 32, bias=False)
    assert FusedDecoder.of(model) is None


@pytest.mark.parametrize("group_size", [2, 16])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_fast_update_has_the_loss_and_gradient_of_separate_rows(shape, group_size):
    batch = ragged(group_size)
    advantages = torch.randn(len(batch), generator=torch.Generator().manual_seed(1))

    def updated(plain: bool):
        model, reference = make_model(shape), make_model(shape)
        for p in reference.parameters():
            p.data += 0.01
        settings = TrainConfig(
            max_new_tokens=14, micro_batch_tokens=200 if plain else 16_384, max_grad_norm=1e6
        )
        learner = Learner(
            model,
            reference.requires_grad_(False),
            LearnerSettings(AlgorithmConfig(kl_coef=0.1), settings, 1e-3),
        )
        if plain:
            learner.packing.inexact_from = GroupSize(0, 0)
        learner.optimizer.step = lambda: None
        update = learner.update(batch, advantages)
        return update, torch.cat([p.grad.flatten() for p in model.parameters()]), learner

    (plain, expected, _), (fast, gradient, learner) = updated(True), updated(False)
    assert learner.packing.allows(batch)
    assert (gradient - expected).norm() <= 1e-5 * expected.norm()
    assert fast.loss == pytest.approx(plain.loss, rel=1e-5, abs=1e-6)
    assert fast.kl == pytest.approx(plain.kl, rel=1e-4)
    assert fast.entropy == pytest.approx(plain.entropy, rel=1e-5)


def test_groups_too_large_for_memory_are_sampled_in_turn_and_equal(monkeypatch):
    policy, prompts = (
        Policy(make_model("Qwen3", torch.float64), IdsAsText(), frozenset({7}), 0, 128),
        ragged(2).prompts,
    )
    whole = sample_groups(
        policy, prompts, SamplingParams(4, 12, 1.0), torch.Generator().manual_seed(5)
    )
    assert list(decode_batches.decode_batches(policy, prompts, 4, 12)) == [([0, 1, 2], 3)]
    monkeypatch.setattr(decode_batches, "room_for_sampling", lambda device: 0)
    assert list(decode_batches.decode_batches(policy, prompts, 4, 12)) == [
        ([0, 1, 2], 1)
    ]  # one prompt at least, whatever it takes
    assert (
        sample_groups(policy, prompts, SamplingParams(4, 12, 1.0), torch.Generator().manual_seed(5))
        == whole
    )


def test_looking_at_ends_every_eight_tokens_changes_no_rollout(monkeypatch):
    # As on a GPU; end tokens are a quarter of the vocabulary, so most rows end between two looks.
    ends = frozenset(range(0, 40, 4))
    policy = Policy(make_model("Qwen3", torch.float64), IdsAsText(), ends, 0, 128)

    def draw(every):
        monkeypatch.setitem(sample.LOOK_EVERY, "cpu", every)
        reported = []
        hooks = SamplingHooks(on_group_done=lambda p, rollouts: reported.append((p, rollouts)))
        params = SamplingParams(4, 20, 1.0, keep_logprobs=True)
        rollouts = sample_groups(
            policy, ragged(2).prompts, params, torch.Generator().manual_seed(5), hooks
        )
        return rollouts, sorted(reported, key=lambda group: group[0])

    assert draw(8) == draw(1)
    assert len({len(r.completion_ids) for r in draw(8)[0]}) > 3, "texts end at different times"


def test_sampling_that_runs_out_of_memory_goes_on_with_fewer_prompts(monkeypatch):
    policy = Policy(make_model("Qwen3", torch.float64), IdsAsText(), frozenset({7}), 0, 128)
    prompts, params = ragged(2).prompts, SamplingParams(4, 12, 1.0)

    def draw(reported):
        hooks = SamplingHooks(on_group_done=lambda p, rollouts: reported.append((p, rollouts)))
        return sample_groups(policy, prompts, params, torch.Generator().manual_seed(5), hooks)

    whole_reported = []
    whole = draw(whole_reported)
    make, sizes = decoders.decoder, []

    def full_after_five_tokens(*arguments):
        """A decoder for more than one prompt runs out of memory at its sixth token."""
        model, tokens = make(*arguments), []
        read, step = model.read, model.step

        def counted_read(prompts, *sizes_of):
            sizes.append(len(prompts))
            return read(prompts, *sizes_of)

        def limited_step(token):
            tokens.append(1)
            if sizes[-1] > 1 and len(tokens) > 5:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return step(token)

        model.read, model.step = counted_read, limited_step
        return model

    monkeypatch.setattr("grpo_core.rollout.sample.decoder", full_after_five_tokens)
    reported = []
    assert draw(reported) == whole
    assert sizes == [3, 2, 1, 1, 1]
    assert sorted(p for p, _ in reported) == [0, 1, 2], "each group is reported once"
    assert sorted(reported) == sorted(whole_reported)


def test_a_single_prompt_that_does_not_fit_in_memory_raises(monkeypatch):
    policy = Policy(make_model("Qwen3"), IdsAsText(), frozenset({7}), 0, 128)

    def full(*_):
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr("grpo_core.rollout.sample.decoder", full)
    with pytest.raises(RuntimeError, match="out of memory"):
        sample_groups(policy, [[5, 6], [7]], SamplingParams(2, 4, 1.0), torch.Generator())


def test_sliding_window_models_get_no_padding_before_their_prompts():
    policy = Policy(make_model("Gemma 2"), IdsAsText(), frozenset(), 0, 128)
    batches = decode_batches.decode_batches(policy, [[2], [3, 4], [5], [6, 7]], 2, 4)
    assert [members for members, _ in batches] == [[0, 2], [1, 3]]


@pytest.mark.parametrize("adapters", [False, True], ids=["whole", "adapters"])
@pytest.mark.parametrize("shape", sorted(OURS))
def test_logprobs_of_the_family_are_the_models_own(shape, adapters):
    batch, model = ragged(4), with_adapters(make_model(shape)) if adapters else make_model(shape)
    assert FusedDecoder.of(model) is not None
    with torch.no_grad():
        fast, plain = (token_logprobs(model, batch, 0.8, layout)[0] for layout in (None, separate))
    assert (fast - plain).abs().max() <= 1e-4


def test_adapters_get_the_models_own_gradient_and_off_they_are_the_reference():
    batch, model = ragged(4), with_adapters(make_model("Qwen3"))
    found = {}
    for layout in (None, separate):
        model.zero_grad()
        token_logprobs(model, batch, 1.0, layout)[0].sum().backward()
        found[layout] = torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])
    assert (found[None] - found[separate]).norm() <= 1e-5 * found[separate].norm()
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
    with AdapterOff(model, adapter_layers(model)).off() as base, torch.no_grad():
        torch.testing.assert_close(
            token_logprobs(base, batch, 1.0)[0], token_logprobs(make_model("Qwen3"), batch, 1.0)[0]
        )


def test_a_model_with_adapters_writes_as_its_merged_copy():
    model = with_adapters(make_model("Qwen3", torch.float64))

    def draw():
        return [
            s.completion_ids
            for s in sample_groups(
                Policy(model, IdsAsText(), frozenset({7}), 0, 128),
                ragged(2).prompts,
                SamplingParams(4, 20, 1.0),
                torch.Generator().manual_seed(5),
            )
        ]

    apart = draw()
    merge_adapters(model)
    assert draw() == apart


@pytest.mark.parametrize("short", [0, 1000], ids=["prompts kept apart", "prompts copied"])
@pytest.mark.parametrize(
    ("shape", "way"),
    [
        *((shape, "growing") for shape in SHAPES),
        ("Qwen3", "of one shape"),
        ("Llama 3 angles", "of one shape"),
    ],
)
def test_greedy_decoding_equals_generate(shape, short, way, monkeypatch):
    if way == "of one shape":  # what is recorded on CUDA, here computed plainly
        monkeypatch.setitem(steps.CAPTURE, "cpu", lambda step: step)
    monkeypatch.setattr(fused, "SHORT", short)
    model = make_model(shape, torch.float64)
    model.generation_config.eos_token_id = None
    batch = ragged(2, seed=3)
    reference = [
        model.generate(
            torch.tensor([p]),
            attention_mask=torch.ones(1, len(p), dtype=torch.long),
            do_sample=False,
            max_new_tokens=20,
        )[0, len(p) :].tolist()
        for p in batch.prompts
    ]
    end = reference[0][7]  # rows end at different times: finished ones leave, the others go on
    expected = [r[: r.index(end) + 1] if end in r else r for r in reference]
    policy = Policy(model, IdsAsText(), frozenset({end}), 0, 128)
    sampled = sample_groups(
        policy,
        batch.prompts,
        SamplingParams(3, 20, 0.0, keep_logprobs=True),
        torch.Generator().manual_seed(0),
    )
    assert [s.completion_ids for s in sampled] == [e for e in expected for _ in range(3)]
    assert len({len(e) for e in expected}) > 1
    for s, prompt in zip(sampled[::3], batch.prompts, strict=True):
        logprobs = (
            model(torch.tensor([[*prompt, *s.completion_ids]]))
            .logits[0, len(prompt) - 1 : -1]
            .log_softmax(-1)
        )
        assert s.sampling_logprobs == pytest.approx(
            logprobs.gather(-1, torch.tensor(s.completion_ids)[:, None])[:, 0].tolist(), abs=1e-4
        )


def test_a_rows_draws_do_not_depend_on_its_neighbours():
    """What lets groups leave, or be sampled in several goes, without changing a run."""
    model = make_model("Qwen3", torch.float64)
    policy = Policy(model, IdsAsText(), frozenset(range(2, 9)), 0, 128)
    prompts = ragged(2).prompts
    together = sample_groups(
        policy, prompts, SamplingParams(4, 12, 1.0), torch.Generator().manual_seed(5)
    )
    never = sample_groups(
        dataclasses.replace(policy, end_ids=frozenset()),
        prompts,
        SamplingParams(4, 12, 1.0),
        torch.Generator().manual_seed(5),
    )
    assert [len(s.completion_ids) for s in never] == [12] * 12
    assert [s.completion_ids for s in together] == [
        n.completion_ids[: len(s.completion_ids)] for s, n in zip(together, never, strict=True)
    ]
    assert len({len(s.completion_ids) for s in together}) > 3


@pytest.mark.slow
def test_tokens_are_drawn_with_their_probabilities_even_improbable_ones():
    """Chi-square over 40 tokens of the second position, which is decoded and not prefilled."""
    model = make_model("Qwen3")
    prompt, draws = [5, 6, 7], 40_000
    sampled = sample_groups(
        Policy(model, IdsAsText(), frozenset(), 0, 128),
        [prompt],
        SamplingParams(draws, 2, 1.0),
        torch.Generator().manual_seed(0),
    )
    first = torch.tensor([s.completion_ids for s in sampled])[:, 0].mode().values.item()
    seconds = torch.tensor([s.completion_ids[1] for s in sampled if s.completion_ids[0] == first])
    p = model(torch.tensor([[*prompt, first]])).logits[0, -1].double().softmax(-1).detach()
    counts, expected = torch.bincount(seconds, minlength=40).double(), p * len(seconds)
    enough = expected >= 5
    chi2 = ((counts - expected).square() / expected)[enough].sum().item()
    freedom = int(enough.sum()) - 1
    assert freedom >= 10
    assert chi2 < freedom + 5 * math.sqrt(2 * freedom)
    rest = expected[~enough].sum().item()
    assert abs(counts[~enough].sum().item() - rest) <= 5 * math.sqrt(rest) + 1


def test_the_derivatives_of_the_fused_operations_are_right():
    g = torch.Generator().manual_seed(0)
    x, up, weight = (
        torch.randn(*s, dtype=torch.float64, generator=g).requires_grad_()
        for s in ((2, 3, 4, 6), (2, 3, 4, 6), (6,))
    )
    cos, sin = (
        f(torch.randn(2, 3, 1, 3, dtype=torch.float64, generator=g)) for f in (torch.cos, torch.sin)
    )
    assert torch.autograd.gradcheck(lambda x, w: _RMSNorm.apply(x, w, EPS), (x, weight))
    assert torch.autograd.gradcheck(lambda x: _Rotate.apply(x, cos, sin), x)
    assert torch.autograd.gradcheck(_SwiGLU.apply, (x, up))
    with torch.no_grad():
        assert torch.equal(_RMSNorm.apply(x, weight, EPS), rms_norm(x, weight, EPS))
        assert torch.equal(_Rotate.apply(x, cos, sin), rotate(x, cos, sin))
        assert torch.equal(_SwiGLU.apply(x, up), swiglu(x, up))
        torch.testing.assert_close(
            rms_norm(x, weight, EPS), torch.nn.functional.rms_norm(x, (6,), weight, 1e-6)
        )
        torch.testing.assert_close(swiglu(x, up), torch.nn.functional.silu(x) * up)


def test_half_precision_is_normalised_in_single_precision():
    x = 300 * torch.randn(
        3, 64, generator=torch.Generator().manual_seed(0)
    )  # its square overflows float16
    y = rms_norm(x.half(), torch.ones(64).half(), EPS)
    torch.testing.assert_close(
        y.float(), torch.nn.functional.rms_norm(x, (64,)), atol=2e-3, rtol=2e-3
    )


def test_a_step_wakes_no_second_core_for_a_small_model(two_threads, monkeypatch):
    policy = Policy(make_model("Qwen3"), IdsAsText(), frozenset({7}), 0, 128)
    params = SamplingParams(4, 12, 1.0, keep_logprobs=True)
    attend, threads = fused.GrowingCaches._alone, []

    def noted(self, *arguments):
        threads.append(torch.get_num_threads())
        return attend(self, *arguments)

    def draw():
        return sample_groups(policy, ragged(2).prompts, params, torch.Generator().manual_seed(5))

    monkeypatch.setattr(fused.GrowingCaches, "_alone", noted)
    alone = draw()
    assert set(threads) == {1}
    assert torch.get_num_threads() == 2, "for the update"
    threads.clear()
    monkeypatch.setattr(products, "MIN_SHARED_PRODUCTS", 0)
    for a, b in zip(draw(), alone, strict=True):
        assert a.completion_ids == b.completion_ids
        assert a.sampling_logprobs == pytest.approx(b.sampling_logprobs, abs=1e-5)
    assert set(threads) == {2}
