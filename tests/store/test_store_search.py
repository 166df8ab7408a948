"""The store finds, filters and thins what was recorded, whatever is typed."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from stored import FINISHED, group, raw, recorded, rollout

from grpo_core.config import RunConfig
from grpo_core.errors import StudioError
from grpo_core.store import Recorder, Store, group_queries, search
from grpo_core.store.downsample import stride
from grpo_core.store.rollouts import Wanted
from grpo_core.types import (
    GroupsScored,
    StepCompleted,
    StepMetrics,
)

ROOT = Path(__file__).parents[2]


# ---- search and lists of groups ------------------------------------------------------------------


def ascii_lower(text: str) -> str:
    return "".join(c.lower() if c in string.ascii_uppercase else c for c in text)


ODD = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12),
    st.text("aAbB%_\\\"'*()-: ÄäİIıſK", max_size=12),
    st.sampled_from(
        [
            '"',
            'foo"bar',
            "AND",
            "a AND",
            "x-y",
            "text:val",
            "(",
            "'",
            "NEAR(a b)",
            "*",
            "^a",
            "%",
            "_",
            "\\",
            "a\\%",
        ]
    ),
)


@pytest.mark.slow
@pytest.mark.parametrize("indexed", [False, True])
@example(query="a_b", texts=["", "axb"], prompt="a__b", around="")
@example(query="a%b", texts=["", "axb"], prompt="axb", around="")
@example(query="a\\b", texts=["", "ab"], prompt="a\\\\%", around="")
@example(query='a"b', texts=["", "ab"], prompt='""', around="")
@given(query=ODD, texts=st.lists(ODD, min_size=1, max_size=4), prompt=ODD, around=ODD)
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_search_is_literal_with_and_without_the_index(
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    indexed: bool,
    query: str,
    texts: list[str],
    prompt: str,
    around: str,
) -> None:
    monkeypatch.setattr(search, "SCANNED", 0 if indexed else 1000)
    monkeypatch.setattr(search, "BATCH", 1 if indexed else 1000)
    monkeypatch.setattr(search, "BUDGET_SECONDS", 60.0)  # the whole index before the answer
    texts[0] = around + query + texts[0]
    run_id = (store.runs() and store.runs()[0].id) or store.create_run(
        RunConfig(), "a", status=FINISHED
    )
    with Recorder(
        store, run_id
    ) as recorder:  # replaces the groups of the example before, whose ids are used again
        recorder(GroupsScored(1, tuple(group(rollout(t), prompt=prompt) for t in texts)))
    typed = ascii_lower(query.strip())
    expected = [
        i for i, t in enumerate(texts) if typed in ascii_lower(t) or typed in ascii_lower(prompt)
    ]
    found = store.groups(run_id, search=query, sort="position", descending=False)
    assert [g.position for g in found.rows] == expected
    assert found.total == len(expected)
    if indexed and len(query.strip()) >= 3:
        assert (
            raw(store, "SELECT COUNT(*) FROM completions_fts_docsize")[0][0] > 0
        )  # it was the index that answered


@pytest.mark.slow
@pytest.mark.parametrize("ask", ["groups", "rollouts"])
def test_an_unfinished_index_searches_both_ends_and_reports_the_gap(
    store: Store, monkeypatch: pytest.MonkeyPatch, ask: str
) -> None:
    run_id = recorded(
        store, GroupsScored(1, tuple(group(rollout(f"word {n}")) for n in range(1, 31)))
    )  # 30 completions with ids 1 … 30
    monkeypatch.setattr(search, "BATCH", 2)
    monkeypatch.setattr(search, "SCANNED", 10)
    monkeypatch.setattr(search, "BUDGET_SECONDS", 0.0)  # one batch: 1 and 2
    go_on = search._go_on
    monkeypatch.setattr(search, "_go_on", lambda *_: None)  # the thread has not come to it yet

    def found() -> tuple[int, int]:
        page = (
            store.groups(run_id, search="word")
            if ask == "groups"
            else store.find_rollouts(run_id, Wanted("word"))
        )
        return page.total, page.unsearched

    assert found() == (2 + 10, 18)  # 1, 2 from the index; 21 … 30 read; 3 … 20 neither
    monkeypatch.setattr(search, "_go_on", go_on)
    found()
    store._writer.indexer.join(timeout=60)
    assert found() == (30, 0)


def test_search_finds_a_completion_that_got_the_id_of_a_deleted_one(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "SCANNED", 0)
    monkeypatch.setattr(search, "BUDGET_SECONDS", 60.0)
    old = recorded(store, GroupsScored(1, (group(rollout("first"), rollout("second")),)))
    assert store.groups(old, search="first").total == 1  # both are in the index now
    store.delete(old)
    new = recorded(store, GroupsScored(1, (group(rollout("third")),)))
    assert [r.id for r in store.group(store.group_ids(new, 1)[0]).rollouts] == [1]
    monkeypatch.setattr(
        search, "SCANNED", 1000
    )  # nothing new is indexed, so what is not in the index has to be read
    assert store.groups(new, search="third").total == 1


def test_a_search_of_any_length_is_answered_by_its_first_200_characters(store: Store) -> None:
    run_id = recorded(
        store, GroupsScored(1, (group(rollout("a" * 300)), group(rollout("b" * 300))))
    )
    assert store.groups(run_id, search="a" * 200_000).total == 1
    assert store.groups(run_id, search="%" * 200_000).total == 0
    assert store.groups(run_id, search="  \t ").total == 2  # nothing was asked for


def test_groups_are_filtered_sorted_and_paged(store: Store) -> None:
    def step(number: int) -> GroupsScored:  # mean rewards: step 1: .1, none; step 2: .2, none; ...
        return GroupsScored(
            number,
            (
                group(
                    rollout("worst", 0.0),
                    rollout("y" * 500, 1.0),
                    rollout("?", None),
                    mean=number / 10,
                ),
                group(rollout("x", None), mean=None, verdict="unscored"),
            ),
        )

    run_id = recorded(store, *map(step, range(1, 6)))
    recorded(store, step(1))  # another run, never to be seen here

    def found(**conditions: object) -> list[tuple[int, int]]:
        page = store.groups(run_id, **conditions)
        assert page.total >= len(page.rows)
        return [(g.step, g.position) for g in page.rows]

    assert found() == [
        (5, 0),
        (5, 1),
        (4, 0),
        (4, 1),
        (3, 0),
        (3, 1),
        (2, 0),
        (2, 1),
        (1, 0),
        (1, 1),
    ]
    assert found(descending=False, limit=3) == [(1, 0), (1, 1), (2, 0)]
    assert found(limit=2, offset=9) == [(1, 1)]
    assert (found(offset=10), store.groups(run_id, offset=10).total) == ([], 10)
    assert found(limit=-1) == []
    assert len(found(limit=10**30)) == 10
    assert found(verdict="unscored", step_from=4) == [(5, 1), (4, 1)]
    assert found(step_from=2, step_to=2) == [(2, 0), (2, 1)]
    assert found(reward_from=0.2, reward_to=0.4) == [(4, 0), (3, 0), (2, 0)]
    assert found(sort="reward_mean", limit=6) == [
        (5, 0),
        (4, 0),
        (3, 0),
        (2, 0),
        (1, 0),
        (5, 1),
    ]  # not known comes last...
    assert found(sort="reward_mean", descending=False, limit=6) == [
        (1, 0),
        (2, 0),
        (3, 0),
        (4, 0),
        (5, 0),
        (1, 1),
    ]  # ...both ways
    assert found(search="WORST", limit=2, offset=1) == [(4, 0), (3, 0)]
    assert store.groups(run_id, search="WORST", limit=2, offset=1).total == 5
    assert store.verdict_counts(run_id) == {"informative": 5, "unscored": 5}
    in_order = [
        (g.step, g.position) for g in store.iter_groups(run_id, chunk=3)
    ]  # chunks end in the middle of a step
    assert in_order == [
        (1, 0),
        (1, 1),
        (2, 0),
        (2, 1),
        (3, 0),
        (3, 1),
        (4, 0),
        (4, 1),
        (5, 0),
        (5, 1),
    ]
    with pytest.raises(StudioError, match="Known: step, position"):
        found(sort="1; DROP TABLE runs")

    scored, unscored = store.groups(run_id, limit=2).rows
    assert scored.rewards == (0.0, 1.0, None)
    assert (scored.best_text, scored.worst_text) == ("y" * 199 + "…", "worst")
    assert (unscored.best_text, unscored.worst_text) == (None, None)


# ---- thinning ------------------------------------------------------------------------------------


@given(st.integers(0, 5), st.integers(1, 5000), st.integers(2, 300))
@settings(deadline=None)
def test_downsampled_points_keep_their_ends_and_never_move(
    first: int, count: int, max_points: int
) -> None:
    def drawn(num_steps: int) -> list[int]:
        last = first + num_steps - 1
        every = stride(first, last, max_points)
        return [s for s in range(first, last + 1) if (s - first) % every == 0 or s == last]

    now, later = drawn(count), drawn(count + 1)
    assert (now[0], now[-1]) == (first, first + count - 1)
    assert len(now) <= max_points
    assert (
        len(now) == count or 2 * len(now) > max_points - 2
    )  # and no coarser than need be: half the stride would not fit
    # Only the last point of a poll may be new or go again. Every other one was there, or is left
    # out for good.
    assert set(later[:-1]) <= set(now)


def test_steps_and_metrics_are_thinned_in_the_store(store: Store) -> None:
    run_id = store.create_run(RunConfig(), "long", status=FINISHED)
    with store.writing() as writer, writer.transaction(), Recorder(store, run_id) as recorder:
        for step in range(1, 101):
            recorder(
                StepCompleted(
                    step,
                    StepMetrics(loss=float(step)),
                    {"dense": step, "a": 0} | ({"sparse": step} if step % 20 == 0 else {}),
                )
            )
    # 100 steps, at most 10 points: stride 8 would give 1, 9, ..., 97 and 100 = 14, so stride 16:
    # 1, 17, 33, 49, 65, 81, 97 and 100.
    expected = [1, 17, 33, 49, 65, 81, 97, 100]
    assert [s["step"] for s in store.steps(run_id, 10)] == expected
    assert [s["loss"] for s in store.steps(run_id, 10)] == expected
    assert store.metrics(run_id, ["dense"], 10) == {"dense": [(s, float(s)) for s in expected]}
    assert store.metrics(run_id, max_points=10)["sparse"] == [
        (s, float(s)) for s in (20, 40, 60, 80, 100)
    ]  # few enough: all of them
    assert len(store.steps(run_id)) == 100
    assert store.metric_names(run_id) == ["a", "dense", "sparse"]


def test_a_common_text_is_found_in_order_without_a_full_scan(store, monkeypatch):
    run_id = store.create_run(RunConfig(), "a", status=FINISHED)
    with Recorder(store, run_id) as recorder:
        for step in range(1, 31):  # every other step says it
            recorder(
                GroupsScored(
                    step,
                    (
                        group(rollout("the answer" if step % 2 else "nothing")),
                        group(rollout("an ANSWER" if step % 2 else ""), prompt="q"),
                    ),
                )
            )
    every = store.groups(run_id, search="answer", limit=100)
    places = [(g.step, g.position) for g in every.rows]
    assert places == [(step, position) for step in range(29, 0, -2) for position in (0, 1)]
    assert (every.total, every.more) == (30, False)

    monkeypatch.setattr(search, "SCANNED", 0)
    store.groups(run_id, search="answer")  # the index is there now
    monkeypatch.setattr(search, "COMMON", 5)
    monkeypatch.setattr(group_queries, "COUNTED", 4)
    for offset in (0, 7, 24):
        page = store.groups(run_id, search="answer", limit=3, offset=offset)
        assert [(g.step, g.position) for g in page.rows] == places[offset : offset + 3]
        # Four are counted beyond the page: 7 of more at first, 14 in the middle, all 30 at the end.
        assert (page.total, page.more) == (min(30, offset + 7), offset + 7 < 30)
    assert [
        (g.step, g.position)
        for g in store.groups(run_id, search="answer", descending=False, limit=2).rows
    ] == [(1, 0), (1, 1)]
    assert (
        store.groups(run_id, search="answer", sort="reward_mean", limit=3).total == 30
    )  # another order has to see them all
