from __future__ import annotations

import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_core.config import Criterion, RubricConfig
from grpo_core.errors import InvalidConfig, StudioError
from grpo_core.rubric import (
    CHECKS,
    PRESETS,
    VERDICTS,
    Check,
    Notes,
    SiblingScores,
    build_rubric,
    explain,
    variance_shares,
    verdict,
)
from grpo_core.rubric.check import UNIT, Params
from grpo_core.types import Completion, Prompt

PROMPT = Prompt("p", "Q: 12+30+44=?", "86", "sums")


def score(check: str, text: str, num_tokens: int = 5, **params: object) -> float | None:
    row = CHECKS[check]
    return row.score(
        Completion(text, "stop", num_tokens), PROMPT, row.params.model_validate(params)
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<answer>86</answer>", 1.0),
        ("<answer> 86\n</answer>", 1.0),
        ("<answer>87</answer>", 0.0),
        ("86", 0.0),
        ("", 0.0),
        ("<think>12+30=42,42+44=86</think><answer>86</answer>", 1.0),
        ("<answer>85</answer><answer>86</answer>", 1.0),  # the last word counts
    ],
)
def test_accuracy_is_one_only_for_the_right_text_in_the_answer_tag(text, expected):
    assert score("accuracy", text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<answer>86</answer>", 1.0),  # 1/2 for the tag + 1/2 for nothing outside
        ("<think>x</think><answer>86</answer>", 1.0),  # thinking is allowed, not needed
        ("so <answer>86</answer>", 0.5),  # the tag stands, but text is outside
        ("<answer>86</answer><think>x</think>", 0.5),  # wrong order: the block counts as outside
        ("<answer>1</answer><answer>86</answer>", 0.0),  # twice is not once
        ("<answer></answer>", 0.0),
        ("<answer>86", 0.0),
        ("</answer>86<answer>", 0.0),
        ("86", 0.0),
    ],
)
def test_format_gives_half_for_the_tag_and_half_for_nothing_outside(text, expected):
    assert score("format", text) == expected


def test_format_gives_partial_credit_for_each_required_tag():
    # one of two required tags stands: 1/2 · 1/2
    assert score("format", "<answer>86</answer>", required=["think", "answer"], optional=[]) == 0.25
    assert (
        score(
            "format",
            "<think>a</think> <answer>86</answer>",
            required=["think", "answer"],
            optional=[],
        )
        == 1.0
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12+30=42", 1.0),
        ("abcд", 0.75),
        ("\x07\x07ab", 0.5),
        ("", 0.0),
        ("10000", 1.0),
        ("ok" + "ab" * 4, 0.2),  # 8 of 10 characters are a loop
    ],
)
def test_language_takes_off_foreign_script_control_characters_and_loops(text, expected):
    assert score("language", text) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("n", "expected"), [(1, 0.5), (2, 1.0), (8, 1.0), (12, 0.5), (16, 0.0), (99, 0.0)]
)
def test_length_is_full_in_the_range_and_fades_outside(n, expected):
    assert score("length", "x", n, min_tokens=2, max_tokens=8) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("<think>a</think>", 1.0), ("<think> </think>", 0.0), ("<think>a", 0.0), ("a", 0.0)],
)
def test_reasoning_sees_a_closed_think_block_that_is_not_blank(text, expected):
    assert score("reasoning", text) == expected


def test_the_reward_is_the_weighted_sum_and_weight_zero_only_observes():
    rubric = build_rubric(RubricConfig(name="answer"))
    scores, reward = rubric.score(Completion("so <answer>86</answer>", "stop", 9), PROMPT)
    assert scores == {"accuracy": 1.0, "format": 0.5, "language": 1.0, "reasoning": 0.0}
    assert reward == pytest.approx(1.2)  # 1·1 + .2·.5 + .1·1 + 0·0
    assert rubric.outcome == "accuracy"


def test_an_unscored_criterion_is_null_and_never_zero():
    nowhere = Prompt("p", "?", "", "unknown")
    rubric = build_rubric(RubricConfig(name="accuracy only"))
    scores, reward = rubric.score(Completion("<answer>1</answer>", "stop", 3), nowhere)
    assert scores["accuracy"] is None
    assert reward is None  # the watched criterion was scored, but it has no weight
    both = build_rubric(RubricConfig(name="answer"))
    assert both.score(Completion("<answer>1</answer>", "stop", 3), nowhere)[1] == pytest.approx(
        0.3
    )  # .2 format + .1 language


def test_the_default_rubric_pays_nothing_for_thinking_as_such():
    rubric = build_rubric(RubricConfig())
    direct = rubric.score(Completion("<answer>86</answer>", "stop", 4), PROMPT)[1]
    reasoned = rubric.score(
        Completion("<think>12+30=42</think><answer>86</answer>", "stop", 14), PROMPT
    )[1]
    assert direct == reasoned == pytest.approx(1.3)


