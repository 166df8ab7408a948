"""The store keeps whole what it has acknowledged, for any text."""

from __future__ import annotations

import math
import secrets
import sqlite3
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from stored import FINISHED, group, raw, recorded, rollout

from grpo_core.config import RunConfig, parse
from grpo_core.errors import NotFound, StoreError, StudioError
from grpo_core.store import Recorder, Store, connection
from grpo_core.types import (
    STEP_METRICS,
    Completion,
    Evaluated,
    Group,
    GroupsScored,
    Intervened,
    Intervention,
    ModelLoaded,
    Paused,
    Phase,
    PhaseStarted,
    Prompt,
    Resumed,
    Rollout,
    RunStatus,
    StepCompleted,
    StepMetrics,
)

ROOT = Path(__file__).parents[2]


# ---- round trip ----------------------------------------------------------------------------------


COUNTS = ("tokens", "replaced_groups", "num_updates", "micro_batch_tokens")


def test_every_event_comes_back_as_recorded(store: Store) -> None:
    metrics = StepMetrics(
        **{name: (12 + i if name in COUNTS else i / 8) for i, name in enumerate(STEP_METRICS)}
    )
    said = group(
        Rollout(Completion("<b>4</b>", "stop", 3), {"accuracy": 1.0, "format": None}, 0.75, 0.875),
        Rollout(Completion("four…", "length", 48), {"accuracy": 0.0, "format": 0.5}, None, 0.0),
    )
    run_id = recorded(
        store,
        PhaseStarted(Phase.LOADING, 0, 9),
        ModelLoaded({"torch": "2.13", "parameters": 5}),
        Evaluated(0, {"heldout/accuracy": 0.25}),
        GroupsScored(1, (said, group())),
        StepCompleted(1, metrics, {"score/accuracy": 0.5}),
        Evaluated(1, {"heldout/accuracy": 0.5}),
    )

    run = store.run(run_id)
    assert (run.env, run.status, run.steps_done, run.num_steps) == (
        {"torch": "2.13", "parameters": 5},
        FINISHED,
        1,
        9,
    )
    assert parse(run.config) == RunConfig()
    assert store.steps(run_id) == [
        {"step": 1} | {name: getattr(metrics, name) for name in STEP_METRICS}
    ]
    assert type(store.steps(run_id)[0]["tokens"]) is int
    assert store.metrics(run_id) == {
        "heldout/accuracy": [(0, 0.25), (1, 0.5)],
        "score/accuracy": [(1, 0.5)],
    }
    assert store.metrics(run_id, ["score/accuracy", "nothing"]) == {
        "score/accuracy": [(1, 0.5)],
        "nothing": [],
    }

    first, second = store.group_ids(run_id, 1)
    back = store.group(first)
    assert (back.run_id, back.step, back.position, back.prompt_id, back.prompt, back.answer) == (
        run_id,
        1,
        0,
        "sums-7",
        "2+2=",
        "4",
    )
    assert (back.reward_mean, back.reward_std, back.verdict) == (0.5, 0.7, "informative")
    assert [
        (
            r.position,
            r.text,
            r.finish_reason,
            r.num_tokens,
            r.reward,
            r.advantage,
            r.scores,
            r.edited,
        )
        for r in back.rollouts
    ] == [
        (0, "<b>4</b>", "stop", 3, 0.75, 0.875, {"accuracy": 1.0, "format": None}, False),
        (1, "four…", "length", 48, None, 0.0, {"accuracy": 0.0, "format": 0.5}, False),
    ]
    assert store.group(second).position == 1
    assert store.last_step_with_groups(run_id) == 1


def test_a_run_carries_its_summary_so_that_a_list_needs_nothing_else(store: Store) -> None:
    steps = [
        StepCompleted(step, StepMetrics(reward_mean=reward), {})
        for step, reward in ((1, math.nan), (2, 0.125), (3, 0.5), (4, None))
    ]
    run_id = recorded(store, Evaluated(0, {"heldout/accuracy": 0.2}), *steps)
    (run,) = store.runs()
    assert run == store.run(run_id)
    # Steps 1 and 4 have no reward, so first and last come from 2 and 3. One evaluation is no
    # comparison.
    assert (
        run.steps_done,
        run.reward_first,
        run.reward_last,
        run.heldout_before,
        run.heldout_after,
    ) == (4, 0.125, 0.5, 0.2, None)

    with Recorder(store, run_id) as recorder:
        recorder(Evaluated(4, {"heldout/accuracy": 0.9}))
    assert (store.run(run_id).heldout_before, store.run(run_id).heldout_after) == (0.2, 0.9)


