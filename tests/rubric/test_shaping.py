"""What may stand between a reward and its comparison."""

from __future__ import annotations

import statistics
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_core.config import RubricConfig, parse
from grpo_core.errors import InvalidConfig
from grpo_core.rubric import RunningStd, build_rubric, gated, shaped
from grpo_core.training.scoring import compare_groups, is_informative
from grpo_core.types import Completion, Prompt, Rollout


@given(st.lists(st.lists(st.one_of(st.none(), st.floats(-100, 100)), max_size=6), max_size=6))
def test_the_running_std_is_the_sample_deviation_and_survives_saving(
    batches,
):
    spread = RunningStd()
    for batch in batches:
        spread = RunningStd(**asdict(spread)).including(batch)
    known = [r for batch in batches for r in batch if r is not None]
    expected = statistics.stdev(known) if len(known) > 1 else 0.0
    assert spread.count == len(known)
    assert spread.std == pytest.approx(expected if expected > 1e-8 else 1.0, rel=1e-6, abs=1e-6)


def test_rewards_are_scaled_then_clipped_and_null_stays_null():
    spread = RunningStd().including([0.0, 4.0])  # sample std 2.828
    assert shaped([4.0, None], RubricConfig(), spread) == [4.0, None]
    assert shaped([4.0, None], RubricConfig(scale=True), spread) == [
        pytest.approx(1.41421, abs=1e-5),
        None,
    ]
    assert shaped([4.0, -4.0], RubricConfig(scale=True, clip_low=-0.5, clip_high=1.0), spread) == [
        1.0,
        -0.5,
    ]


def test_the_gate_takes_everything_but_the_outcome_where_nobody_reached_it():
    rows = [
        {"right": 1.0, "form": 0.5},
        {"right": 0.0, "form": 0.2},
        {"right": 0.5, "form": 0.9},
        {"right": None, "form": 0.1},
    ]
    assert gated(rows, [0, 0, 1, 1], "right") == [
        *rows[:2],
        {"right": 0.5, "form": None},
        {"right": None, "form": None},
    ]


CONFIG = {
    "rubric": {
        "criteria": [
            {"name": "right", "check": "accuracy", "weight": 1, "outcome": True},
            {"name": "form", "check": "format", "weight": 0.5},
        ]
    }
}


def groups(*scores: tuple[float, float]) -> list[tuple[Prompt, tuple[Rollout, ...]]]:
    """One group whose rewards are right + form/2."""
    return [
        (
            Prompt("p", "?", "", "t"),
            tuple(
                Rollout(Completion("x", "stop", 1), {"right": a, "form": b}, a + b / 2, 0.0)
                for a, b in scores
            ),
        )
    ]


def test_with_the_gate_an_all_wrong_group_has_no_gradient():
    phantom = groups((0, 0.5), (0, 0.2), (0, 0.9))
    for gate, verdict in ((False, "phantom"), (True, "gated")):
        config = parse(CONFIG | {"rubric": CONFIG["rubric"] | {"gate": gate}})
        rubric = build_rubric(config.rubric)
        [group], _ = compare_groups(phantom, rubric, config, RunningStd())
        assert group.verdict == verdict
        assert any(r.advantage for r in group.rollouts) != gate
        assert is_informative(phantom[0][1], rubric, gate) != gate
        assert [r.reward for r in group.rollouts] == [0.25, 0.1, 0.45]  # the plain rewards stay


def test_scaled_rewards_decide_the_advantage_and_the_plain_ones_are_kept():
    config = parse(
        CONFIG
        | {"rubric": CONFIG["rubric"] | {"scale": True}, "algorithm": {"advantage": "group_mean"}}
    )
    [group], comparison = compare_groups(
        groups((1, 0), (0, 0)), build_rubric(config.rubric), config, RunningStd()
    )
    assert [r.reward for r in group.rollouts] == [1.0, 0.0]
    assert comparison.reward_scale.std == pytest.approx(0.70711, abs=1e-5)  # of 1 and 0
    assert [r.advantage for r in group.rollouts] == pytest.approx(
        [0.70711, -0.70711], abs=1e-5
    )  # ±.5/.70711


def test_a_gate_without_an_outcome_is_refused():
    with pytest.raises(InvalidConfig, match=r"rubric\.gate.*flagged as the outcome"):
        build_rubric(
            RubricConfig(gate=True, criteria=({"name": "a", "check": "format", "weight": 1},))
        )
