"""RunManager: one run at a time in a background thread, others queued. All it knows for longer than a moment is in the store."""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from typing import Any

from grpo_core.analysis.advisor import advise
from grpo_core.config import RunConfig, parse, with_changes
from grpo_core.errors import NotFound, StopRequested, StoreError, StoreFull, StudioError
from grpo_core.rubric import build_rubric, resolve_rubric
from grpo_core.runs.disk_reserve import Reserve
from grpo_core.runs.resume import plan_branch, plan_resume, where_to_start
from grpo_core.runs.run_log import RunLog
from grpo_core.store import Recorder, Store
from grpo_core.tasks import heldout_prompts, load_task, second_task
from grpo_core.training.breakpoints import as_text, parse_breakpoints
from grpo_core.training.control import RunControl, Start
from grpo_core.types import Event, Paused, Resumed, RunStatus

log = logging.getLogger("grpo_studio")

Emit = Callable[[Event], None]
Train = Callable[[RunConfig, Emit, RunControl], None]
Limit = Callable[
    [float], str | None
]  # seconds that a run has taken since it began or was resumed -> why it must stop
HEARTBEAT_SECONDS = 5.0


def prepare(config: RunConfig, check: Callable[[RunConfig], None] | None = None) -> RunConfig:
    """The configuration with its rubric written out. Raises InvalidConfig for all that can be known to fail before anything is loaded."""
    task = load_task(config.task)
    heldout_prompts(task, config.task.heldout_size)
    if (other := second_task(config.task)) is not None:
        heldout_prompts(load_task(other), other.heldout_size)
    build_rubric(config.rubric)
    if check is not None:
        check(config)
    return config.model_copy(update={"rubric": resolve_rubric(config.rubric)})


def default_name(config: RunConfig) -> str:
    return f"{config.task.name}, {config.algorithm.preset}, seed {config.train.seed}"


def execute(
    store: Store,
    run_id: str,
    config: RunConfig,
    train: Train,
    control: RunControl,
    listen: Emit | None = None,
    limit: Limit | None = None,
) -> RunStatus:
    """Train one run to its end, whatever that is, and leave its status in the store.

    Every event is recorded first and then shown to `listen`. Returns finished, stopped or failed; an error is kept with the run.
    limit: asked at every heartbeat; what it says stops the run, saved.
    """
    with (
        Recorder(store, run_id) as record,
        RunLog(store.log_file(run_id)) as told,
        Reserve(store.path.with_name(f"{store.path.name}.reserve")) as reserve,
    ):

        def emit(event: Event) -> None:
            _record(record, event, control, reserve)
            told.event(event)
            if listen is not None:
                listen(event)

        done = threading.Event()
        beat = threading.Thread(
            target=_beat,
            args=(store, record, done, control, limit),
            name=f"heartbeat {run_id}",
            daemon=True,
        )
        store.set_status(run_id, RunStatus.LOADING)
        beat.start()
        status, error = RunStatus.FINISHED, None
        try:
            if control.start is not None:
                store.rewind(run_id, control.start.step if control.start.path else -1)
                told.write(
                    "info",
                    f"goes on after step {control.start.step}",
                    {"checkpoint": str(control.start.path)},
                )
            train(config, emit, control)
        except StopRequested as asked:
            status, error = RunStatus.STOPPED, str(asked) or None
        except StudioError as problem:
            status, error = RunStatus.FAILED, str(problem)
        except BaseException as problem:  # the one catch-all: whatever went wrong belongs to the run's record, not to a lost thread
            status, error = (
                RunStatus.FAILED,
                f"{type(problem).__name__}: {problem}\n\n{traceback.format_exc()}",
            )
            log.exception("run %s failed", run_id)
        finally:
            done.set()
            beat.join()
        reserve.release()
        told.write("error" if error else "info", f"{status}{f': {error}' if error else ''}")
        store.set_status(run_id, status, error)
        _look_it_over(store, run_id)
        return status


def _record(record: Recorder, event: Event, control: RunControl, reserve: Reserve) -> None:
    """Write an event down. On a full disk the run waits, with the event in hand, until a person has made room."""
    while True:
        try:
            if isinstance(event, Resumed):
                reserve.refill()
            record(event)
            return
        except StoreFull as problem:
            if isinstance(
                event, Paused | Resumed
            ):  # not even the reserve was enough: the pause is in force all the same
                log.warning("%s", problem)
                return
            if control.stop_requested:
                raise
            reserve.release()
            control.hold(
                f"{problem} At least {_needed(record)} MiB are needed. Then press Resume; nothing is lost until then."
            )


