"""Cohen's kappa against worked numbers, whatever the sides of the texts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from grpo_core.preferences.agreement import Agreement, between, cohen_kappa, summary, with_oneself
from grpo_core.store.preferences import Preference


def judged(n: int, verdict: str, who: str = "Ada", swapped: bool = False) -> Preference:
    """A judgement of pair n; with swapped sides the verdict is still about the same text."""
    row = Preference(
        prompt=f"p{n}", left="x", right="y", verdict=verdict, who=who, created_at=0.0, source="page"
    )
    other = {"left": "right", "right": "left"}.get(verdict, verdict)
    return replace(row, left="y", right="x", verdict=other) if swapped else row


def test_kappa_of_worked_tables():
    # Cohen's own layout: 20 yes/yes, 5 yes/no, 10 no/yes, 15 no/no: p_o .70, p_e .50, kappa .40.
    first = ["yes"] * 25 + ["no"] * 25
    second = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    assert cohen_kappa(first, second) == pytest.approx(0.4)
    # scikit-learn's documented example: cohen_kappa_score(…) == 0.6875.
    y1 = ["negative", "positive", "negative", "neutral", "positive"]
    y2 = ["negative", "positive", "negative", "neutral", "negative"]
    assert cohen_kappa(y1, y2) == pytest.approx(0.6875)


def test_kappa_at_its_ends():
    assert cohen_kappa(["a", "b"], ["a", "b"]) == 1.0
    assert cohen_kappa(["a", "b"], ["b", "a"]) == -1.0
    assert cohen_kappa(["a", "a", "b", "b"], ["a", "b", "a", "b"]) == 0.0
    assert cohen_kappa([], []) is None
    assert cohen_kappa(["a", "a"], ["a", "a"]) is None


def test_two_people_agree_whatever_side_a_text_stood_on():
    ada = [judged(n, v) for n, v in enumerate(["left", "right", "tie", "left", "left"])]
    bob = ["left", "right", "tie", "right", "tie"]
    plain = between(ada, [judged(n, v, "Bob") for n, v in enumerate(bob)])
    swapped = between(ada, [judged(n, v, "Bob", n % 2 == 0) for n, v in enumerate(bob)])
    # Each pair in both orders: 6 of 10 equal. Ada: 4 left, 4 right, 2 tie. Bob: 3, 3, 4.
    # p_e = .4 · .3 + .4 · .3 + .2 · .4 = .32; (.6 − .32) / (1 − .32) = 7/17.
    assert plain == swapped == Agreement(5, 0.6, pytest.approx(7 / 17))


def test_only_pairs_that_both_judged_count():
    ada = [judged(0, "left"), judged(1, "skip"), judged(2, "left")]
    bob = [judged(0, "left", "Bob"), judged(1, "left", "Bob"), judged(3, "left", "Bob")]
    assert between(ada, bob) == Agreement(1, 1.0, 1.0)
    assert between(ada, []) == Agreement(0, None, None)


def test_agreement_with_oneself_is_over_pairs_judged_twice():
    rows = [judged(0, "left"), judged(1, "tie"), judged(2, "left")]
    rows += [judged(0, "left", swapped=True), judged(1, "right")]
    found = with_oneself(rows)
    # left/left, right/right, tie/right, tie/left: p_o .5, p_e = ¼·½ + ¼·½ + ½·0 = ¼; κ = ⅓.
    assert found == Agreement(2, 0.5, pytest.approx(1 / 3))


def test_the_summary_counts_and_names_the_others():
    rows = [judged(0, "left"), judged(1, "skip"), judged(0, "right", "Bob"), judged(5, "tie", "Cy")]
    found = summary(rows, "Ada")
    assert (found.num_judged, found.num_skipped) == (1, 1)
    assert found.others == {"Bob": Agreement(1, 0.0, -1.0)}
    assert summary(rows, "nobody").num_judged == 0
