"""The one reader of numbers, and the markup around an answer."""

from __future__ import annotations

import time
from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from grpo_core.tasks.answers import same_answer
from grpo_core.tasks.markup import strip_markup
from grpo_core.tasks.numbers import last_number, parse_number, parse_quantity

MILLION = 1_000_000
FORMS = {
    "5": 5, "+5": 5, "−5": -5, "–5": -5, "- 5": -5, "(-5)": -5, ".5": "1/2", "-.5": "-1/2", "5.": 5,
    "1,234.5": "2469/2", "1.234,5": "2469/2", "1 234,5": "2469/2", "1 000 000": MILLION,
    "1\u202f000\u202f000": MILLION, "1\u00a0000": 1000, "1_000": 1000, "1’000": 1000, "1'000": 1000,
    "1{,}000": 1000, r"1\,000": 1000, "１２３": 123, "－５": -5, "١٢٣": 123, "१२३": 123,
    "١٫٥": "3/2",
    "3/4": "3/4", "3 / 4": "3/4", "⅔": "2/3", "-½": "-1/2", "1½": "3/2", "1 1/2": "3/2",
    "-1 1/2": "-3/2", r"\frac{3}{4}": "3/4", r"\dfrac34": "3/4", r"-\frac{1}{2}": "-1/2",
    r"\frac{-1}{2}": "-1/2", r"\frac{1}{-2}": "-1/2", r"1\frac{1}{2}": "3/2",
    "1e-4": "1/10000", "1E5": 100_000, "1.5e3": 1500, "2×10^4": 20_000, "2 x 10^4": 20_000,
    r"2.5 \times 10^{4}": 25_000, r"6\cdot 10^{-2}": "3/50", "10²": 100, "10⁻³": "1/1000",
    "2^10": 1024,
    "2**10": 1024, "50 %": "1/2", "50%": "1/2", r"50\%": "1/2", "٥٠٪": "1/2",
    "50 percent": "1/2", "5‰": "1/200",
    "5 million": 5 * MILLION, "2 dozen": 24, "$5": 5, "-$5": -5, "$-5": -5, r"\$5": 5, "€5": 5,
    "5 €": 5, "US$1,250.50": "2501/2", "USD 5": 5, r"\text{5}": 5, "007": 7, "-0": 0,
}  # fmt: skip
NO_NUMBERS = (
    "", "-", ".", "$", "inf", "nan", "Infinity", "1e400", "1.2.3", "192.168.1.1", "0x1F", "3:4",
    "12:30", "2024-01-02", "3/4/2024", "12,34", "1,5", "0,5", "5k", "5M", "±5", "--5",
    "+-5", "1/0", "0^0",
    "3 5/2", "5x", "x", "five", "1.234.567", "9" * 500, "5 6", "2^10000", "½½", "1e", "5%%", "3-5",
    "²",
)  # fmt: skip


@pytest.mark.parametrize(("text", "value"), FORMS.items())
def test_a_number_is_read_exactly_in_every_usual_form(text, value):
    assert parse_number(text) == Fraction(value)


@pytest.mark.parametrize("text", NO_NUMBERS)
def test_what_is_no_single_finite_number_is_not_read(text):
    assert parse_number(text) is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("so it is −5.", -5),
        ("the range is 3-5", 5),
        ("5-3=2", 2),
        ("x = - 5", -5),
        ("x=-5", -5),
        ("GPT-4", 4),
        ("(a)-5", 5),
        ("10 -5", 5),
        ("- 5 apples", 5),
        ("It is 7.\n1. I added\n2. I checked", 7),
        ("1. foo", None),
        ("5. That is all", 5),
        ("it makes 1 000 000 in all", MILLION),
        ("about 1e-4", "1/10000"),
        ("3/4 of it", "3/4"),
        (r"thus $\frac{3}{4}$.", "3/4"),
        ("**5** apples", 5),
        ("is $5$", 5),
        ("5km", 5),
        ("-3°C", -3),
        ("it costs $1,234.50.", "2469/2"),
        ("答案是5个", 5),
        ("It is 5!", 5),
        ("7 liters of H2O", 7),
        ("version 1.2.3", None),
        ("at 10.0.0.1", None),
        ("the ratio is 3:4", None),
        ("on 2024-05-06", None),
        ('it is "-5"', -5),
        ("it is '−5'", -5),
        ("it is negative 5", -5),
        ("it is minus 5", -5),
        ("7 minus 5", 5),
        ("-(5)", None),
        ("3xy - 5", None),
        ("2x+3", None),
        ("x^2-5", None),
        ("x^{2} + 5", None),
        (r"2\sqrt{3}+5", None),
        ("x^2", None),
        ("25π", None),
        (r"5\sqrt{2}", None),
        (r"\sqrt{5}", None),
        (r"\frac{x+3}{4}", None),
        ("x = ±5", None),
        ("0.333...", None),
        ("5 squared", None),
        ("5k", None),
        ("1e400", None),
        ("none", None),
    ],
)
def test_the_last_number_is_a_whole_number_of_the_text(text, value):
    assert last_number(text) == (None if value is None else Fraction(value))


