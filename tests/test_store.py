"""The store: what was said to be recorded is there, whole, whatever happens to the process, the file or the text."""

from __future__ import annotations

import math
import os
import random
import secrets
import shutil
import signal
import sqlite3
import string
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlite_utils import Database

from grpo_core.config import RunConfig, parse
from grpo_core.errors import NotFound, StoreBusy, StoreError, StudioError
from grpo_core.store import Recorder, Store, schema, search
from grpo_core.store.connection import Writer
from grpo_core.store.queries import stride
from grpo_core.types import (
    STEP_METRICS,
    Completion,
    Evaluated,
    Group,
    GroupsScored,
    ModelLoaded,
    Phase,
    PhaseStarted,
    Prompt,
    Rollout,
    RunStatus,
    StepCompleted,
    StepMetrics,
)

ROOT = Path(__file__).parents[1]
FINISHED = RunStatus.FINISHED


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "studio.db")
    yield store
    store.close()


def rollout(text: str = "4", reward: float | None = 1.0, **scores: float | None) -> Rollout:
    return Rollout(Completion(text, "stop", 3), scores, reward, 0.5)


def group(*rollouts: Rollout, prompt: str = "2+2=", mean: float | None = 0.5, verdict: str = "informative") -> Group:
    return Group(Prompt("sums-7", prompt, "4", "sums"), rollouts or (rollout(), rollout("5", 0.0)), mean, 0.7, verdict)


def recorded(store: Store, *events: object, status: RunStatus = FINISHED) -> str:
    run_id = store.create_run(RunConfig(), "a run")
    with Recorder(store, run_id) as recorder:
        for event in events:
            recorder(event)
    store.set_status(run_id, status)
    return run_id


def raw(store: Store, sql: str) -> list[tuple]:
    with closing(sqlite3.connect(store.path)) as conn:
        return conn.execute(sql).fetchall()


# ---- round trip ---------------------------------------------------------------------------------------------------------


COUNTS = ("tokens", "replaced_groups", "num_updates", "micro_batch_tokens")


def test_every_event_comes_back_as_it_was_said(store: Store) -> None:
    metrics = StepMetrics(**{name: (12 + i if name in COUNTS else i / 8) for i, name in enumerate(STEP_METRICS)})
    said = group(Rollout(Completion("<b>4</b>", "stop", 3), {"accuracy": 1.0, "format": None}, 0.75, 0.875),
                 Rollout(Completion("four…", "length", 48), {"accuracy": 0.0, "format": 0.5}, None, 0.0))
    run_id = recorded(store, PhaseStarted(Phase.LOADING, 0, 9), ModelLoaded({"torch": "2.13", "parameters": 5}), Evaluated(0, {"heldout/accuracy": 0.25}),
                      GroupsScored(1, (said, group())), StepCompleted(1, metrics, {"score/accuracy": 0.5}), Evaluated(1, {"heldout/accuracy": 0.5}))

    run = store.run(run_id)
    assert (run.env, run.status, run.steps_done, run.num_steps) == ({"torch": "2.13", "parameters": 5}, FINISHED, 1, 9)
    assert parse(run.config) == RunConfig()
    assert store.steps(run_id) == [{"step": 1} | {name: getattr(metrics, name) for name in STEP_METRICS}]
    assert type(store.steps(run_id)[0]["tokens"]) is int
    assert store.metrics(run_id) == {"heldout/accuracy": [(0, 0.25), (1, 0.5)], "score/accuracy": [(1, 0.5)]}
    assert store.metrics(run_id, ["score/accuracy", "nothing"]) == {"score/accuracy": [(1, 0.5)], "nothing": []}

    first, second = store.group_ids(run_id, 1)
    back = store.group(first)
    assert (back.run_id, back.step, back.position, back.prompt_id, back.prompt, back.answer) == (run_id, 1, 0, "sums-7", "2+2=", "4")
    assert (back.reward_mean, back.reward_std, back.verdict) == (0.5, 0.7, "informative")
    assert [(r.position, r.text, r.finish_reason, r.num_tokens, r.reward, r.advantage, r.scores, r.edited) for r in back.rollouts] == [
        (0, "<b>4</b>", "stop", 3, 0.75, 0.875, {"accuracy": 1.0, "format": None}, False),
        (1, "four…", "length", 48, None, 0.0, {"accuracy": 0.0, "format": 0.5}, False)]
    assert store.group(second).position == 1
    assert store.last_step_with_groups(run_id) == 1


def test_a_run_carries_its_summary_so_that_a_list_needs_nothing_else(store: Store) -> None:
    steps = [StepCompleted(step, StepMetrics(reward_mean=reward), {}) for step, reward in ((1, math.nan), (2, 0.125), (3, 0.5), (4, None))]
    run_id = recorded(store, Evaluated(0, {"heldout/accuracy": 0.2}), *steps)
    run, = store.runs()
    assert run == store.run(run_id)
    # Steps 1 and 4 could not be measured: first and last are those of 2 and 3. One evaluation is no comparison.
    assert (run.steps_done, run.reward_first, run.reward_last, run.heldout_before, run.heldout_after) == (4, 0.125, 0.5, 0.2, None)

    with Recorder(store, run_id) as recorder:
        recorder(Evaluated(4, {"heldout/accuracy": 0.9}))
    assert (store.run(run_id).heldout_before, store.run(run_id).heldout_after) == (0.2, 0.9)


