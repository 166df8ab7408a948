"""The server's password: compared whole, and slow to guess."""

from __future__ import annotations

import asyncio
import base64

import pytest
from loops import run_async
from starlette.exceptions import HTTPException

from ui.server.login import FREE, MANY, Guesses, Login, TooManyGuesses
from ui.server.visitor import RequestState, request_state


def test_wrong_guesses_of_an_address_come_slower_and_slower():
    now = [0.0]
    guesses = Guesses(lambda: now[0])
    waits = []
    for _ in range(FREE + 7):
        waits.append(seconds := guesses.seconds("a"))
        now[0] += seconds
        guesses.note("a", right=False)
    # Five mistypes cost nothing; then 0.5 s, doubled each time, up to 8 s.
    assert waits == [0, 0, 0, 0, 0, 0.5, 1, 2, 4, 8, 8, 8]
    assert guesses.seconds("b") == 0
    guesses.note("a", right=True)
    assert guesses.seconds("a") == 0


def test_guesses_that_come_together_are_looked_at_one_by_one():
    guesses = Guesses(lambda: 0.0)
    for _ in range(FREE + 4):
        guesses.note("a", right=False)
    assert [guesses.seconds("a") for _ in range(3)] == [8, 16, 24]


def test_many_addresses_slow_down_new_ones_but_lock_nobody_out():
    guesses = Guesses(lambda: 0.0)
    guesses.note("home", right=True)
    for i in range(MANY):
        assert guesses.seconds(f"bot {i}") == 0
        guesses.note(f"bot {i}", right=False)
    assert guesses.seconds("home") == 0
    assert guesses.seconds("new") == 1


def test_a_wrong_guess_is_forgotten_after_a_quarter_of_an_hour():
    now = [0.0]
    guesses = Guesses(lambda: now[0])
    for _ in range(FREE + 2):
        guesses.note("a", right=False)
    now[0] = 901.0
    assert guesses.seconds("a") == 0


def test_only_a_few_guesses_of_an_address_may_wait():
    async def guess():
        guesses = Guesses()
        for _ in range(FREE):
            guesses.note("a", right=False)
        turns = [guesses.turn("a", lambda _: asyncio.sleep(9)) for _ in range(4)]
        waiting = [asyncio.create_task(turn) for turn in turns]
        await asyncio.sleep(0)
        with pytest.raises(TooManyGuesses):
            await guesses.turn("a")
        await guesses.turn("b")
        for task in waiting:
            task.cancel()

    run_async(guess())


@pytest.mark.parametrize(
    ("user", "password", "right"),
    [
        ("zoë", "a:ß c", True),
        ("zoë", "a:ß", False),
        ("zoë", "", False),
        ("zo", "ëa:ß c", False),
        ("zoë\0a:ß c", "", False),
        ("", "", False),
        ("\ud800", "\ud800", False),
    ],
)
def test_only_the_right_user_with_the_right_password_is_let_in(user, password, right):
    login = Login("zoë", "a:ß c")
    assert run_async(login.check(user, password)) is right
    basic = base64.b64encode(f"{user}:{password}".encode("utf-8", "replace")).decode()
    assert run_async(login.allows(f"Basic {basic}", "a")) is right
    assert run_async(login.allows(f"Bearer {basic}", "a")) is False


def test_who_has_too_many_guesses_waiting_is_told_to_come_back():
    async def guess():
        login = Login("me", "secret")
        request_state.set(RequestState("a"))
        for _ in range(FREE + 4):
            login._guesses.note("a", right=False)
        waiting = [asyncio.create_task(login.check("me", "x")) for _ in range(4)]
        await asyncio.sleep(0)
        with pytest.raises(HTTPException) as refused:
            await login.check("me", "secret")
        for task in waiting:
            task.cancel()
        return refused.value

    error = run_async(guess())
    assert (error.status_code, error.headers["Retry-After"]) == (429, "8")