def test_wrong_criteria_are_refused_with_the_known_ones():
    with pytest.raises(InvalidConfig, match=r"rubric\.criteria\.0\.check = 'nope'.*accuracy"):
        build_rubric(RubricConfig(criteria=(Criterion(name="a", check="nope", weight=1),)))
    with pytest.raises(
        InvalidConfig, match=r"rubric\.criteria\.0\.params\.script.*Parameters of language: script"
    ):
        build_rubric(
            RubricConfig(
                criteria=(
                    Criterion(name="a", check="language", weight=1, params={"script": "klingon"}),
                )
            )
        )
    with pytest.raises(InvalidConfig, match=r"rubric\.name = 'nope'.*answer"):
        build_rubric(RubricConfig(name="nope"))


@given(
    st.text(max_size=300),
    st.integers(0, 10_000),
    st.sampled_from(["accuracy", "format", "language", "length", "reasoning"]),
)
def test_no_text_makes_a_criterion_raise_or_leave_its_range(text, num_tokens, check):
    value = score(check, text, num_tokens)  # the other checks: test_graders.py
    assert value is None or 0.0 <= value <= 1.0


@pytest.mark.parametrize(
    "text",
    [
        "<answer>" * 3000,
        "<think>" * 3000 + "</think>" * 3000,
        "a" * 200_000,
        "ab" * 10_000 + "c",
        "<answer>9" + "9" * 100_000,
        "<answer>" + "(" * 20_000 + "</answer>",
        ("abcdefghijklmnop" * 3 + "!") * 400,
    ],
)
def test_hostile_text_is_scored_in_bounded_time(text):
    for name in PRESETS:
        start = time.process_time()
        build_rubric(RubricConfig(name=name)).score(Completion(text, "length", 10), PROMPT)
        assert time.process_time() - start < 2  # a backtracking pattern would take minutes


@pytest.mark.parametrize(
    ("code", "rewards", "outcomes", "finish"),
    [
        ("healthy", [1.1, 0.1], [1, 0], "ss"),
        ("all_right", [1.1, 1.1], [1, 1], "ss"),
        ("all_wrong", [0.1, 0.1], [0, 0], "ss"),
        ("tied", [0.5, 0.5], [], "ss"),
        ("phantom", [0.1, 0.2], [0, 0], "ss"),
        ("polish", [1.1, 1.2], [1, 1], "ss"),
        ("graded", [0.1, 0.2], [], "ss"),
        ("truncated", [1.1, 0.1], [1, 0], "sl"),
        ("unscored", [None, 1.0], [None, 1], "ss"),
        ("all_wrong", [0.1, 0.1], [0, 0], "ll"),  # tied wins: there is nothing to learn, cut or not
    ],
)
def test_each_situation_of_a_group_has_its_verdict(code, rewards, outcomes, finish):
    reasons = ["stop" if f == "s" else "length" for f in finish]
    siblings = SiblingScores(rewards, outcomes, reasons)
    assert verdict(siblings) == code
    assert "{" not in explain(code, siblings)
    assert code in VERDICTS


def test_a_group_with_a_quarter_truncated_is_partly_truncated():
    rewards, outcomes = [1.0] * 4 + [0.0] * 4, [1.0] * 4 + [0.0] * 4
    for num_cut, code in ((1, "healthy"), (2, "truncated")):  # 2 of 8
        finish = ["stop"] * (8 - num_cut) + ["length"] * num_cut
        assert verdict(SiblingScores(rewards, outcomes, finish)) == code


def test_shares_of_variance_equal_cov_over_var_and_sum_to_one():
    # r = 1·a + .5·b = 1.5, 1, .5, 0: mean .75, deviations .75 .25 −.25 −.75, Σd² = 1.25
    # a = 1 1 0 0: Σ a·d = 1 -> .8;  .5·b = .5 0 .5 0: Σ = .375 − .125 = .25 -> .2
    # c has weight 0: no share
    scores = [
        {"a": 1.0, "b": 1.0, "c": 0.0},
        {"a": 1.0, "b": 0.0, "c": 1.0},
        {"a": 0.0, "b": 1.0, "c": 0.0},
        {"a": 0.0, "b": 0.0, "c": 1.0},
    ]
    shares = variance_shares(scores, {"a": 1.0, "b": 0.5, "c": 0.0})
    assert shares == pytest.approx({"a": 0.8, "b": 0.2})
    assert variance_shares(scores[:1], {"a": 1.0}) == {}
    assert (
        variance_shares([{"a": None}, {"a": 1.0}, {"a": 1.0}], {"a": 1.0}) == {}
    )  # what could not be scored is no sibling