def test_times_follow_the_status(store: Store) -> None:
    run_id = store.create_run(RunConfig(), "timed")
    queued = store.run(run_id)
    assert (queued.status, queued.started_at, queued.ended_at, queued.duration_seconds) == (RunStatus.QUEUED, None, None, None)
    assert abs(queued.created_at - time.time()) < 60
    store.set_status(run_id, RunStatus.LOADING)
    started_at = store.run(run_id).started_at
    assert started_at is not None
    store.set_status(run_id, RunStatus.FAILED, "out of memory")
    failed = store.run(run_id)
    assert (failed.started_at, failed.error) == (started_at, "out of memory")
    assert failed.duration_seconds == failed.ended_at - started_at
    store.set_status(run_id, RunStatus.RUNNING)  # resumed: it has not ended, and what ended it is history
    assert (store.run(run_id).started_at, store.run(run_id).ended_at, store.run(run_id).error) == (started_at, None, None)
    store.set_status(run_id, RunStatus.STOPPED)


def test_loading_the_model_never_wakes_a_run_that_was_paused_meanwhile(store: Store) -> None:
    run_id = store.create_run(RunConfig(), "a")
    with Recorder(store, run_id) as recorder:
        store.set_status(run_id, RunStatus.PAUSED)
        recorder(ModelLoaded({}))
        assert store.cursor(run_id).status is RunStatus.PAUSED
    store.set_status(run_id, FINISHED)


def test_phases_are_written_five_times_a_second_at_most_and_the_next_write_carries_the_last(store: Store) -> None:
    run_id = store.create_run(RunConfig(), "a")
    with Recorder(store, run_id) as recorder:
        recorder(PhaseStarted(Phase.LOADING, 0, 9))
        before = store.cursor(run_id)
        for step in range(1, 50):  # within 0.2 s of the last write
            recorder(PhaseStarted(Phase.SAMPLING, step, 9))
        assert store.cursor(run_id) == before
        recorder.heartbeat()
        assert (store.run(run_id).phase, store.run(run_id).step) == (Phase.SAMPLING, 49)
        recorder(PhaseStarted(Phase.EVALUATING, 50, 9))  # lasts long, so at once
        assert store.run(run_id).phase is Phase.EVALUATING
    store.set_status(run_id, FINISHED)
    assert store.run(run_id).phase is None


def test_the_token_changes_with_what_is_seen_and_not_with_a_heartbeat(store: Store) -> None:
    run_id = store.create_run(RunConfig(), "a", status=RunStatus.RUNNING)
    seen = [store.cursor(run_id)]
    with Recorder(store, run_id) as recorder:
        recorder.heartbeat()
        assert store.cursor(run_id) == seen[0]
        assert store.run(run_id).heartbeat_at is not None
        for event in (GroupsScored(1, (group(),)), StepCompleted(1, StepMetrics(), {}), Evaluated(1, {})):
            recorder(event)
            seen.append(store.cursor(run_id))
    store.set_status(run_id, FINISHED)
    seen.append(store.cursor(run_id))
    assert [c.revision for c in seen] == sorted({c.revision for c in seen})  # strictly growing


def test_the_token_of_the_list_never_repeats_after_adding_changing_renaming_or_deleting(store: Store) -> None:
    tokens = [store.runs_token()]
    first = recorded(store)
    tokens.append(store.runs_token())
    second = recorded(store)
    tokens.append(store.runs_token())
    store.rename(second, "another name")
    tokens.append(store.runs_token())
    assert store.run(second).name == "another name"
    store.delete(second)
    recorded(store)  # as many runs and changes as before the deletion
    tokens.append(store.runs_token())
    store.delete(first)
    tokens.append(store.runs_token())
    assert len(set(tokens)) == len(tokens)
    with pytest.raises(StudioError, match="name = ''"):
        store.rename(store.runs()[0].id, " \n")


