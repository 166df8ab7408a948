"""RunManager: one run at a time in a background thread, others queued. All it knows for longer than a moment is in the store."""

from __future__ import annotations

import logging
import threading
import traceback
from collections import deque
from collections.abc import Callable

from grpo_core.advisor import advise
from grpo_core.config import RunConfig
from grpo_core.control import RunControl
from grpo_core.errors import StopRequested, StoreError, StudioError
from grpo_core.rubric import build_rubric, resolve_rubric
from grpo_core.store import Recorder, Store
from grpo_core.tasks import heldout_prompts, load_task
from grpo_core.types import Event, RunStatus

log = logging.getLogger("grpo_studio")

Emit = Callable[[Event], None]
Train = Callable[[RunConfig, Emit, RunControl], None]
HEARTBEAT_SECONDS = 5.0


def prepare(config: RunConfig, check: Callable[[RunConfig], None] | None = None) -> RunConfig:
    """The configuration with its rubric written out. Raises InvalidConfig for all that can be known to fail before anything is loaded."""
    task = load_task(config.task)
    heldout_prompts(task, config.task.heldout_size)
    build_rubric(config.rubric)
    if check is not None:
        check(config)
    return config.model_copy(update={"rubric": resolve_rubric(config.rubric)})


def default_name(config: RunConfig) -> str:
    return f"{config.task.name}, {config.algorithm.preset}, seed {config.train.seed}"


def execute(store: Store, run_id: str, config: RunConfig, train: Train, control: RunControl, listen: Emit | None = None) -> RunStatus:
    """Train one run to its end, whatever that is, and leave its status in the store.

    Every event is recorded first and then shown to `listen`. Returns finished, stopped or failed; an error is kept with the run.
    """
    with Recorder(store, run_id) as record:
        def emit(event: Event) -> None:
            record(event)
            if listen is not None:
                listen(event)

        done = threading.Event()
        beat = threading.Thread(target=_beat, args=(store, record, done), name=f"heartbeat {run_id}", daemon=True)
        store.set_status(run_id, RunStatus.LOADING)
        beat.start()
        status, error = RunStatus.FINISHED, None
        try:
            train(config, emit, control)
        except StopRequested:
            status = RunStatus.STOPPED
        except StudioError as problem:
            status, error = RunStatus.FAILED, str(problem)
        except BaseException as problem:  # the one catch-all: whatever went wrong belongs to the run's record, not to a lost thread
            status, error = RunStatus.FAILED, f"{type(problem).__name__}: {problem}\n\n{traceback.format_exc()}"
            log.exception("run %s failed", run_id)
        finally:
            done.set()
            beat.join()
        store.set_status(run_id, status, error)
        _look_it_over(store, run_id)
        return status


def _beat(store: Store, record: Recorder, done: threading.Event) -> None:
    while not done.wait(HEARTBEAT_SECONDS):
        _look_it_over(store, record.run_id)
        try:
            record.heartbeat()
        except StoreError:  # the trainer's own next write meets the same trouble, and that one ends the run with the reason
            log.warning("heartbeat could not be written", exc_info=True)


def _look_it_over(store: Store, run_id: str) -> None:
    """What the advisor has to say, written to `alerts`. Advice is no part of the run: whatever goes wrong with it, the run goes on."""
    try:
        store.set_alerts(run_id, advise(store, run_id))
    except Exception:
        log.warning("no advice on run %s", run_id, exc_info=True)


class RunManager:
    """Starts, queues and stops runs. `train` and `check` are handed in, so that pages are tested without torch."""

    def __init__(self, store: Store, train: Train, check: Callable[[RunConfig], None] | None = None, device: str = ""):
        self.store, self.device = store, device
        self._train, self._check = train, check
        self._lock = threading.Lock()
        self._queue: deque[tuple[str, RunConfig]] = deque()
        self._current: tuple[str, RunControl] | None = None
        self._thread: threading.Thread | None = None
        self._closed = False
        store.recover()

    def start(self, config: RunConfig, name: str | None = None) -> str:
        """Begin a run, or queue it behind the one that is going; returns its id. Raises InvalidConfig, StoreError."""
        config = prepare(config, self._check)
        with self._lock:
            if self._closed:
                raise StudioError("The server is shutting down; start it again to train.")
            run_id = self.store.create_run(config, (name or "").strip() or default_name(config))
            self._queue.append((run_id, config))
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._work, name="trainer", daemon=True)
                self._thread.start()
        return run_id

    def stop(self, run_id: str) -> None:
        """Ask a run to stop, or take it out of the queue. Asking twice, or for a run that has ended, changes nothing."""
        with self._lock:
            if self._current is not None and self._current[0] == run_id:
                self._current[1].stop()
                return
            waiting = [entry for entry in self._queue if entry[0] == run_id]
            for entry in waiting:
                self._queue.remove(entry)
        if waiting:
            self.store.set_status(run_id, RunStatus.STOPPED)

    @property
    def current(self) -> str | None:
        """Id of the run that this process is training."""
        current = self._current
        return current[0] if current else None

    def recover(self) -> list[str]:
        """Mark runs whose process is gone as interrupted. Cheap; called now and then while nothing runs here."""
        with self._lock:
            return [] if self._current or self._queue else self.store.recover()

    def close(self, timeout: float = 8.0) -> None:
        """Stop everything and wait for it, so that the record ends cleanly."""
        with self._lock:
            self._closed = True
            waiting, thread = [run_id for run_id, _ in self._queue], self._thread
            self._queue.clear()
            if self._current is not None:
                self._current[1].stop()
        for run_id in waiting:
            self.store.set_status(run_id, RunStatus.INTERRUPTED)
        if thread is not None:
            thread.join(timeout)

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._queue:
                    self._thread = None  # under the lock: the next start() sees that it must begin a new thread
                    return
                run_id, config = self._queue.popleft()
                control = RunControl()
                self._current = (run_id, control)
            try:
                execute(self.store, run_id, config, self._train, control)
            except StoreError:  # the record itself cannot be written: nothing is left to write the reason to but the log
                log.exception("run %s: its record cannot be written", run_id)
            finally:
                with self._lock:
                    self._current = None