def test_a_group_decided_by_one_minor_criterion_is_reported():
    right = [1.0, 1.0, 0.0, 0.0]

    def siblings(shares, outcomes=right):
        return SiblingScores([3.0, 1.0, 2.0, 0.0], outcomes, ["stop"] * 4, shares)

    for shares, code in (
        ({"accuracy": 0.2, "style": 0.8}, "dominated"),
        ({"accuracy": 0.21, "style": 0.79}, "healthy"),
        ({"accuracy": 0.9, "style": 0.1}, "healthy"),
        ({"style": 1.0, "accuracy": 0.0}, "healthy"),  # nothing else differs, so nothing is hidden
    ):
        assert verdict(siblings(shares), "accuracy") == code
    phantom = siblings({"accuracy": 0.0, "style": 0.9, "form": 0.1}, [0.0] * 4)
    assert verdict(phantom, "accuracy") == "phantom"
    assert explain("dominated", siblings({"accuracy": 0.2, "style": 0.8})) == (
        "80% of the reward variance in this group comes from style alone; 2 of 4 are right."
    )


@pytest.mark.parametrize(
    ("compared_with", "other_terms", "says"),
    [
        (
            "",
            (),
            "every advantage is 0; with neither KL nor an entropy bonus in the loss, "
            "there is no gradient.",
        ),
        ("", ("KL term",), "every advantage is 0, so only the KL term gives a gradient."),
        (
            "",
            ("KL term", "entropy bonus"),
            "every advantage is 0, so only the KL term and entropy bonus give a gradient.",
        ),
        (
            "the step's completions",
            ("KL term",),
            "they are compared with the step's completions, "
            "so their advantages may still differ from 0.",
        ),
    ],
)
def test_a_tied_group_has_no_gradient_only_without_other_terms(compared_with, other_terms, says):
    siblings = SiblingScores([1.0, 1.0], [1, 1], ["stop"] * 2)
    sentence = explain("all_right", siblings, compared_with, other_terms)
    assert sentence == f"All 2 are right and equal: {says}"


class PanicException(BaseException):
    """As pyo3 raises it."""


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (ValueError("deep\ntext"), "ValueError: deep text"),
        (AssertionError(), "AssertionError"),
        (MemoryError(), "it needed too much memory"),
        (RecursionError("x" * 9999), "RecursionError: " + "x" * 200),
        (PanicException("index out of bounds"), "PanicException: index out of bounds"),
        (math.nan, "a score was not a finite number: float"),
        (10**400, "a score was not a finite number: int"),
        (-1e200, "a score of -1e+200 is beyond 1e+15"),
        ("0.0", "a score was not a finite number: str"),
        ([0.0], "a score was not a finite number: list"),
    ],
)
@pytest.mark.parametrize("many", [False, True])
def test_a_check_that_fails_gives_null_with_its_reason(monkeypatch, value, reason, many):
    def one(completion, prompt, params):
        if completion.text != "bad":
            return 0.5
        if isinstance(value, BaseException):
            raise value
        return value

    def all_of(completions, prompts, params, notes):
        return [one(c, p, params) for c, p in zip(completions, prompts, strict=True)]

    check = Check(one, Params, "", UNIT, all_of if many else None)
    monkeypatch.setitem(CHECKS, "mine", check)
    rubric = build_rubric(
        RubricConfig(
            criteria=(
                Criterion(name="mine", check="mine", weight=1),
                Criterion(name="accuracy", check="accuracy", weight=1),
            )
        )
    )
    texts = [Completion(t, "stop", 1) for t in ("bad", "<answer>86</answer>")]
    scored = rubric.score_all(texts, [PROMPT, PROMPT])
    others = None if many and isinstance(value, BaseException) else 0.5
    assert [s["mine"] for s in scored.scores] == [None, others]
    assert [s["accuracy"] for s in scored.scores] == [0.0, 1.0]
    assert scored.notes["mine"] == {reason: 1 if others else 2}


@pytest.mark.parametrize("given", [[], [1.0], [1.0] * 3, None, 1.0, "ab", {0: 1.0, 1: 1.0}])
def test_a_check_with_a_wrong_number_of_scores_gives_null(given):
    check = Check(lambda *_: None, Params, "", UNIT, lambda *_: given)
    notes = Notes()
    assert (
        check.scores([Completion("", "stop", 1)] * 2, [PROMPT] * 2, Params(), notes) == [None] * 2
    )
    assert notes == {"the check did not return a list of 2 scores": 2}


def test_a_mistake_in_the_configuration_of_a_check_is_raised():
    def refuse(*_):
        raise StudioError("no such folder")

    with pytest.raises(StudioError, match="no such folder"):
        Check(refuse, Params, "").scores([Completion("", "stop", 1)], [PROMPT], Params(), Notes())
