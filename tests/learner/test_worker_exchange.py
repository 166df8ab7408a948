"""What workers tell each other: results in order, sums, and errors that all of them raise."""

from __future__ import annotations

import time

import pytest
import torch
from many_workers import in_workers

from grpo_core.errors import NonFinite, OutOfMemory, StopRequested, StudioError
from grpo_core.learner.workers import ALONE, LARGE


def failing(workers, rank, error):
    """The type and text of what all raise if the worker of this rank raises the error."""

    def work():
        if workers.rank == rank:
            raise error
        return workers.rank

    try:
        return workers.gather(work)
    except Exception as raised:
        return type(raised), str(raised)


def stop_on_both(workers):
    """Worker 0 is stopped while worker 1 fails: the failure is what the run ends with."""

    def work():
        raise (StopRequested if workers.is_first else StudioError)("out of order")

    try:
        workers.gather(work)
    except Exception as raised:
        return type(raised)


def exchange(workers, given):
    numbers = torch.arange(3.0) + workers.rank, torch.ones(2, dtype=torch.float64)
    workers.sum_(numbers)
    large = (torch.arange(2.0 * LARGE).view(2, LARGE) + workers.rank).T  # not contiguous
    workers.sum_([large])
    started = time.perf_counter()
    return {
        "gather": workers.gather(lambda: workers.rank * 10),
        "together": workers.together(lambda: workers.rank),
        "first": workers.first(lambda: f"from {workers.rank}"),
        "sum": [t.tolist() for t in numbers],
        "large": torch.equal(large, 2 * torch.arange(2.0 * LARGE).view(2, LARGE).T + 1),
        "mine": [*workers.mine(5)],
        "in_order": workers.in_order(workers.gather(lambda: [*workers.mine(5)])),
        "pairs": workers.in_order(
            workers.gather(lambda: [i for p in workers.mine(3) for i in (p, -p)]), 2
        ),
        "stop": failing(workers, 1, StopRequested("by a person")),
        "memory": failing(workers, 1, OutOfMemory("lower group_size")),
        "own": failing(workers, 0, OutOfMemory("lower group_size")),
        "not finite": failing(workers, 0, NonFinite("loss nan")),
        "bug": failing(workers, 1, KeyError("x")),
        "both": stop_on_both(workers),
        "seconds": time.perf_counter() - started,
    }


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return in_workers(2, exchange, None, tmp_path_factory.mktemp("exchange"))


def test_results_come_in_rank_order_to_all(found):
    assert [f["gather"] for f in found] == [[0, 10]] * 2
    assert [f["together"] for f in found] == [0, 1]
    assert [f["first"] for f in found] == ["from 0"] * 2
    assert [f["sum"] for f in found] == [[[1.0, 3.0, 5.0], [2.0, 2.0]]] * 2
    assert all(f["large"] for f in found)


def test_things_are_dealt_in_turn_and_put_back_in_order(found):
    assert [f["mine"] for f in found] == [[0, 2, 4], [1, 3]]
    assert [f["in_order"] for f in found] == [[0, 1, 2, 3, 4]] * 2
    assert [f["pairs"] for f in found] == [[0, 0, 1, -1, 2, -2]] * 2
    assert ALONE.in_order([[*ALONE.mine(3)]]) == [0, 1, 2]


def test_an_error_of_one_worker_is_raised_by_all(found):
    assert [f["stop"] for f in found] == [(StopRequested, "by a person")] * 2
    first, own = (f["memory"] for f in found)
    assert first == (StudioError, "Worker 2: lower group_size")
    assert own == (OutOfMemory, "lower group_size")
    assert [f["not finite"][0] for f in found] == [NonFinite] * 2
    assert found[0]["own"] == (OutOfMemory, "lower group_size")
    assert found[0]["bug"][0] is StudioError
    assert "KeyError: 'x'" in found[0]["bug"][1]
    assert found[1]["bug"][0] is KeyError


def test_a_failure_counts_more_than_a_stop(found):
    assert [f["both"] for f in found] == [StudioError] * 2