def test_ids_are_unique_within_a_second_and_runs_are_listed_newest_first(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    dice = iter(["aaaa", "aaaa", "aaaa", "bbbb"] * 9)  # thrown again until the id is new; 3 of 4 throws within a second are not
    monkeypatch.setattr(secrets, "token_hex", lambda n: next(dice))
    first, second = (store.create_run(RunConfig(), "a", status=FINISHED) for _ in range(2))
    assert first != second
    monkeypatch.undo()
    for run_id in (first, second):
        store.delete(run_id)
    ids = [store.create_run(RunConfig(), str(i), status=FINISHED) for i in range(40)]
    assert len(set(ids)) == 40
    assert [run.id for run in store.runs()] == ids[::-1]
    assert all(time.strptime(i[:15], "%Y%m%d-%H%M%S") and len(i) == 20 for i in ids)
    child = store.create_run(RunConfig(), "branch", status=FINISHED, parent=(ids[0], 7))
    store.delete(ids[0])
    assert (store.run(child).parent_run_id, store.run(child).parent_step) == (None, 7)  # a child outlives its parent


# ---- law: a write is whole, or it raises --------------------------------------------------------------------------------


def test_one_thought_is_one_transaction_so_half_an_event_is_never_seen(store: Store) -> None:
    run_id = recorded(store, GroupsScored(1, (group(),)))
    before = store.cursor(run_id)
    broken = group(rollout(), Rollout(Completion("x", "stop", "three"), {}, 1.0, 0.0))  # its second rollout cannot be stored
    with Recorder(store, run_id) as recorder:
        with pytest.raises(sqlite3.IntegrityError):
            recorder(GroupsScored(2, (group(), broken)))
        assert store.cursor(run_id) == before
        assert store.group_ids(run_id, 2) == []
        recorder(GroupsScored(2, (group(),)))  # and the connection is in order
    assert len(store.group_ids(run_id, 2)) == 1


def test_what_is_said_again_replaces_what_was_said(store: Store) -> None:
    """A run that resumes from its checkpoint repeats the steps after it."""
    run_id = recorded(store, GroupsScored(1, (group(), group())), StepCompleted(1, StepMetrics(loss=1.0), {"a": 1.0}),
                      GroupsScored(1, (group(verdict="tied"),)), StepCompleted(1, StepMetrics(loss=2.0), {"a": 2.0}))
    assert store.verdict_counts(run_id) == {"tied": 1}
    assert [s["loss"] for s in store.steps(run_id)] == [2.0]
    assert store.metrics(run_id) == {"a": [(1, 2.0)]}
    assert raw(store, "SELECT COUNT(*) FROM rollouts") == [(2,)]


def test_a_full_disk_raises_says_so_and_breaks_nothing(store: Store) -> None:
    run_id = recorded(store, GroupsScored(1, (group(),)))
    with store.writing() as writer, Recorder(store, run_id) as recorder:
        limit = writer.connection.execute("PRAGMA page_count").fetchone()[0] + 3
        writer.connection.execute(f"PRAGMA max_page_count = {limit}").fetchone()
        with pytest.raises(StoreError, match=r"--db '.*studio.db' cannot grow: the disk is full\. Free some space"):
            recorder(GroupsScored(2, (group(rollout("x" * 100_000)),)))
        writer.connection.execute("PRAGMA max_page_count = 1000000").fetchone()
        recorder(GroupsScored(2, (group(rollout("x" * 100_000)),)))
    assert len(store.group(store.group_ids(run_id, 2)[0]).rollouts[0].text) == 100_000
    assert raw(store, "PRAGMA integrity_check") == [("ok",)]


def test_a_file_deleted_under_a_running_run_fails_the_next_write(store: Store) -> None:
    run_id = store.create_run(RunConfig(), "a", status=RunStatus.RUNNING)
    with Recorder(store, run_id) as recorder:
        store.path.unlink()
        with pytest.raises(StoreError, match="was deleted or replaced"):
            recorder(GroupsScored(1, (group(),)))


def test_nothing_can_be_recorded_of_a_run_that_is_not_there(store: Store) -> None:
    with Recorder(store, "20200101-000000-aaaa") as recorder, pytest.raises(NotFound, match="Start a new run"):
        recorder(ModelLoaded({}))
    for action in (store.run, store.cursor, store.delete, lambda i: store.rename(i, "x"), lambda i: store.set_status(i, FINISHED)):
        with pytest.raises(NotFound, match="choose another run"):
            action("20200101-000000-aaaa")


# ---- text and numbers from anywhere -------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_stored_as_null(store: Store, bad: float) -> None:
    run_id = recorded(store, ModelLoaded({"x": [bad, 1.0]}),
                      GroupsScored(1, (Group(Prompt("p", "q", "a", "t"), (Rollout(Completion("c", "stop", 1), {"s": bad}, bad, bad),), bad, bad, "v"),)),
                      StepCompleted(1, StepMetrics(loss=bad, kl=0.5), {"m": bad}))
    back = store.group(store.group_ids(run_id, 1)[0])
    assert (back.reward_mean, back.reward_std) == (None, None)
    assert (back.rollouts[0].reward, back.rollouts[0].advantage, back.rollouts[0].scores) == (None, None, {"s": None})
    assert (store.steps(run_id)[0]["loss"], store.steps(run_id)[0]["kl"]) == (None, 0.5)
    assert store.metrics(run_id) == {"m": [(1, None)]}
    assert store.run(run_id).env == {"x": [None, 1.0]}


@given(st.text(st.characters(exclude_categories=()), max_size=50))
@example("a\0b\ud800c")
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_is_stored_and_only_what_no_page_can_show_is_replaced(store: Store, text: str) -> None:
    expected = "".join("?" if 0xD800 <= ord(c) <= 0xDFFF else "\ufffd" if c == "\0" else c for c in text)
    run_id = recorded(store, ModelLoaded({text: text}), GroupsScored(1, (group(rollout(text), prompt=text, verdict=text),)),
                      StepCompleted(1, StepMetrics(), {text: 1.0}))
    back = store.group(store.group_ids(run_id, 1)[0])
    assert (back.prompt, back.verdict, back.rollouts[0].text) == (expected, expected, expected)
    assert store.run(run_id).env == {expected: expected}
    assert list(store.metrics(run_id)) == [expected]
    assert store.groups(run_id, verdict=text).total == 1
    store.delete(run_id)


HOSTILE = ["", "../../etc/passwd", "' OR 1=1 --", "\0", "\ud800", "%", "a" * 100_000, "\x1b[31m", None, 7, -1.5, b"x", [], {}]


@pytest.mark.parametrize("run_id", HOSTILE, ids=lambda x: ascii(x)[:20])
def test_a_hostile_run_id_is_only_an_id_that_is_not_there(store: Store, run_id: object) -> None:
    recorded(store, GroupsScored(1, (group(),)), StepCompleted(1, StepMetrics(), {"a": 1.0}))
    for ask in (store.run, store.cursor, store.delete, lambda i: store.rename(i, "x"), lambda i: store.set_status(i, FINISHED)):
        with pytest.raises(NotFound) as error:
            ask(run_id)
        assert str(error.value).isprintable()
        assert len(str(error.value)) < 300
    assert store.steps(run_id) == store.group_ids(run_id, 1) == []
    assert store.metrics(run_id) == store.verdict_counts(run_id) == {}
    assert store.groups(run_id, search="4").total == 0
    assert store.last_step_with_groups(run_id) is None
    if not (isinstance(run_id, int | float) and run_id == 1):
        with pytest.raises(NotFound):
            store.group(run_id)


# ---- search and lists of groups -----------------------------------------------------------------------------------------


def ascii_lower(text: str) -> str:
    return "".join(c.lower() if c in string.ascii_uppercase else c for c in text)


ODD = st.one_of(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12), st.text("aAbB%_\\\"'*()-: ÄäİIıſK", max_size=12),
                st.sampled_from(['"', "foo\"bar", "AND", "a AND", "x-y", "text:val", "(", "'", "NEAR(a b)", "*", "^a", "%", "_", "\\", "a\\%"]))


