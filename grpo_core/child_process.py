"""Helper processes that may hang, crash, lie or use too much memory.

`Child` is the parent's side. Each request has one time limit. A helper that exceeds it, or writes
anything but one answer with the number of the question, is killed. `serve` is the helper's side: it
limits memory, and time where Python code can be interrupted.

Every line is JSON. The helper first writes {}, or {"error": why it cannot start}. A question is
{"number": a random text, "ask": the message}; its answer is {"number": the same, "answer": any}.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import math
import os
import resource
import secrets
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, TextIO

from grpo_core.time_limit import TIME_IS_UP, seconds_left

START_SECONDS = 30.0
KILL_AFTER = 1.0  # seconds over its time limit; then a helper that did not stop itself is killed
MAX_ANSWER_BYTES = 8 << 20
# Variables with which numerical libraries start no threads; set before they are imported.
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
_children: weakref.WeakSet[Child] = weakref.WeakSet()


class ChildFailed(Exception):
    """The process gave no answer; the text says why. It was killed; the next request starts it."""


class Child:
    """One process that answers questions. Thread-safe; starts on the first request."""

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

    def request(
        self, message: Any, seconds: float, read: Callable[[Any], Any] = lambda answer: answer
    ) -> Any:
        """What `read` makes of the answer to a message.

        seconds: less if time_limit.seconds_left() is less; starting the process does not count.
        Raises ChildFailed if there is no answer within the time, or none that `read` accepts: for
        a wrong shape it raises ValueError, TypeError, LookupError or AttributeError.
        """
        number = secrets.token_hex(8)  # no earlier answer can carry it
        try:
            question = json.dumps({"number": number, "ask": message}).encode() + b"\n"
        except (TypeError, ValueError, RecursionError) as error:
            raise ChildFailed(f"the question is not JSON ({type(error).__name__})") from None
        with self._turn():
            seconds = min(seconds, seconds_left())
            process = self._running()
            deadline = time.monotonic() + seconds
            too_late = f"it took longer than {seconds:.3g} s"
            try:
                self._send(process, question, deadline)
                return read(_answer_to(number, self._line(process, deadline, too_late)))
            except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
                self._kill()
                raise ChildFailed("it wrote something that is not an answer") from None
            except OSError as error:
                self._kill()
                raise ChildFailed(f"the process died ({type(error).__name__})") from None
            except BaseException:  # also an interrupt: the answer would arrive later
                self._kill()
                raise

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """Wait for the requests of other threads, at most until the time limit of this one."""
        lock, left = self._lock, seconds_left()
        if not left or not lock.acquire(timeout=-1 if math.isinf(left) else left):
            raise ChildFailed(TIME_IS_UP)
        try:
            yield
        finally:
            lock.release()

    @property
    def is_busy(self) -> bool:
        """Whether it answers a request now."""
        return self._lock.locked()

    def close(self) -> None:
        """Kill the process."""
        with self._lock:
            self._kill()

    def abort(self) -> None:
        """Kill the process although another thread waits for its answer, which then fails."""
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)

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
        if self._process is not None:
            _, stdout = _pipes(self._process)
            # It can be read if the process wrote without a question or ended. Asked before poll(),
            # which frees the number of an ended process: _kill might then hit another one.
            if not _is_ready(stdout, select.POLLIN, 0) and self._process.poll() is None:
                return self._process
        self._kill()
        try:
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
        except OSError as error:  # no file descriptor, process or memory is left
            raise ChildFailed(f"it did not start: {error.strerror or error}") from None
        self._process = process
        self._end = weakref.finalize(self, _kill_group, process)
        stdin, _ = _pipes(process)
        os.set_blocking(stdin.fileno(), False)
        try:
            deadline = time.monotonic() + START_SECONDS
            ready = _json(self._line(process, deadline, "it took too long"))
        except (OSError, ValueError, RecursionError, ChildFailed) as error:
            self._kill()
            why = error if isinstance(error, ChildFailed) else type(error).__name__
            raise ChildFailed(f"it did not start: {why}") from None
        except BaseException:
            self._kill()
            raise
        if ready != {}:
            self._kill()
            why = ready.get("error") if isinstance(ready, dict) else None
            raise ChildFailed(one_line(why, 500) if isinstance(why, str) else "it did not start")
        return process

    def _send(self, process: subprocess.Popen[bytes], data: bytes, deadline: float) -> None:
        stdin, _ = _pipes(process)
        while data:
            if not _is_ready(stdin, select.POLLOUT, deadline - time.monotonic()):
                raise ChildFailed("it stopped reading")
            data = data[os.write(stdin.fileno(), data[:65536]) :]

    def _line(self, process: subprocess.Popen[bytes], deadline: float, too_late: str) -> bytes:
        _, stdout = _pipes(process)
        line = bytearray()
        while not line.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not _is_ready(stdout, select.POLLIN, left):
                raise ChildFailed(too_late)
            block = os.read(stdout.fileno(), 65536)
            if not block:
                raise ChildFailed("the process died")
            line += block
            if 0 <= block.find(b"\n") < len(block) - 1:
                raise ValueError("more than one line")
            if len(line) > MAX_ANSWER_BYTES:
                raise ChildFailed(f"its answer has more than {MAX_ANSWER_BYTES:,} bytes")
        return bytes(line)

    def _kill(self) -> None:
        if self._process is not None:
            self._end()
            self._process = None


def module_child(module: str, *arguments: str, secrets: Mapping[str, str] | None = None) -> Child:
    """A helper that runs a module of this package. Its environment holds these secrets alone."""
    return _child(["-m", module, *arguments], secrets)


def script_child(path: Path) -> Child:
    """The same for a file, for a helper that must not import the packages above its module."""
    return _child(["-P", str(path)])


def _child(arguments: Sequence[str], more: Mapping[str, str] | None = None) -> Child:
    root = str(Path(__file__).parents[1])
    environment = {"PATH": os.environ.get("PATH", ""), "PYTHONPATH": root, "LANG": "C.UTF-8"}
    environment["PYTHONHASHSEED"] = "0"  # sets have the same order in a run and its resume
    return Child(arguments, {**environment, **(more or {})}, root)


class NoValue(Exception):
    """A function of a helper has no value; the text is the reason, in one line."""


def free_one(helpers: Sequence[Child]) -> Child:
    """Which of several equal helpers answers now. A run has the first for itself.

    Visitors, whose requests have a time limit, share the others: one whose request takes long
    does not let the next visitor wait. A helper starts only when it is first used.
    """
    if math.isinf(seconds_left()):
        return helpers[0]
    return next((h for h in helpers[1:] if not h.is_busy), secrets.choice(helpers[1:]))


class TooLate(BaseException):
    """A request exceeded its time.

    Not an Exception: libraries catch those and would return a wrong answer.
    """


def serve(
    functions: Mapping[str, Callable[..., Any]],
    max_memory: int,
    warm_up: Callable[[], object] = lambda: None,
) -> None:
    """Answer each question {do, arguments, seconds} with {value}, or {null: the reason}.

    max_memory: bytes of address space of this process. warm_up: runs first; what it raises is the
    reason why the helper cannot start. Returns when its input ends.
    """
    questions, answers = _own_pipes()
    limit(resource.RLIMIT_AS, max_memory)
    logging.disable(logging.CRITICAL)
    signal.signal(signal.SIGALRM, _raise_too_late)
    try:
        warm_up()
    except BaseException as error:  # a file of somebody can raise anything
        _write(answers, {"error": reason_of(error)})
        return
    _write(answers, {})
    for line in questions:
        question = json.loads(line)
        number = question["number"]
        try:
            _write(answers, {"number": number, "answer": _answer(functions, question["ask"])})
        except (TypeError, ValueError, RecursionError):
            _write(answers, {"number": number, "answer": {"null": "its value is not JSON"}})


def end_with_parent() -> None:
    """Kill this helper when its parent is killed, also while it works and reads no input."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def limit(which: int, most: int) -> None:
    """Lower a resource limit of this process for good. A lower one of the machine stays."""
    _, hard = resource.getrlimit(which)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(which, (most, most))


