"""The process in which one plug-in file runs; started as a module with the name of the file.

The process locks itself up before the first line of the file runs. That protects the machine from
the file, with limits on memory and on the time of each call.
"""

from __future__ import annotations

import functools
import inspect
import math
import sys
from collections.abc import Callable, Mapping, Set
from typing import Any

from grpo_core.child_process import NoValue, serve
from grpo_core.rubric.sandbox.locked_file import LockedFile

MAX_MEMORY = 4 << 30
MODULE = "rewards"
CANNOT = "write files, use the network, start processes or read files beside it"


class Plugin:
    """A plug-in file and its public functions."""

    def __init__(self, path: str) -> None:
        self._file = LockedFile(path, "A plug-in", CANNOT)
        self._functions: dict[str, Callable[..., Any]] = {}

    def load(self, seconds: float) -> None:
        """Lock up this process, then run the file. Raises NoValue, which says why it failed."""
        module = self._file.load(MODULE, seconds, MAX_MEMORY)
        self._functions = {
            name: value
            for name, value in vars(module).items()
            if _home(value) == MODULE and not name.startswith("_")
        }

    def names(self) -> list[str]:
        """The names of the public functions."""
        return list(self._functions)

    def score(
        self, name: str, columns: Mapping[str, Any], state: Mapping[str, Any] | None
    ) -> list[Any]:
        """What a function returns for each completion. Raises NoValue, which says why it failed."""
        given = {
            **columns,
            "trainer_state": TrainerState(state or {}),
            "log_extra": lambda column, values: None,
            "log_metric": lambda name, value: None,
        }
        return self._file.call(lambda: self._scores(self._functions[name], given), {})

    def _scores(self, function: Callable[..., Any], given: dict[str, Any]) -> list[Any]:
        wanted = inspect.signature(function).parameters.values()
        if not any(p.kind is p.VAR_KEYWORD for p in wanted):
            given = {p.name: given[p.name] for p in wanted if p.name in given}
        values = self._file.call(function, given)
        if values is None or isinstance(values, str | bytes | Mapping | Set):
            kind = type(values).__name__
            raise NoValue(f"it returned {kind}, not a list with one score a completion")
        return [_plain(value) for value in values]


class TrainerState:
    """What TRL's `trainer_state` holds and is known here."""

    def __init__(self, known: Mapping[str, Any]) -> None:
        self.__dict__.update(known)

    def __getattr__(self, name: str) -> Any:
        known = ", ".join(vars(self)) or "nothing, as no run asks"
        raise AttributeError(f"trainer_state.{name} is not known here; known: {known}")


def _home(value: Any) -> str | None:
    """The module that defines a function, or an object that can be called like one."""
    while isinstance(value, functools.partial):
        value = value.func
    is_function = callable(value) and not inspect.isclass(value)
    return getattr(value, "__module__", None) if is_function else None


def _plain(value: Any) -> float | str | None:
    """A finite number as a float; anything else as text, for the message."""
    if value is None:
        return None
    if not isinstance(value, str | bytes):
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            pass
        else:
            return number if math.isfinite(number) else str(number)
    try:
        return repr(value)[:60]
    except Exception:  # __repr__ is the file's own code, and an int can have too many digits
        return f"a value of type {type(value).__name__}"


def main(path: str, seconds: float) -> None:
    """Answer questions about the file until the input ends."""
    plugin = Plugin(path)
    functions = {"list": plugin.names, "score": plugin.score}
    serve(functions, MAX_MEMORY, lambda: plugin.load(seconds))


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
