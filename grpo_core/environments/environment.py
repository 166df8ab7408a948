"""An environment as the process of a run knows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FILE_HELPER = "grpo_core.environments.worker_child"


@dataclass(frozen=True, slots=True)
class Environment:
    """An environment that can be used: its name, its file or address, its tools as JSON Schema.

    makes: the class of the file and its argument, "Game:Sudoku-v0"; "": a class of the name.
    imports: packages that its process loads before it locks itself up. helper: the module of that
    process. token_variable: the environment variable with the token of a server; "": it needs none.
    """

    name: str
    path: str
    tools: tuple[Mapping[str, Any], ...]
    has_reward: bool = False
    makes: str = ""
    imports: tuple[str, ...] = ()
    helper: str = FILE_HELPER
    token_variable: str = ""

    @property
    def is_server(self) -> bool:
        """Whether its calls only wait for a server, which has the instances."""
        return self.helper != FILE_HELPER

    @property
    def schemas(self) -> dict[str, Mapping[str, Any]]:
        """Tool -> its function's schema: name, description, parameters."""
        return {t["function"]["name"]: t["function"] for t in self.tools}
