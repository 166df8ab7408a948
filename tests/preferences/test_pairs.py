"""The next pair: of one group, never twice for one person, the least sure one if scored."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations

import pytest
from stored import group, recorded, rollout

from grpo_core.preferences.pairs import Asker, Ranking, key_of, next_pair, next_ranking
from grpo_core.store import Store, preferences
from grpo_core.types import GroupsScored


@pytest.fixture
def store(tmp_path):
    """A run of six groups with three distinct texts each, one of them twice; and a second run."""
    store = Store(tmp_path / "runs.sqlite")
    for name in "ab":
        groups = [
            group(*(rollout(f"{name}{n}{t}") for t in ("x", "y", "z", "z ")), prompt=f"{name}{n}")
            for n in range(6)
        ]
        recorded(store, GroupsScored(1, groups))
    return store


def judge_all(store: Store, asker: Asker, most: int = 500) -> list:
    """Judge until there is no pair left, always left; the judgements."""
    for _ in range(most):
        pair = next_pair(store, preferences.read(store), asker)
        if pair is None:
            return preferences.read(store, asker.who)
        preferences.add(store, [pair.judged("left", asker.who, "page")])
    raise AssertionError("no end")


def test_every_distinct_pair_of_a_run_comes_once(store):
    run_id = store.runs()[1].id
    rows = judge_all(store, Asker("Ada", run_id))
    expected = {
        (f"a{n}", frozenset(both))
        for n in range(6)
        for both in combinations([f"a{n}x", f"a{n}y", f"a{n}z "], 2)
    }
    assert {key_of(row) for row in rows} == expected
    assert {row.run_id for row in rows} == {run_id}


def test_about_one_in_ten_pairs_comes_again_with_its_sides_swapped(store):
    rows = [row for seed in range(6) for row in judge_all(store, Asker(f"p{seed}", None, seed))]
    own = 0
    seen: dict = {}
    for row in rows:
        earlier = seen.setdefault((row.who, key_of(row)), row)
        if earlier is not row:
            own += 1
            assert (row.left, row.right) == (earlier.right, earlier.left)
    for who in preferences.people(store):
        mine = [key_of(row) for row in rows if row.who == who]
        assert max(map(mine.count, mine)) <= 2
    assert 0.01 < own / len(rows) < 0.2


def test_a_skipped_pair_does_not_come_again(store):
    asker, seen = Asker("Ada", store.runs()[0].id), set()
    for _ in range(18):
        pair = next_pair(store, preferences.read(store), asker)
        assert pair.key not in seen
        seen.add(pair.key)
        preferences.add(store, [pair.judged("skip", "Ada", "page")])
    assert next_pair(store, preferences.read(store), asker) is None


def test_the_same_seed_draws_the_same_pair_again(store):
    def draw(who, seed):
        return next_pair(store, preferences.read(store), Asker(who, None, seed))

    assert draw("Ada", 3) == draw("Ada", 3)
    assert len({draw("Ada", seed).key for seed in range(12)}) > 6
    first = draw("Ada", 3)
    ids = preferences.add(store, [first.judged("tie", "Ada", "page")])
    assert draw("Ada", 3) != first
    preferences.remove(store, ids)
    assert draw("Ada", 3) == first


def test_sides_are_by_chance(store):
    shown = [next_pair(store, [], Asker("Ada", None, seed)) for seed in range(200)]
    in_order = sum(pair.left < pair.right for pair in shown)
    assert 70 < in_order < 130  # 100 ± 4 standard deviations of 7


def test_what_another_person_judged_comes_to_be_judged_again(store):
    judge_all(store, Asker("Ada", None, 1))
    rows = preferences.read(store)
    theirs = {key_of(row) for row in rows}
    fresh = Store(store.path)
    for run in fresh.runs():
        fresh.delete(run.id)  # only the stored texts are left
    drawn = [next_pair(fresh, rows, Asker("Bob", None, seed)) for seed in range(200)]
    again = [pair for pair in drawn if pair]
    assert 5 < len(again) < 45  # 20 ± 4 standard deviations
    assert {pair.key for pair in again} <= theirs


def test_a_scorer_gets_the_least_sure_pair(store):
    scores = {"a3x": 2.0, "a3y": -1.0, "a3z ": -0.8}

    def scorer(asked):
        assert all(prompt.text == text[:2] for prompt, text in asked)
        return [scores.get(text, 100.0 * ord(text[2])) for _, text in asked]

    run_id = store.runs()[1].id
    first = next(
        pair
        for seed in range(99)
        if (pair := next_pair(store, [], Asker("", run_id, seed, scorer))).prompt == "a3"
        and pair.key[1] == {"a3y", "a3z "}
    )
    assert 1 / (1 + math.exp(-0.2)) == pytest.approx(0.5498, abs=1e-4)  # of all, nearest to 1/2
    others = [next_pair(store, [], Asker("", run_id, seed, scorer)) for seed in range(20)]
    assert all(pair.prompt == "a3" for pair in others)
    assert first.key in {pair.key for pair in others}


def test_a_pair_without_a_score_comes_last(store):
    run_id = store.runs()[1].id

    def scorer(asked):
        return [None if text[1] != "4" else 5.0 * ord(text[2]) for _, text in asked]

    assert next_pair(store, [], Asker("", run_id, 0, scorer)).prompt == "a4"


def test_a_ranking_gives_every_pair_under_one_id(store):
    asker = Asker("Ada", store.runs()[0].id)
    found, texts = next_ranking(store, [], asker)
    assert sorted(texts) == sorted({r.text.strip(): r.text for r in found.rollouts}.values())
    rows = Ranking("r1", found, texts).judged("Ada", 9.0)
    assert [(r.chosen, r.rejected) for r in rows] == list(combinations(texts, 2))
    assert {(r.ranking, r.seconds, r.source, r.who) for r in rows} == {
        ("r1", 3.0, "ranking", "Ada")
    }
    assert {r.verdict for r in rows} == {"left", "right"}


def test_a_ranked_group_does_not_come_again(store):
    asker, prompts = Asker("Ada", store.runs()[0].id), set()
    for n in range(6):
        found, texts = next_ranking(store, preferences.read(store), asker)
        prompts.add(found.prompt)
        preferences.add(store, Ranking(f"r{n}", found, texts, skipped=n == 2).judged("Ada", None))
    assert len(prompts) == 6
    assert next_ranking(store, preferences.read(store), asker) is None
    assert next_ranking(store, preferences.read(store), replace(asker, who="Bob")) is not None
