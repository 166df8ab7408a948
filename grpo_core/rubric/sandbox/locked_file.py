"""A Python file of the operator, run in a process that locks itself up first; see jail.py."""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import socket
import sys
import tempfile
import traceback
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from grpo_core.child_process import NoValue, TooLate, reason_of
from grpo_core.rubric.sandbox.jail import lock_up

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


def package_folders() -> list[str]:
    """Where packages are imported from: of Python, of its environment and of the person."""
    folders = [p for p in sys.path if p.endswith(("site-packages", "dist-packages"))]
    return [sys.prefix, sys.base_prefix, *folders]


class LockedFile:
    """A file that runs in this process, and the reasons for its errors.

    kind, cannot: what the file is and cannot do, as a sentence says it: "A plug-in", "use the
    network". variables: its whole environment.
    """

    def __init__(
        self, path: str, kind: str, cannot: str, variables: Mapping[str, str] = {}
    ) -> None:
        self.path, self._kind, self._cannot, self._variables = path, kind, cannot, variables
        # Names of the files beside it, which it cannot import; `reason` says so.
        self._siblings = {p.stem for p in Path(path).parent.glob("*.py")}
        self._code: types.CodeType | None = None

    def load(self, module_name: str, seconds: float, memory: int) -> types.ModuleType:
        """Lock up this process, then run the file. Raises NoValue, which says why it failed."""
        os.environ.clear()
        os.environ.update(self._variables)
        tempfile.tempdir = "/tmp"  # some libraries look for a folder to write to, at import
        socket.socketpair = _pipe_pair  # asyncio wakes its loop with one
        sys.dont_write_bytecode = True
        lock_up([*LIBRARIES, *package_folders(), self.path], memory)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            return self.run(module_name)
        except BaseException as error:
            raise NoValue(self.reason(error)) from None
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def run(self, module_name: str) -> types.ModuleType:
        """The file as a new module, whose names no other has. Raises whatever the file raises."""
        module = types.ModuleType(module_name)
        module.__file__ = self.path
        sys.modules[module_name] = module  # dataclasses look up their module there
        if self._code is None:
            source = Path(self.path).read_bytes()
            self._code = compile(source, self.path, "exec", dont_inherit=True)
        exec(self._code, module.__dict__)
        return module

    def call(self, function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        """What a function of the file returns, awaited. Raises NoValue, which says why it failed.

        Raises TooLate when the request's time is over.
        """
        try:
            value = function(**arguments)
            return asyncio.run(_result(value)) if inspect.isawaitable(value) else value
        except TooLate:
            raise
        except BaseException as error:
            raise NoValue(self.reason(error)) from None

    def reason(self, error: BaseException) -> str:
        """The error, the last line of the file that led to it, and what the file cannot do."""
        if isinstance(error, NoValue):
            return str(error)
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == self.path]
        text = f"line {lines[-1]}: {reason_of(error)}" if lines else reason_of(error)
        if isinstance(error, ImportError):
            name = (error.name or "").lstrip(".").split(".")[0]
            is_relative = "relative import" in str(error)
            if is_relative or name in self._siblings:
                text += f". {self._kind} is one file: copy what it needs into it"
        if isinstance(error, OSError):
            text += f". {self._kind} cannot {self._cannot}"
        return text


async def _result(values: Any) -> Any:
    return await values


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
