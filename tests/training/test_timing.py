"""Where the time of a run goes."""

from __future__ import annotations

import pytest

from grpo_core.training import timing
from grpo_core.training.timing import RunTimer
from grpo_core.types import Evaluated, Paused, Phase, PhaseStarted, Resumed
from ui.render.status import time_bar


class Clock:
    """A clock that only sleep() moves."""

    now = 100.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timing, "perf_counter", lambda: clock.now)
    return clock


def test_evaluation_and_writing_are_measured_and_every_lap_begins_anew(clock):
    heard = []
    timer = RunTimer(lambda event: (heard.append(event), clock.sleep(1)))
    timer(PhaseStarted(Phase.EVALUATING, 0, 2))
    clock.sleep(5)
    timer(Evaluated(0, {}))
    timer(PhaseStarted(Phase.SAMPLING, 1, 2))
    clock.sleep(7)  # sampling is the step's own
    told = timer.lap()
    assert [type(e).__name__ for e in heard] == ["PhaseStarted", "Evaluated", "PhaseStarted"]
    # 5 s, after 1 s in which the beginning was written
    assert told == {"evaluation_seconds": 6.0, "writing_seconds": 3.0}
    assert timer.lap() == {"evaluation_seconds": 0.0, "writing_seconds": 0.0}


def test_a_held_clock_stands_still_and_does_not_end_a_persons_pause(clock):
    timer = RunTimer(lambda event: None)
    before = timer.now()
    timer.pause()
    clock.sleep(5)
    assert timer.now() == before
    timer.resume()
    clock.sleep(2)
    assert timer.now() == before + 2
    timer(Paused("by a person"))
    timer.pause()
    timer.resume()
    clock.sleep(2)
    assert timer.now() == before + 2
    timer(Resumed())
    clock.sleep(3)
    assert timer.now() == before + 5


def test_the_time_bar_names_its_parts_and_is_empty_before_step_1():
    assert time_bar([]) == ""
    # 1 + 3 of 4 seconds in all, over the two steps; a phase without time has no part.
    bar = time_bar(
        [
            {"sampling_seconds": 0.5, "update_seconds": 1.0, "scoring_seconds": None},
            {"sampling_seconds": 0.5, "update_seconds": 2.0},
        ]
    )
    assert "sampling 25" in bar
    assert "update 75" in bar
    assert "scoring" not in bar
    assert float(bar.split("--part:")[1].split('"')[0]) == pytest.approx(0.25)
