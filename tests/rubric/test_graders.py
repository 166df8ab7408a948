"""Graders of answers and texts: real-world answers, time limits, TRL's functions as reference."""

from __future__ import annotations

import threading
import time

import pytest
from answer_pairs import CHOICES, DIFFERENT, NUMBERS, SAME, UNREAD
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from grpo_core.config import Criterion, RubricConfig
from grpo_core.errors import InvalidConfig
from grpo_core.rubric import CHECKS, Notes, build_rubric
from grpo_core.time_limit import time_limit
from grpo_core.types import Completion, Prompt


def score(check: str, text: str, answer: str = "", num_tokens: int = 5, **params):
    row = CHECKS[check]
    return row.score(
        Completion(text, "stop", num_tokens),
        Prompt("p", "q", answer, "file"),
        row.params.model_validate(params),
    )


def noted(check: str, text: str, answer: str = "", **params):
    row, notes = CHECKS[check], Notes()
    return row.scores(
        [Completion(text, "stop", 5)],
        [Prompt("p", "q", answer, "file")],
        row.params.model_validate(params),
        notes,
    ), notes


# ---- mathematics --------------------------------------------------------------------------------


def test_98_percent_of_real_answer_pairs_are_judged_right_and_no_wrong_one_paid():
    pairs = [(*pair, 1.0) for pair in SAME] + [(*pair, 0.0) for pair in DIFFERENT]
    pairs += [(*pair, None) for pair in UNREAD]
    assert len(pairs) >= 400
    assert len(DIFFERENT) + len(UNREAD) >= 0.4 * len(pairs)
    prompts = [Prompt("p", "q", right, "file") for _, right, _ in pairs]
    completions = [
        Completion(rf"So the answer is \boxed{{{said}}}.", "stop", 5) for said, _, _ in pairs
    ]
    check, notes = CHECKS["math"], Notes()
    found = check.scores(completions, prompts, check.params(), notes)
    wrong = [(*pair, f) for pair, f in zip(pairs, found, strict=True) if f != pair[2]]
    assert len(wrong) <= 0.02 * len(pairs), wrong
    assert not [w for w in wrong if w[3] == 1.0]
    assert notes.total() >= len(UNREAD)


@pytest.mark.parametrize(
    ("check", "params", "pairs"),
    [("numeric", {"last_number": True}, NUMBERS), ("choice", {}, CHOICES)],
)
def test_every_number_and_letter_is_judged_as_by_hand(check, params, pairs):
    wrong = [
        (text, right, verdict, found)
        for text, right, verdict in pairs
        if (found := score(check, text, right, **params)) != verdict
    ]
    assert not wrong


@pytest.mark.slow
@pytest.mark.parametrize("bomb", ["$9^{9^{9}}$", "99999999!", "9**9**9**9", "10^{10^{10^{10}}}"])
def test_a_hanging_formula_is_killed_in_time_and_the_next_is_scored(bomb):
    started = time.monotonic()
    [found], notes = noted("math", rf"\boxed{{{bomb}}}", "1", seconds=0.5)
    assert found in (None, 0.0)
    assert time.monotonic() - started < 60  # it would take for ever
    assert found is not None or "too large" in str(notes)
    assert score("math", r"\boxed{\frac{2}{4}}", r"\frac{1}{2}") == 1.0


def test_a_step_full_of_bombs_costs_a_bounded_time():
    check, notes = CHECKS["math"], Notes()
    texts = [
        Completion(rf"\boxed{{9^{{9^{{{9 + i % 20}}}}}}}", "stop", 5) for i in range(64)
    ]  # twenty different ones
    started = time.monotonic()
    found = check.scores(
        texts, [Prompt("p", "q", "1", "file")] * 64, check.params(seconds=0.2), notes
    )
    assert (
        time.monotonic() - started < 50
    )  # four of at most 0.2 + 1 s and a new process each; all would take over a minute
    assert set(found) <= {None, 0.0}
    assert sum(v is None for v in found) >= 40


@pytest.mark.slow
def test_a_fresh_process_gets_its_full_time_and_late_is_null():
    from grpo_core.rubric.answers import graders

    graders()[0].close()
    assert score("math", r"\boxed{0.5}", r"\frac{1}{2}", seconds=10) == 1.0
    [found], notes = noted(
        "math", r"\boxed{\sin(10^{5000})}", "1", seconds=0.0005
    )  # five thousand digits take longer
    assert found is None
    assert "took longer" in str(notes)


