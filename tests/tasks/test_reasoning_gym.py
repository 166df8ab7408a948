"""The tasks of reasoning-gym: with the package what they make and score, without it the message.

Tests of the package are skipped where it is not installed.
"""

from __future__ import annotations

import importlib.metadata
import time

import pytest

from grpo_core.child_process import NoValue, module_child
from grpo_core.config import RubricConfig, TaskConfig
from grpo_core.errors import InvalidConfig
from grpo_core.rubric import build_rubric
from grpo_core.tasks import (
    check_task,
    heldout_prompts,
    load_task,
    reasoning_gym,
    second_task,
    train_prompts,
)
from grpo_core.tasks.gym_grader import gym_task
from grpo_core.tasks.reasoning_gym import gym_tasks
from grpo_core.types import Completion, Prompt

NAME = "reasoning_gym:chain_sum"
with_package = pytest.mark.skipif(
    not reasoning_gym._version(), reason='reasoning-gym is optional: pip install "reasoning-gym"'
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Prompts of these tests are made anew, not read from a person's cache."""
    monkeypatch.setenv("GRPO_STUDIO_CACHE", str(tmp_path_factory.mktemp("cache")))


def refused(**fields) -> str:
    with pytest.raises(InvalidConfig) as error:
        check_task(TaskConfig(**fields))
    return str(error.value)


@pytest.fixture
def absent(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(reasoning_gym, "version", missing)


# ---- without the package ------------------------------------------------------------------


def test_a_missing_package_is_one_line_with_the_pip_command(absent):
    said = refused(name=NAME)
    assert said == (
        "task.name = 'reasoning_gym:chain_sum': the package reasoning-gym is not installed. "
        'Install it: pip install "reasoning-gym>=0.1.25,<0.2".'
    )
    assert refused(second=NAME).startswith("task.second = 'reasoning_gym:chain_sum': the package")


def test_an_unknown_task_is_refused_with_names_like_it(absent):
    said = refused(name="reasoning_gym:sum")
    assert said.endswith(
        "no such task. Some of its 99 tasks: chain_sum, decimal_chain_sum, tsumego."
    )


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("boxnet", "it gives no answer"),
        ("game_of_life_halting", "its scorer gives any answer full score"),
        ("composite", "it mixes other tasks"),
    ],
)
def test_a_task_left_out_is_refused_with_the_reason(name, reason):
    assert reason in refused(name=f"reasoning_gym:{name}")


def test_a_level_that_the_task_lacks_is_refused():
    levels = gym_tasks()["chain_sum"].levels
    said = refused(name=NAME, level=levels)
    assert said.startswith(f"task.level = {levels}: the task chain_sum has {levels} levels.")
    assert "has no levels" in refused(name="reasoning_gym:gsm_symbolic", level=0)


def test_the_list_of_tasks_needs_no_package(absent):
    assert len(gym_tasks()) == 99
    assert all(t.example and t.answer and t.group for t in gym_tasks().values())
    task = gym_task(NAME)
    assert task is not None
    assert "arithmetic problem: " in task.help


# ---- with the package ------------------------------------------------------------------


@with_package
def test_prompts_are_those_of_the_package():
    from reasoning_gym import create_dataset

    task = load_task(TaskConfig(name=NAME, size=50, seed=3))
    data = create_dataset("chain_sum", size=50, seed=3)
    own = {p.text: p.answer for step in range(9) for p in train_prompts(task, 0, step, 8)}
    own |= {p.text: p.answer for p in heldout_prompts(task, None)}
    theirs = {e["question"]: e["answer"] for e in data}
    assert own.items() <= theirs.items()
    assert len(own) > 25


@with_package
def test_no_size_seed_or_level_moves_a_prompt_across_the_split():
    sides = {True: set(), False: set()}
    for fields in ({}, {"size": 300}, {"seed": 1}, {"level": 0}, {"level": 2}):
        task = load_task(TaskConfig(name="reasoning_gym:basic_arithmetic", **fields))
        sides[True] |= {p.text for p in heldout_prompts(task, None)}
        drawn = (p for step in range(40) for p in train_prompts(task, 0, step, 16))
        sides[False] |= {p.text for p in drawn}
    assert not sides[True] & sides[False]
    assert len(sides[True]) > 50


