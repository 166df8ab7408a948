"""The built-in tasks: prompts by seed, a fixed held-out split, and graders of hostile text."""

from __future__ import annotations

import random
import re
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_core.cli.request import build_config
from grpo_core.config import TaskConfig, nest, parse
from grpo_core.errors import InvalidConfig
from grpo_core.tasks import (
    TASKS,
    Task,
    extract_answer,
    heldout_prompts,
    is_heldout,
    load_task,
    prompt_id,
    remarks,
    train_prompts,
)
from grpo_core.tasks.countdown import NotAnExpression, evaluate
from grpo_core.types import Prompt

each_task = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)


def prompt(task: str, answer: str) -> Prompt:
    return Prompt("id", "Q", answer, task)


# ---- prompts and split ---------------------------------------------------------------------------


@each_task
def test_the_answer_that_comes_with_a_prompt_is_graded_right(task):
    prompts = heldout_prompts(task, 200) + train_prompts(task, 0, 0, 200)
    assert [task.grade(p.answer, p) for p in prompts] == [1.0] * 400
    assert all(p.task == task.name for p in prompts)


def test_the_answers_are_what_the_prompts_ask_for():
    for name in ("sums", "arithmetic"):
        assert all(
            eval(p.text.removeprefix("Q: ").removesuffix("=?")) == int(p.answer)
            for p in heldout_prompts(TASKS[name], 200)
        )
    assert all(
        "".join(sorted(p.text.removeprefix("Q: sort "))) == p.answer
        for p in heldout_prompts(TASKS["sort"], 200)
    )
    for p in heldout_prompts(TASKS["countdown"], 200):  # "Q: 25 from 3 7 4"
        assert eval(p.answer) == int(p.text.split()[1])
        assert sorted(re.findall("[0-9]", p.answer)) == sorted(p.text.split()[3:])


@each_task
def test_no_training_step_of_any_seed_draws_a_heldout_prompt(task):
    heldout = {p.text for p in heldout_prompts(task, 500)}
    drawn = {
        p.text
        for seed in range(5)
        for step in range(20)
        for p in train_prompts(task, seed, step, 32)
    }
    assert not heldout & drawn


@each_task
def test_about_one_prompt_in_ten_is_held_out(task):
    # 2000 draws with probability 0.1: mean 200, sd 13; 5 sd = 67. Equal prompts are on the same
    # side, so allow a little more.
    rng = random.Random(1)
    texts = [task.make(rng) for _ in range(2000)]
    num = sum(
        is_heldout(Prompt(prompt_id(task.name, text), text, answer, task.name))
        for text, answer, _ in texts
    )
    assert 120 < num < 280


@each_task
def test_a_training_step_is_a_function_of_seed_and_step(task):
    assert train_prompts(task, 3, 7, 16) == train_prompts(task, 3, 7, 16)
    assert train_prompts(task, 3, 7, 16) != train_prompts(task, 3, 8, 16)
    assert train_prompts(task, 3, 7, 16) != train_prompts(task, 4, 7, 16)


@each_task
def test_a_step_has_no_prompt_twice(task):
    assert len({p.id for p in train_prompts(task, 0, 0, 512)}) == 512


@each_task
def test_a_smaller_heldout_set_is_the_start_of_a_larger_one(task):
    assert heldout_prompts(task, 50) == heldout_prompts(task, 200)[:50]
    assert heldout_prompts(task, 0) == []


def test_prompts_are_the_same_in_another_process():
    # Python's own hash() of strings is salted anew in every process.
    code = (
        "from grpo_core.tasks import *;"
        "prompts = train_prompts(TASKS['sums'], 1, 2, 3) + heldout_prompts(TASKS['sort'], 3);"
        "print([p.id for p in prompts])"
    )
    here = [p.id for p in train_prompts(TASKS["sums"], 1, 2, 3) + heldout_prompts(TASKS["sort"], 3)]
    assert subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip() == str(here)


def test_half_a_character_in_a_prompt_still_gets_an_id():
    # A lone surrogate has no UTF-8; a file or a form can still hand one over.
    assert len(prompt_id("sums", "\ud800")) == 16


