"""RunManager and execute() with a stand-in for training: pages and processes need no torch."""

from __future__ import annotations

import threading
import time

import pytest
from processes import another_process

from grpo_core.config import RunConfig, nest, parse
from grpo_core.errors import InvalidConfig, StopRequested, StoreBusy, StudioError
from grpo_core.runs.manager import RunManager, default_name
from grpo_core.store import Store
from grpo_core.types import ModelLoaded, Phase, PhaseStarted, RunStatus, StepCompleted, StepMetrics


class Script:
    """A train() that goes step by step when told to, or fails."""

    def __init__(self):
        self.go, self.error, self.started = threading.Semaphore(0), None, []

    def __call__(self, config, emit, control):
        self.started.append(config)
        emit(PhaseStarted(Phase.LOADING, 0, config.train.steps))
        emit(ModelLoaded({"device": "none"}))
        for step in range(1, config.train.steps + 1):
            while not self.go.acquire(timeout=0.01):
                control.points.check_interrupt()
            if self.error:
                raise self.error
            emit(StepCompleted(step, StepMetrics(reward_mean=float(step)), {}))


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("", "sums, GRPO, seed 0"),
        ("/data/my sums.csv", "my sums.csv, GRPO, seed 0"),
        ("openai/gsm8k", "gsm8k, GRPO, seed 0"),
    ],
)
def test_a_run_without_a_name_is_named_by_its_prompts(path, name):
    assert default_name(parse(nest({"task.path": path}))) == name


@pytest.fixture
def script():
    return Script()


@pytest.fixture
def manager(tmp_path, script):
    manager = RunManager(Store(tmp_path / "runs.sqlite"), script)
    yield manager
    manager.close()


def config(steps=2, **settings) -> RunConfig:
    return parse(nest({"train.steps": steps, **settings}))


def wait_for(manager, run_id, *statuses, seconds=60.0) -> RunStatus:
    deadline = time.monotonic() + seconds
    while (
        status := manager.store.run(run_id).status
    ) not in statuses and time.monotonic() < deadline:
        time.sleep(0.01)
    assert status in statuses, f"{status}: {manager.store.run(run_id).error}"
    return status


def test_a_run_goes_from_queued_to_finished_and_stores_its_steps(manager, script):
    run_id = manager.start(config(), "first")
    script.go.release(2)
    wait_for(manager, run_id, RunStatus.FINISHED)
    row = manager.store.run(run_id)
    assert (row.name, row.steps_done, row.reward_first, row.reward_last, row.error) == (
        "first",
        2,
        1.0,
        2.0,
        None,
    )
    assert row.started_at <= row.ended_at


def test_the_record_holds_the_criteria_of_a_preset(manager, script):
    run_id = manager.start(config())
    names = [c["name"] for c in manager.store.run(run_id).config["rubric"]["criteria"]]
    assert names == ["accuracy", "format", "language", "reasoning"]


def test_a_second_start_waits_in_the_queue_and_then_runs(manager, script):
    first, second = manager.start(config()), manager.start(config())
    wait_for(manager, first, RunStatus.RUNNING)
    assert manager.store.run(second).status == RunStatus.QUEUED
    script.go.release(4)
    wait_for(manager, second, RunStatus.FINISHED)
    assert manager.store.run(first).ended_at <= manager.store.run(second).started_at


