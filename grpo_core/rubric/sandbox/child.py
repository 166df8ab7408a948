"""A helper process that may hang, crash or eat memory: it is asked one thing at a time, and killed when its time is over."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

START_SECONDS = 30.0
MAX_ANSWER_BYTES = 8 << 20
_children: weakref.WeakSet[Child] = weakref.WeakSet()


class ChildFailed(Exception):
    """The child gave no answer; the text says why. It is gone, and the next question starts another."""


class Child:
    """One process with JSON lines in and out. Thread-safe; started on first use, restarted after a kill.

    The child writes one line when it is ready and one for every question; what it prints elsewhere goes nowhere.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ):
        self._arguments, self._environment, self._cwd = list(arguments), environment, cwd
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._end = lambda: None
        _children.add(self)

    def ask(self, question: Any, seconds: float) -> Any:
        """The answer, within the time. Raises ChildFailed after killing the process."""
        with self._lock:
            process = self._running()
            try:
                self._send(
                    process, json.dumps(question).encode() + b"\n", time.monotonic() + seconds
                )
                return json.loads(
                    self._line(
                        process, time.monotonic() + seconds, f"it took longer than {seconds:g} s"
                    )
                )
            except (OSError, ValueError) as error:
                self._kill()
                raise ChildFailed(f"the process died ({type(error).__name__})") from None
            except ChildFailed:
                self._kill()
                raise

    def close(self) -> None:
        with self._lock:
            self._kill()

    def forget(self) -> None:
        """In a forked copy of this process: the helper is the parent's, and so is the lock; neither is touched again."""
        self._lock = threading.Lock()
        if isinstance(self._end, weakref.finalize):
            self._end.detach()
        if self._process is not None:
            self._process.returncode = 0  # no Popen of this process may wait for it
        self._process, self._end = None, lambda: None

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._kill()
        process = subprocess.Popen(
            [sys.executable, *self._arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=None if self._environment is None else dict(self._environment),
            cwd=self._cwd,
            start_new_session=True,
            bufsize=0,
        )
        self._process, self._end = process, weakref.finalize(self, _kill_group, process)
        os.set_blocking(process.stdin.fileno(), False)
        try:
            ready = json.loads(
                self._line(process, time.monotonic() + START_SECONDS, "it did not start")
            )
        except (OSError, ValueError, ChildFailed) as error:
            self._kill()
            raise ChildFailed(f"it did not start: {error}") from None
        if "error" in ready:
            self._kill()
            raise ChildFailed(ready["error"])
        return process

    def _send(self, process: subprocess.Popen[bytes], data: bytes, deadline: float) -> None:
        while data:
            if not select.select([], [process.stdin], [], max(0.0, deadline - time.monotonic()))[1]:
                raise ChildFailed("it stopped reading")
            data = data[os.write(process.stdin.fileno(), data[:65536]) :]

    def _line(self, process: subprocess.Popen[bytes], deadline: float, too_late: str) -> bytes:
        line = bytearray()
        while not line.endswith(b"\n"):
            if not select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))[
                0
            ]:
                raise ChildFailed(too_late)
            block = os.read(process.stdout.fileno(), 65536)
            if not block:
                raise ChildFailed("the process died")
            line += block
            if len(line) > MAX_ANSWER_BYTES:
                raise ChildFailed(f"its answer has more than {MAX_ANSWER_BYTES:,} bytes")
        return bytes(line)

    def _kill(self) -> None:
        if self._process is not None:
            self._end()
            self._process = None


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        pipe.close()


def kill_all() -> None:
    """For a process that ends without Python's own goodbye. Takes no lock: whoever holds one is about to end too."""
    for child in list(_children):
        child._kill()


def _after_fork() -> None:
    for child in list(_children):
        child.forget()


os.register_at_fork(after_in_child=_after_fork)