def test_too_many_heldout_prompts_are_refused_with_field_and_maximum():
    # Ten prompts in all; those held out are whatever the hash says, surely fewer than ten.
    tiny = Task(
        "tiny", "", "", "", lambda rng: (str(rng.randint(0, 9)), "1", {}), lambda text, prompt: 0.0
    )
    with pytest.raises(InvalidConfig) as error:
        heldout_prompts(tiny, 10)
    (problem,) = error.value.problems
    assert (problem.field, problem.value) == ("task.heldout_size", 10)
    most = int(problem.hint.split()[1])
    assert len(heldout_prompts(tiny, most)) == most < 10


def test_a_task_with_fewer_prompts_than_a_step_repeats_them_in_turn():
    tiny = Task(
        "tiny", "", "", "", lambda rng: (str(rng.randint(0, 9)), "1", {}), lambda text, prompt: 0.0
    )
    drawn = [p.text for p in train_prompts(tiny, 0, 0, 25)]
    num_different = len(set(drawn))
    assert len(drawn) == 25
    assert drawn[:num_different] == drawn[num_different : 2 * num_different]


def test_an_unknown_task_is_refused_with_the_names_that_exist():
    with pytest.raises(
        InvalidConfig,
        match=r"task\.name = 'sudoku'.*sums, arithmetic, sort, countdown, products, file",
    ):
        load_task(TaskConfig(name="sudoku"))
    assert load_task(TaskConfig()) is TASKS["sums"]


# ---- answers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>84+39=123</think><answer>185</answer>", "185"),
        ("<answer> 185\n</answer> done", " 185\n"),
        ("<answer>1</answer><answer>2</answer>", "2"),  # a correction: the last word counts
        ("<answer>1</answer><answer>2", "1"),  # the second pair is not complete
        ("<answer>1<answer>2</answer>", "2"),
        ("<answer>1</answer></answer>", "1"),
        ("<answer></answer>", ""),
        ("</answer><answer>", None),
        ("<answer>1", None),
        ("185", None),
        ("", None),
    ],
)
def test_the_answer_is_the_content_of_the_last_complete_pair(text, answer):
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("185", 1),
        (" 185\n", 1),
        ("+185", 1),
        ("0185", 1),
        ("18", 0),
        ("1855", 0),
        ("185.", 1),
        ("185.0", 1),
        (r"\boxed{185}", 1),
        ("**185**", 1),
        ("$185$", 1),
        ("1 85", 0),
        ("-185", 0),
        ("84+39+62", 0),
        ("", 0),
        ("١٨٥", 1),
        ("1_85", 0),
        ("nan", 0),
    ],
)
def test_a_sum_is_right_in_any_form_of_that_number(text, score):
    assert TASKS["sums"].grade(text, prompt("sums", "185")) == score


@pytest.mark.parametrize(
    ("text", "score"),
    [("bcdpq", 1), ("\tbcdpq ", 1), ("BCDPQ", 0), ("b c d p q", 0), ("bcdp", 0), ("", 0)],
)
def test_a_sorted_word_is_right_only_letter_by_letter(text, score):
    assert TASKS["sort"].grade(text, prompt("sort", "bcdpq")) == score


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("3*7+4", 1),
        (" 4 + 7*3 ", 1),
        ("(3*7)+4", 1),
        ("3×7+4", 1),
        ("7*4-3", 1),  # 28 - 3 = 25: another way
        ("3*7+5", 0),  # 26, and 5 was not given
        ("3+7+4", 0),
        ("3*4+7", 0),  # 14 and 19, from the right numbers
        ("25", 0),
        ("3*7+4+0", 0),  # right value, other numbers
        ("3*8+1", 0),  # right value, other numbers
        ("3*7", 0),
        ("3*7+4=25", 0),
        ("37+4", 0),
        ("3**7", 0),
        ("3*7+4)", 0),
        ("(3*7+4", 0),
        ("-3*7+4", 0),
        ("3*7+", 0),
        ("3 7 4", 0),
        ("__import__('os')", 0),
        ("", 0),
    ],
)
def test_countdown_accepts_any_way_to_the_target_with_the_given_numbers(text, score):
    assert TASKS["countdown"].grade(text, prompt("countdown", "3*7+4")) == score


