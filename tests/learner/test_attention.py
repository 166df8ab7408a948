"""The flat layout against separate rows, in float64, where rounding explains no difference."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from tiny_shapes import OURS, make_model, ragged

from grpo_core.learner import packed_attention as attention
from grpo_core.learner.batch import Batch, packed, separate, whole_groups
from grpo_core.learner.packed_attention import attend_by_kernel, flat
from grpo_core.learner.varlen_attention import REFERENCE
from grpo_core.models.decoder import FusedDecoder, masked_attention


def flat_on_gpu(batch: Batch):
    """The flat layout with a GPU's attention, computed by its reference kernel."""
    return flat(batch, partial(attend_by_kernel, kernel=REFERENCE))


def states_and_gradient(model, batch: Batch, layout) -> tuple[torch.Tensor, torch.Tensor]:
    """The states that predict completion tokens, and the gradient of a sum with unequal weights."""
    family = FusedDecoder.of(model)
    if layout in (flat, flat_on_gpu):
        found = layout(batch)
        states = family.states(found.input_ids, found.position_ids, found.attend)
    else:
        found = layout(batch, torch.float64)
        mask = found.attention_mask
        if mask.dim() == 2:  # separate rows: causal, padding masked
            width = mask.shape[1]
            sees = torch.ones(width, width, dtype=torch.bool).tril() & mask[
                :, None
            ].bool() | torch.eye(width, dtype=torch.bool)
            mask = torch.zeros(sees.shape, dtype=torch.float64).masked_fill(~sees, float("-inf"))[
                :, None
            ]
        states = family.states(found.input_ids, found.position_ids, masked_attention(mask))
    states = states[found.predicted_at]
    model.zero_grad()
    (
        states * torch.linspace(-1, 1, states.numel(), dtype=torch.float64).view(states.shape)
    ).sum().backward()
    return states.detach(), torch.cat([p.grad.flatten() for p in model.model.parameters()])


@pytest.mark.parametrize("short", [0, 1000], ids=["block by block", "whole rows of weights"])
@pytest.mark.parametrize("group_size", [1, 2, 5, 16])
@pytest.mark.parametrize("shape", sorted(OURS))
def test_states_and_gradient_equal_separate_rows_to_nine_digits(
    shape, group_size, short, monkeypatch
):
    monkeypatch.setattr(attention, "MAX_DENSE_TOKENS", short)
    model, batch = make_model(shape, torch.float64), ragged(group_size, seed=group_size)
    expected, expected_gradient = states_and_gradient(model, batch, separate)
    for layout in (flat, flat_on_gpu, packed):
        batch = replace(batch)  # layouts are cached in it
        states, gradient = states_and_gradient(model, batch, layout)
        assert (states - expected).abs().max() <= 1e-9 * expected.abs().max()
        assert (gradient - expected_gradient).norm() <= 1e-9 * expected_gradient.norm()


@pytest.mark.parametrize("short", [0, 1000])
@pytest.mark.parametrize(
    "lengths",
    [[[3, 1, 7], [2]], [[1], [1, 1]], [[4, 4], [4, 4]]],
    ids=["ragged", "single tokens", "nothing to pad"],
)
def test_groups_need_not_be_of_one_size(lengths, short, monkeypatch):
    monkeypatch.setattr(attention, "MAX_DENSE_TOKENS", short)
    g = torch.Generator().manual_seed(3)
    draw = lambda n: torch.randint(2, 40, (n,), generator=g).tolist()  # noqa: E731
    completions = [draw(n) for group in lengths for n in group]
    batch = Batch(
        [draw(5), draw(5)],
        completions,
        [True] * len(completions),
        0,
        torch.device("cpu"),
        sizes=[len(group) for group in lengths],
    )
    model = make_model("Qwen3", torch.float64)
    (states, gradient), (expected, expected_gradient) = (
        states_and_gradient(model, batch, layout) for layout in (flat, separate)
    )
    assert (states - expected).abs().max() <= 1e-9 * expected.abs().max()
    assert (gradient - expected_gradient).norm() <= 1e-9 * expected_gradient.norm()


def test_no_token_is_computed_twice_and_no_padding_or_last_token():
    batch = ragged(4)
    texts = [c[:-1] if len(c) > 1 else c for c in batch.completions]  # the grids have no empty rows
    assert flat(batch).input_ids.tolist() == [[t for row in (*batch.prompts, *texts) for t in row]]


@pytest.mark.parametrize("budget", [1, 12, 40, 200, 1000])
def test_parts_hold_every_row_once_in_whole_groups_where_these_fit(budget):
    g = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 30, (24,), generator=g).tolist()
    prompts = [tuple(range(1, 2 + p)) for p in (3, 9, 1)]
    batch = Batch(prompts, [(5,) * n for n in lengths], [True] * 24, 0, torch.device("cpu"))
    parts = whole_groups(batch, budget)
    assert sorted(i for part in parts for i in part.step_rows) == list(range(24))
    for part in parts:
        tokens = sum(part.segment_tokens((p, rows)) for p, rows in enumerate(part.siblings))
        assert len(part) == 1 or tokens <= budget
        assert len(part) == 1 or _places(part) <= 2 * budget
        for prompt, rows in zip(part.prompts, part.siblings, strict=True):
            for i in rows:
                assert prompt == prompts[part.step_rows[i] // 8]
                assert len(part.completions[i]) == lengths[part.step_rows[i]]
    if budget == 1000:
        assert [len(part) for part in parts] == [24]
    if budget == 200:  # each group is at most 10 + 8 x 29 places, and each has less than 200 tokens
        assert all(batch.segment_tokens((p, rows)) <= 200 for p, rows in enumerate(batch.siblings))
        assert [
            [part.step_rows[i] // 8 for i in rows] for part in parts for rows in part.siblings
        ] == [
            [g] * 8
            for part in parts
            for g in sorted(
                {i // 8 for i in part.step_rows}, key=lambda g: max(lengths[8 * g : 8 * g + 8])
            )
        ]


def _places(part: Batch) -> int:
    """Places of both attention grids."""
    return len(part.prompts) * (
        max(map(len, part.prompts)) + max(map(len, part.siblings)) * max(map(len, part.completions))
    )


def test_one_long_completion_does_not_make_grids_of_its_length_for_all():
    # Seven groups of 8 x 10 tokens and one of 600 + 7 x 10: together 1,318 of at most 1,536,
    # but grids of 8 x 8 x 600 places.
    completions = [(5,) * 10] * 56 + [(5,) * 600] + [(5,) * 10] * 7
    batch = Batch([(1, 2)] * 8, completions, [True] * 64, 0, torch.device("cpu"))
    parts = whole_groups(batch, 1536)
    assert [len(part) for part in parts] == [63, 1]
    assert all(_places(part) <= 2 * 1536 for part in parts)
