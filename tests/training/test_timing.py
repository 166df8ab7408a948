"""Where the time of a run goes."""

from __future__ import annotations

import time

import pytest

from grpo_core.training.timing import RunTimer
from grpo_core.types import Evaluated, Paused, Phase, PhaseStarted, Resumed
from ui.render.status import time_bar


def test_evaluation_and_writing_are_measured_and_every_lap_begins_anew():
    heard = []
    clock = RunTimer(lambda event: (heard.append(event), time.sleep(0.01)))
    clock(PhaseStarted(Phase.EVALUATING, 0, 2))
    time.sleep(0.05)
    clock(Evaluated(0, {}))
    clock(PhaseStarted(Phase.SAMPLING, 1, 2))
    time.sleep(0.05)  # sampling is the step's own
    told = clock.lap()
    assert [type(e).__name__ for e in heard] == ["PhaseStarted", "Evaluated", "PhaseStarted"]
    assert told["writing_seconds"] >= 0.03
    assert 0.05 <= told["evaluation_seconds"] < told["evaluation_seconds"] + told["writing_seconds"]
    assert clock.lap() == {"evaluation_seconds": 0.0, "writing_seconds": 0.0}


def test_a_held_clock_stands_still_and_does_not_end_a_persons_pause():
    clock = RunTimer(lambda event: None)
    before = clock.now()
    clock.pause()
    time.sleep(0.05)
    assert clock.now() - before < 0.04
    clock.resume()
    time.sleep(0.02)
    assert 0.02 <= clock.now() - before < 0.04 + 0.02
    clock(Paused("by a person"))
    clock.pause()
    clock.resume()
    at = clock.now()
    time.sleep(0.02)
    assert clock.now() == at
    clock(Resumed())
    time.sleep(0.02)
    assert clock.now() > at


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