def test_a_missing_or_non_mathematical_key_is_not_scored():
    assert score("math", r"\boxed{1}", "") is None
    assert score("math", "no answer at all", "1") == 0.0


@given(st.text(max_size=40), st.text(max_size=20))
@settings(max_examples=40, deadline=None)
def test_no_text_makes_mathematics_raise(text, answer):
    assert score("math", f"<answer>{text}</answer>", answer) in (None, 0.0, 1.0)


# ---- answers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "answer", "params", "expected"),
    [
        ("<answer>Paris</answer>", "Paris", {}, 1.0),
        ("<answer>paris</answer>", "Paris", {}, 0.0),
        ("<answer>paris</answer>", "Paris", {"ignore_case": True}, 1.0),
        ("Paris", "Paris", {}, 0.0),
        (" Paris\n", "Paris", {"where": "whole text"}, 1.0),
        ("x", "", {}, None),
        ("<answer>**Paris**.</answer>", '"Paris"', {}, 1.0),
        (r"\boxed{\text{Paris}}", "Paris", {}, 1.0),
        ("#### Paris\nI hope it helps.", "Paris", {}, 1.0),
        ("<answer>__init__</answer>", "init", {}, 0.0),
        ("<answer>Paris, France</answer>", "Paris", {}, 0.0),
    ],
)
def test_exact_compares_text(text, answer, params, expected):
    assert score("exact", text, answer, **params) == expected


@pytest.mark.parametrize(
    ("text", "answer", "params", "expected"),
    [
        ("<answer>3.14</answer>", "3.14159", {"absolute": 0.01}, 1.0),  # 0.00159 away
        ("<answer>3.1</answer>", "3.14159", {"absolute": 0.01}, 0.0),  # 0.04159 away
        ("<answer>101</answer>", "100", {"relative": 0.01}, 1.0),
        ("<answer>101.1</answer>", "100", {"relative": 0.01}, 0.0),
        ("<answer>$1,000</answer>", "1000", {}, 1.0),
        ("it makes 7, no, 8.", "8", {"last_number": True}, 1.0),
        ("it makes 8", "8", {}, 0.0),
        ("<answer>nan</answer>", "8", {}, 0.0),
        ("<answer>8</answer>", "eight", {}, None),
    ],
)
def test_numeric_allows_a_tolerance(text, answer, params, expected):
    assert score("numeric", text, answer, **params) == expected


@pytest.mark.parametrize(
    ("text", "answer", "expected"),
    [
        ("<answer>B</answer>", "B", 1.0),
        ("<answer>(B)</answer>", "B) Paris", 1.0),
        (r"\boxed{\text{B}}", "B", 1.0),
        ("The answer is (C).", "C", 1.0),
        ("Option A is wrong; the answer is D", "D", 1.0),
        ("B", "B", 1.0),
        ("B", "C", 0.0),
        ("I like Bananas", "B", 0.0),
        ("", "B", 0.0),
        ("B", "42", None),
    ],
)
def test_choice_reads_the_letter_however_it_is_given(text, answer, expected):
    assert score("choice", text, answer) == expected


WRAPPERS = [
    ("**", "**"),
    ("`", "`"),
    ("$", "$"),
    (r"\(", r"\)"),
    (r"\boxed{", "}"),
    (r"\text{", "}"),
    ('"', '"'),
    ("```\n", "\n```"),
    ("", "."),
    (" ", "\n"),
]


@given(
    st.sampled_from(
        [
            ("exact", "Paris"),
            ("numeric", "−1,234.5"),
            ("numeric", "3/4"),
            ("choice", "B"),
            ("accuracy", "1e-4"),
            ("math", r"\frac{1}{2}"),
            ("math", "x+1"),
        ]
    ),
    st.sampled_from(["Paris", "-1234.5", "1234.5", "0.75", "4", "B", "C", "0.0001", "0.5", "1+x"]),
    st.lists(st.sampled_from(WRAPPERS), max_size=3, unique_by=lambda pair: pair[0][:1]),
)
@settings(max_examples=100, deadline=None)
def test_markup_never_changes_a_verdict(graded, right, wrappers):
    check, said = graded
    wrapped = said
    for opening, closing in wrappers:
        wrapped = f"{opening}{wrapped}{closing}"
    plain = score(check, f"<answer>{said}</answer>", right)
    assert score(check, f"<answer>{wrapped}</answer>", right) == plain


