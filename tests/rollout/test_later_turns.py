"""Turns of a text draw what reading the whole text anew would draw, token by token."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch
from replayed_ops import ReplayedOps
from tiny_shapes import IdsAsText, make_model, ragged, with_adapters

from grpo_core.models import Policy
from grpo_core.rollout import (
    SamplingHooks,
    SamplingParams,
    TurnSampler,
    fused,
    sample,
    sample_with,
    sampling,
    steps,
    turns,
)
from grpo_core.rollout import decode_batches as decode_batches

SIZE, MOST, ENDS = 4, 30, frozenset({3, 7, 11, 15, 21, 35})


def policy_of(model, context: int = 128) -> Policy:
    return Policy(model, IdsAsText(), ENDS, 0, context)


class Texts:
    """Rows that go on while they end by themselves, and what is added to each turn."""

    def __init__(self, prompts, most: int = MOST) -> None:
        self.prompts, self.most = prompts, most
        self.rng = random.Random(0)
        self.own = [[] for _ in range(len(prompts) * SIZE)]
        self.written = [[] for _ in self.own]  # (place, token, log-probability) of what was drawn
        self.turns = [0] * len(self.own)

    def text(self, i: int) -> list[int]:
        return [*self.prompts[i // SIZE], *self.own[i]]

    def take(self, rows, rollouts) -> list[int]:
        """Note what was drawn, add tokens to those that ended; the rows that go on."""
        going = []
        for i, r in zip(rows, rollouts, strict=True):
            for token, logprob in zip(r.completion_ids, r.sampling_logprobs, strict=True):
                self.written[i].append((len(self.own[i]), token, logprob))
                self.own[i].append(token)
            self.turns[i] += 1
            added = [self.rng.randrange(40) for _ in range(self.rng.randint(1, 6))]
            full = len(self.own[i]) + len(added) >= self.most
            if r.completion.finish_reason == "stop" and i % 5 and not full:
                self.own[i] += added
                going.append(i)
        return going


def played(policy: Policy, prompts, most: int = MOST) -> Texts:
    texts, params = Texts(prompts, most), SamplingParams(SIZE, most, 1.0, keep_logprobs=True)
    uniforms = uniforms_of(prompts, most)
    with sampling(policy, uniforms.numel()):
        sampler = TurnSampler(policy, prompts, params, uniforms, SamplingHooks())
        rows = list(range(len(texts.own)))
        rows = texts.take(rows, sampler.first())
        while rows:
            left = [most - len(texts.own[i]) for i in rows]
            rows = texts.take(rows, sampler.next(rows, [texts.text(i) for i in rows], left))
    return texts


def uniforms_of(prompts, most: int = MOST) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.rand(len(prompts), SIZE, most, generator=generator, dtype=torch.float64)


def assert_as_by_hand(policy: Policy, texts: Texts) -> None:
    """Each token is what the model's own forward over the row so far gives for its number."""
    uniforms = uniforms_of(texts.prompts, texts.most).flatten(0, 1)
    with torch.no_grad():
        for i, written in enumerate(texts.written):
            prompt = texts.prompts[i // SIZE]
            logits = policy.model(torch.tensor([texts.text(i)])).logits[0].double()
            for place, token, logprob in written:
                known = logits[len(prompt) + place - 1].log_softmax(-1)
                share = known.exp().cumsum(-1)
                number = uniforms[i, place] * share[-1]
                assert int(torch.searchsorted(share, number, right=True)) == token
                assert float(known[token]) == pytest.approx(logprob, abs=1e-5)


@pytest.mark.parametrize("records", [False, True], ids=["plain", "recorded"])
@pytest.mark.parametrize("short", [0, 1000], ids=["prompts kept apart", "prompts copied"])
@pytest.mark.parametrize("shape", ["Qwen3", "Llama 3 angles"])
def test_kept_caches_draw_what_the_model_itself_draws(monkeypatch, shape, short, records):
    monkeypatch.setattr(fused, "SHORT", short)
    if records:  # as on a GPU
        monkeypatch.setitem(steps.CAPTURE, "cpu", lambda step: ReplayedOps().capture(step))
        monkeypatch.setitem(sample.LOOK_EVERY, "cpu", 8)
    policy, prompts = policy_of(make_model(shape, torch.float64)), ragged(2).prompts
    read_again = []
    monkeypatch.setattr(turns, "sample_with", lambda *_: read_again.append(1))
    texts = played(policy, prompts)
    assert max(texts.turns) >= 3
    assert not read_again
    assert_as_by_hand(policy, texts)


def test_adapters_are_merged_for_all_turns(monkeypatch):
    policy = policy_of(with_adapters(make_model("Qwen3", torch.float64)))
    texts = played(policy, ragged(2).prompts)
    assert max(texts.turns) >= 3
    assert_as_by_hand(policy, texts)


@pytest.mark.parametrize("shape", ["GPT-2", "Gemma 2", "Mistral, sliding"])
def test_other_models_read_each_text_anew(shape):
    policy = policy_of(make_model(shape, torch.float64))
    texts = played(policy, ragged(2).prompts)
    assert max(texts.turns) >= 3
    assert_as_by_hand(policy, texts)


def test_a_full_row_is_not_read_beyond_the_context():
    """GPT-2 has no embedding for a place beyond its context, and its neighbours go on."""
    policy = policy_of(make_model("GPT-2", n_positions=42, max_position_embeddings=42), 42)
    texts, limits = [[2] * 40, *([[2] * 8] * 7)], [2, *[30] * 7]
    params = SamplingParams(1, 30, 1.0)
    uniforms = torch.rand(8, 1, 30, dtype=torch.float64)
    policy = dataclasses.replace(policy, end_ids=frozenset({-1}))
    with sampling(policy, 240):
        rollouts = sample_with(policy, texts, params, uniforms, SamplingHooks(), limits)
    assert [len(r.completion_ids) for r in rollouts] == limits
    assert rollouts[0].completion.finish_reason == "length"


@pytest.mark.parametrize("fails_at", [1, 2])
def test_without_memory_for_the_caches_turns_read_anew(monkeypatch, caplog, fails_at):
    policy, prompts = policy_of(make_model("Qwen3", torch.float64)), ragged(2).prompts
    expected = played(policy, prompts)
    calls = []
    go_on = fused.GrowingCaches.go_on

    def full(self, *arguments):
        calls.append(1)
        if len(calls) == fails_at:
            raise MemoryError
        return go_on(self, *arguments)

    monkeypatch.setattr(fused.GrowingCaches, "go_on", full)
    found = played(policy, prompts)
    assert found.own == expected.own
    assert len(calls) == fails_at
    assert "each turn reads its texts anew" in caplog.text


def test_groups_too_large_for_memory_take_their_turns_in_batches(monkeypatch):
    policy, prompts = policy_of(make_model("Qwen3", torch.float64)), ragged(2).prompts
    expected = played(policy, prompts)
    monkeypatch.setattr(decode_batches, "room_for_sampling", lambda device: 0)
    assert played(policy, prompts).own == expected.own


def test_the_same_turns_repeat_to_the_bit():
    policy, prompts = policy_of(make_model("Qwen3")), ragged(2).prompts
    assert played(policy, prompts).written == played(policy, prompts).written