@pytest.mark.parametrize("indexed", [False, True])
@example(query="a_b", texts=["", "axb"], prompt="a__b", around="")
@example(query="a%b", texts=["", "axb"], prompt="axb", around="")
@example(query="a\\b", texts=["", "ab"], prompt="a\\\\%", around="")
@example(query='a"b', texts=["", "ab"], prompt='""', around="")
@given(query=ODD, texts=st.lists(ODD, min_size=1, max_size=4), prompt=ODD, around=ODD)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_search_finds_literally_what_was_typed_with_and_without_the_index(
        store: Store, monkeypatch: pytest.MonkeyPatch, indexed: bool, query: str, texts: list[str], prompt: str, around: str) -> None:
    monkeypatch.setattr(search, "SCANNED", 0 if indexed else 1000)
    monkeypatch.setattr(search, "BATCH", 1 if indexed else 1000)
    texts[0] = around + query + texts[0]
    run_id = (store.runs() and store.runs()[0].id) or store.create_run(RunConfig(), "a", status=FINISHED)
    with Recorder(store, run_id) as recorder:  # replaces the groups of the example before, whose ids are used again
        recorder(GroupsScored(1, tuple(group(rollout(t), prompt=prompt) for t in texts)))
    typed = ascii_lower(query.strip())
    expected = [i for i, t in enumerate(texts) if typed in ascii_lower(t) or typed in ascii_lower(prompt)]
    found = store.groups(run_id, search=query, sort="position", descending=False)
    assert [g.position for g in found.rows] == expected
    assert found.total == len(expected)
    if indexed and len(query.strip()) >= 3:
        assert raw(store, "SELECT COUNT(*) FROM completions_fts_docsize")[0][0] > 0  # it was the index that answered


def test_search_finds_a_completion_that_got_the_id_of_a_deleted_one(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "SCANNED", 0)
    old = recorded(store, GroupsScored(1, (group(rollout("first"), rollout("second")),)))
    assert store.groups(old, search="first").total == 1  # both are in the index now
    store.delete(old)
    new = recorded(store, GroupsScored(1, (group(rollout("third")),)))
    assert [r.id for r in store.group(store.group_ids(new, 1)[0]).rollouts] == [1]
    monkeypatch.setattr(search, "SCANNED", 1000)  # nothing new is indexed, so what is not in the index has to be read
    assert store.groups(new, search="third").total == 1


def test_a_search_of_any_length_is_answered_by_its_first_200_characters(store: Store) -> None:
    run_id = recorded(store, GroupsScored(1, (group(rollout("a" * 300)), group(rollout("b" * 300)))))
    assert store.groups(run_id, search="a" * 200_000).total == 1
    assert store.groups(run_id, search="%" * 200_000).total == 0
    assert store.groups(run_id, search="  \t ").total == 2  # nothing was asked for


def test_groups_are_filtered_sorted_and_paged(store: Store) -> None:
    def step(number: int) -> GroupsScored:  # mean rewards: step 1: .1, none; step 2: .2, none; ...
        return GroupsScored(number, (group(rollout("worst", 0.0), rollout("y" * 500, 1.0), rollout("?", None), mean=number / 10),
                                     group(rollout("x", None), mean=None, verdict="unscored")))
    run_id = recorded(store, *map(step, range(1, 6)))
    recorded(store, step(1))  # another run, never to be seen here

    def found(**conditions: object) -> list[tuple[int, int]]:
        page = store.groups(run_id, **conditions)
        assert page.total >= len(page.rows)
        return [(g.step, g.position) for g in page.rows]

    assert found() == [(5, 0), (5, 1), (4, 0), (4, 1), (3, 0), (3, 1), (2, 0), (2, 1), (1, 0), (1, 1)]
    assert found(descending=False, limit=3) == [(1, 0), (1, 1), (2, 0)]
    assert found(limit=2, offset=9) == [(1, 1)]
    assert (found(offset=10), store.groups(run_id, offset=10).total) == ([], 10)
    assert found(limit=-1) == []
    assert len(found(limit=10**30)) == 10
    assert found(verdict="unscored", step_from=4) == [(5, 1), (4, 1)]
    assert found(step_from=2, step_to=2) == [(2, 0), (2, 1)]
    assert found(reward_from=0.2, reward_to=0.4) == [(4, 0), (3, 0), (2, 0)]
    assert found(sort="reward_mean", limit=6) == [(5, 0), (4, 0), (3, 0), (2, 0), (1, 0), (5, 1)]  # not known comes last...
    assert found(sort="reward_mean", descending=False, limit=6) == [(1, 0), (2, 0), (3, 0), (4, 0), (5, 0), (1, 1)]  # ...both ways
    assert found(search="WORST", limit=2, offset=1) == [(4, 0), (3, 0)]
    assert store.groups(run_id, search="WORST", limit=2, offset=1).total == 5
    assert store.verdict_counts(run_id) == {"informative": 5, "unscored": 5}
    in_order = [(g.step, g.position) for g in store.iter_groups(run_id, chunk=3)]  # chunks end in the middle of a step
    assert in_order == [(1, 0), (1, 1), (2, 0), (2, 1), (3, 0), (3, 1), (4, 0), (4, 1), (5, 0), (5, 1)]
    with pytest.raises(StudioError, match="Known: step, position"):
        found(sort="1; DROP TABLE runs")

    scored, unscored = store.groups(run_id, limit=2).rows
    assert scored.rewards == (0.0, 1.0, None)
    assert (scored.best_text, scored.worst_text) == ("y" * 199 + "…", "worst")
    assert (unscored.best_text, unscored.worst_text) == (None, None)