@given(st.text(alphabet='{}[]",:0159.eE+-NaInfty \\n`', max_size=60))
@settings(max_examples=40, deadline=None)
def test_no_text_makes_the_reader_of_json_raise(text):
    assert score("json_schema", f"<answer>{text}</answer>") in (0.0, 0.5, 1.0)


PERSON = {
    "type": "object",
    "properties": {"age": {"type": "integer", "minimum": 0}},
    "required": ["age"],
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"age": 3}', 1.0),
        ('<answer>{"age": 3}</answer>', 1.0),
        ('<answer>\n```json\n{"age": 3}\n```\n</answer>', 1.0),
        ('`{"age": 3}`', 1.0),
        ('```json\n{"age": -3}\n```\nor rather\n```json\n{"age": 3}\n```', 1.0),
        ('{"age": 3, "name": "#### 5"}', 1.0),
        ('```python\nx\n```\n```JSON\n{"age": 3}\n```', 1.0),
        ('{"age": 3, "x": NaN}', 0.0),
        ('{"age": 3, "x": -Infinity}', 0.0),
        ('{"age": 3, "x": 1e999}', 0.0),
        ('{"age": 3, "age": 3}', 0.0),
        ('{"age": 3} {"age": 3}', 0.0),
        ('{"age": 3} or so', 0.0),
        ('Here:\n```json\n{"age": 3}\n```\nDone', 1.0),
        ('{"age": -3}', 0.5),
        ("{}", 0.5),
        ("age: 3", 0.0),
        ("", 0.0),
        ("[" * 20_000, 0.0),
    ],
)
def test_json_is_worth_half_and_the_schema_the_rest(text, expected):
    assert score("json_schema", text, json_schema=PERSON) == expected


def test_a_schema_fetches_nothing_and_its_patterns_cannot_hang():
    [remote], notes = noted("json_schema", "1", json_schema={"$ref": "http://127.0.0.1:9/x.json"})
    assert remote is None
    assert "Unresolvable" in str(notes)
    started = time.monotonic()
    [slow], notes = noted(
        "json_schema", '"' + "a" * 40 + '!"', json_schema={"pattern": "^(a+)+$"}, seconds=0.5
    )
    assert slow is None
    assert time.monotonic() - started < 60  # it would take for ever


def test_a_schema_of_too_many_parts_is_refused_at_once():
    for parts in ({"anyOf": [{}] * 24_000}, {"properties": {str(i): True for i in range(5000)}}):
        started = time.process_time()
        with pytest.raises(ValueError, match="more than 2,000 parts"):
            CHECKS["json_schema"].params(json_schema=parts)
        assert time.process_time() - started < 2  # to check all of it took 10 s
    CHECKS["json_schema"].params(json_schema={"enum": [str(i) for i in range(5000)]})


def test_the_criteria_of_a_request_are_checked_within_its_time():
    parts = [{"anyOf": [{"const": i}, *[{}] * 1500]} for i in range(32)]
    criteria = tuple(
        Criterion(name=f"c{i}", check="json_schema", weight=1, params={"json_schema": part})
        for i, part in enumerate(parts)
    )
    started = time.monotonic()
    with time_limit(0.5), pytest.raises(InvalidConfig, match="fewer criteria"):
        build_rubric(RubricConfig(criteria=criteria))
    assert time.monotonic() - started < 10


# ---- texts --------------------------------------------------------------------------------------


def test_a_pattern_that_explodes_elsewhere_takes_no_time():
    started = time.process_time()
    assert score("regex", "a" * 10_000 + "!", pattern="^(a+)+$") == 0.0
    assert time.process_time() - started < 2
    assert score("regex", "No 7", pattern=r"\d") == 1.0
    assert score("regex", "No 7", pattern=r"\d", wanted=False) == 0.0
    assert score("regex", "no 7", pattern=r"NO \d", ignore_case=True, whole_text=True) == 1.0


def test_an_invalid_pattern_is_refused_with_the_engines_limits():
    for pattern in ("(", r"(?=a)", r"(a)\1"):
        with pytest.raises(InvalidConfig, match="no look-around, no back-references"):
            build_rubric(
                RubricConfig(
                    criteria=(
                        Criterion(name="a", check="regex", weight=1, params={"pattern": pattern}),
                    )
                )
            )


