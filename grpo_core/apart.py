"""train() in a process of its own, so that a page full of visitors never holds a run up and no run takes the page down.

Events come back through a pipe and are recorded here, what people say goes there; both ends have a RunControl, and the run asks its own.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from traceback import format_exc
from typing import Any

from grpo_core.config import RunConfig
from grpo_core.control import RunControl, Start, Word
from grpo_core.errors import StopRequested, StudioError
from grpo_core.types import Checkpointed, Event

Train = Callable[[RunConfig, Callable[[Event], None], RunControl], None]
WAITING = 32  # events that the run may be ahead of its record: some steps. None is dropped: then it waits
GRACE_SECONDS = 9.0  # from a signal to the end of the process, saved or not
START_METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


@dataclass(frozen=True, slots=True)
class Ended:
    """The last thing that the run's process says. how: "finished", "stopped", "failed"."""

    how: str
    text: str = ""


def warm_up(train: Train) -> None:
    """Let a process get ready from which those of runs are forked: it has torch in memory already, so a run begins without seconds of importing."""
    if START_METHOD == "forkserver":
        before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(Path(__file__).parent.parent), before)))  # its preloading does not know sys.path
        try:
            multiprocessing.set_forkserver_preload([train.__module__])
            forkserver.ensure_running()
        finally:
            os.environ.pop("PYTHONPATH") if before is None else os.environ.__setitem__("PYTHONPATH", before)


def apart(train: Train, prepare: Callable[[], None] | None = None) -> Train:
    """`train`, but in a process of its own for each run. It must be a function of a module, and so must `prepare`, which runs there first.

    The process ends with the run, with this process, or killed: then the run fails saying so, and what was recorded is kept.
    """
    def train_apart(config: RunConfig, emit: Callable[[Event], None], control: RunControl) -> None:
        context = multiprocessing.get_context(START_METHOD)
        (events, out), (here, there) = context.Pipe(duplex=False), context.Pipe()
        child = context.Process(target=_inside, name="trainer", daemon=True,
                                args=(train, prepare, config, control.folder, control.start, dict(os.environ), out, there))
        child.start()
        out.close()
        there.close()
        control.tell = emit
        telling = threading.Lock()
        try:
            control.followed_by(lambda word: _say(here, telling, word))
            while not isinstance(event := _next(events, child), Ended):
                emit(event)
                if isinstance(event, Checkpointed):
                    _say(here, telling, ("recorded", ()))
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


def _next(events: Connection, child: Any) -> Event | Ended:
    try:
        return events.recv()
    except (EOFError, OSError):
        child.join(GRACE_SECONDS)
        how = f"was killed by signal {-child.exitcode} ({signal.Signals(-child.exitcode).name})" if (child.exitcode or 0) < 0 else f"ended with code {child.exitcode}"
        memory = " The system does that when memory runs out: lower train.micro_batch_tokens or train.group_size." if child.exitcode == -signal.SIGKILL else ""
        return Ended("failed", f"The process that trained {how}.{memory} What was recorded is kept: press Resume to go on from the last checkpoint.")


def _say(here: Connection, telling: threading.Lock, word: Word) -> None:
    """Over to the run's process. Waits for an answer only where there can be one. Raises StudioError for what is refused there."""
    with telling:
        try:
            here.send(word)
            refused = here.recv() if word[0] == "edit_reward" else ""
        except (EOFError, OSError):  # it has ended, and with it all that could be said to it
            return
    if refused:
        raise StudioError(refused)


# ---- in the run's process --------------------------------------------------------------------------------------------------


def _inside(train: Train, prepare: Callable[[], None] | None, config: RunConfig, folder: Path | None, start: Start | None, environment: dict[str, str],
            out: Connection, there: Connection) -> None:
    os.environ.update(environment)  # the process that this one was forked from may be older than a setting
    control, recorded = RunControl(folder, start), threading.Semaphore(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of the terminal; whoever started this one says what follows
    signal.signal(signal.SIGTERM, lambda *_: _end_in_time(control))
    waiting: queue.Queue[Event | Ended] = queue.Queue(WAITING)
    sender = threading.Thread(target=_send, args=(waiting, out), name="events")
    sender.start()
    threading.Thread(target=_listen, args=(there, control, recorded), name="control", daemon=True).start()

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
    except BaseException as problem:  # belongs to the run's record, which is kept by the other process
        end = Ended("failed", f"{type(problem).__name__}: {problem}\n\n{format_exc()}")
    waiting.put(end)
    sender.join()


def _send(waiting: queue.Queue[Event | Ended], out: Connection) -> None:
    while True:
        event = waiting.get()
        try:
            out.send(event)
        except OSError:
            os._exit(1)  # nobody records any more
        if isinstance(event, Ended):
            return


def _listen(there: Connection, control: RunControl, recorded: threading.Semaphore) -> None:
    while True:
        try:
            name, values = there.recv()
        except (EOFError, OSError):
            os._exit(1)  # whoever keeps the record is gone: as with a kill, the run goes on from its last checkpoint
        if name == "recorded":
            recorded.release()
        elif name == "edit_reward":
            try:
                control.edit_reward(*values)
                there.send("")
            except StudioError as problem:
                there.send(str(problem))
        else:
            getattr(control, name)(*values)


def _end_in_time(control: RunControl) -> None:
    control.stop()
    timer = threading.Timer(GRACE_SECONDS, os._exit, (1,))
    timer.daemon = True
    timer.start()
