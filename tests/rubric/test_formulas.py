"""Formulas: read as a whole or not at all, and compared by value."""

from __future__ import annotations

import time
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_core.rubric.sandbox.formula_tokens import Malformed, Unread, Words
from grpo_core.rubric.sandbox.formulas import parse_formula
from grpo_core.rubric.sandbox.mathematics import math_equal


@pytest.mark.parametrize(
    "text",
    [
        r"\foo{5}", "x'", r"1,2,\ldots", "2 3", r"x_2'", r"\sum_{i=1}^3 i",
        r"\begin{cases}1\end{cases}",
        r"\sqrt12", "1/2x", "101.5_2", r"2\frac{3}{2}", r"\{x \mid x>0\}", "x2", r"\Gamma(3)",
        r"\begin{pmatrix}1\end{pmatrix}^T", r"5\pmod 7", r"x \to 5", "f''(x)", r"x^\prime",
    ],
)  # fmt: skip
def test_a_sign_that_is_not_known_leaves_the_whole_unread(text):
    with pytest.raises((Unread, Malformed)):
        parse_formula(text)


@pytest.mark.parametrize(
    "text", ["3+", "(1", "=", "", r"\frac{1}{", "]", r"\{1", "1,,2", "(" * 500]
)
def test_what_is_no_formula_is_malformed(text):
    with pytest.raises(Malformed):
        parse_formula(text)


@pytest.mark.parametrize("text", ["Paris", "the answer", "5 apples or more", r"\text{no solution}"])
def test_prose_is_no_product_of_letters(text):
    with pytest.raises((Words, Unread)):
        parse_formula(text)
    assert math_equal("silent", "listen") == 0.0


ATOMS = st.sampled_from(
    ["2", "x", "y", r"\pi", "7", "0.5", r"\sqrt{2}", "e", "3!", r"\frac{1}{3}", "a_1", r"\sin x"]
)
FORMULAS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda p: rf"({p[0]}+{p[1]})"),
        st.tuples(inner, inner).map(lambda p: rf"({p[0]}) \cdot ({p[1]})"),
        st.tuples(inner, inner).map(lambda p: rf"\frac{{{p[0]}}}{{1+({p[1]})^2}}"),
        st.tuples(inner, st.integers(2, 4)).map(lambda p: rf"({p[0]})^{{{p[1]}}}"),
        inner.map(lambda p: rf"-\left({p}\right)"),
        inner.map(lambda p: rf"|{p}|" if "|" not in p else p),
    ),
    max_leaves=4,
)


@pytest.mark.slow
@given(FORMULAS, FORMULAS)
@settings(max_examples=25, deadline=None)
def test_a_formula_equals_itself_and_never_itself_plus_something(a, b):
    assert math_equal(a, a) == 1.0
    for wrong in (rf"{a}+1", rf"{a}+\frac{{1}}{{10^{{12}}}}", rf"2 \cdot ({a})+3+\pi"):
        with suppress(Unread):
            assert math_equal(wrong, a) == 0.0
    assert math_equal(rf"{a}+{b}", rf"{b}+{a}") == 1.0
    assert math_equal(rf"({a}) \cdot ({b})", rf"({b})({a})") == 1.0


@given(st.integers(2, 10**6), st.integers(2, 400), st.integers(1, 10**6))
@settings(max_examples=40, deadline=None)
def test_huge_and_tiny_numbers_differ_by_their_last_digit(base, exponent, more):
    huge = rf"{base}^{{{exponent}}}"
    assert math_equal(huge, rf"{huge}+{more}") == 0.0
    assert math_equal(rf"\frac{{1}}{{{huge}}}", rf"\frac{{1}}{{{huge}+{more}}}") == 0.0
    assert math_equal(rf"e^{{{exponent}}}+{more}", rf"e^{{{exponent}}}") == 0.0
    assert math_equal(rf"{huge}+{more}", rf"{more}+{huge}") == 1.0


@given(st.text(alphabet=r"0123456789xyei+-*/^_=<>(){}[]|,.!%\ '&$°πfracsqtdo", max_size=30))
@settings(max_examples=100, deadline=None)
def test_no_text_makes_the_reader_fail_otherwise(text):
    for right in ("5", text):
        with suppress(Unread):
            assert math_equal(text, right) in (0.0, 1.0)


@pytest.mark.parametrize(
    "bomb",
    [
        "9^{9^{9}}", "99999999!", "9**9**9**9", "10^{10^{10^{10}}}", "5000!!!!", "e^{e^{e^{e^e}}}",
        r"\sin(10^{7000})", "(" * 150 + "1" + ")" * 150, "2^" * 300 + "2", "x+" * 400 + "1",
        r"\binom{20000}{10000}^{9}", "1," * 400 + "1", "!" * 900, r"\sqrt{" * 90 + "2" + "}" * 90,
    ],
)  # fmt: skip
def test_no_formula_takes_long(bomb):
    started = time.process_time()
    for pair in ((bomb, "1"), (bomb, f"{bomb}+1")):
        with suppress(Unread):
            assert math_equal(*pair) == 0.0
    assert time.process_time() - started < 3
