"""Searches find what tools were asked and what they answered, and filter by calls."""

from __future__ import annotations

import pytest
from acting_runs import (
    NUM_STEPS,
    REASON,
    called,
    failed,
    groups_of,
    guessed,
    record_acting_run,
    scored,
)

from grpo_core.store import Store, search
from grpo_core.store.rollouts import Page, Wanted


@pytest.fixture(scope="module")
def acting(tmp_path_factory):
    """A store, and the id of its run: 3 steps with 8 completions, of which 3 call a tool."""
    store = Store(tmp_path_factory.mktemp("acting") / "runs.sqlite")
    return store, record_acting_run(store)


@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize(
    ("query", "num"),
    [
        ("not an arithmetic", 1),  # only in the error of a call
        ("NOT AN ARITHMETIC", 1),
        ("calculate", 3),  # the tool; no text of these completions has it
        ('"expression": "34*"', 1),
        ("<result>1938", 2),  # as the policy read it
        ("ValueErroR%", 0),
        ("1938", 2),
    ],
)
def test_a_search_covers_texts_and_tool_calls(tmp_path, monkeypatch, indexed, query, num):
    if indexed:
        monkeypatch.setattr(search, "SCANNED", 0)
    store = Store(tmp_path / "runs.sqlite")
    run_id = record_acting_run(store)
    page = store.find_rollouts(run_id, Wanted(search=query))
    assert page.unsearched == 0
    assert page.total == num * NUM_STEPS
    assert len(store.groups(run_id, search=query, limit=50).rows) == (NUM_STEPS if num else 0)
    if indexed and num:
        assert search.catch_up(store._readers, store._writer).read_after > 0


def test_a_line_of_the_list_shows_the_call_that_was_found(acting):
    store, run_id = acting
    [found, *_] = store.find_rollouts(run_id, Wanted(search="arithmetic expr")).rows
    assert REASON[-20:] in found.text
    assert found.text.startswith("…")


@pytest.mark.parametrize(
    ("wanted", "num"),
    [
        (Wanted(calls="some"), 3),
        (Wanted(calls="none"), 5),
        (Wanted(calls="failed"), 1),
        (Wanted(calls="answered"), 2),
        (Wanted(tool="calculate"), 3),
        (Wanted(tool="calculate", calls="failed"), 1),
        (Wanted(tool="calculate", calls="none"), 5),
        (Wanted(tool="search"), 0),
        (Wanted(tool="search", calls="none"), 8),
        (Wanted(calls="no such choice"), 8),
        (Wanted(calls="answered", search="1938"), 2),
    ],
)
def test_completions_are_filtered_by_their_tool_calls(acting, wanted, num):
    store, run_id = acting
    assert store.find_rollouts(run_id, wanted, Page(limit=50)).total == num * NUM_STEPS
    assert len([*store.iter_found(run_id, wanted)]) == num * NUM_STEPS


def test_tools_are_those_that_were_called(acting):
    store, run_id = acting
    assert store.tools(run_id) == ["calculate"]
    assert store.tools("no such run") == []


def test_a_search_ends_at_the_edge_between_text_and_calls(tmp_path):
    store = Store(tmp_path / "runs.sqlite")
    run_id = record_acting_run(store)
    # The text ends with "</answer>" and the call begins on a line of its own.
    assert store.find_rollouts(run_id, Wanted(search="</answer>calculate")).total == 0


def test_the_fixture_records_what_it_says():
    healthy, unused = groups_of(1)
    texts = [r.completion.text for r in healthy.rollouts]
    assert texts == [c.text for c in (guessed(), called(), failed(), called())]
    assert unused.verdict == "no_call"
    assert scored(healthy.prompt, [called(), guessed()], "healthy").reward_mean == 0.5