# ---- thinning -----------------------------------------------------------------------------------------------------------


@given(st.integers(0, 5), st.integers(1, 5000), st.integers(2, 300))
@settings(deadline=None)
def test_thinned_points_keep_their_ends_fit_and_never_move_as_the_run_grows(first: int, count: int, max_points: int) -> None:
    def drawn(num_steps: int) -> list[int]:
        last = first + num_steps - 1
        every = stride(first, last, max_points)
        return [s for s in range(first, last + 1) if (s - first) % every == 0 or s == last]

    now, later = drawn(count), drawn(count + 1)
    assert (now[0], now[-1]) == (first, first + count - 1)
    assert len(now) <= max_points
    assert len(now) == count or 2 * len(now) > max_points - 2  # and no coarser than need be: half the stride would not fit
    # Only the last point of a poll may be new or go again; every other one was there, or is thinned out for good.
    assert set(later[:-1]) <= set(now)


def test_steps_and_metrics_are_thinned_in_the_store(store: Store) -> None:
    run_id = store.create_run(RunConfig(), "long", status=FINISHED)
    with store.writing() as writer, writer.transaction(), Recorder(store, run_id) as recorder:
        for step in range(1, 101):
            recorder(StepCompleted(step, StepMetrics(loss=float(step)), {"dense": step, "a": 0} | ({"sparse": step} if step % 20 == 0 else {})))
    # 100 steps, at most 10 points: stride 8 would give 1, 9, ..., 97 and 100 = 14, so stride 16: 1, 17, 33, 49, 65, 81, 97 and 100.
    expected = [1, 17, 33, 49, 65, 81, 97, 100]
    assert [s["step"] for s in store.steps(run_id, 10)] == expected
    assert [s["loss"] for s in store.steps(run_id, 10)] == expected
    assert store.metrics(run_id, ["dense"], 10) == {"dense": [(s, float(s)) for s in expected]}
    assert store.metrics(run_id, max_points=10)["sparse"] == [(s, float(s)) for s in (20, 40, 60, 80, 100)]  # few enough: all of them
    assert len(store.steps(run_id)) == 100
    assert store.metric_names(run_id) == ["a", "dense", "sparse"]


# ---- several processes and threads --------------------------------------------------------------------------------------


