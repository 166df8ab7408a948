"""The process in which one plug-in file runs; started as a module with the name of the file.

The process locks itself up before the first line of the file runs. That protects the machine from
the file, with limits on memory and on the time of each call.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
import os
import signal
import socket
import sys
import tempfile
import traceback
import types
from collections.abc import Callable, Mapping, Set
from pathlib import Path
from typing import Any

from grpo_core.child_process import NoValue, TooLate, reason_of, serve
from grpo_core.rubric.sandbox.jail import NoJail, lock_up

MAX_MEMORY = 4 << 30
LIBRARIES = (
    "/usr",
    "/lib",
    "/lib64",
    "/bin",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/dev/null",
    "/dev/urandom",
    "/dev/zero",
)
MODULE = "rewards"
REFUSED = "A plug-in cannot write files, use the network, start processes or read files beside it"


class Plugin:
    """A plug-in file and its public functions."""

    def __init__(self, path: str) -> None:
        self._path = path
        # Names of the files beside it, which it cannot import; `_reason` says so.
        self._siblings = {p.stem for p in Path(path).parent.glob("*.py")}
        self._functions: dict[str, Callable[..., Any]] = {}

    def load(self, seconds: float) -> None:
        """Lock up this process, then run the file. Raises NoValue, which says why it failed."""
        os.environ.clear()
        tempfile.tempdir = "/tmp"  # some libraries look for a folder to write to, at import
        socket.socketpair = _pipe_pair  # asyncio wakes its loop with one
        sys.dont_write_bytecode = True
        try:
            lock_up([*LIBRARIES, sys.prefix, sys.base_prefix, self._path], MAX_MEMORY)
        except NoJail as error:
            raise NoValue(str(error)) from None
        signal.setitimer(signal.ITIMER_REAL, seconds)
        module = types.ModuleType(MODULE)
        module.__file__ = self._path
        sys.modules[MODULE] = module  # dataclasses look up their module there
        try:
            source = Path(self._path).read_bytes()
            exec(compile(source, self._path, "exec", dont_inherit=True), module.__dict__)
        except BaseException as error:
            raise NoValue(self._reason(error)) from None
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
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
        function = self._functions[name]
        try:
            wanted = inspect.signature(function).parameters.values()
            if not any(p.kind is p.VAR_KEYWORD for p in wanted):
                given = {p.name: given[p.name] for p in wanted if p.name in given}
            values = function(**given)
            if inspect.isawaitable(values):
                values = asyncio.run(_result(values))
            if values is None or isinstance(values, str | bytes | Mapping | Set):
                kind = type(values).__name__
                raise NoValue(f"it returned {kind}, not a list with one score a completion")
            return [_plain(value) for value in values]
        except TooLate:
            raise
        except BaseException as error:
            raise NoValue(self._reason(error)) from None

    def _reason(self, error: BaseException) -> str:
        """The error, the last line of the file that led to it, and what a plug-in cannot do."""
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == self._path]
        text = f"line {lines[-1]}: {reason_of(error)}" if lines else reason_of(error)
        if isinstance(error, ImportError):
            name = (error.name or "").lstrip(".").split(".")[0]
            is_relative = "relative import" in str(error)
            if is_relative or name in self._siblings:
                text += ". A plug-in is one file: copy what it needs into it"
        if isinstance(error, OSError):
            text += f". {REFUSED}"
        return text


class TrainerState:
    """What TRL's `trainer_state` holds and is known here."""

    def __init__(self, known: Mapping[str, Any]) -> None:
        self.__dict__.update(known)

    def __getattr__(self, name: str) -> Any:
        known = ", ".join(vars(self)) or "nothing, as no run asks"
        raise AttributeError(f"trainer_state.{name} is not known here; known: {known}")


async def _result(values: Any) -> Any:
    return await values


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


class _PipeEnd:
    """One end of a pipe with the few methods of a socket that asyncio uses to wake its loop."""

    def __init__(self, number: int) -> None:
        self._number = number

    def fileno(self) -> int:
        return self._number

    def setblocking(self, flag: bool) -> None:
        os.set_blocking(self._number, flag)

    def recv(self, size: int) -> bytes:
        return os.read(self._number, size)

    def send(self, data: bytes) -> int:
        return os.write(self._number, data)

    def close(self) -> None:
        os.close(self._number)


def _pipe_pair(*_: Any) -> Any:
    """Instead of a pair of sockets, which the jail refuses: what the second sends, the first gets.

    It is all that asyncio needs.
    """
    end, start = os.pipe()
    return _PipeEnd(end), _PipeEnd(start)


def main(path: str, seconds: float) -> None:
    """Answer questions about the file until the input ends."""
    plugin = Plugin(path)
    functions = {"list": plugin.names, "score": plugin.score}
    serve(functions, MAX_MEMORY, lambda: plugin.load(seconds))


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
