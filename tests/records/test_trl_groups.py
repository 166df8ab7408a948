"""TRL's tensors and texts as groups: lengths, alignment, turns and rewards."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from grpo_core.records.trl_groups import Generation, Reader, Rewards, conversation, groups
from grpo_core.types import TurnRole

PAD, END = 0, 9
REWARDS = Rewards(names=["right", "short"], weights=[1.0, 0.5])
READER = Reader(
    piece=lambda t: f"<{t}>".encode(),
    pad_id=PAD,
    end_ids=frozenset({END}),
    special_ids=frozenset({END}),
    max_tokens=4,
)
NAN = float("nan")


def generation(**changes) -> Generation:
    """Two prompts, two completions each: 3 tokens with an end, and 4 that were cut."""
    ids = torch.tensor([[5, 6, END, PAD], [5, 6, 7, 8], [5, END, PAD, PAD], [6, 6, 6, 6]])
    made = Generation(
        step=3,
        kind="training",
        group_size=2,
        prompts=["a", "a", "b", "b"],
        completions=["<5><6>", "<5><6><7><8>", "<5>", "<6><6><6><6>"],
        answers=["1", "1", "2", "2"],
        scores=[[1.0, 0.2], [0.0, NAN], [NAN, NAN], [1.0, 1.0]],
        advantages=[0.5, -0.5, 0.0, 0.25],
        tensors={"completion_ids": ids, "completion_mask": (ids != PAD).long()},
    )
    return replace(made, **changes)


def rollouts(made: Generation):
    return [r for group in groups(made, REWARDS, READER) for r in group.rollouts]


def test_a_group_has_its_prompt_and_answer_and_rewards_are_weighted_sums():
    first, second = groups(generation(), REWARDS, READER)
    assert (first.prompt, first.answer, second.prompt, second.answer) == ("a", "1", "b", "2")
    # 1·1 + 0.5·0.2; a score that is nan does not count, and two of them give no reward.
    assert [r.reward for r in (*first.rollouts, *second.rollouts)] == [1.1, 0.0, None, 1.5]
    assert first.rollouts[1].scores == {"right": 0.0, "short": None}
    assert [r.advantage for r in first.rollouts] == [0.5, -0.5]


def test_padding_is_cut_off_and_the_last_token_says_how_it_ended():
    made = rollouts(generation())
    assert [list(r.token_ids) for r in made][0::2] == [[5, 6, END], [5, END]]
    assert [r.finish_reason for r in made] == ["stop", "length", "stop", "length"]
    assert [r.num_tokens for r in made] == [3, 4, 2, 4]


def test_masked_truncated_completions_keep_their_tokens():
    tensors = dict(generation().tensors)
    tensors["completion_mask"] = tensors["completion_mask"].clone()
    tensors["completion_mask"][1] = 0
    assert list(rollouts(generation(tensors=tensors))[1].token_ids) == [5, 6, 7, 8]


def test_log_probabilities_that_are_not_finite_are_absent():
    logprobs = -torch.arange(16.0).reshape(4, 4)
    logprobs[0, 1] = NAN
    made = rollouts(generation(tensors={**generation().tensors, "old_per_token_logps": logprobs}))
    assert made[0].logprobs is None
    assert list(made[2].logprobs) == [-8.0, -9.0]


def test_unsloth_columns_are_moved_to_their_tokens():
    """It packs each row to the left: row i begins (most padding - own padding) columns in."""
    prompt_ids = torch.tensor([[PAD, PAD, 3], [PAD, 3, 3], [3, 3, 3], [PAD, PAD, 3]])
    wide = torch.full((4, 6), NAN)
    for row, start in enumerate((0, 1, 2, 0)):
        wide[row, start : start + 4] = torch.tensor([-0.1, -0.2, -0.3, -0.4])
    tensors = {**generation().tensors, "prompt_ids": prompt_ids, "old_per_token_logps": wide}
    for r in rollouts(generation(tensors=tensors)):
        expected = [-0.1, -0.2, -0.3, -0.4][: len(r.token_ids)]
        assert list(r.logprobs) == pytest.approx(expected)
    tensors["old_per_token_logps"] = wide[:, :5]  # neither form: which is which is not known
    assert rollouts(generation(tensors=tensors))[0].logprobs is None


def test_a_tool_mask_becomes_turns_with_their_places():
    completion = [
        {
            "role": "assistant",
            "tool_calls": [
                {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}},
                {"type": "function", "function": {"name": "sub", "arguments": {}}},
            ],
        },
        {"role": "tool", "name": "add", "content": "3"},
        {"role": "tool", "name": "sub", "content": "{'error': 'no such tool'}"},
        {"role": "assistant", "content": "It is 3."},
    ]
    ids = torch.tensor([[5, 6, 7, 8, 4, END]])
    made = generation(
        group_size=1,
        prompts=["a"],
        completions=[completion],
        scores=[[1.0, 1.0]],
        advantages=[0.0],
        tensors={
            "completion_ids": ids,
            "completion_mask": torch.ones_like(ids),
            "tool_mask": torch.tensor([[1, 0, 0, 0, 1, 1]]),
        },
    )
    [rollout] = rollouts(made)
    assert rollout.action_mask == [True, False, False, False, True, True]
    assert rollout.num_tokens == 3  # what the policy wrote
    call, added, failed, said = rollout.turns
    assert (call.role, call.text, call.first_token, call.num_tokens) == ("action", "<5>", 0, 1)
    assert (added.tool, added.arguments, added.text) == ("add", '{"a": 1}', "3")
    assert (added.first_token, added.num_tokens, added.error) == (1, 3, "")
    assert (failed.tool, failed.num_tokens, failed.error) == ("sub", 0, "no such tool")
    assert (said.role, said.first_token, said.num_tokens) == (TurnRole.ACTION, 4, 2)
    assert rollout.text == "<5><6><7><8><4>"


def test_an_environment_mask_without_messages_gives_turns_too():
    ids = torch.tensor([[5, 6, 7, END]])
    made = generation(
        group_size=1,
        prompts=["a"],
        completions=["<5><6><7>"],
        scores=[[1.0, 1.0]],
        advantages=[0.0],
        tensors={
            "completion_ids": ids,
            "completion_mask": torch.ones_like(ids),
            "tool_mask": torch.tensor([[1, 0, 0, 1]]),
        },
    )
    [rollout] = rollouts(made)
    assert [(t.role.value, t.text) for t in rollout.turns] == [
        ("action", "<5>"),
        ("observation", "<6><7>"),
        ("action", ""),
    ]


def test_rows_of_other_processes_have_no_tokens():
    made = generation()
    local = {name: t[:2] for name, t in made.tensors.items()}
    found = rollouts(replace(made, tensors=local, answers=made.answers[:2]))
    assert [r.token_ids is None for r in found] == [False, False, True, True]
    assert [r.text for r in found][2:] == ["<5>", "<6><6><6><6>"]


def test_an_evaluation_has_no_advantages():
    [first, _] = groups(generation(kind="evaluation"), REWARDS, READER)
    assert first.kind == "evaluation"
    assert [r.advantage for r in first.rollouts] == [None, None]


def test_a_conversation_is_split_before_its_last_message():
    parts = [{"type": "image", "image": object()}, {"type": "text", "text": "What is it?"}]
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts}]
    assert conversation(prompt) == (
        "[image]What is it?",
        ({"role": "system", "content": "Be brief."},),
    )
    assert conversation("plain") == ("plain", ())
