"""Advantages and groupings against hand values, and what must not change them."""

from __future__ import annotations

import math
import typing

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_core.config import AlgorithmConfig, options
from grpo_core.learner import (
    ADVANTAGES,
    AGGREGATIONS,
    GROUPINGS,
    KL_CONTROLS,
    KL_ESTIMATORS,
    OBJECTIVES,
    RATIO_LEVELS,
    Siblings,
    advantage_parts,
)
from grpo_core.types import Prompt

NAN = math.nan
W = torch.tensor([1.0, 0.5], dtype=torch.float64)
# Two criteria, three groups of four; b of row 9 and both of row 10 could not be scored.
S = torch.tensor(
    [
        [1, 0],
        [0, 0.5],
        [1, 0.5],
        [0, 0],
        [0, 0.2],
        [0, 0.2],
        [0, 0.2],
        [0, 0.2],
        [1, NAN],
        [NAN, NAN],
        [0, 0.3],
        [1, 0.1],
    ],
    dtype=torch.float64,
)
R = torch.tensor([1, 0.25, 1.25, 0, 0.1, 0.1, 0.1, 0.1, 1, NAN, 0.15, 1.05], dtype=torch.float64)
KEYS = [0] * 4 + [1] * 4 + [2] * 4


def compute_advantages(*given) -> torch.Tensor:
    return advantage_parts(*given).advantages


@pytest.mark.parametrize(
    ("name", "golden"),
    [
        (
            "group_std",
            [0.63002, -0.63002, 1.05003, -1.05003, 0, 0, 0, 0, 0.52711, 0, -1.15306, 0.62595],
        ),
        (
            "batch_std",
            [0.76128, -0.76128, 1.26881, -1.26881, 0, 0, 0, 0, 0.54136, 0, -1.18422, 0.64286],
        ),
        (
            "per_criterion",
            [0.62663, -0.62663, 1.87945, -1.87945, 0, 0, 0, 0, 0.83536, 0, -1.15944, 0.32408],
        ),
        # r less .625; r less 2.2/3
        ("group_mean", [0.375, -0.375, 0.625, -0.625, 0, 0, 0, 0, 0.26667, 0, -0.58333, 0.31667]),
        # times 4/3; times 3/2
        ("leave_one_out", [0.5, -0.5, 0.83333, -0.83333, 0, 0, 0, 0, 0.4, 0, -0.875, 0.475]),
        # ranks 3 2 4 1 less 2.5, over their sample std sqrt(5/3) = 1.29099;
        # ranks 2 1 3 less 2, over 1
        ("rank", [0.38730, -0.38730, 1.16190, -1.16190, 0, 0, 0, 0, 0, 0, -1, 1]),
    ],
)
def test_advantages_have_the_golden_values_with_unscored_rows_and_a_tied_group(name, golden):
    torch.testing.assert_close(
        compute_advantages(ADVANTAGES[name], R, S, W, KEYS),
        torch.tensor(golden, dtype=torch.float64),
        atol=1e-5,
        rtol=0,
    )


def test_ties_share_their_mean_rank():
    # ranks of 1 1 0 2: 2.5 2.5 1 4, less 2.5, over the sample std
    # sqrt((0 + 0 + 2.25 + 2.25)/3) = 1.22474
    advantages = ADVANTAGES["rank"](Siblings(torch.tensor([[1.0, 1, 0, 2]]).double())).advantages
    assert advantages.tolist()[0] == pytest.approx([0, 0, -1.22474, 1.22474], abs=1e-5)


def test_only_group_std_counts_a_near_tie_like_a_clear_win():
    near = Siblings(torch.tensor([[0.500, 0.501, 0.500, 0.501]], dtype=torch.float64))
    # .0005/(.000577 + .0001)
    most = {
        n: ADVANTAGES[n](near).advantages.abs().max().item() for n in ("group_std", "group_mean")
    }
    assert most["group_std"] == pytest.approx(0.738, abs=1e-3)
    assert most["group_mean"] == pytest.approx(0.0005)


@pytest.mark.parametrize("name", sorted(ADVANTAGES))
def test_advantages_are_zero_where_nothing_can_be_compared(name):
    # .1 + .2 is not .3: a tie by rounding
    alone = torch.tensor([[NAN, 2.0, NAN], [NAN] * 3, [0.1 + 0.2, 0.3, 0.3]], dtype=torch.float64)
    siblings = Siblings(alone, alone[..., None], torch.ones(1, dtype=torch.float64))
    assert torch.equal(
        ADVANTAGES[name](siblings).advantages, torch.zeros(3, 3, dtype=torch.float64)
    )


tables = st.integers(0, 10_000).map(lambda seed: torch.Generator().manual_seed(seed))


def step(
    g: torch.Generator, missing: float = 0.25
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[int]]:
    """rewards, scores, weights, keys of a random step with groups of different sizes."""
    keys = [
        k for k, n in enumerate(torch.randint(1, 7, (4,), generator=g).tolist()) for _ in range(n)
    ]
    scores = torch.rand(len(keys), 2, generator=g, dtype=torch.float64)
    scores[torch.rand(len(keys), generator=g) < missing] = NAN
    weights = 0.2 + torch.rand(2, generator=g, dtype=torch.float64)
    return (scores * weights).sum(1), scores, weights, keys


