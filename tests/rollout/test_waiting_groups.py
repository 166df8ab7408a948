"""Groups that wait for memory begin as others end, and are the same as without waiting."""

from __future__ import annotations

import pytest
import torch
from replayed_ops import ReplayedOps
from tiny_shapes import IdsAsText, make_model

from grpo_core.models import Policy
from grpo_core.rollout import SamplingHooks, SamplingParams, fused, sample, sample_groups, steps
from grpo_core.rollout.fixed_caches import FixedCaches
from grpo_core.rollout.own_forward import FixedOwnForward

PROMPTS = [[(5 * p + i) % 40 for i in range(n)] for p, n in enumerate((3, 9, 2, 14, 5, 1, 11))]
ENDS = frozenset({7, 21, 35})  # a row ends after some 13 tokens, of 20 at most


def drawn(policy, at_once=None, hooks=None):
    """Groups of 4. at_once: groups that memory has room for."""
    params = SamplingParams(4, 20, 1.0, keep_logprobs=True)
    with pytest.MonkeyPatch.context() as patch:
        if at_once:
            patch.setattr(sample, "decode_batches", lambda *_: [([*range(7)], at_once)])
        return sample_groups(
            policy, PROMPTS, params, torch.Generator().manual_seed(5), hooks or SamplingHooks()
        )


def assert_same(found, expected):
    assert [r.completion_ids for r in found] == [r.completion_ids for r in expected]
    assert [r.completion for r in found] == [r.completion for r in expected]
    for a, b in zip(found, expected, strict=True):
        assert a.sampling_logprobs == pytest.approx(
            b.sampling_logprobs, abs=1e-6
        )  # kept in float32


@pytest.fixture
def joins(monkeypatch):
    """The number of rows that were there, and of prompts that joined them."""
    made = []
    for kind in (FixedCaches, FixedOwnForward):

        def join(self, prompts, *rest, original=kind.join):
            made.append((len(self._place), len(prompts)))
            return original(self, prompts, *rest)

        monkeypatch.setattr(kind, "join", join)
    return made


@pytest.fixture
def graphs(monkeypatch):
    """This CPU records its steps, and looks at ends as rarely as a GPU."""
    monkeypatch.setitem(steps.CAPTURE, "cpu", lambda step: ReplayedOps().capture(step))
    monkeypatch.setitem(sample.LOOK_EVERY, "cpu", 4)


def policy_of(shape, dtype=torch.float64):
    return Policy(make_model(shape, dtype), IdsAsText(), ENDS, 0, 128)


@pytest.mark.parametrize(
    ("shape", "short"), [("Qwen3", 0), ("Qwen3", 1000), ("GPT-2", 0), ("Gemma", 0)]
)
def test_groups_that_begin_later_are_the_same(graphs, monkeypatch, joins, shape, short):
    monkeypatch.setattr(fused, "SHORT", short)
    policy = policy_of(shape)
    expected = drawn(policy)
    assert not joins
    for at_once in (2, 3):
        joins.clear()
        assert_same(drawn(policy, at_once), expected)
        assert len(joins) > 1
        assert any(there > 1 for there, _ in joins), "others had not ended"


@pytest.mark.parametrize("shape", ["Qwen3", "GPT-2"])
def test_without_recorded_steps_groups_wait_until_all_have_ended(joins, shape):
    policy = policy_of(shape)
    expected = drawn(policy)
    for at_once in (1, 3):
        assert_same(drawn(policy, at_once), expected)
    assert not joins


def test_waiting_groups_are_reported_and_seen_as_others(graphs, joins):
    policy, reported, seen = policy_of("Qwen3"), [], []
    hooks = SamplingHooks(
        on_group_done=lambda p, rollouts: reported.append((p, rollouts)),
        on_look=lambda read: seen.append(read()),
    )
    found = drawn(policy, 2, hooks)
    assert joins
    assert sorted(p for p, _ in reported) == [*range(7)]
    for p, rollouts in reported:
        assert_same(rollouts, found[4 * p : 4 * p + 4])
    assert {row for rows in seen for row in rows} == {*range(28)}
    for rows in seen:
        for row, text in rows.items():
            assert found[row].completion.text.startswith(text.text)
    assert len(seen[0]) == 8, "two groups had begun"
    at_first = {row: text for rows in reversed(seen) for row, text in rows.items()}
    for row, text in at_first.items():
        # A look every 4 tokens; those that joined at a look had drawn one by then.
        assert text.num_tokens == min(4 if row < 8 else 5, found[row].completion.num_tokens)


@pytest.mark.parametrize("fails", [FixedCaches, FixedOwnForward])
def test_out_of_memory_as_a_group_joins_leaves_the_others_going(graphs, monkeypatch, caplog, fails):
    policy = policy_of("Qwen3" if fails is FixedCaches else "Gemma")
    expected, tries = drawn(policy), []
    module = fails.__module__

    def full(*arguments, **options):
        tries.append(1)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(f"{module}.below", full)
    assert_same(drawn(policy, 2), expected)
    assert tries
    assert "waiting prompts begin when all others have ended" in caplog.text
