"""How visitors share what the server does at once."""

from __future__ import annotations

import asyncio
import time

import pytest
from loops import run_async

from ui.server.lanes import Busy, Lane


async def hold(lane, visitor, seconds=0.0, done=None):
    async with lane.turn(visitor):
        await asyncio.sleep(seconds)
    if done is not None:
        done.append(visitor)


@pytest.mark.slow
def test_one_visitors_flood_does_not_delay_another():
    async def flood():
        lane = Lane(total=4, each=2, waiting=200, seconds=30)
        tasks = [asyncio.create_task(hold(lane, "a", 0.02)) for _ in range(100)]  # 1 s of work
        await asyncio.sleep(0.01)
        started = time.monotonic()
        await hold(lane, "b", 0.02)
        waited = time.monotonic() - started
        await asyncio.gather(*tasks)
        return waited, time.monotonic() - started

    waited, all_of_it = run_async(flood())
    assert waited < all_of_it / 3


def test_free_places_go_to_the_visitors_in_turn():
    async def queue():
        lane, done = Lane(total=1, each=1, waiting=9, seconds=30), []
        async with lane.turn("x"):
            tasks = [asyncio.create_task(hold(lane, v, done=done)) for v in "aaabbc"]
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)
        return "".join(done)

    assert run_async(queue()) == "abcaba"


def test_a_full_line_and_a_long_wait_are_refused():
    async def queue():
        lane = Lane(total=1, each=1, waiting=1, seconds=0.05)
        async with lane.turn("a"):
            waiting = asyncio.create_task(hold(lane, "a"))
            await asyncio.sleep(0)
            with pytest.raises(Busy):
                await hold(lane, "a")  # one waits already
            with pytest.raises(Busy):
                await waiting  # for longer than 0.05 s
        await hold(lane, "a")

    run_async(queue())


def test_a_request_that_gives_up_or_fails_leaves_its_place():
    async def queue():
        lane = Lane(total=1, each=1, waiting=9, seconds=30)

        async def fail():
            async with lane.turn("a"):
                gone = [asyncio.create_task(hold(lane, v)) for v in "ab"]
                await asyncio.sleep(0)
                for task in gone:
                    task.cancel()
                await asyncio.gather(*gone, return_exceptions=True)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await fail()
        await asyncio.wait_for(hold(lane, "c"), 60)

    run_async(queue())
