"""Execute one run: train it, record its events, and store how it ended."""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Callable
from contextvars import Context, copy_context
from dataclasses import dataclass, field

from grpo_core.analysis.advisor import advise
from grpo_core.config import RunConfig
from grpo_core.errors import StopRequested, StoreError, StoreFull, StudioError
from grpo_core.runs.disk_reserve import Reserve
from grpo_core.runs.run_log import RunLog
from grpo_core.store import Recorder, Store
from grpo_core.training.control import Emit, RunControl, Train
from grpo_core.types import Event, Paused, Resumed, RunStatus

log = logging.getLogger("grpo_studio")

# Seconds since the run started or was resumed -> why it must stop, or None.
Limit = Callable[[float], str | None]
HEARTBEAT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Job:
    """A run to train: its stored id, its configuration, and what people ask of it."""

    run_id: str
    config: RunConfig
    control: RunControl
    # Gradio keeps the request of whoever pressed the button in here. ZeroGPU lends the GPU to them.
    context: Context = field(default_factory=copy_context)


def execute(
    store: Store, job: Job, train: Train, listen: Emit | None = None, limit: Limit | None = None
) -> RunStatus:
    """Train one run until it finishes, stops or fails; store and return its final status.

    Each event is recorded and then passed to `listen`. An error is stored with the run.
    limit: called at every heartbeat; the reason that it returns stops the run with its state saved.
    """
    run_id, control = job.run_id, job.control
    with (
        Recorder(store, run_id) as record,
        RunLog(store.log_file(run_id)) as run_log,
        Reserve(store.path.with_name(f"{store.path.name}.reserve")) as reserve,
    ):

        def emit(event: Event) -> None:
            _record(record, event, control, reserve)
            run_log.event(event)
            if listen is not None:
                listen(event)

        done = threading.Event()
        heartbeat = threading.Thread(
            target=_heartbeat,
            args=(record, done, control, limit),
            name=f"heartbeat {run_id}",
            daemon=True,
        )
        store.set_status(run_id, RunStatus.LOADING)
        heartbeat.start()
        status, error = RunStatus.FINISHED, None
        try:
            if control.start is not None:
                store.rewind(run_id, control.start.step if control.start.path else -1)
                checkpoint = {"checkpoint": str(control.start.path)}
                run_log.write("info", f"continues after step {control.start.step}", checkpoint)
            train(job.config, emit, control)
        except StopRequested as request:
            status, error = RunStatus.STOPPED, str(request) or None
        except StudioError as problem:
            status, error = RunStatus.FAILED, str(problem)
        except BaseException as problem:  # in a thread, an uncaught error would go unnoticed
            status, error = RunStatus.FAILED, with_traceback(problem)
            log.exception("run %s failed", run_id)
        finally:
            done.set()
            heartbeat.join()
        reserve.release()
        run_log.write("error" if error else "info", f"{status}{f': {error}' if error else ''}")
        store.set_status(run_id, status, error)
        _update_advice(store, run_id)
        return status


def with_traceback(problem: BaseException) -> str:
    return f"{type(problem).__name__}: {problem}\n\n{traceback.format_exc()}"


def _record(record: Recorder, event: Event, control: RunControl, reserve: Reserve) -> None:
    """Record an event. On a full disk the run waits here until a person has freed some space."""
    while True:
        try:
            if isinstance(event, Resumed):
                reserve.refill()
            record(event)
            return
        except StoreFull as problem:
            if isinstance(event, Paused | Resumed):
                # The reserve was too small. The pause holds even without its row.
                log.warning("%s", problem)
                return
            if control.stop_requested:
                raise
            reserve.release()
            control.points.hold(
                f"{problem} At least {_needed_mib(record)} MiB are needed. Then press Resume; "
                "no data is lost until then."
            )


def _needed_mib(record: Recorder) -> int:
    """Disk space for ten more steps, estimated from the size of the store per recorded step."""
    store = record.store
    return max(2, 10 * store.file_bytes() // max(1, store.run(record.run_id).steps_done) // 2**20)


def _heartbeat(
    record: Recorder, done: threading.Event, control: RunControl, limit: Limit | None
) -> None:
    started = time.monotonic()
    while not done.wait(HEARTBEAT_SECONDS):
        if limit is not None and (why := limit(time.monotonic() - started)):
            control.stop(why)
        _update_advice(record.store, record.run_id)
        try:
            record.heartbeat()
        except StoreError:  # the trainer's next write fails too, and ends the run with the reason
            log.warning("heartbeat could not be written", exc_info=True)


def _update_advice(store: Store, run_id: str) -> None:
    """Write the advisor's notices to `alerts`."""
    try:
        store.set_alerts(run_id, advise(store, run_id))
    except Exception:  # a failing advisor must not end the run
        log.warning("no advice on run %s", run_id, exc_info=True)