@with_package
def test_the_accuracy_is_the_package_s_own_score():
    task = load_task(TaskConfig(name="reasoning_gym:leg_counting", size=10))
    [prompt] = train_prompts(task, 0, 1, 1)
    rubric = build_rubric(RubricConfig(name="accuracy only"))

    def accuracy(text: str) -> float | None:
        return rubric.score(Completion(text, "stop", 9), prompt)[0]["accuracy"]

    assert accuracy(f"<answer>{prompt.answer}</answer>") == 1.0
    assert accuracy(f"It is \\boxed{{{prompt.answer}}}.") == 1.0
    assert accuracy("<answer>-1</answer>") == 0.0
    assert accuracy("I do not know.") == 0.0
    # rearc gives 0.05 for a grid that is not the right one.
    grids = load_task(TaskConfig(name="reasoning_gym:rearc", size=10))
    [grid] = train_prompts(grids, 0, 1, 1)
    assert [grids.grade(a, grid) for a in (grid.answer, "1 2\n3 4")] == [1.0, 0.05]


@with_package
def test_an_answer_that_is_code_does_nothing(tmp_path):
    task = load_task(TaskConfig(name="reasoning_gym:spiral_matrix", size=10))
    [prompt] = train_prompts(task, 0, 1, 1)
    file = tmp_path / "written"
    for code in (
        f"[open({str(file)!r}, 'w').write('x')]",
        f"[__import__('os').system('touch {file}')]",
        "[__import__('socket').socket()]",
        "[__import__('sys').exit()]",
    ):
        assert task.grade(code, prompt) < 1
    assert not file.exists()
    assert task.grade(prompt.answer, prompt) == 1.0


@with_package
def test_an_answer_whose_scoring_never_ends_costs_three_seconds(monkeypatch):
    task = load_task(TaskConfig(name="reasoning_gym:spiral_matrix", size=10))
    [prompt] = train_prompts(task, 0, 1, 1)
    task.grade("1", prompt)
    monkeypatch.setattr("grpo_core.tasks.gym_grader.SCORE_SECONDS", 0.3)
    started = time.monotonic()
    with pytest.raises(NoValue, match=r"took longer than 0\.3 s"):
        task.grade("[x for x in iter(int, 1)]", prompt)
    assert time.monotonic() - started < 30


@with_package
def test_a_prompt_that_the_task_did_not_make_is_not_scored():
    task = load_task(TaskConfig(name=NAME, size=10))
    [prompt] = train_prompts(task, 0, 1, 1)
    with pytest.raises(NoValue, match="did not make this prompt"):
        task.grade("1", Prompt("", "1 + 1 =", "2", NAME, {}))
    with pytest.raises(NoValue, match="makes another prompt of this number"):
        task.grade("1", Prompt("", "1 + 1 =", "2", NAME, prompt.meta))


@with_package
def test_a_slow_task_stops_at_the_time_limit_and_says_what_fits(monkeypatch):
    monkeypatch.setattr(reasoning_gym, "ALL_SECONDS", 0.0)
    with pytest.raises(InvalidConfig, match=r"task\.size = 2000: only [\d,]+ prompts were made"):
        load_task(TaskConfig(name="reasoning_gym:zebra_puzzles"))


@with_package
def test_every_process_makes_the_same_prompts():
    # These iterate over sets of texts, whose order differs from process to process by default.
    asked = [["ransom_note", 20, 1, None, 0], ["isomorphic_strings", 20, 1, None, 0]]
    made = []
    for _ in range(2):
        child = module_child("grpo_core.rubric.sandbox.reasoning_gym_child")
        questions = [{"do": "rows", "arguments": a, "seconds": 20} for a in asked]
        made.append([child.request(q, 20) for q in questions])
        child.close()
    assert made[0] == made[1]
    assert "value" in made[0][0]


@with_package
def test_a_second_task_can_be_one_of_them():
    config = second_task(TaskConfig(second=NAME, heldout_size=20))
    assert config is not None
    assert len(heldout_prompts(load_task(config), 20)) == 20


@with_package
def test_the_list_names_the_tasks_of_the_installed_package():
    from reasoning_gym.factory import DATASETS

    tasks, left_out = reasoning_gym._catalogue()
    assert set(DATASETS) <= set(tasks) | set(left_out)