@pytest.mark.parametrize(
    "pattern",
    [
        ".{0,1000}" * 20,
        "[a-z]{0,1000}" * 50,
        "((a{0,10}){0,10}){0,10}" * 20,
        r"\pL{1,500}",
        "x[a-z]{0,1000}" * 6 + "0",
    ],
)
def test_a_pattern_with_a_huge_program_is_refused_at_once(pattern):
    started = time.process_time()
    with pytest.raises(ValueError, match="smaller numbers"):
        CHECKS["regex"].params(pattern=pattern)
    assert time.process_time() - started < 1


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        ("^.{0,1000}$", "é" * 1000, 1.0),
        ("^.{0,1000}$", "é" * 1001, 0.0),
        ("a.{0,500}b.{0,500}c", "a" + "-" * 500 + "b" + "-" * 500 + "c", 1.0),
        ("a.{0,500}b.{0,500}c", "a" + "-" * 500 + "b" + "-" * 501 + "c", 0.0),
        (r"^(\w+\s){200}$", "word " * 200, 1.0),
        (r"^(\w+\s){200}$", "word " * 199, 0.0),
    ],
)
def test_a_pattern_with_large_repeats_still_works(pattern, text, expected):
    assert score("regex", text, pattern=pattern) == expected


PIECES = st.sampled_from(
    [*"ax.^$|()[]?*+\\-,{}", "{0,1000}", "{9}", r"\d", r"\pL", "[^a]", "(?i)", "(?P<n>", "\0", "é"]
)


@settings(max_examples=100, deadline=None)
@given(st.lists(PIECES, max_size=30).map("".join), st.booleans(), st.booleans())
def test_every_pattern_is_refused_or_scores_in_time(pattern, ignore_case, whole_text):
    given = {"pattern": pattern, "ignore_case": ignore_case, "whole_text": whole_text}
    started = time.process_time()
    try:
        found = score("regex", "ax" * 5_000, **given)
    except ValidationError:
        found = 0.0
    assert found in (0.0, 1.0)
    assert time.process_time() - started < 3


@pytest.mark.slow
def test_the_worst_patterns_leave_the_server_its_time():
    params = {"pattern": "x[a-z]{0,1000}" * 4 + "0"}
    criteria = tuple(
        Criterion(name=f"c{i}", check="regex", weight=1, params=params) for i in range(32)
    )
    rubric = build_rubric(RubricConfig(criteria=criteria))
    waits: list[float] = []
    stop = threading.Event()

    def other_visitor():
        while not stop.is_set():
            started = time.monotonic()
            time.sleep(0.01)
            waits.append(time.monotonic() - started)

    thread = threading.Thread(target=other_visitor)
    thread.start()
    started = time.monotonic()
    with time_limit(1.0):
        scored = rubric.score_all(
            [Completion("x" * 14_000, "stop", 1)] * 8, [Prompt("p", "q", "1", "file")] * 8
        )
    seconds = time.monotonic() - started
    stop.set()
    thread.join()
    assert seconds < 20  # the limit, and one search
    assert sum(w for w in waits if w > 0.2) < seconds / 2  # one search would hold it up
    assert scored.scores[-1]["c31"] is None


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("The quick brown fox jumps over the lazy dog.", "en", 1.0),
        ("Der schnelle braune Fuchs springt über den faulen Hund.", "en", 0.0),
        ("Der schnelle braune Fuchs springt über den faulen Hund.", "de", 1.0),
        ("42 = 40 + 2", "en", None),
        (r"$\frac{a}{b}$ `x`", "en", None),
        ("机器学习是人工智能的一个分支，它研究计算机怎样模拟人类的学习行为。", "zh", 1.0),
    ],
)
def test_the_language_is_detected_or_left_open(text, language, expected):
    assert score("natural_language", text, language=language) == expected


def test_similarity_checks_equal_their_measures():
    # longest common subsequence of "the cat sat" and "the cat ran": 2 words; F1 = 2·2/(3 + 3)
    assert score("similarity", "the cat sat", "the cat ran") == pytest.approx(2 / 3)
    for measure in ("rouge-l", "bleu", "chrf"):
        same, other = (
            score("similarity", text, "the cat sat on the mat", measure=measure)
            for text in ("the cat sat on the mat", "completely different words here")
        )
        assert same == pytest.approx(1.0)
        assert other < 0.2
    assert score("similarity", "x", "") is None


