"""Adapters are merged into a copy of the weights while a model samples."""

from __future__ import annotations

import peft
import pytest
import torch
from tiny_shapes import IdsAsText, make_model, ragged, with_adapters

from grpo_core.config import parse
from grpo_core.learner.logprobs import token_logprobs
from grpo_core.models import Policy, merged_adapters
from grpo_core.models.lora import adapter_layers
from grpo_core.models.merged_adapters import adapters_merged, dithered
from grpo_core.rollout import SamplingHooks, SamplingParams, sample_groups
from grpo_core.training.memory_estimate import ModelSize, memory


def policy_of(model) -> Policy:
    return Policy(model, IdsAsText(), frozenset({7}), 0, 128)


def drawn(model, hooks: SamplingHooks | None = None):
    return sample_groups(
        policy_of(model),
        ragged(2).prompts,
        SamplingParams(4, 20, 1.0, keep_logprobs=True),
        torch.Generator().manual_seed(5),
        hooks or SamplingHooks(),
    )


def products_of_adapters(model) -> list[int]:
    """Grows with every product of an adapter from now on."""
    computed: list[int] = []
    for layer in adapter_layers(model):
        for a in layer.lora_A.values():
            a.register_forward_hook(lambda *_: computed.append(1))
    return computed


def kept_apart(monkeypatch):
    monkeypatch.setattr(merged_adapters, "_pays", lambda *_: False)


@pytest.mark.parametrize("shape", ["Qwen3", "GPT-2", "Gemma 2"])
def test_sampling_computes_no_adapter_and_writes_the_same(shape, monkeypatch):
    """GPU review, family.py:260: merged adapters cost nothing while the model decodes."""
    model = with_adapters(make_model(shape))
    computed = products_of_adapters(model)
    merged = drawn(model)
    assert not computed
    kept_apart(monkeypatch)
    apart = drawn(model)
    assert computed
    for a, b in zip(merged, apart, strict=True):
        assert a.completion_ids == b.completion_ids
        assert a.sampling_logprobs == pytest.approx(b.sampling_logprobs, abs=1e-5)


