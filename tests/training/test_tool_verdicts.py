"""The verdict of a group that never called a tool, and what the metrics of ties make of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from acting_runs import called, guessed

from grpo_core.config import RubricConfig
from grpo_core.rubric import SiblingScores, build_rubric, explain, resolve_rubric, verdict
from grpo_core.training.scoring import group, group_metrics
from grpo_core.types import Prompt, Rollout


@pytest.mark.parametrize(
    ("rewards", "outcomes", "cut", "called", "code"),
    [
        ([0.0, 0.0], [0, 0], 0, False, "no_call"),
        ([0.0, 0.0], [0, 0], 0, True, "all_wrong"),
        ([0.0, 0.0], [0, 0], 0, None, "all_wrong"),  # no tools
        ([1.0, 0.0], [1, 0], 0, False, "no_call"),
        ([1.0, 0.0], [1, 0], 0, True, "healthy"),
        ([1.0, 1.0], [1, 1], 0, False, "all_right"),  # it needs none
        ([1.0, 1.2], [1, 1], 0, False, "polish"),
        ([0.1, 0.2], [0, 0], 0, False, "no_call"),
        ([1.0, 0.0], [1, 0], 1, False, "truncated"),  # cut before it could
        ([0.4, 0.2], [], 0, False, "no_call"),
        ([None, 0.2], [0, 0], 0, False, "unscored"),
    ],
)
def test_a_group_that_never_called_has_its_verdict(rewards, outcomes, cut, called, code):
    ends = ["length"] * cut + ["stop"] * (2 - cut)
    siblings = SiblingScores(rewards, outcomes, ends, {}, called)
    assert verdict(siblings) == code


def test_its_sentence_says_when_nothing_is_learned_at_all():
    told = "None of 2 called a tool, so no advantage speaks for calling one."
    tied = SiblingScores([0.0, 0.0], [0, 0], ["stop"] * 2, {}, False)
    assert explain("no_call", tied).startswith(f"{told} All rewards are equal: every advantage")
    assert explain("no_call", replace(tied, rewards=[0.0, 1.0])) == told


def test_ties_are_counted_whatever_the_verdict_says():
    rubric = build_rubric(resolve_rubric(RubricConfig(name="accuracy only")))
    prompt = Prompt("p", "Q: 34*57=?", "1938", "products")

    def scored(completions, rewards):
        rollouts = tuple(
            Rollout(c, {"accuracy": r, "reasoning": None}, r, 0.0)
            for c, r in zip(completions, rewards, strict=True)
        )
        return group(prompt, rollouts, rubric)

    groups = [
        scored([guessed("1"), guessed("2")], [0.0, 0.0]),
        scored([called("1"), guessed("2")], [0.0, 0.0]),
        scored([guessed(), guessed()], [1.0, 1.0]),
    ]
    assert [g.verdict for g in groups] == ["no_call", "all_wrong", "all_right"]
    metrics = group_metrics(groups, rubric)
    assert metrics["tied_worst_frac"] == pytest.approx(2 / 3)
    assert metrics["tied_best_frac"] == pytest.approx(1 / 3)
    without = [
        replace(r, completion=replace(r.completion, has_tools=False)) for r in groups[0].rollouts
    ]
    assert group(prompt, tuple(without), rubric).verdict == "all_wrong"