BOUNDED = {
    name: row
    for name, row in CHECKS.items()
    if row.bounds.low is not None and name not in ("math", "json_schema", "judge")
}


@given(
    st.text(max_size=300),
    st.text(max_size=40),
    st.integers(0, 10_000),
    st.sampled_from(sorted(BOUNDED)),
)
@settings(deadline=None)
def test_no_text_or_key_makes_a_check_raise_or_leave_its_range(text, answer, num_tokens, check):
    value = score(check, text, answer, num_tokens)
    assert value is None or BOUNDED[check].bounds.low <= value <= BOUNDED[check].bounds.high


# ---- TRL's own reward functions on the same inputs ----------------------------------------------


def test_soft_overlong_and_repetition_and_cosine_agree_with_trl():
    from trl.rewards import (
        get_cosine_scaled_reward,
        get_repetition_penalty_reward,
        get_soft_overlong_punishment,
    )

    theirs = get_soft_overlong_punishment(100, 20)
    for n in (0, 79, 80, 81, 90, 99, 100, 101, 500):
        assert score(
            "soft_overlong", "x", num_tokens=n, max_tokens=100, soft_tokens=20
        ) == pytest.approx(theirs([[1] * n])[0])
    for words in ("a b c d", "a a a a a", "a b a b a b c", "a", ""):
        ids = [ord(w) for w in words.split()]
        for n in (1, 2, 3):
            assert score("repetition", words, n=n) == pytest.approx(
                get_repetition_penalty_reward(n, -1.0)([ids])[0]
            )
    for answer, n in (
        (r"\frac{1}{3}", 0),
        (r"\frac{1}{3}", 50),
        ("2", 50),
        ("2", 100),
        (r"\frac{1}{3}", 200),
    ):
        text = rf"\boxed{{{answer}}}"
        theirs = get_cosine_scaled_reward(100)(
            [[{"content": text}]], [r"$\frac{1}{3}$"], [[1] * n]
        )[0]
        assert score(
            "cosine_length", text, r"\frac{1}{3}", num_tokens=n, max_tokens=100
        ) == pytest.approx(theirs)


def test_mathematics_agrees_with_trl_on_boxed_answers():
    from trl.rewards import accuracy_reward

    pairs = [
        (r"\frac{1}{3}", r"\frac{1}{3}"),
        (r"\frac{1}{2}", r"\frac{1}{3}"),
        ("0.5", r"\frac{1}{2}"),
        ("x+1", "1+x"),
        ("(1,2)", "(1,3)"),
        (r"\sqrt{8}", r"2\sqrt{2}"),
    ]
    for given_, right in pairs:
        theirs = accuracy_reward([[{"content": rf"\boxed{{{given_}}}"}]], [f"${right}$"])[0]
        assert score("math", rf"\boxed{{{given_}}}", right) == theirs, (given_, right)


def test_think_format_agrees_with_trl_for_one_block_at_the_start():
    from trl.rewards import think_format_reward

    for text in ("<think>a</think>b", "<think>a</think>", "a", "<think>a", "x<think>a</think>"):
        theirs = think_format_reward([[{"content": text}]])[0]
        assert score("regex", text, pattern=r"(?s)^<think>.*</think>") == theirs, text


@pytest.mark.parametrize(
    ("preset", "right", "wrong", "answer"),
    [
        ("mathematics", r"thus \boxed{\frac{1}{2}}", r"thus \boxed{\frac{1}{3}}", "0.5"),
        ("multiple choice", "<answer>B</answer>", "<answer>C</answer>", "B"),
        ("number", "it makes 42", "it makes 43", "42"),
    ],
)
def test_every_preset_for_own_prompts_rewards_right_answers_and_names_its_outcome(
    preset, right, wrong, answer
):
    rubric = build_rubric(RubricConfig(name=preset))
    prompt = Prompt("p", "q", answer, "file")
    (good, more), (bad, less) = (
        rubric.score(Completion(text, "stop", 5), prompt) for text in (right, wrong)
    )
    assert (good[rubric.outcome], bad[rubric.outcome]) == (1.0, 0.0)
    assert more == pytest.approx(less + 1.0)