def other_process(code: str, *args: object, **options: object) -> subprocess.Popen:
    """Python that may use this module's helpers; its output is a stream of lines."""
    path = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    return subprocess.Popen([sys.executable, "-c", "import sys\nfrom test_store import *\n" + code, *map(str, args)], text=True,
                            stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": path}, **options)


ENDLESS_WRITER = """
store = Store(sys.argv[1])
run_id = store.create_run(RunConfig(), "killed")
print(run_id, flush=True)
with Recorder(store, run_id) as recorder:
    recorder(ModelLoaded({}))
    for step in range(1, 10**9):
        recorder(GroupsScored(step, tuple(group(*(rollout("x" * 1300) for _ in range(8))) for _ in range(4))))
        print("groups", step, flush=True)
        recorder(StepCompleted(step, StepMetrics(loss=1.0), {"a": 1.0}))
        print("step", step, flush=True)
"""


def test_kill_9_at_any_instant_loses_no_acknowledged_event(store: Store) -> None:
    for seed in range(5):
        writer = other_process(ENDLESS_WRITER, store.path)
        run_id = writer.stdout.readline().strip()
        said = [writer.stdout.readline()]  # at least one
        time.sleep(random.Random(seed).uniform(0, 0.3))
        writer.send_signal(signal.SIGKILL)
        said += writer.stdout.readlines()
        writer.wait()
        acknowledged = {(kind, int(step)) for kind, step in (line.split() for line in said if line.endswith("\n"))}

        assert store.cursor(run_id).status is RunStatus.RUNNING
        assert store.recover() == [run_id]
        run = store.run(run_id)
        assert (run.status, run.ended_at) == (RunStatus.INTERRUPTED, run.heartbeat_at)
        assert raw(store, "PRAGMA integrity_check") == [("ok",)]
        assert raw(store, "PRAGMA foreign_key_check") == []
        steps = [s["step"] for s in store.steps(run_id, 10**9)]
        with_groups = [row[0] for row in raw(store, f"SELECT step FROM groups WHERE run_id = '{run_id}' GROUP BY step ORDER BY step")]
        assert steps == list(range(1, len(steps) + 1))
        assert acknowledged <= {("step", s) for s in steps} | {("groups", s) for s in with_groups}
        assert all(len(store.group_ids(run_id, s)) == 4 for s in with_groups)  # whole, or not there
        assert {len(g.rollouts) for g in store.iter_groups(run_id)} == {8}


def test_a_second_process_may_look_but_not_write_or_adopt_while_a_run_lives(store: Store) -> None:
    run_id = store.create_run(RunConfig(), "mine")  # queued: no recorder yet, but already ours
    tries = """
from grpo_core.errors import StoreBusy
store = Store(sys.argv[1])
assert store.recover() == []
assert store.run(sys.argv[2]).status.is_live
for write in (lambda: store.rename(sys.argv[2], "x"), lambda: store.create_run(RunConfig(), "x"), lambda: store.delete(sys.argv[2]))[:int(sys.argv[3])]:
    try:
        write()
    except StoreBusy as error:
        print(error)
"""
    busy = f"--db '{store.path}' is in use: another process is writing to it. Wait until its run has ended, or name another file with --db."
    assert other_process(tries, store.path, run_id, 3).communicate()[0].splitlines() == [busy] * 3
    with Recorder(store, run_id) as recorder:
        recorder(ModelLoaded({}))
        assert other_process(tries, store.path, run_id, 1).communicate()[0].splitlines() == [busy]
        assert store.recover() == []  # nor do we adopt our own
    assert store.recover() == []
    store.set_status(run_id, FINISHED)
    assert other_process("Store(sys.argv[1]).rename(sys.argv[2], 'theirs')", store.path, run_id).wait() == 0
    assert store.run(run_id).name == "theirs"


def test_a_worker_forked_by_a_killed_server_does_not_keep_its_runs_alive(store: Store) -> None:
    server = other_process("""
import os, time
store = Store(sys.argv[1])
run_id = store.create_run(RunConfig(), "forked", status=RunStatus.RUNNING)
worker = os.fork()
if worker == 0:
    time.sleep(60)
    os._exit(0)
print(run_id, worker, flush=True)
time.sleep(60)
""", store.path)
    run_id, worker = server.stdout.readline().split()
    try:
        assert store.recover() == []
        server.kill()
        server.wait()
        until = time.monotonic() + 20
        while not (recovered := store.recover()) and time.monotonic() < until:
            time.sleep(0.05)  # until the worker has got so far as to let go of what it inherited
        assert recovered == [run_id]
    finally:
        os.kill(int(worker), signal.SIGKILL)


def test_an_orphan_is_deleted_but_a_live_run_is_not(store: Store) -> None:
    orphan = other_process("print(Store(sys.argv[1]).create_run(RunConfig(), 'orphan'))", store.path).communicate()[0].strip()
    live = store.create_run(RunConfig(), "live", status=RunStatus.RUNNING)
    with pytest.raises(StudioError, match="Stop it first"):
        store.delete(live)
    store.delete(orphan)
    assert [run.id for run in store.runs()] == [live]
    store.set_status(live, RunStatus.STOPPED)


def test_eight_threads_read_while_one_writes_without_an_error_or_a_lost_row(store: Store) -> None:
    run_id = store.create_run(RunConfig(), "busy", status=RunStatus.RUNNING)
    acknowledged, errors, reads = [0], [], [0] * 8
    done = threading.Event()

    def read(i: int) -> None:
        try:
            while not done.is_set():
                at_least = acknowledged[0]
                steps = store.steps(run_id, 10**6)
                assert [s["step"] for s in steps] == list(range(1, len(steps) + 1))
                assert len(steps) >= at_least
                page = store.groups(run_id, search="x", limit=5)
                assert page.total >= at_least
                assert all(len(g.rewards) == 2 for g in page.rows)
                store.cursor(run_id), store.runs(), store.runs_token(), store.metrics(run_id)
                reads[i] += 1
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=read, args=(i,)) for i in range(8)]
    with Recorder(store, run_id) as recorder:
        for thread in threads:
            thread.start()
        for step in range(1, 61):
            recorder(GroupsScored(step, (group(rollout("x"), rollout("y")),)))
            recorder(StepCompleted(step, StepMetrics(loss=1.0), {"a": 1.0}))
            acknowledged[0] = step
        done.set()
        for thread in threads:
            thread.join()
    store.set_status(run_id, FINISHED)
    assert not errors
    assert min(reads) > 0
    assert len(store.steps(run_id)) == store.groups(run_id).total == 60


def test_four_threads_writing_through_one_store_lose_nothing(store: Store) -> None:
    """One connection shared without a lock loses rows silently: 742 of 800 were left in the measurement behind this design."""
    ids = [store.create_run(RunConfig(), str(i)) for i in range(4)]

    def write(run_id: str) -> None:
        with Recorder(store, run_id) as recorder:
            for step in range(1, 51):
                recorder(StepCompleted(step, StepMetrics(), {"a": 1.0, "b": 2.0}))
                recorder.heartbeat()
        store.set_status(run_id, FINISHED)

    threads = [threading.Thread(target=write, args=(run_id,)) for run_id in ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(store.metrics(run_id)["b"]) for run_id in ids] == [50] * 4


def test_the_file_is_held_exactly_as_long_as_somebody_writes(store: Store) -> None:
    def held() -> bool:
        return Writer.of(store.path).connection is not None
    other = Store(store.path)  # of the same process: shares the writer
    with store.writing(), other.writing():
        assert held()
    assert not held()
    run_id = store.create_run(RunConfig(), "a")
    assert held()
    other.set_status(run_id, RunStatus.RUNNING)
    other.set_status(run_id, RunStatus.RUNNING)
    assert held()
    other.set_status(run_id, FINISHED)
    assert not held()


def test_a_hundred_runs_leave_no_open_file_behind(store: Store) -> None:
    recorded(store)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for _ in range(100):
        recorded(store, ModelLoaded({}))
    after = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    assert after <= before


def test_a_closed_store_is_read_again_by_a_process_that_finds_no_log_beside_it(tmp_path: Path) -> None:
    other_process("recorded(Store(sys.argv[1]), StepCompleted(1, StepMetrics(loss=2.0), {}))", tmp_path / "a.db").wait()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.db", "a.db.lock"]
    store = Store(tmp_path / "a.db")
    assert store.steps(store.runs()[0].id)[0]["loss"] == 2.0