def _needed(record: Recorder) -> int:
    """What ten more steps may take, going by those that there are."""
    store = record.store
    return max(2, 10 * store.file_bytes() // max(1, store.run(record.run_id).steps_done) // 2**20)


def _beat(
    store: Store, record: Recorder, done: threading.Event, control: RunControl, limit: Limit | None
) -> None:
    started = time.monotonic()
    while not done.wait(HEARTBEAT_SECONDS):
        if limit is not None and (why := limit(time.monotonic() - started)):
            control.stop(why)
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


@dataclass(frozen=True, slots=True)
class Job:
    """A run of this process: waiting, or the one that goes on."""

    run_id: str
    config: RunConfig
    control: RunControl
    asked_by: Context = field(
        default_factory=copy_context
    )  # on ZeroGPU the lease is of whoever pressed the button: gradio keeps the request in here


class RunManager:
    """Starts, queues, resumes and stops runs. `train` and `check` are handed in, so that pages are tested without torch."""

    def __init__(
        self,
        store: Store,
        train: Train,
        check: Callable[[RunConfig], None] | None = None,
        device: str = "",
        limit: Limit | None = None,
    ):
        self.store, self.device = store, device
        self._train, self._check, self._limit = train, check, limit
        self._lock = threading.Lock()
        self._queue: deque[Job] = deque()
        self._current: Job | None = None
        self._thread: threading.Thread | None = None
        self._closed = False
        self.recover()

    # ---- beginning -----------------------------------------------------------------------------------------------------

    def start(self, config: RunConfig, name: str | None = None, conditions: str = "") -> str:
        """Begin a run, or queue it behind the one that is going; returns its id. conditions: its breakpoints. Raises InvalidConfig, StoreError."""
        config, breakpoints = prepare(config, self._check), parse_breakpoints(conditions)
        with self._lock:
            self._refuse_if_closed()
            run_id = self.store.create_run(config, (name or "").strip() or default_name(config))
            self.store.set_breakpoints(run_id, as_text(breakpoints))
            self._enqueue(run_id, config, None)
        return run_id

    def resume(self, run_id: str) -> None:
        """Go on: at once where a run waits, from its newest whole checkpoint where it has ended. Asking twice changes nothing."""
        with self._lock:
            job = self._job(run_id)
            if (
                job is not None and self.store.cursor(run_id).status.is_live
            ):  # it may have ended a moment ago, and its thread not know it yet
                job.control.resume()
                return
            self._refuse_if_closed()
            config, start = plan_resume(self.store, run_id)
            config = prepare(config, self._check)
            self.store.set_status(run_id, RunStatus.QUEUED)
            self._enqueue(run_id, config, start)

    def branch(
        self,
        run_id: str,
        step: int | None = None,
        changes: Mapping[str, Any] | None = None,
        name: str | None = None,
    ) -> str:
        """A new run that goes on from a checkpoint of another, with some settings changed; returns its id. Raises StudioError."""
        config, start = plan_branch(self.store, run_id, step, changes or {})
        config = prepare(config, self._check)
        with self._lock:
            self._refuse_if_closed()
            name = (name or "").strip() or f"{self.store.run(run_id).name}, from step {start.step}"
            child = self.store.create_run(config, name, parent=(run_id, start.step))
            self._enqueue(child, config, start)
        return child

    def _enqueue(self, run_id: str, config: RunConfig, start: Start | None) -> None:
        control = RunControl(self.store.checkpoint_folder(run_id), start)
        control.set_breakpoints(parse_breakpoints(self.store.run(run_id).breakpoints))
        self._queue.append(Job(run_id, config, control))
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._work, name="trainer", daemon=True)
            self._thread.start()

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise StudioError("The server is shutting down; start it again to train.")

    # ---- talking to a run ----------------------------------------------------------------------------------------------

    def stop(self, run_id: str) -> None:
        """Ask a run to stop, or take it out of the queue. Asking twice, or for a run that has ended, changes nothing."""
        with self._lock:
            job = self._job(run_id)
            if job is None:
                return
            job.control.stop()
            waiting = job in self._queue
            if waiting:
                self._queue.remove(job)
        if waiting:
            self.store.set_status(run_id, RunStatus.STOPPED)

    def pause(self, run_id: str) -> None:
        self._control(run_id).pause()

    def step(self, run_id: str, stride: str = "step") -> None:
        """Go on to the end of the present step, or phase, and wait there."""
        self._control(run_id).step(stride)

    def checkpoint(self, run_id: str) -> None:
        """Save the state after the last whole step, now."""
        self._control(run_id).checkpoint()

    def set_knob(self, run_id: str, name: str, value: float) -> None:
        """Change a setting from the next step on. Raises InvalidConfig if the field refuses the value."""
        with_changes(parse(self.store.run(run_id).config), {name: value})
        self._control(run_id).set_knob(name, value)

    def set_breakpoints(self, run_id: str, conditions: str) -> None:
        """Wait before the update wherever one of these holds, e.g. "kl > 0.2, verdict = phantom"; empty: nowhere. Kept with the run. Raises InvalidConfig."""
        control, breakpoints = self._control(run_id), parse_breakpoints(conditions)
        self.store.set_breakpoints(run_id, as_text(breakpoints))
        control.set_breakpoints(breakpoints)

    def edit_reward(
        self, run_id: str, step: int, group: int, completion: int, reward: float
    ) -> None:
        """Give a completion of the waiting step another reward; counted from 0."""
        self._control(run_id).edit_reward(step, group, completion, reward)

    def _job(self, run_id: str) -> Job | None:
        return next(
            (
                job
                for job in (*self._queue, self._current)
                if job is not None and job.run_id == run_id
            ),
            None,
        )

    def _control(self, run_id: str) -> RunControl:
        with self._lock:
            job = self._job(run_id)
        if job is None:
            status = self.store.run(run_id).status
            raise StudioError(
                f"run {run_id!r} is {status}{' in another process' if status.is_live else ''}, so it cannot be told anything here."
            )
        return job.control

    # ---- life ----------------------------------------------------------------------------------------------------------

    @property
    def current(self) -> str | None:
        """Id of the run that this process is training."""
        current = self._current
        return current.run_id if current else None

    def recover(self) -> list[str]:
        """Mark runs whose process is gone as interrupted, and go on with its queue. Cheap; called now and then while nothing runs here."""
        with self._lock:
            if self._closed or self._current or self._queue:
                return []
            lost = self.store.recover()
            for run_id in self.store.adopt_queued():
                try:
                    run = self.store.run(run_id)
                    self._enqueue(
                        run_id,
                        parse(run.config),
                        where_to_start(self.store, run)
                        if run.steps_done or run.parent_run_id
                        else None,
                    )
                except StudioError as problem:
                    self.store.set_status(run_id, RunStatus.FAILED, str(problem))
            return lost

    def close(self, timeout: float = 8.0) -> None:
        """Stop what goes on and wait for it, so that the record ends cleanly. The queue waits for the next server."""
        with self._lock:
            self._closed = True
            waiting, thread = [job.run_id for job in self._queue], self._thread
            self._queue.clear()
            if self._current is not None:
                self._current.control.stop()
        for run_id in waiting:
            self.store.disown(run_id)
        if thread is not None:
            thread.join(timeout)

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._queue:
                    self._thread = None  # under the lock: the next start() sees that it must begin a new thread
                    return
                self._current = job = self._queue.popleft()
            try:
                job.asked_by.run(
                    execute,
                    self.store,
                    job.run_id,
                    job.config,
                    self._train,
                    job.control,
                    limit=self._limit,
                )
            except NotFound:
                log.warning("run %s was deleted", job.run_id)
            except (
                BaseException
            ) as problem:  # the record could not be written or kept: say so if that is possible now
                log.exception("run %s: its record cannot be written", job.run_id)
                self._give_up(
                    job.run_id, f"{type(problem).__name__}: {problem}\n\n{traceback.format_exc()}"
                )
            finally:
                with self._lock:
                    self._current = None

    def _give_up(self, run_id: str, error: str) -> None:
        try:
            self.store.set_status(run_id, RunStatus.FAILED, error)
        except StudioError:
            self.store.disown(
                run_id
            )  # found dead, and marked so, as soon as the file can be written again