def test_the_given_numbers_count_with_their_repetitions():
    # 2*2+3 = 2+3+2 = 7, each from 2 2 3; 4+3 is 7 too, from 4 3.
    grade = TASKS["countdown"].grade
    assert grade("2*2+3", prompt("countdown", "2*2+3")) == 1
    assert grade("2+3+2", prompt("countdown", "2*2+3")) == 1
    assert grade("2+3", prompt("countdown", "2+3")) == 1
    assert grade("2+3+0", prompt("countdown", "2+3")) == 0
    assert grade("2*2+3", prompt("countdown", "4+3")) == 0
    assert grade("4+3", prompt("countdown", "2*2+3")) == 0
    assert grade("3*3-2", prompt("countdown", "2*2+3")) == 0  # 7 from 2 3 3


ways = st.recursive(
    st.integers(0, 99).map(str),
    lambda inner: st.one_of(
        inner.map("({})".format), st.tuples(inner, st.sampled_from("+-*"), inner).map("".join)
    ),
    max_leaves=8,
)


@given(ways)
def test_the_expression_reader_agrees_with_python(text):
    if len(text) <= 64:
        assert evaluate(text)[0] == eval(text)  # numbers such as 07 do not arise from str(int)


@given(st.text(alphabet="0123456789+-*() ", max_size=80))
def test_the_expression_reader_refuses_or_agrees_with_python(text):
    try:
        value, numbers = evaluate(text)
    except NotAnExpression:
        return
    # Python refuses to read 07.
    assert value == eval(re.sub(r"\b0+(?=\d)", "", text.strip()))
    assert numbers == [int(n) for n in re.findall(r"\d+", text)]


HOSTILE = [
    "(" * 20_000,
    "1" * 20_000,
    "9*" * 10_000 + "9",
    " " * 20_000,
    "<answer>" * 2_500,
    "</answer>" * 2_300,
    "<answer>1</answer>" * 1_100,
    "\0" * 20_000,
    "\ud800" * 20_000,
    "-" * 20_000,
    "٣" * 20_000,
    "a" * 20_000,
    "9**9**9**9**9",
    "𝟗" * 64,
]


@each_task
def test_hostile_text_is_graded_wrong_and_in_no_time(task):
    p = heldout_prompts(task, 1)[0]
    start = time.process_time()
    for text in HOSTILE:
        assert task.grade(text, p) == 0.0
        assert task.grade(extract_answer(text) or "", p) == 0.0
    assert time.process_time() - start < 1  # some milliseconds; a quadratic reader takes seconds


@each_task
def test_a_prompt_without_a_usable_answer_is_graded_wrong(task):
    for answer in ("", "x?", "1" * 100):
        assert task.grade("7", prompt(task.name, answer)) == 0.0


@each_task
@given(text=st.text(max_size=200), answer=st.text(max_size=20))
@settings(max_examples=50)
def test_no_text_and_no_reference_answer_makes_a_grader_raise(task, text, answer):
    assert task.grade(text, prompt(task.name, answer)) in (0.0, 1.0)


# ---- the default of held-out prompts -------------------------------------------------------------


@each_task
def test_a_large_task_holds_out_two_hundred_by_default(task):
    assert TaskConfig().heldout_size is None
    assert heldout_prompts(task, None) == heldout_prompts(task, 200)


def test_a_tiny_task_holds_out_what_it_has_by_default():
    def make(rng):
        return str(rng.randint(0, 99)), "1", {}

    tiny = Task("tiny", "", "", "", make, lambda text, prompt: 0.0)
    held = heldout_prompts(tiny, None)
    assert 0 < len(held) < 30  # of a hundred prompts, one in ten
    assert remarks(tiny, held, None) == ""
    assert "accuracy is not measured" in remarks(tiny, [], None)
    assert remarks(tiny, [], 0) == ""


def test_an_older_configuration_keeps_its_exact_number():
    config = parse({"task": {"name": "sort", "heldout_size": 200}})
    assert parse(config.model_dump(mode="json")).task.heldout_size == 200
    assert parse(nest({"task.heldout_size": None})).task.heldout_size is None
    for wrong in (-1, 5001, "many", 1.5):
        with pytest.raises(InvalidConfig, match=r"task\.heldout_size = .*Leave it empty"):
            parse(nest({"task.heldout_size": wrong}))


def test_the_command_line_can_leave_the_number_empty():
    arguments = ["task.heldout_size=", "train.learning_rate="]
    config = build_config(None, None, arguments)
    assert (config.task.heldout_size, config.train.learning_rate) == (None, None)
    assert build_config(None, None, ["task.heldout_size=7"]).task.heldout_size == 7
