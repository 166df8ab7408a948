"""Helper processes that may hang, crash or use too much memory.

`Child` is the parent's side. It protects the server's time: each request has a time limit, and the
process is killed when it exceeds the limit. `serve` is the loop of a helper whose functions are
ours but whose input is hostile: it limits memory, and time where Python code can be interrupted.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

START_SECONDS = 30.0
MAX_ANSWER_BYTES = 8 << 20
_children: weakref.WeakSet[Child] = weakref.WeakSet()


class ChildFailed(Exception):
    """The process gave no answer; the text says why. It was killed; the next request starts it."""


class Child:
    """One process with JSON lines as input and output. Thread-safe; starts on the first request.

    The process writes one line when it is ready and one line for each request.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ):
        """arguments: of the Python interpreter. environment: None = that of this process."""
        self._arguments = list(arguments)
        self._environment = environment
        self._cwd = cwd
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._end: Callable[[], object] = _nothing
        _children.add(self)

    def request(self, message: Any, seconds: float) -> Any:
        """The answer to a message. Raises ChildFailed if there is none within the time."""
        with self._lock:
            process = self._running()
            try:
                self._send(
                    process, json.dumps(message).encode() + b"\n", time.monotonic() + seconds
                )
                too_late = f"it took longer than {seconds:g} s"
                return json.loads(self._line(process, time.monotonic() + seconds, too_late))
            except (OSError, ValueError) as error:
                self._kill()
                raise ChildFailed(f"the process died ({type(error).__name__})") from None
            except ChildFailed:
                self._kill()
                raise

    def close(self) -> None:
        """Kill the process."""
        with self._lock:
            self._kill()

    def forget(self) -> None:
        """For a fork of this process: leave the helper, and the lock, to the parent."""
        self._lock = threading.Lock()
        if isinstance(self._end, weakref.finalize):
            self._end.detach()
        if self._process is not None:
            self._process.returncode = 0  # only the parent may wait for it
        self._process = None
        self._end = _nothing

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
        self._process = process
        self._end = weakref.finalize(self, _kill_group, process)
        stdin, _ = _pipes(process)
        os.set_blocking(stdin.fileno(), False)
        try:
            deadline = time.monotonic() + START_SECONDS
            ready = json.loads(self._line(process, deadline, "it did not start"))
        except (OSError, ValueError, ChildFailed) as error:
            self._kill()
            raise ChildFailed(f"it did not start: {error}") from None
        if "error" in ready:
            self._kill()
            raise ChildFailed(ready["error"])
        return process

    def _send(self, process: subprocess.Popen[bytes], data: bytes, deadline: float) -> None:
        stdin, _ = _pipes(process)
        while data:
            _, writable, _ = select.select([], [stdin], [], max(0.0, deadline - time.monotonic()))
            if not writable:
                raise ChildFailed("it stopped reading")
            data = data[os.write(stdin.fileno(), data[:65536]) :]

    def _line(self, process: subprocess.Popen[bytes], deadline: float, too_late: str) -> bytes:
        _, stdout = _pipes(process)
        line = bytearray()
        while not line.endswith(b"\n"):
            readable, _, _ = select.select([stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not readable:
                raise ChildFailed(too_late)
            block = os.read(stdout.fileno(), 65536)
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


def module_child(module: str, *arguments: str) -> Child:
    """A helper that runs a module of this package. Its environment holds no secrets."""
    root = str(Path(__file__).parents[1])
    environment = {"PATH": os.environ.get("PATH", ""), "PYTHONPATH": root, "LANG": "C.UTF-8"}
    return Child(["-m", module, *arguments], environment, root)


class TooLate(BaseException):
    """A request exceeded its time.

    Not an Exception: libraries catch those and would return a wrong answer.
    """


def serve(
    functions: Mapping[str, Callable[..., Any]],
    max_memory: int,
    warm_up: Callable[[], object] = lambda: None,
) -> None:
    """Answer each JSON line {do, arguments, seconds} with {value}, or {null: the reason}.

    max_memory: bytes of address space of this process. Never returns before its input ends.
    """
    out = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what libraries print is not an answer
    resource.setrlimit(resource.RLIMIT_AS, (max_memory, max_memory))
    logging.disable(logging.CRITICAL)
    signal.signal(signal.SIGALRM, _raise_too_late)
    warm_up()
    print("{}", file=out, flush=True)
    for line in sys.stdin:
        print(json.dumps(_answer(functions, json.loads(line))), file=out, flush=True)


def _raise_too_late(*_: Any) -> None:
    raise TooLate


def _answer(
    functions: Mapping[str, Callable[..., Any]], question: Mapping[str, Any]
) -> dict[str, Any]:
    # The alarm interrupts Python code. The parent kills the process a second later if that is not
    # enough, as for one huge power.
    signal.setitimer(signal.ITIMER_REAL, question["seconds"])
    try:
        return {"value": functions[question["do"]](*question["arguments"])}
    except TooLate:
        return {"null": f"it took longer than {question['seconds']:g} s"}
    except MemoryError:
        return {"null": "it needed too much memory"}
    except Exception as error:  # parsers raise anything on hostile text
        return {"null": f"{type(error).__name__}: {str(error)[:200]}"}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _nothing() -> None:
    """There is no process to end."""


def _pipes(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    assert process.stdin is not None
    assert process.stdout is not None
    return process.stdin, process.stdout


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in _pipes(process):
        pipe.close()


def kill_all() -> None:
    """Kill all helpers of this process, for a process that ends without Python's clean-up.

    Takes no lock: a thread that holds one is about to end too.
    """
    for child in list(_children):
        child._kill()


def _after_fork() -> None:
    for child in list(_children):
        child.forget()


os.register_at_fork(after_in_child=_after_fork)