@pytest.mark.parametrize("name", sorted(ADVANTAGES))
@given(tables)
@settings(max_examples=50, deadline=None)
def test_group_advantages_sum_to_zero_and_ignore_a_shift_of_rewards(name, g):
    rewards, scores, weights, keys = step(g)
    advantages = compute_advantages(ADVANTAGES[name], rewards, scores, weights, keys)
    sums = torch.zeros(4, dtype=torch.float64).index_add(0, torch.tensor(keys), advantages)
    assert sums.abs().max() < 1e-9
    torch.testing.assert_close(
        compute_advantages(ADVANTAGES[name], rewards + 3, scores + 3, weights, keys),
        advantages,
        atol=1e-9,
        rtol=0,
    )


@pytest.mark.parametrize("name", sorted(ADVANTAGES))
@given(tables)
@settings(max_examples=50, deadline=None)
def test_order_of_rows_and_unscored_siblings_change_no_advantage(name, g):
    rewards, scores, weights, keys = step(g)
    advantages = compute_advantages(ADVANTAGES[name], rewards, scores, weights, keys)
    order = torch.randperm(len(keys), generator=g)
    shuffled = compute_advantages(
        ADVANTAGES[name], rewards[order], scores[order], weights, [keys[i] for i in order]
    )
    torch.testing.assert_close(shuffled, advantages[order], atol=1e-9, rtol=0)
    null = torch.full((2,), NAN, dtype=torch.float64)
    more = compute_advantages(
        ADVANTAGES[name],
        torch.cat([rewards, null]),
        torch.cat([scores, null.expand(2, 2)]),
        weights,
        [*keys, 0, 3],
    )
    torch.testing.assert_close(more[:-2], advantages, atol=1e-9, rtol=0)
    assert not more[-2:].any()


def test_a_criterion_of_weight_zero_is_watched_and_moves_no_advantage():
    watched = torch.cat(
        [S, torch.rand(12, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)], 1
    )
    weights = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)
    torch.testing.assert_close(
        compute_advantages(ADVANTAGES["per_criterion"], R, watched, weights, KEYS),
        compute_advantages(ADVANTAGES["per_criterion"], R, S, W, KEYS),
    )


# ---- groupings -----------------------------------------------------------------------------------


def prompts(*texts: str, task: str = "t", **meta: object) -> list[Prompt]:
    return [Prompt(str(i), text, "", task, meta) for i, text in enumerate(texts)]


def test_groupings_group_rollouts_as_documented():
    some = [
        *prompts("what is 1 plus 2", "what is 1 plus 3"),
        *prompts("write a poem about rain", task="poems"),
        *prompts("other", group_key="t"),
    ]
    assert GROUPINGS["prompt"](some, 0.5) == [0, 1, 2, 3]
    assert GROUPINGS["task"](some, 0.5) == [0, 0, 1, 0]
    assert GROUPINGS["batch"](some, 0.5) == [0, 0, 0, 0]
    assert GROUPINGS["similarity"](some, 0.5) == [0, 0, 1, 2]
    assert GROUPINGS["similarity"](some, 1.0) == [0, 1, 2, 3]
    # Without a word, only equal texts are similar
    assert GROUPINGS["similarity"](prompts("?!", "?!", "!?"), 0.5) == [
        0,
        0,
        1,
    ]


def test_similarity_does_not_depend_on_the_order_of_prompts():
    texts = ["a b c d", "c d e f", "e f g h", "x y", "y z"]
    forward, backward = (
        GROUPINGS["similarity"](prompts(*texts), 0.3),
        GROUPINGS["similarity"](prompts(*texts[::-1]), 0.3),
    )

    def together(labels):
        return {frozenset(i for i, x in enumerate(labels) if x == label) for label in labels}

    assert together(forward) == together(backward[::-1])


def test_comparing_across_prompts_gives_a_tied_prompt_a_gradient():
    rewards, keys = torch.tensor([1.0, 1, 0, 0]).double(), [0, 0, 1, 1]
    nothing = torch.zeros(4, 0, dtype=torch.float64), torch.zeros(0, dtype=torch.float64)
    assert not compute_advantages(ADVANTAGES["group_mean"], rewards, *nothing, keys).any()
    assert compute_advantages(ADVANTAGES["group_mean"], rewards, *nothing, [0] * 4).tolist() == [
        0.5,
        0.5,
        -0.5,
        -0.5,
    ]


# ---- tables --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "table", "words"),
    [
        ("advantage", ADVANTAGES, options.ADVANTAGES),
        ("objective", OBJECTIVES, options.OBJECTIVES),
        ("grouping", GROUPINGS, options.GROUPINGS),
        ("ratio_level", RATIO_LEVELS, options.RATIO_LEVELS),
        ("kl_estimator", KL_ESTIMATORS, options.KL_ESTIMATORS),
        ("kl_control", KL_CONTROLS, options.KL_CONTROLS),
        ("aggregation", AGGREGATIONS, options.AGGREGATIONS),
    ],
)
def test_every_choice_of_a_field_has_its_function_and_its_sentence(field, table, words):
    assert (
        set(table)
        == set(words)
        == set(typing.get_args(AlgorithmConfig.model_fields[field].annotation))
    )
    assert all(option.help and not option.help.endswith(".") for option in words.values())