def test_sampling_logprobs_are_those_the_learner_finds():
    model, batch = with_adapters(make_model("Qwen3")), ragged(2)
    rollouts = drawn(model)
    batch = type(batch)(
        batch.prompts, [r.completion_ids for r in rollouts], [True] * 12, 0, batch.device
    )
    with torch.no_grad():
        found, _ = token_logprobs(model, batch, 1.0)
    for row, r in zip(found, rollouts, strict=True):
        assert r.sampling_logprobs == pytest.approx(row[: len(r.completion_ids)].tolist(), abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stopped", [False, True], ids=["to the end", "stopped"])
def test_the_weights_stay_where_and_as_they_are(dtype, stopped):
    model = with_adapters(make_model("Qwen3", dtype))
    before = {n: (p.data_ptr(), p.detach().clone()) for n, p in model.named_parameters()}

    def stop():
        calls.append(1)
        if stopped and len(calls) == 5:
            raise KeyError("stop")

    calls: list[int] = []
    try:
        drawn(model, SamplingHooks(check_interrupt=stop))
    except KeyError:
        assert stopped
    for name, p in model.named_parameters():
        place, values = before[name]
        assert p.data_ptr() == place
        assert torch.equal(p, values), name
    assert not any(layer.merged for layer in adapter_layers(model))


@pytest.mark.parametrize(
    "options", [{}, {"use_dora": True}, {"use_rslora": True}, {"rank_pattern": {"q_proj": 8}}]
)
def test_every_kind_of_adapter_is_merged_as_peft_computes_it(options):
    model = make_model("Llama", torch.float64)
    config = peft.LoraConfig(r=2, target_modules="all-linear", lora_dropout=0.1, **options)
    peft.inject_adapter_in_model(config, model)
    model.eval().double()
    g = torch.Generator().manual_seed(0)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            p.data.normal_(0, 0.3, generator=g)
    ids = torch.tensor([[3, 9, 27]])
    with torch.no_grad():
        base = make_model("Llama", torch.float64)(ids).logits
        expected = model(ids).logits
        computed = products_of_adapters(model)
        with adapters_merged(model, 10_000):
            found = model(ids).logits
        assert not computed
        again = model(ids).logits
    assert (found - expected).abs().max() <= 1e-12 * expected.abs().max()
    assert (expected - base).abs().max() > 0.1
    assert torch.equal(again, expected)


def test_small_adapters_survive_merging_into_half_precision():
    # Weights of 0.02 have steps of 1.2e-4 in bfloat16, and this adapter adds 1e-5 to each.
    g = torch.Generator().manual_seed(0)
    weight = (0.02 * torch.randn(512, 512, generator=g)).bfloat16()
    sign = torch.randn(512, generator=g).sign()
    delta = 1e-5 * sign[:, None] * sign
    nearest = (weight.float() + delta).bfloat16()
    merged = dithered(weight.float() + delta, torch.bfloat16)

    def kept(result):
        """The adapter's share that the result computes for the input it was made for."""
        return float(sign @ (result.float() - weight.float()) @ sign / (sign @ delta @ sign))

    assert kept(merged) == pytest.approx(1, abs=0.1)
    assert abs(kept(nearest) - 1) > 0.3, "what dithering is for"
    assert torch.equal(dithered(weight.float(), torch.bfloat16), weight), "no adapter, no change"
    assert torch.equal(dithered(weight.float() + delta, torch.bfloat16), merged), "always the same"
    # A number goes to one of its two neighbours.
    exact = weight.float() + delta
    assert ((merged.float() - exact).abs() <= 2**-7 * exact.abs()).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_number_between_two_is_rounded_up_by_its_distance(dtype):
    below, above = torch.tensor([1.0, 1.0 + torch.finfo(dtype).eps])
    for share in (0.1, 0.5, 0.9):
        for sign in (1, -1):
            value = sign * (below + share * (above - below))
            found = dithered(value.expand(20_000), dtype).float()
            assert set(found.tolist()) == {sign * float(below), sign * float(above)}
            assert float((found == sign * above).float().mean()) == pytest.approx(share, abs=0.02)


def test_a_copy_that_does_not_fit_is_said_once_and_not_made(monkeypatch, caplog):
    model = with_adapters(make_model("Qwen3"))
    expected = drawn(model)
    computed = products_of_adapters(model)
    monkeypatch.setattr(merged_adapters, "room_for_sampling", lambda device: 1000)
    for _ in range(2):
        assert [r.completion_ids for r in drawn(model)] == [r.completion_ids for r in expected]
    assert computed
    assert [r.getMessage() for r in caplog.records] == [merged_adapters.TOO_LARGE]


def test_memory_that_runs_out_while_merging_leaves_the_adapters_apart(monkeypatch, caplog):
    model = with_adapters(make_model("Qwen3"))
    expected = drawn(model)
    before = [p.detach().clone() for p in model.parameters()]
    last = adapter_layers(model)[-1]

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(last, "merge", full)
    assert [r.completion_ids for r in drawn(model)] == [r.completion_ids for r in expected]
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    assert [r.getMessage() for r in caplog.records] == [merged_adapters.TOO_LARGE]


def test_a_few_tokens_are_not_worth_merging():
    # Layers of 32 x 32: apart, r·64 more operations a token; merging takes r·1,024, so 16 tokens.
    layers = [m for m in adapter_layers(with_adapters(make_model("Qwen2"))) if m.out_features == 32]
    square = [m for m in layers if m.in_features == 32]
    assert square
    assert not merged_adapters._pays(square, 16)
    assert merged_adapters._pays(square, 17)


def test_a_base_in_four_bits_is_not_merged(monkeypatch):
    model = with_adapters(make_model("Llama"))
    expected = drawn(model)
    for layer in adapter_layers(model):  # the adapters stay, the base is quantised below them
        layer.get_base_layer().__class__ = type("Linear4bit", (torch.nn.Linear,), {})
    computed = products_of_adapters(model)
    assert [r.completion_ids for r in drawn(model)] == [r.completion_ids for r in expected]
    assert computed


def test_adapters_of_experts_stay_apart_beside_merged_ones(monkeypatch):
    model = with_adapters(make_model("Mixtral", unusual=True))
    merged = drawn(model)
    kept_apart(monkeypatch)
    apart = drawn(model)
    for a, b in zip(merged, apart, strict=True):
        assert a.completion_ids == b.completion_ids
        assert a.sampling_logprobs == pytest.approx(b.sampling_logprobs, abs=1e-4)


@pytest.mark.parametrize(("bits", "tied", "weights"), [("16", 0, 900), ("16", 1, 950), ("4", 0, 0)])
def test_check_model_counts_the_merged_copy(bits, tied, weights):
    shape = make_model("Llama").config
    shape.vocab_size, shape.hidden_size, shape.tie_word_embeddings = 5_000_000, 10, bool(tied)
    size = ModelSize(shape, 1_000_000_000, 1000, torch.bfloat16)
    config = parse({"model": {"lora_rank": 4, "base_bits": bits}, "train": {"max_new_tokens": 1}})
    parts, _ = memory(config, size, recomputes=False)
    # 10⁹ parameters without one or two tables of 50 million; while sampling, the other parts that
    # are not there yet make room.
    later = parts["gradients"] + parts["logits"] + parts["activations"]
    assert parts["merged adapters"] == max(0, 2 * weights * 10**6 - later)
    assert (parts["merged adapters"] > 0) == (bits == "16")
