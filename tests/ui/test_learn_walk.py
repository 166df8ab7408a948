"""The walk without a browser: what its screens show, its controls, and hostile values."""

from __future__ import annotations

import json
import re
import time

import pytest
from naive_walk import config, record_steps
from recorded import HOSTILE, record_run

from grpo_core.analysis.walk import Change, Walker
from grpo_core.store import Recorder
from grpo_core.types import Completion, Group, GroupsScored, Prompt, Rollout, RunStatus
from ui.render.learn_walk import INTRO, NAMES
from ui.render.learn_walk_controls import read_change
from ui.tabs.learn_walk import ShowWalk, parse_at

ESTIMATORS = ("group_std", "group_mean", "batch_std", "leave_one_out", "rank", "per_criterion")
# The numbers of a completion's row on a screen, in the order of its columns.
COLUMNS = {
    "scores": ("reward",),
    "rewards": ("reward",),
    "kl": ("k1", "k2", "k3", "kl_loss"),
    "loss": ("advantage", "policy_loss", "kl_loss", "loss"),
    "update": ("advantage", "before", "after"),
}
MIDDLE = {
    "group_std": ("baseline", "difference", "spread"),
    "batch_std": ("baseline", "difference", "spread"),
    "group_mean": ("baseline",),
    "leave_one_out": ("baseline",),
    "rank": ("difference", "spread"),
    "per_criterion": ("difference", "spread"),
}


def panels(views, run_id, at="", options=None, seen="{}"):
    """head, numbers, controls, notes, below, seen"""
    return ShowWalk(views)(run_id, at, json.dumps(options or {}), seen)


def row_values(html: str) -> list[list[float]]:
    """The exact numbers in every row of a screen's table."""
    table = re.search(r'<table class="why walk-table">.*?</table>', html, re.DOTALL)
    assert table
    rows = re.findall(r"<tr>(.*?)</tr>", table[0], re.DOTALL)[1:]
    return [[float(v) for v in re.findall(r'<data value="([^"]+)"', row)] for row in rows]


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_screens_show_the_numbers_of_twenty_groups(views, store, estimator):
    settings = config(**{"algorithm.advantage": estimator})
    run_id, steps = record_steps(store, settings, num_steps=4, seed=7)
    show, num_groups = ShowWalk(views), 0
    columns = COLUMNS | {"advantages": ("reward", *MIDDLE[estimator], "advantage")}
    for step, groups in enumerate(steps, 1):
        for position, rows in enumerate(groups):
            num_groups += 1
            for name, wanted in columns.items():
                shown = row_values(show(run_id, f"{step}/{position}:{name}", "{}", "{}")[1])
                for row, values in zip(rows, shown, strict=True):
                    assert_row(name, values, row, wanted)
    assert num_groups == 20


def assert_row(name, values, row, wanted):
    if name == "scores":  # before the reward: each score and its weight
        values = values[-1:] if row.reward is not None else []
    numbers = row.numbers | {"reward": row.reward}
    if row.reward is not None:
        numbers["baseline"] = row.reward - numbers["difference"]
    else:
        numbers |= {"baseline": None, "difference": None}
    expected = [numbers[key] for key in wanted if numbers[key] is not None]
    assert values[: len(expected)] == pytest.approx(expected, abs=1e-6), name


def test_a_changed_number_is_marked_and_says_what_it_was(views, store):
    run_id, _ = record_steps(store, config(), num_steps=1, seed=5)
    own = panels(views, run_id, "1/0:rewards")[1]
    assert "changed" not in own
    changed = panels(views, run_id, "1/0:rewards", {"rewards": {"r:0": "9"}})[1]
    assert '<b class="changed"><data value="9.0"' in changed
    assert 'data-do="reset"' in changed
    assert "reward of #1" in changed
    later = panels(views, run_id, "1/0:advantages", {"rewards": {"r:0": "9"}})[1]
    assert later.count('class="changed"') > 3
    assert ", changed, </span>was " in later


def test_a_group_size_of_two_leaves_two_completions_to_compare(views, store):
    run_id, steps = record_steps(store, config(), num_steps=1, seed=11)
    assert len(steps[0][0]) > 2
    shown = panels(views, run_id, "1/0:advantages", {"completions": {"size": "2"}})[1]
    assert shown.count('<th scope="row">') == 3  # two completions and the sum
    texts = panels(views, run_id, "1/0:completions", {"completions": {"size": "2"}})
    assert texts[1].count("left out") == len(steps[0][0]) - 2
    assert "What would G = 2 change?" in texts[3]


def test_the_four_questions_are_answered_on_their_screens(views, store):
    run_id, _ = record_steps(store, config(), num_steps=1, seed=11)
    notes = {name: panels(views, run_id, f"1/0:{name}")[3] for name in NAMES}
    assert re.search(r"Why is this advantage \+\d\.\d\d\?", notes["advantages"])
    assert "standard deviations of its group above the group’s mean" in notes["advantages"]
    assert "a pair that differs always gets +0.71 and −0.71" in notes["completions"]
    assert "It forbids to gain more from a token that has already moved far." in notes["ratio"]
    assert "The reference is the model as it was before training." in notes["kl"]
    assert len(re.sub(r"<[^>]+>", " ", INTRO).split()) < 300  # two minutes at 150 words


