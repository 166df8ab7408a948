"""train() in a process of its own, so that a page full of visitors never holds a run up and no run takes the page down.

Events come back through a pipe and are recorded here, what people say goes there; both ends have a RunControl, and the run asks its own.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from traceback import format_exc, print_exc
from typing import Any

from grpo_core.config import RunConfig
from grpo_core.errors import StopRequested, StudioError
from grpo_core.rubric.sandbox.child import kill_all
from grpo_core.training.control import Command, RunControl, Start
from grpo_core.training.timing import RunTimer
from grpo_core.types import Checkpointed, Event, Paused

Train = Callable[[RunConfig, Callable[[Event], None], RunControl], None]
WAITING = (
    32  # events that the run may be ahead of its record: some steps. None is dropped: then it waits
)
GRACE_SECONDS = 9.0  # from a signal to the end of the process, saved or not
ANSWER_SECONDS = 5.0  # for the one word that is answered
START_METHOD = (
    "forkserver" if sys.platform == "linux" else "spawn"
)  # elsewhere a forked process may not use the GPU (Metal)

log = logging.getLogger("grpo_studio")


@dataclass(frozen=True, slots=True)
class Ended:
    """The last thing that the run's process says. how: "finished", "stopped", "failed"."""

    how: str
    text: str = ""


@dataclass(frozen=True, slots=True)
class Logged:
    """What the program logs over there; it belongs to the run's log here."""

    level: int
    text: str


def warm_up(train: Train) -> None:
    """Let a process get ready from which those of runs are forked: it has torch in memory already, so a run begins without seconds of importing."""
    if START_METHOD == "forkserver":
        before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join(
            filter(None, (str(Path(__file__).parents[2]), before))
        )  # its preloading does not know sys.path
        try:
            multiprocessing.set_forkserver_preload([train.__module__])
            forkserver.ensure_running()
        except OSError:
            log.warning(
                "runs will begin some seconds later: no process could be kept ready for them",
                exc_info=True,
            )
        finally:
            os.environ.pop("PYTHONPATH") if before is None else os.environ.__setitem__(
                "PYTHONPATH", before
            )


def apart(train: Train, prepare: Callable[[], None] | None = None) -> Train:
    """`train`, but in a process of its own for each run. It must be a function of a module, and so must `prepare`, which runs there first.

    The process ends with the run, with this process, or killed: then the run fails saying so, and what was recorded is kept.
    """

    def train_apart(config: RunConfig, emit: Callable[[Event], None], control: RunControl) -> None:
        context = multiprocessing.get_context(START_METHOD)
        (events, out), (here, there) = context.Pipe(duplex=False), context.Pipe()
        child = context.Process(
            target=_inside,
            name="trainer",
            daemon=True,
            args=(
                train,
                prepare,
                config,
                control.folder,
                control.start,
                dict(os.environ),
                out,
                there,
            ),
        )
        child.start()
        out.close()
        there.close()
        line = _Line(here)

        def tell(event: Event) -> None:
            """Of a run that is held here, by a full disk: its clock over there stands still meanwhile."""
            emit(event)
            line(("held" if isinstance(event, Paused) else "released", ()))

        control.points.timer = RunTimer(tell)
        try:
            control.forward_to(line)
            while not isinstance(event := _next(events, child, control), Ended):
                if isinstance(event, Logged):
                    log.log(event.level, "%s", event.text)
                    continue
                emit(event)
                if isinstance(event, Checkpointed):
                    line(("recorded", ()))
        finally:
            here.close()  # whatever happened here, the process over there ends when nobody listens any more
            events.close()
            child.join(GRACE_SECONDS)
            child.kill()
            child.join()
            child.close()
        if event.how == "stopped":
            raise StopRequested(event.text)
        if event.how == "failed":
            raise StudioError(event.text)

    return train_apart


def _next(events: Connection, child: Any, control: RunControl) -> Event | Ended | Logged:
    try:
        return events.recv()
    except (EOFError, OSError):
        child.join(GRACE_SECONDS)
        if control.stop_requested:
            return Ended(
                "stopped",
                "The run's process did not end in time. What was recorded is kept: press Resume to go on from the last checkpoint.",
            )
        how = (
            f"was killed by signal {-child.exitcode} ({signal.Signals(-child.exitcode).name})"
            if (child.exitcode or 0) < 0
            else f"ended with code {child.exitcode}"
        )
        memory = (
            " The system does that when memory runs out: lower train.micro_batch_tokens or train.group_size."
            if child.exitcode == -signal.SIGKILL
            else ""
        )
        return Ended(
            "failed",
            f"The process that trained {how}.{memory} What was recorded is kept: press Resume to go on from the last checkpoint.",
        )


