"""Two environments of OpenEnv on a port of this machine: `python openenv_server.py PORT`."""

from __future__ import annotations

import sys

import uvicorn
from fastapi import FastAPI
from fastmcp import FastMCP  # pyright: ignore[reportMissingImports]
from openenv.core.env_server import (  # pyright: ignore[reportMissingImports]
    Action,
    Environment,
    Observation,
    State,
    create_fastapi_app,
)
from openenv.core.env_server.mcp_environment import (  # pyright: ignore[reportMissingImports]
    MCPEnvironment,
)
from openenv.core.env_server.mcp_types import (  # pyright: ignore[reportMissingImports]
    CallToolAction,
    CallToolObservation,
)

ROOM = 16  # sessions at once


class Guess(Action):
    """Guess the number."""

    number: int


class Said(Observation):
    text: str = ""


class Guessing(Environment):
    """A number from 0 to 9 that the seed decides: 1 for the right guess, -0.1 for a wrong one."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self):
        super().__init__()
        self._state = State(step_count=0)

    def reset(self, seed=None, episode_id=None, limit: int = 10, **_):
        self._secret = int(seed or 0) % limit
        return Said(text=f"Guess a number below {limit}.")

    def step(self, action, timeout_s=None, **_):
        self._state.step_count += 1
        if action.number == 99:
            raise ValueError("99 is no number")
        is_right = action.number == self._secret
        return Said(
            text="right" if is_right else "wrong", done=is_right, reward=1.0 if is_right else -0.1
        )

    @property
    def state(self):
        return self._state


class Adding(MCPEnvironment):
    """A tool that adds; its sum is the reward."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self):
        mcp = FastMCP("adding")
        self._total = 0

        @mcp.tool
        def add(number: int) -> str:
            """Add to the total."""
            self._total += number
            return f"The total is {self._total}."

        super().__init__(mcp)
        self._state = State(step_count=0)

    def reset(self, seed=None, episode_id=None, **_):
        self._total = 0
        return Observation()

    def _step_impl(self, action, timeout_s=None, **_):
        raise ValueError("only tools")

    @property
    def state(self):
        return self._state


def main(port: int) -> None:
    app = FastAPI()
    guessing = create_fastapi_app(Guessing, Guess, Said, max_concurrent_envs=ROOM)
    adding = create_fastapi_app(
        Adding, CallToolAction, CallToolObservation, max_concurrent_envs=ROOM
    )
    app.mount("/guess", guessing)
    app.mount("/add", adding)
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error")


if __name__ == "__main__":
    main(int(sys.argv[1]))