def test_times_follow_the_status(store: Store) -> None:
    run_id = store.create_run(RunConfig(), "timed")
    queued = store.run(run_id)
    assert (queued.status, queued.started_at, queued.ended_at, queued.duration_seconds) == (
        RunStatus.QUEUED,
        None,
        None,
        None,
    )
    assert abs(queued.created_at - time.time()) < 60
    store.set_status(run_id, RunStatus.LOADING)
    started_at = store.run(run_id).started_at
    assert started_at is not None
    store.set_status(run_id, RunStatus.FAILED, "out of memory")
    failed = store.run(run_id)
    assert (failed.started_at, failed.error) == (started_at, "out of memory")
    assert failed.duration_seconds == failed.ended_at - started_at
    store.set_status(
        run_id, RunStatus.RUNNING
    )  # resumed: it has not ended, and what ended it is history
    assert (store.run(run_id).started_at, store.run(run_id).ended_at, store.run(run_id).error) == (
        started_at,
        None,
        None,
    )
    store.set_status(run_id, RunStatus.STOPPED)


def test_the_duration_of_a_run_leaves_out_pauses_and_interruptions(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id, lasted = store.create_run(RunConfig(), "a"), []

    def at(seconds: float, what: object) -> None:
        monkeypatch.setattr(time, "time", lambda: 1e9 + seconds)
        store.set_status(run_id, what) if isinstance(what, RunStatus) else recorder(what)
        lasted.append(store.run(run_id).duration_seconds)

    with Recorder(store, run_id) as recorder:
        at(5, RunStatus.STOPPED)  # in the queue: it never went on
        at(10, RunStatus.LOADING)
        at(20, Paused("wait"))
        at(30, Paused("wait longer"))
        at(50, Resumed())
        at(70, RunStatus.STOPPED)
        at(100, RunStatus.QUEUED)
        at(160, RunStatus.LOADING)
        at(165, Paused("wait"))
        at(200, RunStatus.INTERRUPTED)
        at(300, RunStatus.LOADING)
        at(304, RunStatus.FINISHED)
    # 10 to 20 and 50 to 70, 160 to 165, 300 to 304
    assert lasted[3:] == [10.0, 10.0, 30.0, 30.0, 30.0, 35.0, 35.0, 35.0, 39.0]


def test_loading_the_model_never_wakes_a_run_that_was_paused_meanwhile(store: Store) -> None:
    run_id = store.create_run(RunConfig(), "a")
    with Recorder(store, run_id) as recorder:
        store.set_status(run_id, RunStatus.PAUSED)
        recorder(ModelLoaded({}))
        assert store.cursor(run_id).status is RunStatus.PAUSED
    store.set_status(run_id, FINISHED)


def test_phases_are_written_at_most_five_times_a_second(
    store: Store,
) -> None:
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


def test_the_token_changes_with_visible_rows_and_not_with_heartbeats(store: Store) -> None:
    run_id = store.create_run(RunConfig(), "a", status=RunStatus.RUNNING)
    seen = [store.cursor(run_id)]
    with Recorder(store, run_id) as recorder:
        recorder.heartbeat()
        assert store.cursor(run_id) == seen[0]
        assert store.run(run_id).heartbeat_at is not None
        for event in (
            GroupsScored(1, (group(),)),
            StepCompleted(1, StepMetrics(), {}),
            Evaluated(1, {}),
        ):
            recorder(event)
            seen.append(store.cursor(run_id))
    store.set_status(run_id, FINISHED)
    seen.append(store.cursor(run_id))
    assert [c.revision for c in seen] == sorted({c.revision for c in seen})  # strictly growing


def test_the_token_of_the_run_list_never_repeats_after_a_change(
    store: Store,
) -> None:
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


def test_ids_are_unique_within_a_second_and_runs_are_listed_newest_first(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    dice = iter(
        ["aaaa", "aaaa", "aaaa", "bbbb"] * 9
    )  # thrown again until the id is new; 3 of 4 throws within a second are not
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
    assert (store.run(child).parent_run_id, store.run(child).parent_step) == (
        None,
        7,
    )  # a child outlives its parent


# ---- law: a write is whole, or it raises ---------------------------------------------------------


def test_one_thought_is_one_transaction_so_half_an_event_is_never_seen(store: Store) -> None:
    run_id = recorded(store, GroupsScored(1, (group(),)))
    before = store.cursor(run_id)
    broken = group(
        rollout(), Rollout(Completion("x", "stop", "three"), {}, 1.0, 0.0)
    )  # its second rollout cannot be stored
    with Recorder(store, run_id) as recorder:
        with pytest.raises(sqlite3.IntegrityError):
            recorder(GroupsScored(2, (group(), broken)))
        assert store.cursor(run_id) == before
        assert store.group_ids(run_id, 2) == []
        recorder(GroupsScored(2, (group(),)))  # and the connection is in order
    assert len(store.group_ids(run_id, 2)) == 1


def test_a_repeated_event_replaces_its_row(store: Store) -> None:
    """A run that resumes from its checkpoint repeats the steps after it."""
    run_id = recorded(
        store,
        GroupsScored(1, (group(), group())),
        StepCompleted(1, StepMetrics(loss=1.0), {"a": 1.0}),
        GroupsScored(1, (group(verdict="tied"),)),
        StepCompleted(1, StepMetrics(loss=2.0), {"a": 2.0}),
    )
    assert store.verdict_counts(run_id) == {"tied": 1}
    assert [s["loss"] for s in store.steps(run_id)] == [2.0]
    assert store.metrics(run_id) == {"a": [(1, 2.0)]}
    assert raw(store, "SELECT COUNT(*) FROM rollouts") == [(2,)]


def test_a_full_disk_raises_says_so_and_breaks_nothing(store: Store) -> None:
    run_id = recorded(store, GroupsScored(1, (group(),)))
    with store.writing() as writer, Recorder(store, run_id) as recorder:
        limit = writer.connection.execute("PRAGMA page_count").fetchone()[0] + 3
        writer.connection.execute(f"PRAGMA max_page_count = {limit}").fetchone()
        with pytest.raises(
            StoreError,
            match=r"--db '.*runs.sqlite' cannot grow: the disk is full\. Free some space",
        ):
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


def test_nothing_can_be_recorded_for_a_missing_run(store: Store) -> None:
    with (
        Recorder(store, "20200101-000000-aaaa") as recorder,
        pytest.raises(NotFound, match="Start a new run"),
    ):
        recorder(ModelLoaded({}))
    for action in (
        store.run,
        store.cursor,
        store.delete,
        lambda i: store.rename(i, "x"),
        lambda i: store.set_status(i, FINISHED),
    ):
        with pytest.raises(NotFound, match="choose another run"):
            action("20200101-000000-aaaa")


# ---- text and numbers from anywhere --------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_numbers_are_stored_as_null(store: Store, bad: float) -> None:
    run_id = recorded(
        store,
        ModelLoaded({"x": [bad, 1.0]}),
        GroupsScored(
            1,
            (
                Group(
                    Prompt("p", "q", "a", "t"),
                    (Rollout(Completion("c", "stop", 1), {"s": bad}, bad, bad),),
                    bad,
                    bad,
                    "v",
                ),
            ),
        ),
        StepCompleted(1, StepMetrics(loss=bad, kl=0.5), {"m": bad}),
    )
    back = store.group(store.group_ids(run_id, 1)[0])
    assert (back.reward_mean, back.reward_std) == (None, None)
    assert (back.rollouts[0].reward, back.rollouts[0].advantage, back.rollouts[0].scores) == (
        None,
        None,
        {"s": None},
    )
    assert (store.steps(run_id)[0]["loss"], store.steps(run_id)[0]["kl"]) == (None, 0.5)
    assert store.metrics(run_id) == {"m": [(1, None)]}
    assert store.run(run_id).env == {"x": [None, 1.0]}


@pytest.mark.slow
@given(st.text(st.characters(exclude_categories=()), max_size=50))
@example("a\0b\ud800c")
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_text_is_stored_and_only_unprintable_characters_are_replaced(
    store: Store, text: str
) -> None:
    expected = "".join(
        "?" if 0xD800 <= ord(c) <= 0xDFFF else "\ufffd" if c == "\0" else c for c in text
    )
    run_id = recorded(
        store,
        ModelLoaded({text: text}),
        GroupsScored(1, (group(rollout(text), prompt=text, verdict=text),)),
        StepCompleted(1, StepMetrics(), {text: 1.0}),
    )
    back = store.group(store.group_ids(run_id, 1)[0])
    assert (back.prompt, back.verdict, back.rollouts[0].text) == (expected, expected, expected)
    assert store.run(run_id).env == {expected: expected}
    assert list(store.metrics(run_id)) == [expected]
    assert store.groups(run_id, verdict=text).total == 1
    store.delete(run_id)


HOSTILE = [
    "",
    "../../etc/passwd",
    "' OR 1=1 --",
    "\0",
    "\ud800",
    "%",
    "a" * 100_000,
    "\x1b[31m",
    None,
    7,
    -1.5,
    b"x",
    [],
    {},
]


@pytest.mark.parametrize("run_id", HOSTILE, ids=lambda x: ascii(x)[:20])
def test_a_hostile_run_id_is_only_an_unknown_id(store: Store, run_id: object) -> None:
    recorded(store, GroupsScored(1, (group(),)), StepCompleted(1, StepMetrics(), {"a": 1.0}))
    for ask in (
        store.run,
        store.cursor,
        store.delete,
        lambda i: store.rename(i, "x"),
        lambda i: store.set_status(i, FINISHED),
    ):
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


def test_unused_reading_connections_are_closed(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "studio.db"
    Store(path).close()
    readers, now = connection.Readers(path.resolve()), [0.0]
    monkeypatch.setattr(connection.time, "monotonic", lambda: now[0])
    together = threading.Barrier(4)

    def meet(*_: object) -> int:
        together.wait(10)
        return 0

    made = []
    connect = connection.connect

    def counted(*arguments: object) -> sqlite3.Connection:
        made.append(connect(*arguments))
        made[-1].create_function("meet", 0, meet)
        return made[-1]

    monkeypatch.setattr(connection, "connect", counted)
    threads = [threading.Thread(target=readers.all, args=("SELECT meet()",)) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(made) == 4

    def still_open() -> int:
        return sum(is_open(c) for c in made)

    assert still_open() == 4  # somebody may be back in a moment
    now[0] = connection.IDLE_SECONDS + 1
    for left in (3, 2, 1, 1):  # the one that was just used stays
        assert readers.all("SELECT 1")[0][0] == 1
        assert still_open() == left
    readers.close()
    assert still_open() == 0


def is_open(c: sqlite3.Connection) -> bool:
    try:
        c.execute("SELECT 1")
    except sqlite3.ProgrammingError:
        return False
    return True


def test_a_resolved_learning_rate_is_recorded_to_the_last_bit(store: Store) -> None:
    rate = 1e-6 * 10  # 9.999999999999999e-06; SQLite's own number to text gives 1.0e-05
    run_id = recorded(store, ModelLoaded({}, {"train.learning_rate": rate}))
    assert store.run(run_id).config["train"]["learning_rate"] == rate


def test_an_intervention_written_again_keeps_its_time(store: Store) -> None:
    made = Intervened((Intervention(2, "reward", 2.5, group=0, completion=1),))
    run_id = recorded(store, made)
    before = raw(store, "SELECT created_at, value FROM interventions")
    with Recorder(store, run_id) as recorder:
        recorder(made)
    assert raw(store, "SELECT created_at, value FROM interventions") == before


def test_a_misspelt_condition_of_groups_is_refused(store: Store) -> None:
    with pytest.raises(TypeError, match="verdcit"):
        store.groups(recorded(store), verdcit="tied")
