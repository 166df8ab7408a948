"""A decoding step as one replay, its self-check, and what is not recorded.

CUDA's graphs are imitated by replayed_ops.py.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from replayed_ops import ReplayedOps
from tiny_shapes import IdsAsText, make_model, ragged, with_adapters

from grpo_core.models import Policy
from grpo_core.models.decoder import FusedDecoder
from grpo_core.rollout import SamplingParams, fused, sample, sample_groups, steps
from grpo_core.rollout import decode_batches as decode_batches

EXACT = torch.float64


class Graphs(list):
    """As steps.CAPTURE takes it: notes every recording."""

    def __call__(self, step):
        self.append(ReplayedOps())
        return self[-1].capture(step)


@pytest.fixture
def graphs(monkeypatch) -> Graphs:
    """This CPU records its steps, and looks at ends as rarely as a GPU."""
    made = Graphs()
    monkeypatch.setitem(steps.CAPTURE, "cpu", made)
    monkeypatch.setitem(sample.LOOK_EVERY, "cpu", 8)
    return made


def policy_of(model, *end_ids: int) -> Policy:
    return Policy(model, IdsAsText(), frozenset(end_ids), 0, 128)


def drawn(policy: Policy, temperature: float = 1.0, tokens: int = 24):
    params = SamplingParams(4, tokens, temperature, keep_logprobs=True)
    return sample_groups(policy, ragged(2).prompts, params, torch.Generator().manual_seed(5))


def by_hand(policy: Policy, temperature: float, tokens: int = 24):
    """One row at a time, without a cache: the same random numbers, inverted over the vocabulary."""
    prompts = ragged(2).prompts
    generator = torch.Generator().manual_seed(5)
    uniforms = torch.rand(len(prompts), 4, tokens, generator=generator, dtype=torch.float64)
    rows = []
    for prompt, noise in zip(prompts, uniforms, strict=True):
        for row in noise:
            written: list[int] = []
            for u in row:
                logits = policy.model(torch.tensor([[*prompt, *written]])).logits[0, -1]
                share = (logits.double() / temperature).softmax(-1).cumsum(-1)
                written.append(int(torch.searchsorted(share, u * share[-1], right=True)))
                if written[-1] in policy.end_ids:
                    break
            rows.append(written)
    return rows


@pytest.mark.parametrize("short", [0, 1000], ids=["prompts kept apart", "prompts copied"])
@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.0])
def test_a_replay_draws_what_the_step_itself_draws(graphs, monkeypatch, short, temperature):
    """GPU review, sample.py:75: the draw is a part of the replay, so the host need not read the
    tokens.
    """
    monkeypatch.setattr(fused, "SHORT", short)
    policy = policy_of(make_model("Qwen3", EXACT), 7, 21, 35)
    replayed = drawn(policy, temperature)
    assert sum(g.replays for g in graphs) > 15
    assert len(graphs) > 1, "rows left, so the step was recorded anew"
    monkeypatch.setitem(steps.CAPTURE, "cpu", lambda step: step)
    assert drawn(policy, temperature) == replayed, "bit for bit"
    monkeypatch.delitem(steps.CAPTURE, "cpu")
    plain = drawn(policy, temperature)
    assert [r.completion_ids for r in plain] == [r.completion_ids for r in replayed]
    for a, b in zip(plain, replayed, strict=True):
        # Kept in float32; growing caches sum in another order.
        assert a.sampling_logprobs == pytest.approx(b.sampling_logprobs, abs=1e-6)
    if temperature:
        assert [r.completion_ids for r in plain] == by_hand(policy, temperature)


def test_the_host_waits_for_no_token(graphs, monkeypatch):
    """GPU review, sample.py:75: a host that reads from the GPU waits until the step is over."""
    stepping: list[bool] = []

    def forbidden(name):
        original = getattr(torch.Tensor, name)

        def read(self, *arguments):
            assert not stepping, f"a step calls {name}"
            return original(self, *arguments)

        monkeypatch.setattr(torch.Tensor, name, read)

    for name in ("item", "tolist", "__bool__", "__int__", "__float__", "nonzero"):
        forbidden(name)
    make = sample.step_taker

    def watched(*arguments):
        take = make(*arguments)

        def step():
            if take._replay is None:
                take()  # the first compares with its replay, and so reads
                return
            stepping.append(True)
            take()
            stepping.clear()

        return step

    monkeypatch.setattr(sample, "step_taker", watched)
    drawn(policy_of(make_model("Qwen3")))
    assert [g.replays for g in graphs] == [23], "one for each token but the first"


def test_a_replay_that_gives_other_numbers_is_dropped_once(monkeypatch, caplog):
    """GPU review, decoders.py:266: the first replay is compared with the step itself."""
    expected = drawn(policy_of(make_model("Qwen3", EXACT)))
    made = []

    def half(step):
        made.append(ReplayedOps())
        replay = made[-1].capture(step)
        del made[-1].ops[len(made[-1].ops) // 2 :]
        return replay

    monkeypatch.setitem(steps.CAPTURE, "cpu", half)
    policy = policy_of(make_model("Qwen3", EXACT))
    for _ in range(2):
        found = drawn(policy)
        assert [r.completion_ids for r in found] == [r.completion_ids for r in expected]
    assert len(made) == 1
    assert [r.getMessage() for r in caplog.records] == [
        "Decoding steps give other numbers when they are replayed. They are computed plainly, more "
        "slowly."
    ]


def test_a_device_that_cannot_record_computes_every_step(monkeypatch, caplog):
    def refuse(step):
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")

    expected = drawn(policy_of(make_model("Qwen3", EXACT)))
    monkeypatch.setitem(steps.CAPTURE, "cpu", refuse)
    policy = policy_of(make_model("Qwen3", EXACT))
    for _ in range(2):
        assert [r.completion_ids for r in drawn(policy)] == [r.completion_ids for r in expected]
    [record] = caplog.records
    assert "cannot be recorded (CUDA error: operation not permitted" in record.getMessage()


def test_a_recording_without_memory_is_made_again_with_fewer_prompts(monkeypatch):
    """GPU review, draw.py:91: recording needs memory too."""
    expected = drawn(policy_of(make_model("Qwen3", EXACT)))
    tries = []

    def full(step):
        tries.append(1)
        if len(tries) == 1:
            raise RuntimeError("CUDA error: out of memory")
        return step

    monkeypatch.setitem(steps.CAPTURE, "cpu", full)
    found = drawn(policy_of(make_model("Qwen3", EXACT)))
    assert [r.completion_ids for r in found] == [r.completion_ids for r in expected]
    assert len(tries) == 3, "once together, then two prompts and one"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_one_outlier_does_not_decide_and_a_wrong_buffer_does(dtype):
    """GPU review, decoders.py:266: a bound on each of millions of numbers would refuse right
    replays.
    """
    g = torch.Generator().manual_seed(0)
    right = 4 * torch.randn(8, 2000, generator=g)
    rounded = right * (1 + torch.finfo(dtype).eps * (torch.rand(8, 2000, generator=g) - 0.5))
    rounded[3, 7] += 3.0
    assert steps.agree(rounded.to(dtype), right.to(dtype))
    assert not torch.allclose(rounded.to(dtype), right.to(dtype), rtol=1e-2, atol=1e-2)
    assert not steps.agree(right.roll(1, 0).to(dtype), right.to(dtype)), "another row"
    late = right + 0.2 * torch.randn(8, 2000, generator=g)
    assert not steps.agree(late.to(dtype), right.to(dtype)), "an older step"
    broken = rounded.clone()
    broken[:2] = torch.nan
    assert not steps.agree(broken.to(dtype), right.to(dtype))


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ("Mamba", "there is no fused decoder for mamba"),  # its cache is no list of keys
        ("Phi-3, LongRoPE", "there is no fused decoder for phi3"),  # angles change with length
    ],
)
def test_a_gpu_says_once_why_a_model_is_not_recorded(graphs, caplog, shape, reason):
    """GPU review, decoders.py:44: what has no steps of fixed shapes is computed as it was."""
    policy = policy_of(make_model(shape, unusual=True))
    for _ in range(2):
        drawn(policy, tokens=4)
    assert not graphs
    assert [r.getMessage() for r in caplog.records if r.name == "grpo_studio"] == [
        f"Sampling uses the model's own code, which is slower on a GPU: {reason}."
    ]


@pytest.mark.parametrize("shape", ["Gemma", "Gemma 2", "Mistral, sliding"])
def test_the_models_own_code_is_recorded_too(graphs, monkeypatch, shape):
    """GPU review, decoders.py:44: also where layers see the last 4 tokens only."""
    policy = policy_of(make_model(shape, EXACT), 7, 21, 35)
    replayed = drawn(policy)
    assert sum(g.replays for g in graphs) >= 15
    assert len(graphs) > 1, "rows left, so the step was recorded anew"
    monkeypatch.delitem(steps.CAPTURE, "cpu")
    plain = drawn(policy)
    for a, b in zip(replayed, plain, strict=True):
        assert a.completion_ids == b.completion_ids
        assert a.sampling_logprobs == pytest.approx(b.sampling_logprobs, abs=1e-6)


@pytest.mark.parametrize("shape", ["Gemma 3", "Cohere 2"])
def test_recorded_windows_are_transformers_own(graphs, shape):
    """GPU review, decoders.py:44: layers with a window of 16 beside layers without."""
    model = make_model(shape, EXACT, unusual=True)
    found = drawn(policy_of(model), tokens=12)
    assert sum(g.replays for g in graphs) >= 11
    for r in found:
        ids = torch.tensor([[*r.prompt_ids, *r.completion_ids]])
        own = model(ids).logits[0, len(r.prompt_ids) - 1 : -1].log_softmax(-1)
        chosen = own.gather(-1, torch.tensor(r.completion_ids)[:, None])[:, 0]
        assert r.sampling_logprobs == pytest.approx(chosen.tolist(), abs=1e-5)


def test_a_model_that_ignores_masks_is_not_recorded(graphs):
    """GPU review, decoders.py:44: its first step with fixed shapes has other logits."""
    model = make_model("Gemma", EXACT)
    model.register_forward_pre_hook(
        lambda _, args, options: (args, options | {"attention_mask": None}), with_kwargs=True
    )
    drawn(policy_of(model))
    assert not graphs


@pytest.mark.parametrize("window", [128, 12])
def test_a_window_that_no_text_exceeds_is_decoded_as_none(graphs, window):
    """GPU review, decoders.py:44: a sliding window hides nothing from a text that is shorter."""
    # Prompts of at most 11 tokens and 12 new ones: within 128, and all beyond 12.
    model = make_model("Mistral, sliding", EXACT, sliding_window=window)
    found = drawn(policy_of(model), 0.0, tokens=12)
    assert graphs
    for r in found[::4]:
        out = model.generate(
            torch.tensor([r.prompt_ids]), do_sample=False, max_new_tokens=12, eos_token_id=None
        )
        assert r.completion_ids == out[0, len(r.prompt_ids) :].tolist()


def in_four_bits(model):
    """Linear layers of bitsandbytes' kind, as far as decoding can tell: no weight to multiply."""

    def forward(self, x):
        return torch.nn.functional.linear(x, self.levels.to(x.dtype) * self.scale)

    kind = type("Linear4bit", (torch.nn.Module,), {"forward": forward})
    kind.__module__ = "bitsandbytes.nn.modules"
    for module in list(model.model.layers.modules()):
        for name, child in list(module.named_children()):
            if type(child) is torch.nn.Linear:
                quantised = kind()
                quantised.in_features, quantised.out_features = (
                    child.in_features,
                    child.out_features,
                )
                quantised.scale = child.weight.detach().abs().max() / 7
                levels = (child.weight.detach() / quantised.scale).round().to(torch.int8)
                quantised.register_buffer("levels", levels)
                setattr(module, name, quantised)
    return model


