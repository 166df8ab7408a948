"""Held-out results of two runs and the interval of their difference, by hand."""

from __future__ import annotations

import math

import pytest

from grpo_core.analysis.heldout import Estimate, paired, unpaired


def test_an_unpaired_difference_combines_the_distances_to_the_bounds():
    d = unpaired(Estimate(0.5, 0.4, 0.6), Estimate(0.7, 0.55, 0.8))
    assert d is not None
    assert (d.value, d.num_prompts) == (pytest.approx(0.2), 0)
    assert d.low == pytest.approx(0.2 - math.sqrt(0.15**2 + 0.1**2))
    assert d.high == pytest.approx(0.2 + math.sqrt(0.1**2 + 0.1**2))
    assert unpaired(Estimate(0.5, None, None), Estimate(0.7, 0.55, 0.8)) is None


def test_a_paired_difference_uses_common_prompts_only():
    first = {"a": 0.0, "b": 0.0, "c": 1.0, "d": 1.0, "only here": 1.0}
    other = {"a": 1.0, "b": 1.0, "c": 1.0, "d": 0.0, "only there": 0.0}
    d = paired(first, other)
    assert d is not None
    # gains 1, 1, 0, −1 and half a pair of each outcome: sum 1, squares 3 + 1, over 6 pairs
    half = 1.96 * math.sqrt((4 / 6 - 1 / 36) / 6)
    assert (d.value, d.num_prompts) == (0.25, 4)
    assert (d.low, d.high) == (pytest.approx(1 / 6 - half), pytest.approx(1 / 6 + half))
    assert paired(first, {"z": 1.0}) is None


def test_equal_answers_still_leave_an_interval():
    same = {str(i): 1.0 for i in range(8)}
    d = paired(same, same)
    assert d is not None
    assert d.low < 0 == d.value < d.high
