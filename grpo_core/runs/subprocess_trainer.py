"""Run train() in a subprocess: visitors do not slow a run, and a crashed run does not end the page.

Events come back through one pipe and are recorded here. Commands go there through another. Each
process has a RunControl; the trainer uses the one of its own process.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from traceback import print_exc
from typing import Any, NoReturn

from grpo_core.child_process import kill_all
from grpo_core.cluster.address import address_in, remove_folders
from grpo_core.config import RunConfig
from grpo_core.config.devices import use_only
from grpo_core.errors import StopRequested, StudioError
from grpo_core.runs.command_pipe import CommandPipe
from grpo_core.runs.stop_in_time import GRACE_SECONDS, LATE, Patience, killed_if_late
from grpo_core.training.control import Emit, RunControl, Start, Train
from grpo_core.training.distant import (
    KEPT,
    LAST,
    DistantTimer,
    Ended,
    Logged,
    Message,
    Outbox,
    ended,
    obey,
)
from grpo_core.types import Checkpointed

DEATH_SECONDS = 2.0  # from a kill until the system has removed the process
# On macOS a forked process cannot use the GPU (Metal).
START_METHOD = "forkserver" if sys.platform == "linux" else "spawn"

log = logging.getLogger("grpo_studio")


def train_later(config: RunConfig, emit: Emit, control: RunControl) -> None:
    """trainer.train, or by Ray if it has several workers or the operator named a cluster.

    For a process that must import neither torch nor Ray only to name the function.
    """
    if config.train.workers > 1 or address_in(os.environ):
        from grpo_core.cluster.driver import train_on_cluster

        train_on_cluster(config, emit, control)
    else:
        from grpo_core.training.trainer import train

        train(config, emit, control)


def warm_up() -> None:
    """Start the process from which runs are forked. It imports torch, so that a run need not."""
    if START_METHOD != "forkserver":
        return
    # The fork server imports its preloaded modules by PYTHONPATH, not by sys.path.
    before = os.environ.get("PYTHONPATH")
    root = str(Path(__file__).parents[2])
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (root, before)))
    try:
        multiprocessing.set_forkserver_preload(["grpo_core.training.trainer"])
        forkserver.ensure_running()
    except OSError:
        log.warning("the fork server did not start; runs start some seconds later", exc_info=True)
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def in_subprocess(train: Train, prepare: Callable[[], None] | None = None) -> Train:
    """`train`, but each run in its own subprocess. `prepare` runs there first.

    Both must be module-level functions, because they are pickled. The subprocess ends with the run
    or with this process. If it is killed, the run fails with the reason; its record is kept.
    """

    def train_in_subprocess(config: RunConfig, emit: Emit, control: RunControl) -> None:
        context = multiprocessing.get_context(START_METHOD)
        events, events_out = context.Pipe()
        commands, commands_in = context.Pipe()
        run = _Run(train, prepare, config, control.folder, control.start, dict(os.environ))
        child = context.Process(
            target=_train_here,
            name="trainer",
            daemon=True,
            args=(run, events_out, commands_in),
        )
        send = CommandPipe(commands)
        control.points.timer = DistantTimer(emit, send)
        patience = Patience(config, control.saving_seconds)
        try:
            with killed_if_late(control, patience, lambda: _kill(child, events)) as late:
                _start(child, late, (events_out, commands_in))
                control.forward_to(send)
                while not isinstance(event := _next(events, child, control, late), Ended):
                    if isinstance(event, Logged):
                        log.log(event.level, "%s", event.text)
                        continue
                    emit(event)
                    patience.note(event)
                    if isinstance(event, Checkpointed):
                        send.deliver(("recorded", ()))
        finally:
            commands.close()  # the subprocess ends when the other end of its pipe is closed
            events.close()
            _end_process(child)
        if event.how == "stopped":
            reason = f"{control.stop_reason} {LATE}".strip()
            raise StopRequested(reason if late.is_set() else event.text)
        if event.how == "failed":
            raise StudioError(event.text)

    return train_in_subprocess


def _start(child: Any, late: threading.Event, its_ends: Sequence[Connection]) -> None:
    """Start the process, and leave its ends of the pipes to it."""
    try:
        child.start()
    except (EOFError, OSError) as error:
        if late.is_set():
            raise StopRequested(LATE) from None
        raise StudioError(f"The run's process did not start: {error}. {KEPT}") from None
    finally:
        for end in its_ends:
            end.close()


def _end_process(child: Any) -> None:
    if child.pid is None:  # it was not started
        return
    child.join(GRACE_SECONDS)
    child.kill()
    child.join(DEATH_SECONDS)
    remove_folders(child.pid)
    if child.exitcode is None:  # it hangs in the system, for example on a network disk
        log.warning("process %s of the run cannot be ended", child.pid)
    else:
        child.close()


def _kill(child: Any, events: Connection) -> None:
    """Kill the process and end the reading of its events, even if it cannot be killed."""
    if child.pid is None:  # the fork server does not answer; the next run starts another
        server = getattr(getattr(forkserver, "_forkserver", None), "_forkserver_pid", None)
        if server is not None:
            os.kill(server, signal.SIGKILL)
        return
    child.kill()
    child.join(DEATH_SECONDS)
    # A process that the trainer forked may hold the other end open.
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(events.fileno())) as end:
        end.shutdown(socket.SHUT_RDWR)


def _next(events: Connection, child: Any, control: RunControl, late: threading.Event) -> Message:
    try:
        return events.recv()
    except (EOFError, OSError):
        child.join(DEATH_SECONDS)
        # The server, too, kills a trainer that does not end before the server does.
        if control.stop_requested and child.exitcode == -signal.SIGKILL:
            late.set()
        if late.is_set():
            return Ended("stopped", LATE)
        return Ended("failed", f"The process that trained {_death(child.exitcode)} {KEPT}")


def _death(exitcode: int | None) -> str:
    if exitcode is None or exitcode >= 0:
        return f"ended with code {exitcode}."
    death = f"was killed by signal {-exitcode} ({signal.Signals(-exitcode).name})."
    if exitcode == -signal.SIGKILL:
        death += (
            " The system does that when memory runs out: "
            "lower train.micro_batch_tokens or train.group_size."
        )
    return death


# ---- in the subprocess -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Run:
    """What the subprocess needs to train a run."""

    train: Train
    prepare: Callable[[], None] | None
    config: RunConfig
    folder: Path | None
    start: Start | None
    environment: dict[str, str]


def _train_here(run: _Run, events: Connection, commands: Connection) -> None:
    # The fork server may have started before an environment variable was set.
    os.environ.update(run.environment)
    use_only(run.config.model.device)
    control, outbox = RunControl(run.folder, run.start), Outbox()
    # Ctrl-C reaches every process of a terminal. The parent process decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: _end_in_time(control))
    sender = threading.Thread(target=_or_end, args=(_send_events, outbox, events), name="events")
    sender.start()
    receiver = threading.Thread(
        target=_or_end, args=(_obey, commands, control, outbox), name="control", daemon=True
    )
    receiver.start()
    outbox.say_log()

    def work() -> None:
        if run.prepare is not None:
            run.prepare()
        run.train(run.config, outbox.emit, control)

    end = ended(work)
    kill_all()
    outbox.is_over = True
    outbox.unsent.put(end)
    sender.join()
    for leave in LAST:
        leave()


def _or_end(work: Callable[..., None], *arguments: Any) -> None:
    """Call `work`. An error ends the process: without this thread nobody could control the run."""
    try:
        work(*arguments)
    except BaseException:
        print_exc()
        _end()


def _end() -> NoReturn:
    kill_all()
    os._exit(1)


def _send_events(outbox: Outbox, events: Connection) -> None:
    while True:
        message = outbox.unsent.get()
        try:
            events.send(message)
        except OSError:
            _end()  # the parent process has died, so no event would be recorded
        if isinstance(message, Ended):
            return


def _obey(commands: Connection, control: RunControl, outbox: Outbox) -> None:
    while True:
        try:
            name, values, *question = commands.recv()
        except (EOFError, OSError):
            if outbox.is_over:  # the parent process knows how the run ended
                return
            _end()  # the parent process has died; the run can resume from its last checkpoint
        refusal = obey((name, values), control, outbox)
        if question:
            commands.send((*question, refusal))


def _end_in_time(control: RunControl) -> None:
    """Ask the trainer to stop, and end the process after GRACE_SECONDS if it has not."""
    control.stop()
    timer = threading.Timer(GRACE_SECONDS, _end)
    timer.daemon = True
    timer.start()