def test_a_model_in_four_bits_has_recorded_steps(graphs):
    """GPU review, decoders.py:44: layers in four bits are products too."""
    model = in_four_bits(make_model("Llama", EXACT))
    assert FusedDecoder.of(model) is not None
    found = drawn(policy_of(model), 0.0, tokens=12)
    assert sum(g.replays for g in graphs) == 11
    for r in found[::4]:
        out = model.generate(
            torch.tensor([r.prompt_ids]), do_sample=False, max_new_tokens=12, eos_token_id=None
        )
        assert r.completion_ids == out[0, len(r.prompt_ids) :].tolist()


def test_weights_in_four_bits_are_counted_as_weights():
    """GPU review, policy.py:57: bitsandbytes keeps two weights in a byte."""
    model = make_model("Llama")
    expected = policy_of(model).num_parameters
    layer = model.model.layers[0].mlp.down_proj
    packed = torch.zeros(layer.weight.numel() // 2, 1, dtype=torch.uint8)  # as bitsandbytes packs
    shape = layer.weight.shape
    layer.weight = torch.nn.Parameter(packed, requires_grad=False)
    layer.weight.quant_state = SimpleNamespace(shape=shape)
    assert policy_of(model).num_parameters == expected


def test_steps_with_adapters_are_recorded_too(graphs, monkeypatch):
    """GPU review, family.py:260: adapters do not keep a step from being recorded."""
    model = with_adapters(make_model("Qwen3", EXACT))
    replayed = drawn(policy_of(model))
    monkeypatch.delitem(steps.CAPTURE, "cpu")
    assert [r.completion_ids for r in drawn(policy_of(model))] == [
        r.completion_ids for r in replayed
    ]
    assert sum(g.replays for g in graphs) == 23


def test_a_decode_batch_has_room_to_read_its_prompts(monkeypatch):
    """GPU review, draw.py:91: the scores of the prompts' attention need memory beside the cache."""
    # Of 2 layers and 1 key head of 16: 2·2·16·4 = 256 bytes of cache a token, 24·40 of logits a
    # row. A prompt of 1,000 tokens: 2 rows of 1,010 tokens and 1,000²·(2 + 2)·4 of scores.
    policy = policy_of(make_model("Qwen3"))
    prompt = 2 * (1010 * 256 + 960) + 16_000_000
    prompts = [[5] * 1000] * 4
    for room, size in ((2 * prompt, 2), (2 * prompt - 1, 1)):
        monkeypatch.setattr(decode_batches, "room_for_sampling", lambda _, room=room: room)
        monkeypatch.setattr(decode_batches, "SHARE", 1)
        batches = decode_batches.decode_batches(policy, prompts, 2, 10)
        assert [*batches] == [([0, 1, 2, 3], size)]