def one_line(text: str, most: int) -> str:
    """A text of somebody's code as it may stand in a message: printable, up to `most` characters.

    A control character can change a terminal, and half a surrogate pair cannot be sent to a page.
    """
    printable = "".join(c if c.isprintable() else " " for c in text[: 2 * most])
    return " ".join(printable.split())[:most]


def reason_of(error: BaseException) -> str:
    """An error in one line, as the reason why there is no value."""
    if isinstance(error, NoValue):
        return str(error)
    if isinstance(error, TooLate):
        return "it took too long"
    if isinstance(error, MemoryError):
        return "it needed too much memory"
    text = ""
    with contextlib.suppress(Exception):  # an error of somebody's class can fail here too
        text = one_line(str(error), 200)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _own_pipes() -> tuple[TextIO, TextIO]:
    """Questions and answers. Code that reads standard input or prints does not disturb them."""
    pipes = os.fdopen(os.dup(0), encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    return pipes


def _write(answers: TextIO, message: Any) -> None:
    print(json.dumps(message, allow_nan=False), file=answers, flush=True)


def _json(line: bytes) -> Any:
    """JSON without numbers that are not finite. Raises ValueError or RecursionError."""
    return json.loads(line, parse_constant=finite_number, parse_float=finite_number)


def finite_number(text: str) -> float:
    """A number or constant of JSON, for json.loads. Raises ValueError unless it is finite."""
    if not math.isfinite(value := float(text)):
        raise ValueError("a number is not finite")
    return value


def _answer_to(number: str, line: bytes) -> Any:
    reply = _json(line)
    if not isinstance(reply, dict) or reply.keys() != {"number", "answer"}:
        raise ValueError("no answer")
    if reply["number"] != number:
        raise ValueError("the answer to another question")
    return reply["answer"]


def _raise_too_late(*_: Any) -> None:
    raise TooLate


def _answer(
    functions: Mapping[str, Callable[..., Any]], question: Mapping[str, Any]
) -> dict[str, Any]:
    # The alarm interrupts Python code. If that is not enough, as for one huge power, the parent
    # kills the process KILL_AFTER seconds later.
    try:
        try:
            signal.signal(signal.SIGALRM, _raise_too_late)  # the work before may have set its own
            signal.setitimer(signal.ITIMER_REAL, question["seconds"])
            return {"value": functions[question["do"]](*question["arguments"])}
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except TooLate:  # also in the moments before and after the work
        return {"null": f"it took longer than {question['seconds']:g} s"}
    except BaseException as error:  # parsers raise anything on hostile text
        return {"null": reason_of(error)}


def _nothing() -> None:
    """There is no process to end."""


def _is_ready(pipe: IO[bytes], event: int, seconds: float) -> bool:
    """Wait until a pipe can be read or written, or is closed."""
    poll = select.poll()  # select() fails for descriptors above 1,023
    poll.register(pipe, event)
    return bool(poll.poll(max(0.0, seconds) * 1000))


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