# ---- files of every kind ------------------------------------------------------------------------------------------------


def refused(path: Path | str) -> str:
    """The message with which a file is refused; its bytes are as before."""
    before = Path(path).read_bytes() if os.path.isfile(path) else None
    with pytest.raises(StoreError) as error:
        Store(path)
    assert (Path(path).read_bytes() if before is not None else None) == before
    message = str(error.value)
    assert message.isprintable()
    assert message.startswith(f"--db {str(path)!r}")
    assert message.count("--db") >= 2, message  # what is wrong with which, and the way out
    return message


def test_random_bytes_are_refused_and_left_as_they_are(tmp_path: Path) -> None:
    for seed in range(20):
        (tmp_path / "noise").write_bytes(random.Random(seed).randbytes(seed * 577 + 1))
        assert "is not a GRPO Studio file" in refused(tmp_path / "noise")
    (tmp_path / "notes\n.txt").write_text("SQLite format 3? No, notes.")
    assert "is not a GRPO Studio file" in refused(tmp_path / "notes\n.txt")


def test_a_cut_or_overwritten_file_is_refused_or_read_with_an_error_but_never_written(store: Store, tmp_path: Path) -> None:
    recorded(store, *(GroupsScored(step, tuple(group(rollout("x" * 1300)) for _ in range(8))) for step in range(1, 30)))
    whole = store.path.read_bytes()
    for cut in (20, 100, 4096, len(whole) // 2, len(whole) - 4096, len(whole) - 1):
        (tmp_path / "cut.db").write_bytes(whole[:cut])
        assert "is damaged" in (message := refused(tmp_path / "cut.db")) or "is not a GRPO Studio file" in message
    messages = []
    for page in range(1, len(whole) // 4096):
        damaged = bytearray(whole)
        damaged[page * 4096:page * 4096 + 2048] = random.Random(page).randbytes(2048)
        (tmp_path / "damaged.db").write_bytes(damaged)
        try:
            found = Store(tmp_path / "damaged.db")
            for run in found.runs():
                list(found.iter_groups(run.id)), found.groups(run.id, search="nothing"), found.steps(run.id)
        except StoreError as error:
            messages.append(str(error))
        assert (tmp_path / "damaged.db").read_bytes() == damaged
    assert len(messages) > 50  # most damage is noticed; what is not lies in the midst of a text
    assert all("is damaged" in message and message.isprintable() for message in messages)


def test_another_programs_database_is_refused(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "places.sqlite")) as conn:
        conn.execute("CREATE TABLE moz_places (url)")
    assert "is a database of another program" in refused(tmp_path / "places.sqlite")


def test_places_where_no_file_can_be_are_refused(tmp_path: Path) -> None:
    assert f"is a directory. Name a file in it, for example --db '{tmp_path}/studio.db'" in refused(tmp_path)
    assert "does not exist. Create it" in refused(tmp_path / "absent" / "deeper" / "studio.db")
    os.mkfifo(tmp_path / "pipe")
    assert "is not a regular file" in refused(tmp_path / "pipe")
    assert "cannot be used" in refused(str(tmp_path / "a\0b"))
    assert "cannot be used" in refused(tmp_path / ("n" * 300))
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    refused(tmp_path / "loop")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["loop", "pipe"]  # nothing was left behind


@contextmanager
def as_ordinary_user() -> Iterator[None]:
    """Root may write anywhere, so permissions are tried as nobody."""
    if os.getuid() != 0:
        yield
        return
    os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


@pytest.mark.parametrize("locked", ["folder", "file"])
def test_what_cannot_be_written_is_refused(locked: str) -> None:
    folder = Path(tempfile.mkdtemp())  # not tmp_path, into which only its owner may go
    try:
        Store(folder / "studio.db").close()
        for path in (*folder.iterdir(), folder):
            os.chmod(path, 0o777)
        os.chmod(folder if locked == "folder" else folder / "studio.db", 0o555)
        with as_ordinary_user():
            assert f"the {locked} " in refused(folder / "studio.db")
            if locked == "folder":
                assert "cannot be written. Change its permissions" in refused(folder / "new.db")
    finally:
        os.chmod(folder, 0o777)
        shutil.rmtree(folder)


def test_odd_but_legal_names_work_and_links_share_one_lock(tmp_path: Path) -> None:
    for name in ("with space?mode=ro&x#y%41.db", "ünï\ncode.db", "bytes\udcff.db"):
        store = Store(tmp_path / name)
        assert recorded(store) == store.runs()[0].id
        assert (tmp_path / name).stat().st_size > 0
        assert store.file_bytes() >= (tmp_path / name).stat().st_size
    (tmp_path / "link.db").symlink_to(tmp_path / "target.db")
    link, target = Store(tmp_path / "link.db"), Store(tmp_path / "target.db")
    assert link._writer is target._writer
    (tmp_path / "empty.db").touch()
    assert Store(str(tmp_path / "empty.db")).runs() == []


# ---- versions -----------------------------------------------------------------------------------------------------------


def newer_migrations(fail: bool = False) -> schema.Migrations:
    """What a future version of this code would have: today's tables, and one step more."""
    future = schema.Migrations("grpo_studio")
    for migration in schema.MIGRATIONS._migrations:
        future(name=migration.name)(migration.fn)

    @future(name="a later version: colours")
    def _colours(db: Database) -> None:
        db.execute("ALTER TABLE runs ADD COLUMN colour TEXT")

    if fail:
        @future(name="a later version: never")
        def _never(db: Database) -> None:
            raise RuntimeError("power cut")
    return future


def test_an_older_version_is_copied_then_migrated_and_a_newer_one_is_refused(store: Store) -> None:
    run_id = recorded(store, StepCompleted(1, StepMetrics(loss=2.0), {}))
    old = raw(store, "SELECT * FROM steps")
    now = raw(store, "PRAGMA user_version")[0][0]
    copy = Path(f"{store.path}.v{now}.bak")
    copy.write_text("an earlier copy")
    with pytest.raises(RuntimeError):
        schema.prepare(store.path, store._writer, newer_migrations(fail=True))
    # Nothing of it is left, not even of the migration before the one that failed.
    assert raw(store, "PRAGMA user_version") == [(now,)]
    assert raw(store, "SELECT name FROM pragma_table_info('runs') WHERE name = 'colour'") == []

    schema.prepare(store.path, store._writer, newer_migrations())
    assert raw(store, "SELECT id, colour FROM runs") == [(run_id, None)]
    assert raw(store, "SELECT * FROM steps") == old
    assert copy.read_text() == "an earlier copy"
    second = Path(f"{store.path}.v{now}.2.bak")  # .1 was made before the migration that failed
    assert Store(second).run(run_id).steps_done == 1
    schema.prepare(store.path, store._writer, newer_migrations())  # again: nothing to do, no copy
    assert not Path(f"{store.path}.v{now}.3.bak").exists()

    store.close()
    assert f"has version {now + 1}, this GRPO Studio reads up to {now}. Update GRPO Studio" in refused(store.path)


def test_a_metric_that_is_new_in_the_code_gets_its_column_in_an_old_file(store: Store) -> None:
    run_id = recorded(store, StepCompleted(1, StepMetrics(loss=2.0, kl=3.0, tokens=4), {}))
    store.close()
    with closing(sqlite3.connect(store.path)) as conn:  # as if kl and tokens had not existed when the file was made
        conn.execute("ALTER TABLE steps DROP COLUMN kl")
        conn.execute("ALTER TABLE steps DROP COLUMN tokens")
    step, = Store(store.path).steps(run_id)
    assert (step["loss"], step["kl"], step["tokens"]) == (2.0, None, None)
    assert dict(raw(store, "SELECT name, type FROM pragma_table_info('steps') WHERE name IN ('kl', 'tokens')")) == {"kl": "REAL", "tokens": "INTEGER"}


def test_every_table_is_strict_and_every_foreign_key_has_an_index(store: Store) -> None:
    ours = {"runs", "steps", "metrics", "groups", "rollouts", "token_records", "token_pieces", "alerts", "checkpoints"}
    strict = dict(raw(store, "SELECT name, strict FROM pragma_table_list WHERE schema = 'main'"))
    assert {name for name, is_strict in strict.items() if is_strict} == ours
    for table in ours:
        indexed = {row[0] for row in raw(store, f"SELECT c.name FROM pragma_index_list('{table}') l, pragma_index_info(l.name) c WHERE c.seqno = 0")}
        indexed |= {row[0] for row in raw(store, f"SELECT name FROM pragma_table_info('{table}') WHERE pk = 1")}
        for column, on_delete in raw(store, f"SELECT \"from\", on_delete FROM pragma_foreign_key_list('{table}')"):
            assert column in indexed
            assert on_delete in ("CASCADE", "SET NULL")


# ---- space --------------------------------------------------------------------------------------------------------------


def test_a_file_that_cannot_shrink_is_no_reason_to_wait_for_ever(tmp_path: Path) -> None:
    store = Store(tmp_path / "a.db")
    with store.writing() as writer:
        run_id = recorded(store, GroupsScored(1, (group(rollout("x" * 500_000)),)))
        writer.connection.execute("PRAGMA auto_vacuum = NONE")
        writer.connection.execute("VACUUM")
    assert store.delete(run_id) > 400_000


def test_deleting_a_run_deletes_all_of_it_and_gives_the_space_back(store: Store) -> None:
    kept = recorded(store, GroupsScored(1, (group(),)))
    empty = store.file_bytes()
    big = [GroupsScored(step, (group(*(rollout("x" * 50_000) for _ in range(8))),)) for step in range(1, 26)]  # 25 * 8 * 50 kB = 10 MB
    run_id = recorded(store, *big, StepCompleted(1, StepMetrics(), {"a": 1.0}))
    assert store.path.stat().st_size > 10_000_000
    assert 10_000_000 < store.delete(run_id) < 11_000_000
    assert store.path.stat().st_size < 1_000_000
    assert store.file_bytes() <= empty
    for table in ("steps", "metrics"):
        assert raw(store, f"SELECT COUNT(*) FROM {table}") == [(0,)]
    assert raw(store, "SELECT COUNT(*) FROM rollouts") == [(2,)]
    assert [run.id for run in store.runs()] == [kept]
    with pytest.raises(NotFound):
        store.run(run_id)


def test_the_folder_of_a_new_file_is_made_because_a_fresh_clone_has_no_runs_folder(tmp_path):
    assert Store(tmp_path / "runs" / "grpo.sqlite").runs() == []


def test_a_file_that_another_process_prepared_meanwhile_is_opened_while_that_process_writes(tmp_path, monkeypatch):
    path = tmp_path / "runs.sqlite"
    Store(path)
    answers = iter([False, True])  # not yet prepared when first looked at, prepared when the lock turned out to be taken
    monkeypatch.setattr("grpo_core.store.schema._is_current", lambda *_: next(answers))

    def busy(self, wait_seconds):
        raise StoreBusy("in use")

    monkeypatch.setattr("grpo_core.store.connection.Writer.hold", busy)
    assert Store(path).runs() == []