@pytest.mark.parametrize(
    ("text", "quantity"),
    [
        ("5 km", (5, "km")),
        ("5km", (5, "km")),
        ("5 meters", (5, "m")),
        (r"5\text{ cm}", (5, "cm")),
        ("90°", (90, "°")),
        ("x = 5", (5, "")),
        ("$5", (5, "$")),
        ("5 dollars", (5, "$")),
        ("5 apples", (5, "apple")),
        ("5 or 6", None),
        ("not 5", None),
        ("5x", None),
        ("5 squared", None),
        ("2x = 10", None),
    ],
)
def test_a_quantity_is_a_number_with_a_unit_and_nothing_else(text, quantity):
    assert parse_quantity(text) == quantity


def test_money_of_two_kinds_is_not_the_same():
    assert same_answer("$5", "5")
    assert same_answer("€5", "5 €")
    assert not same_answer("$5", "€5")


WRAPPERS = [
    ("**", "**"), ("*", "*"), ("`", "`"), ("$", "$"), ("$$", "$$"), (r"\(", r"\)"), (r"\[", r"\]"),
    ('"', '"'),
    ("“", "”"), ("'", "'"), ("«", "»"), (r"\boxed{", "}"), (r"\text{", "}"), (r"\mathbf{", "}"),
    ("", "."),
    ("<b>", "</b>"), ("```\n", "\n```"), ("```json\n", "\n```"), (" ", "\n"), ("\ufeff", ""),
]  # fmt: skip


@given(
    st.sampled_from(["5", "-1/2", "Paris", "x+1", "(1,2)", "{1: 2}", "B", "[1]", "a. b"]),
    st.lists(st.sampled_from(WRAPPERS), max_size=4, unique_by=lambda pair: pair[0][:1]),
)
@example("5", [("**", "**"), ("$", "$"), (r"\boxed{", "}")])
@settings(max_examples=100, deadline=None)
def test_any_markup_comes_off(text, wrappers):
    wrapped = text
    for opening, closing in wrappers:
        wrapped = f"{opening}{wrapped}{closing}"
    assert strip_markup(wrapped) == text


@pytest.mark.parametrize(
    "text",
    ["$5 or $6", "'a' or 'b'", "__init__", "**a** and **b**", "...", "$", "**", "`", "5!", "$5"],
)
def test_what_is_no_markup_stays(text):
    assert strip_markup(text) == text


SCRIPTS = ["0123456789", "０１２３４５６７８９", "٠١٢٣٤٥٦٧٨٩", "०१२३४५६७८९"]


@st.composite
def written(draw: st.DrawFn) -> tuple[str, Fraction]:
    """A number that is not 0, in one of the forms that are read, and its value."""
    n = draw(st.integers(1, 10**9))
    form = draw(
        st.sampled_from(
            ["plain", "comma", "space", "percent", "power", "fraction", "mixed", "money"]
        )
    )
    value = Fraction(n)
    text = str(n)
    if form in ("comma", "space"):
        text = f"{n:,}".replace(
            ",", draw(st.sampled_from([",", "{,}"])) if form == "comma" else "\u202f"
        )
    elif form == "percent":
        text, value = f"{n}{draw(st.sampled_from(['%', ' %', chr(92) + '%']))}", value / 100
    elif form == "power":
        e = draw(st.integers(-9, 9))
        pattern = draw(st.sampled_from(["{}e{}", "{}×10^{}", r"{} \times 10^{{{}}}"]))
        text, value = pattern.format(n, e), value * Fraction(10) ** e
    elif form == "fraction":
        d = draw(st.integers(1, 10**6))
        text, value = draw(st.sampled_from(["{}/{}", r"\frac{{{}}}{{{}}}"])).format(n, d), value / d
    elif form == "mixed":
        text, value = f"{n} 1/3", value + Fraction(1, 3)
    elif form == "money":
        text = draw(st.sampled_from(["${}", "€{}", "{} €"])).format(n)
    script = draw(st.sampled_from(SCRIPTS))
    if form in ("plain", "comma", "percent", "money"):
        text = text.translate(str.maketrans(SCRIPTS[0], script))
    return text, value


@given(written(), st.sampled_from(["-", "−", "–"]))
@settings(max_examples=100, deadline=None)
def test_a_number_in_any_form_is_itself_and_never_its_negative(number, minus):
    text, value = number
    assert parse_number(text) == value
    assert last_number(f"so the answer is {text}.") == value
    assert parse_number(minus + text) == -value
    assert last_number(f"so the answer is {minus}{text}.") == -value
    assert not same_answer(text, minus + text)


def test_a_hostile_text_takes_no_time():
    started = time.process_time()
    for part in (
        "9",
        "1,",
        "-",
        "1 000",
        "1.2.",
        r"\frac{1}{2}",
        "1/",
        "{",
        r"\frac{",
        "½",
        "²",
        "* ",
    ):
        last_number(part * (20_000 // len(part)))
        strip_markup(part * (20_000 // len(part)))
    assert time.process_time() - started < 4
