"""Execute one run: train it, record its events, and store how it ended."""

from __future__ import annotations

import logging
import os
import threading
import time
import traceback
from collections.abc import Callable
from contextvars import Context, copy_context
from dataclasses import dataclass, field

from grpo_core.analysis.advisor import keep_advice
from grpo_core.config import RunConfig
from grpo_core.errors import StopRequested, StudioError
from grpo_core.runs.disk_reserve import Reserve
from grpo_core.runs.recording import Recording
from grpo_core.runs.run_log import RunLog
from grpo_core.store import Recorder, Store
from grpo_core.training.control import Emit, RunControl, Train
from grpo_core.types import Event, RunStatus

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
        RunLog(store.log_file(run_id), run_id) as run_log,
        Reserve(store.path.with_name(f"{store.path.name}.reserve")) as reserve,
    ):
        recording = Recording(record, control, reserve)

        def emit(event: Event) -> None:
            recording(event)
            run_log.event(event)
            if listen is not None:
                listen(event)

        done = threading.Event()
        heartbeat = threading.Thread(
            target=_heartbeat,
            args=(recording, done, job, limit),
            name=f"heartbeat {run_id}",
            daemon=True,
        )
        recording.write(lambda: store.set_status(run_id, RunStatus.LOADING))
        heartbeat.start()
        status, error = RunStatus.FINISHED, None
        try:
            _check_folder(store, job)
            if (start := control.start) is not None:
                after = start.step if start.path else -1
                recording.write(lambda: store.rewind(run_id, after))
                checkpoint = {"checkpoint": str(start.path)}
                run_log.write("info", f"continues after step {start.step}", checkpoint)
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
        reserve.leave()
        run_log.write("error" if error else "info", f"{status}{f': {error}' if error else ''}")
        recording.write(lambda: store.set_status(run_id, status, error))
        keep_advice(store, run_id)
        return status


def with_traceback(problem: BaseException) -> str:
    return f"{type(problem).__name__}: {problem}\n\n{traceback.format_exc()}"


def _check_folder(store: Store, job: Job) -> None:
    """Say before the training that no checkpoint can be saved. Raises StudioError."""
    if not job.config.train.checkpoint_every:
        return
    folder = store.checkpoint_folder(job.run_id)
    nearest = next(place for place in (folder, *folder.parents) if place.exists())
    if not (nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)):
        raise StudioError(
            f"train.checkpoint_every = {job.config.train.checkpoint_every}: no checkpoint can be "
            f"saved, because {str(nearest)!r} is not a folder that can be written. Correct that, "
            "or set 0 to save none."
        )


def _heartbeat(recording: Recording, done: threading.Event, job: Job, limit: Limit | None) -> None:
    started = time.monotonic()
    while not done.wait(HEARTBEAT_SECONDS):
        if limit is not None and (why := limit(time.monotonic() - started)):
            job.control.stop(why)
        keep_advice(recording.store, job.run_id)
        recording.heartbeat()
