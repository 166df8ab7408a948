"""A run whose workers come and go: what its process records, and what it tells new workers."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from pretended import Cluster, Followed
from processes import until

from grpo_core.cluster import driver
from grpo_core.cluster.mailbox import Answered, Lost
from grpo_core.errors import StopRequested, StudioError
from grpo_core.training.breakpoints import parse_breakpoints
from grpo_core.training.control import RunControl, Start
from grpo_core.training.distant import MAX_UNSENT, Ended, Logged
from grpo_core.types import (
    Checkpointed,
    Intervened,
    Intervention,
    Noticed,
    Paused,
    Phase,
    PhaseStarted,
    Restarted,
    Resumed,
    StepCompleted,
    StepMetrics,
)


def step(n: int) -> StepCompleted:
    return StepCompleted(n, StepMetrics(), {})


def saved(n: int) -> Checkpointed:
    return Checkpointed(n, f"/runs/step-{n}", 1, f"hash {n}")


def finishes(cluster: Cluster) -> None:
    life, _ = cluster.begin()
    cluster.say(life, Ended("finished"))


def test_events_are_recorded_in_order_until_the_workers_end():
    def life(cluster: Cluster) -> None:
        number, start = cluster.begin()
        assert start == Start()
        for n in range(1, 101):
            cluster.say(number, step(n))
        cluster.say(number, Ended("finished"))

    run = Followed(Cluster(life))
    assert run.ended() is None
    assert [e.step for e in run.events] == list(range(1, 101))


def test_new_workers_go_on_after_the_last_recorded_checkpoint():
    intervention = Intervention(3, "setting", 0.5, field="train.temperature")

    def dies(cluster: Cluster) -> None:
        life, _ = cluster.begin()
        cluster.say(life, step(1), step(2), saved(2), Intervened((intervention,)), step(3))
        until(lambda: cluster.commands(life)[1][-1] == (("recorded", ()), None))
        cluster.lose("Worker 2 was lost: killed.")
        second, start = cluster.begin()
        assert start == Start(2, Path("/runs/step-2"), "hash 2", (intervention,))
        assert not cluster.say(life, step(4))  # of the dead
        assert cluster.commands(life) is None
        cluster.say(second, step(3), Ended("finished"))

    run = Followed(Cluster(dies))
    assert run.ended() is None
    told = [e for e in run.events if not isinstance(e, Noticed)]
    assert [getattr(e, "step", None) for e in told] == [1, 2, 2, None, 3, 2, 3]
    assert told[5] == Restarted(2, "Worker 2 was lost: killed.")
    [notice] = [e for e in run.events if isinstance(e, Noticed)]
    assert notice.message.endswith("starts the workers again, from the checkpoint of step 2.")


def test_letters_that_wait_when_workers_die_are_dropped():
    recording, go_on = threading.Event(), threading.Event()
    events = []

    def emit(event) -> None:
        events.append(event)
        if event == step(1):
            recording.set()
            assert go_on.wait(10)

    def dies(cluster: Cluster) -> None:
        life, _ = cluster.begin()
        cluster.say(life, step(1))
        assert recording.wait(10)
        cluster.say(life, step(2), saved(2))
        cluster.lose("Worker 1 was lost.")
        new = cluster.ask(cluster.mailbox.begin())
        go_on.set()
        assert cluster.ask(cluster.mailbox.started(new)) == Start()
        assert ("recorded", ()) not in [c for c, _ in cluster.commands(new)[1]]
        cluster.say(new, Ended("finished"))

    assert Followed(Cluster(dies), emit=emit).ended() is None
    assert step(2) not in events
    assert saved(2) not in events
    assert Restarted(-1, "Worker 1 was lost.") in events


def test_workers_wait_while_the_record_is_behind():
    block, done = threading.Event(), []

    def life(cluster: Cluster) -> None:
        number, _ = cluster.begin()
        for n in range(1, 4 * MAX_UNSENT):
            cluster.say(number, step(n))
            done.append(n)
        cluster.say(number, Ended("finished"))

    run = Followed(Cluster(life), emit=lambda event: block.wait(60))
    until(lambda: len(done) >= MAX_UNSENT)
    time.sleep(0.1)
    assert len(done) <= 2 * MAX_UNSENT  # in the mailbox, and taken but not recorded
    block.set()
    assert run.ended() is None


def test_all_workers_hear_stop_and_only_the_first_the_rest():
    heard = []

    def life(cluster: Cluster) -> None:
        number, _ = cluster.begin()
        cluster.say(number, step(1))
        until(lambda: cluster.run.control.stop_requested)
        until(lambda: cluster.commands(number)[1][-1][0][0] == "stop")
        heard.extend(cluster.commands(number, first=False)[1])
        cluster.say(number, saved(1), Ended("stopped", ""))

    run = Followed(Cluster(life))
    until(lambda: run.events)
    run.control.pause()
    run.control.checkpoint()
    run.control.stop("too long")
    problem = run.ended()
    assert isinstance(problem, StopRequested)
    assert str(problem) == "too long"
    assert heard == [(("stop", ("too long",)), None)]
    assert saved(1) in run.events


def test_new_workers_hear_what_people_asked_before():
    heard = []
    control = RunControl()
    control.set_breakpoints(parse_breakpoints("step = 9"))
    control.pause("wait")
    control.set_knob("train.temperature", 0.5)
    control.set_knob("algorithm.kl_coef", 0.1)

    def dies(cluster: Cluster) -> None:
        life, _ = cluster.begin()
        heard.append([c for c, _ in cluster.commands(life)[1]])
        taken = Intervention(1, "setting", 0.5, field="train.temperature")
        cluster.say(life, Intervened((taken,)), Paused("wait"))
        until(lambda: Paused("wait") in cluster.run.events)
        cluster.lose("gone")
        life, start = cluster.begin()
        assert start.interventions == (taken,)
        heard.append([c for c, _ in cluster.commands(life)[1]])
        cluster.say(life, Ended("finished"))

    run = Followed(Cluster(dies), control)
    assert run.ended() is None
    breakpoints = ("set_breakpoints", (control.breakpoints,))
    kl = ("set_knob", ("algorithm.kl_coef", 0.1))
    temperature = ("set_knob", ("train.temperature", 0.5))
    assert set(heard[0]) == {breakpoints, kl, temperature, ("pause", ("wait",))}
    assert heard[1] == [breakpoints, kl, ("pause", ("wait",))]
    assert run.events.index(Resumed()) < run.events.index(Restarted(-1, "gone"))


def test_an_edited_reward_is_answered_by_worker_one():
    def life(cluster: Cluster) -> None:
        number, _ = cluster.begin()
        cluster.say(number, step(1))
        asked = []

        def edits():
            asked[:] = [c for c in cluster.commands(number)[1] if c[0][0] == "edit_reward"]
            return len(asked)

        until(edits)
        cluster.say(number, Answered(asked[0][1], "there is no group 9"))
        until(lambda: edits() == 2)
        cluster.say(number, Answered(asked[0][1], "late"), Answered(asked[1][1], ""))
        until(lambda: cluster.run.control.stop_requested)
        cluster.say(number, Ended("stopped"))

    run = Followed(Cluster(life))
    until(lambda: run.events)
    with pytest.raises(StudioError, match="there is no group 9"):
        run.control.edit_reward(1, 8, 0, 1.0)
    run.control.edit_reward(1, 0, 0, 1.0)
    run.control.stop()
    assert isinstance(run.ended(), StopRequested)


def test_stop_ends_a_run_at_once_that_has_no_workers():
    run = Followed(Cluster())
    asked = time.monotonic()
    run.control.stop()
    assert isinstance(run.ended(), StopRequested)
    assert time.monotonic() - asked < 10


def test_a_run_without_workers_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(driver, "PLACE_SECONDS", 0.2)
    run = Followed(Cluster())
    until(lambda: run.events)
    run.control.stop()
    run.ended()
    [notice] = run.events
    assert "no workers for 0 s. It needs 2 × CPU. The cluster has 1. It waits" in notice.message


def test_workers_that_fail_three_times_in_one_step_end_the_run():
    def life(cluster: Cluster, last: int) -> None:
        number, _ = cluster.begin()
        cluster.say(number, PhaseStarted(Phase.SAMPLING, last, 9), step(last))
        until(lambda: step(last) in cluster.run.events)
        cluster.lose(f"Worker 1 was lost after step {last}.")

    lives = [lambda c, n=n: life(c, n) for n in (1, 2, 3, 3, 3)]
    run = Followed(Cluster(*lives))
    problem = run.ended()
    assert "failed 3 times without a new step" in str(problem)
    assert "lost after step 3" in str(problem)
    assert "press Resume" in str(problem)


@pytest.mark.parametrize("rank", [1, 2])
def test_an_error_of_any_worker_fails_the_run_with_its_reason(rank, caplog):
    def life(cluster: Cluster) -> None:
        number, _ = cluster.begin()
        cluster.say(number, Logged(30, f"worker {rank}: hot"), Ended("failed", "no such model"))

    problem = Followed(Cluster(life)).ended()
    assert isinstance(problem, StudioError)
    assert str(problem) == "no such model"
    assert f"worker {rank}: hot" in caplog.text


def test_a_lost_cluster_is_noted_in_the_life_that_it_ended():
    async def lost(mailbox) -> list:
        await mailbox.lost("before any")
        await mailbox.begin()
        return await mailbox.take(1)

    cluster = Cluster()
    first, second = cluster.ask(lost(cluster.mailbox))
    assert first == (0, Lost("before any"))
    assert second[0] == 1