class _Line:
    """To the RunControl of the run's process: a word at a time, from any thread. Raises StudioError for what is refused there."""

    def __init__(self, here: Connection):
        self._here, self._sending, self._asking, self._asked = (
            here,
            threading.Lock(),
            threading.Lock(),
            0,
        )

    def __call__(self, word: Command) -> None:
        try:
            if word[0] == "edit_reward":
                self._ask(word)
            else:
                self._send(word)
        except (
            EOFError,
            OSError,
            TypeError,
        ):  # it has ended, and with it all that could be said to it; TypeError: in this very moment
            return

    def _send(self, message: tuple[Any, ...]) -> None:
        with self._sending:
            self._here.send(message)

    def _ask(self, word: Command) -> None:
        with self._asking:
            self._asked += 1
            self._send((*word, self._asked))
            while self._here.poll(ANSWER_SECONDS):
                number, refused = self._here.recv()
                if number == self._asked:  # not the late answer to the one before
                    if refused:
                        raise StudioError(refused)
                    return
        raise StudioError(
            f"The run's process did not answer within {ANSWER_SECONDS:.0f} s. Look whether the reward was edited, and try again, or press Stop."
        )


# ---- in the run's process --------------------------------------------------------------------------------------------------


def _inside(
    train: Train,
    prepare: Callable[[], None] | None,
    config: RunConfig,
    folder: Path | None,
    start: Start | None,
    environment: dict[str, str],
    out: Connection,
    there: Connection,
) -> None:
    os.environ.update(
        environment
    )  # the process that this one was forked from may be older than a setting
    control, recorded = RunControl(folder, start), threading.Semaphore(0)
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches every process of the terminal; whoever started this one says what follows
    signal.signal(signal.SIGTERM, lambda *_: _end_in_time(control))
    waiting: queue.Queue[Event | Ended | Logged] = queue.Queue(WAITING)
    sender = threading.Thread(target=_or_end, args=(_send, waiting, out), name="events")
    sender.start()
    threading.Thread(
        target=_or_end, args=(_listen, there, control, recorded), name="control", daemon=True
    ).start()
    log.addHandler(_Passing(waiting))
    log.propagate = False

    def emit(event: Event) -> None:
        waiting.put(event)
        if isinstance(event, Checkpointed):
            recorded.acquire()  # older checkpoints are deleted next: not before the record names the new one

    try:
        if prepare is not None:
            prepare()
        train(config, emit, control)
        end = Ended("finished")
    except StopRequested as asked:
        end = Ended("stopped", str(asked))
    except StudioError as problem:
        end = Ended("failed", str(problem))
    except (
        BaseException
    ) as problem:  # belongs to the run's record, which is kept by the other process
        end = Ended("failed", f"{type(problem).__name__}: {problem}\n\n{format_exc()}")
    kill_all()
    waiting.put(end)
    sender.join()


class _Passing(logging.Handler):
    def __init__(self, waiting: queue.Queue[Event | Ended | Logged]):
        super().__init__()
        self._waiting = waiting

    def emit(self, record: logging.LogRecord) -> None:
        self._waiting.put(Logged(record.levelno, self.format(record)))


def _or_end(work: Callable[..., None], *given: Any) -> None:
    """work(…); and whatever goes wrong with it, no run that can neither be heard nor be spoken to is left behind."""
    try:
        work(*given)
    except BaseException:
        print_exc()
        _end()


def _end() -> None:
    kill_all()
    os._exit(1)


def _send(waiting: queue.Queue[Event | Ended | Logged], out: Connection) -> None:
    while True:
        event = waiting.get()
        try:
            out.send(event)
        except OSError:
            _end()  # nobody records any more
        if isinstance(event, Ended):
            return


def _listen(there: Connection, control: RunControl, recorded: threading.Semaphore) -> None:
    while True:
        try:
            name, values, *number = there.recv()
        except (EOFError, OSError):
            _end()  # whoever keeps the record is gone: as with a kill, the run goes on from its last checkpoint
        if name == "recorded":
            recorded.release()
        elif name in ("held", "released"):
            control.points.timer.pause() if name == "held" else control.points.timer.resume()
        elif name == "edit_reward":
            refused = ""
            try:
                control.edit_reward(*values)
            except StudioError as problem:
                refused = str(problem)
            there.send((*number, refused))
        else:
            getattr(control, name)(*values)


def _end_in_time(control: RunControl) -> None:
    control.stop()
    timer = threading.Timer(GRACE_SECONDS, _end)
    timer.daemon = True
    timer.start()