def test_hostile_texts_and_names_stay_text(views, store):
    for text in HOSTILE:
        run_id = store.create_run(config(), text, status=RunStatus.FINISHED)
        rollouts = tuple(
            Rollout(Completion(text, text, 2), {"right": r, "form": None}, r, a)
            for r, a in ((1.0, 0.7), (0.0, -0.7))
        )
        with Recorder(store, run_id) as record:
            group = Group(Prompt("p", text, text, "sums"), rollouts, 0.5, 0.7, "healthy")
            record(GroupsScored(1, (group,)))
        for name in NAMES:
            html = "".join(panels(views, run_id, f"1/0:{name}")[:5])
            assert text not in html or not re.search(r"[<>\"'&]", text)
            assert "<script>alert" not in html
            assert "<img" not in html


@pytest.mark.parametrize(
    "at",
    [
        None,
        7,
        [],
        {},
        "",
        "::",
        "1/2/3:kl",
        "9" * 400,
        "1/0:<script>",
        "-1/0",
        "٣/٤:kl",
        "999/9:kl",
    ],
)
def test_any_place_that_a_browser_sends_gives_a_page(views, store, at):
    run_id = record_run(store)
    assert parse_at(at)[1] in NAMES
    shown = panels(views, run_id, at)
    assert len(shown) == 6
    assert shown[1]


@pytest.mark.parametrize(
    "options",
    [
        [],
        {"rewards": 3},
        {"rewards": {"r:0": "nan"}},
        {"rewards": {"r:0": ["1"]}},
        {"rewards": {"r:99": "1"}},
        {"completions": {"size": "0"}},
        {"completions": {"size": "1e9"}},
        {"kl": {"kl_coef": "inf"}},
        {"ratio": {"clip_eps_low": "1.5"}},
        {"advantages": {"advantage": "__import__"}},
        {"scores": {"w:right": "0", "w:form": "0"}},
        {"update": {"token": "²"}},
        {"nothing": {"r:0": "1"}},
    ],
)
def test_any_form_that_a_browser_sends_leaves_the_own_numbers_or_says_why(views, store, options):
    run_id, _ = record_steps(store, config(), num_steps=1, seed=5)
    own = panels(views, run_id, "1/0:update")
    shown = ShowWalk(views)(run_id, "1/0:update", json.dumps(options), "{}")
    assert row_values(shown[1]) == row_values(own[1])


def test_a_form_says_only_what_differs_from_the_group(store):
    run_id, _ = record_steps(store, config(), num_steps=1, seed=5)
    group = store.group(store.group_ids(run_id, 1)[0])
    was = Walker(store, store.run(run_id), group).walk()
    size = str(len(was.rows))
    assert read_change(was, {"completions": {"size": size}, "kl": {"kl_coef": "0.07"}}) == Change()
    assert read_change(was, {"kl": {"kl_coef": "0,5"}}).fields == {"algorithm.kl_coef": 0.5}


def test_nothing_is_drawn_anew_when_nothing_changed(views, store):
    run_id, _ = record_steps(store, config(), num_steps=1, seed=5)
    first = panels(views, run_id, "1/0:kl")
    again = panels(views, run_id, "1/0:kl", seen=first[-1])
    assert [isinstance(value, str) for value in again] == [False] * 6


def test_the_chosen_group_stays_while_a_run_goes_on(views, store):
    run_id = record_run(store, steps=2)
    first = panels(views, run_id)
    assert "group 1" in first[0]  # the other group of a step is tied
    kept = json.loads(first[-1])["place"]
    assert kept == "2/0"
    seen = json.dumps({"run": run_id, "place": "1/0"})
    later = json.loads(panels(views, run_id, seen=seen)[-1])
    assert later["place"] == "1/0"


def test_without_any_run_the_shipped_example_is_walked(views):
    shown = panels(views, None, ":advantages")
    assert "the recorded example" in shown[0]
    assert "standard deviations" in shown[3]
    assert "data-place href" not in shown[1]


def test_a_group_without_tokens_says_how_to_keep_them(views, store):
    run_id = record_run(store)
    assert "Set “Token records every” to 1 in a new" in panels(views, run_id, "1/0:loss")[1]


def test_a_handler_answers_within_a_tenth_of_a_second(views, store):
    run_id, _ = record_steps(store, config(), num_steps=2, seed=5)
    show = ShowWalk(views)
    show(run_id, "1/0:prompt", "{}", "{}")  # torch is loaded
    seconds = []
    for i in range(20):
        options = json.dumps({"rewards": {"r:0": str(i)}})
        start = time.perf_counter()
        show(run_id, "1/1:ratio", options, "{}")
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.1  # a busy machine slows some of them
