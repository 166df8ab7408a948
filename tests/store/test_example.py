"""The recorded example run: when a file gets it, and that it stays away once it was deleted."""

from __future__ import annotations

import pytest
from stored import recorded

from grpo_core.cli.terminal import run_line
from grpo_core.errors import StudioError
from grpo_core.runs.resume import plan_branch
from grpo_core.store import Store
from grpo_core.store.example import EXAMPLE_FILE, add_example
from ui.server.views import Views


def test_an_empty_file_gets_the_example_once(store):
    assert add_example(store)
    [run] = store.runs()
    assert (run.example, run.steps_done, run.status) == (True, 80, "finished")
    groups = list(store.iter_groups(run.id))
    assert len(groups) == 80 * 8
    assert store.token_row(groups[0].rollouts[0].id) is not None
    assert store.integrity() == []
    assert not add_example(store)


def test_the_example_stays_away_once_it_was_deleted(store):
    add_example(store)
    store.delete(store.runs()[0].id)
    assert not add_example(Store(store.path))
    assert store.runs() == []


def test_a_file_with_a_run_gets_no_example(store):
    recorded(store)
    assert not add_example(store)
    assert len(store.runs()) == 1


def test_any_run_of_ones_own_comes_before_the_example(store):
    add_example(store)
    assert Views(store).default_run() == store.runs()[0].id
    own = recorded(store)
    with store.writing() as writer, writer.transaction() as db:
        db.execute("UPDATE runs SET created_at = 0 WHERE id = ?", (own,))  # a wrong clock
    assert [run.example for run in store.runs()] == [False, True]
    assert Views(store).default_run() == own


def test_the_example_says_why_it_cannot_be_branched(store):
    add_example(store)
    with pytest.raises(
        StudioError, match=r"is the recorded example\. Its trained weights are not shipped"
    ):
        plan_branch(store, store.runs()[0].id, None, {})


def test_lists_mark_the_example(store):
    add_example(store)
    [run] = store.runs()
    assert "(example)" in run_line(run)
    assert Views(store).choices() == [(f"{run.name} (example)", run.id)]


def test_the_shipped_file_is_small():
    assert EXAMPLE_FILE.stat().st_size <= 300_000