def test_stop_keeps_what_was_recorded_and_ten_stops_equal_one(manager, script):
    run_id = manager.start(config(steps=5))
    script.go.release(1)
    wait_for(manager, run_id, RunStatus.RUNNING)
    while manager.store.run(run_id).steps_done < 1:
        time.sleep(0.01)
    threads = [threading.Thread(target=manager.stop, args=(run_id,)) for _ in range(10)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    wait_for(manager, run_id, RunStatus.STOPPED)
    manager.stop(run_id)
    assert (manager.store.run(run_id).status, manager.store.run(run_id).steps_done) == (
        RunStatus.STOPPED,
        1,
    )


def test_a_queued_run_can_be_stopped_without_ever_starting(manager, script):
    first, second = manager.start(config()), manager.start(config())
    manager.stop(second)
    assert manager.store.run(second).status == RunStatus.STOPPED
    script.go.release(2)
    wait_for(manager, first, RunStatus.FINISHED)
    assert len(script.started) == 1


def test_a_programming_error_fails_the_run_with_its_traceback(manager, script):
    script.error = ZeroDivisionError("no such luck")
    run_id = manager.start(config())
    script.go.release(1)
    wait_for(manager, run_id, RunStatus.FAILED, seconds=2)
    assert "ZeroDivisionError: no such luck" in manager.store.run(run_id).error
    assert "Traceback" in manager.store.run(run_id).error
    script.error = None
    again = manager.start(config())
    script.go.release(2)
    wait_for(manager, again, RunStatus.FINISHED)


def test_an_error_the_user_can_solve_is_kept_as_one_line(manager, script):
    script.error = StudioError("The model does not fit. Lower the group size.")
    run_id = manager.start(config())
    script.go.release(1)
    wait_for(manager, run_id, RunStatus.FAILED)
    assert manager.store.run(run_id).error == "The model does not fit. Lower the group size."


@pytest.mark.parametrize(
    ("settings", "field"),
    [({"task.name": "nope"}, "task.name"), ({"rubric.name": "nope"}, "rubric.name")],
)
def test_an_invalid_configuration_is_refused_before_a_run_exists(manager, settings, field):
    with pytest.raises(InvalidConfig, match=field):
        manager.start(config(**settings))
    assert manager.store.runs() == []


def test_the_model_is_checked_before_a_run_exists(tmp_path, script):
    def check(config):
        raise InvalidConfig([])

    manager = RunManager(Store(tmp_path / "x.sqlite"), script, check)
    with pytest.raises(InvalidConfig):
        manager.start(config())
    assert manager.store.runs() == []


def test_closing_stops_the_run_and_leaves_the_queue_to_the_next_server(manager, script):
    first, second = manager.start(config()), manager.start(config())
    wait_for(manager, first, RunStatus.RUNNING)
    manager.close()
    assert manager.store.run(first).status == RunStatus.STOPPED
    assert manager.store.run(second).status == RunStatus.QUEUED
    with pytest.raises(StudioError, match="shutting down"):
        manager.start(config())
    script.go.release(2)
    later = RunManager(manager.store, script)
    wait_for(later, second, RunStatus.FINISHED)
    assert manager.store.run(first).status == RunStatus.STOPPED


@pytest.mark.slow
def test_a_hundred_runs_leave_no_thread_behind(manager, script):
    script.go.release(1000)
    before = threading.active_count()
    ids = [manager.start(config(steps=1)) for _ in range(100)]
    wait_for(manager, ids[-1], RunStatus.FINISHED)
    deadline = time.monotonic() + 60
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before
    assert not manager.running


def test_stop_requested_reaches_training_through_control_alone(manager, script):
    run_id = manager.start(config(steps=1))
    wait_for(manager, run_id, RunStatus.RUNNING)
    control = manager._control(run_id)
    manager.stop(run_id)
    with pytest.raises(StopRequested):
        control.points.check_interrupt()


@pytest.mark.slow
def test_every_control_of_a_run_in_another_process_is_refused_alike(tmp_path, script):
    path = tmp_path / "theirs.sqlite"
    server = another_process(
        """
        import sys, time
        from grpo_core.config import RunConfig
        from grpo_core.store import Store
        store = Store(sys.argv[1])
        for status in ("running", "paused", "queued"):
            print(store.create_run(RunConfig(), status, status=status), flush=True)
        time.sleep(60)
        """,
        path,
    )
    try:
        theirs = {s: server.stdout.readline().strip() for s in ("running", "paused", "queued")}
        manager = RunManager(Store(path), script)
        for status, run_id in theirs.items():
            for control in (
                lambda r: manager.stop(r),
                lambda r: manager.pause(r),
                lambda r: manager.resume(r),
                lambda r: manager.step(r),
                lambda r: manager.checkpoint(r),
                lambda r: manager.set_knob(r, "train.temperature", 1.0),
                lambda r: manager.set_breakpoints(r, "step = 2"),
                lambda r: manager.edit_reward(r, 1, 0, 0, 1.0),
            ):
                with pytest.raises(StudioError) as refusal:
                    control(run_id)
                assert str(refusal.value) == (
                    f"run {run_id!r} is {status} in another process, "
                    "so it cannot be controlled here."
                )
        with pytest.raises(StoreBusy, match="another process is writing"):
            manager.start(config())
        assert [r.status for r in manager.store.runs()] == ["queued", "paused", "running"]
    finally:
        server.kill()
        server.communicate()
