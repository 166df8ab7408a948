"""RunManager trains one run at a time on each device, each in a thread, and queues the others.

The store holds all lasting state, so that another process can take over after a crash.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from grpo_core.config import RunConfig, parse, with_changes
from grpo_core.config.devices import AUTO
from grpo_core.environments.registry import check_environment, check_rows
from grpo_core.errors import NotFound, StoreError, StudioError
from grpo_core.rubric import build_rubric, resolve_rubric
from grpo_core.runs.device_queue import DeviceQueue, Devices, Machine
from grpo_core.runs.execution import Job, Limit, execute, with_traceback
from grpo_core.runs.resume import plan_branch, plan_resume, refuse_foreign, where_to_start
from grpo_core.runs.run_log import RunLog
from grpo_core.store import Recorder, Store
from grpo_core.tasks import FILE, heldout_prompts, load_task, second_task
from grpo_core.tasks.source import short_name
from grpo_core.training.breakpoints import as_text, parse_breakpoints
from grpo_core.training.control import Emit, RunControl, Start, Train
from grpo_core.types import WAITING, Noticed, RunStatus

log = logging.getLogger("grpo_studio")


def prepare(config: RunConfig, check: Callable[[RunConfig], None] | None = None) -> RunConfig:
    """Check a configuration before any model is loaded. Raises InvalidConfig.

    Returns it with the criteria of its rubric spelled out.
    """
    task = load_task(config.task)
    heldout_prompts(task, config.task.heldout_size)
    tasks = [task]
    if (other := second_task(config.task)) is not None:
        tasks.append(load_task(other))
        heldout_prompts(tasks[1], other.heldout_size)
    build_rubric(config.rubric)
    check_environment(config.task.environment)
    for each in tasks:
        if each.by_row:
            check_rows(each.table)
    if check is not None:
        check(config)
    return config.model_copy(update={"rubric": resolve_rubric(config.rubric)})


def default_name(config: RunConfig) -> str:
    """For a run without a name: its task, or the name of its file, its preset and its seed."""
    task = config.task.path if config.task.name == FILE.name else config.task.name
    return f"{short_name(task)}, {config.algorithm.preset}, seed {config.train.seed}"


class RunManager:
    """Starts, queues, resumes and stops runs.

    `train` and `check` are parameters, so that tests of the page need no torch.
    """

    def __init__(
        self,
        store: Store,
        train: Train,
        check: Callable[[RunConfig], None] | None = None,
        machine: Machine | None = None,
        limit: Limit | None = None,
        foresee: Callable[[Sequence[RunConfig]], None] | None = None,
    ):
        """foresee: raises StudioError if `check` would refuse one of several runs."""
        self.store, self.machine = store, machine or Machine()
        self.devices = (AUTO, *self.machine.named)  # for the page
        self._train, self._check, self._limit = train, check, limit
        self._foresee = foresee
        self._lock = threading.RLock()  # resume() holds it when check_room() takes it again
        self._jobs = DeviceQueue(self.machine)
        self._threads: set[threading.Thread] = set()
        self._closed = False
        self._told = ""  # why the store could not be recovered
        self._lacks: dict[str, str] = {}  # id of a waiting run -> why no device would do now
        self.recover()

    # ---- starting ------------------------------------------------------------------------------

    def start(self, config: RunConfig, name: str | None = None, conditions: str = "") -> str:
        """Start a run, or queue it until a device for it is free; returns its id.

        conditions: its breakpoints. Raises InvalidConfig, StoreError.
        """
        config, breakpoints = self._prepare(config), parse_breakpoints(conditions)
        with self._lock:
            self._refuse_if_closed()
            name = (name or "").strip() or default_name(config)
            run_id = self.store.create_run(config, name, breakpoints=as_text(breakpoints))
            self._enqueue(run_id, config, None)
        return run_id

    def refusal(self, configs: Sequence[RunConfig]) -> str:
        """Why these runs could not all be started now, one after another; "" if they could."""
        try:
            self._refuse_if_closed()
            for config in configs:
                self.machine.candidates(config)
            if self._foresee is not None:
                self._foresee(configs)
        except StudioError as error:
            return str(error)
        return ""

    def resume(self, run_id: str) -> None:
        """Continue a paused run, or restart an ended one from its newest intact checkpoint.

        A second call changes nothing. Raises StudioError.
        """
        with self._lock:
            job = self._jobs.job(run_id)
            # A run that has just ended still has a job until its thread notices.
            if job is not None and self.store.cursor(run_id).status.is_live:
                job.control.resume()
                self._note(run_id, "resume")
                return
            if job is None and self.store.cursor(run_id).status.is_live:
                raise self._not_ours(run_id)
            self._refuse_if_closed()
            config, start = plan_resume(self.store, run_id)
            config = self._prepare(config)
            self.store.set_status(run_id, RunStatus.QUEUED)
            self._note(run_id, "resume")
            self._enqueue(run_id, config, start)

    def branch(
        self,
        run_id: str,
        step: int | None = None,
        changes: Mapping[str, Any] | None = None,
        name: str | None = None,
    ) -> str:
        """Start a new run from a checkpoint of another, with some settings changed; returns its id.

        step: of the checkpoint, None for the last one. Raises StudioError.
        """
        config, start = plan_branch(self.store, run_id, step, changes or {})
        config = self._prepare(config)
        with self._lock:
            self._refuse_if_closed()
            name = (name or "").strip() or f"{self.store.run(run_id).name}, from step {start.step}"
            child = self.store.create_run(config, name, parent=(run_id, start.step))
            self._enqueue(child, config, start)
        return child

    def _prepare(self, config: RunConfig) -> RunConfig:
        self.machine.candidates(config)
        return prepare(config, self._check)

    def _enqueue(self, run_id: str, config: RunConfig, start: Start | None) -> None:
        control = RunControl(self.store.checkpoint_folder(run_id), start)
        control.set_breakpoints(parse_breakpoints(self.store.run(run_id).breakpoints))
        control.saving_seconds = self.store.saving_seconds(run_id)
        self._jobs.waiting.append(Job(run_id, config, control))
        self._start_waiting()

    def _start_waiting(self) -> None:
        """Start a thread for each run that need not wait any more. Call it with the lock."""
        while (started := self._jobs.start_next()) is not None:
            name = f"trainer {started[0].run_id}"
            thread = threading.Thread(target=self._work, args=started, name=name, daemon=True)
            self._threads.add(thread)
            thread.start()

    def check_room(self, config: RunConfig) -> None:
        """Raise StudioError if the run would start now and fits on no device that is free.

        A run that must wait is checked when its turn comes.
        """
        problem, tried = None, list[str]()
        while True:
            with self._lock:
                devices = self._jobs.free(config, tried)
            if devices is None:
                break
            if (lack := self.machine.no_room(config, devices)) is None:
                return
            full, problem = lack
            tried.append(full)
        if problem is not None:
            raise problem

    def place(self, config: RunConfig) -> RunConfig | None:
        """The configuration as it would be trained now; None: it would wait. Raises StudioError."""
        self.machine.candidates(config)
        with self._lock:
            devices = self._jobs.free(config)
        return None if devices is None else self.machine.placed(config, devices)

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise StudioError("The server is shutting down; start it again to train.")

    # ---- commands to a run ---------------------------------------------------------------------

    def stop(self, run_id: str) -> None:
        """Stop a run, or remove it from the queue. A run that has ended stays as it is.

        Raises StudioError if another process works on it.
        """
        with self._lock:
            job = self._jobs.job(run_id)
            if job is None:
                if self.store.cursor(run_id).status.is_live:
                    raise self._not_ours(run_id)
                return
            if job in self._jobs.waiting:
                # First its row: a run that left the queue and is still "queued" would never start.
                self.store.set_status(run_id, RunStatus.STOPPED)
                self._jobs.waiting.remove(job)
            job.control.stop()
        self._note(run_id, "stop")

    def pause(self, run_id: str) -> None:
        self._control(run_id).pause()
        self._note(run_id, "pause")

    def step(self, run_id: str, stride: str = "step") -> None:
        """Continue to the end of the current step, or phase, and wait there."""
        self._control(run_id).step(stride)
        self._note(run_id, "step")

    def checkpoint(self, run_id: str) -> None:
        """Save the state after the last complete step."""
        self._control(run_id).checkpoint()
        self._note(run_id, "checkpoint")

    def set_knob(self, run_id: str, name: str, value: float) -> None:
        """Change a setting from the next step on. Raises InvalidConfig for an invalid value."""
        with_changes(parse(self.store.run(run_id).config), {name: value})
        self._control(run_id).set_knob(name, value)

    def set_breakpoints(self, run_id: str, conditions: str) -> None:
        """Pause before the update of each step in which a condition holds; stored with the run.

        Example: "kl > 0.2, verdict = phantom". Empty: no breakpoints. Raises InvalidConfig.
        """
        control, breakpoints = self._control(run_id), parse_breakpoints(conditions)
        self.store.set_breakpoints(run_id, as_text(breakpoints))
        control.set_breakpoints(breakpoints)

    def edit_reward(
        self, run_id: str, step: int, group: int, completion: int, reward: float
    ) -> None:
        """Give a completion of the paused step another reward; positions count from 0."""
        self._control(run_id).edit_reward(step, group, completion, reward)

    def _note(self, run_id: str, kind: str) -> None:
        """Record a command. A command takes effect even if a full disk prevents its record."""
        try:
            self.store.add_intervention(run_id, kind)
        except StoreError as problem:
            log.warning("run %s: %s was not recorded: %s", run_id, kind, problem)

    def _control(self, run_id: str) -> RunControl:
        with self._lock:
            job = self._jobs.job(run_id)
        # A run that has just ended still has a job until its thread notices.
        if job is None or not self.store.cursor(run_id).status.is_live:
            raise self._not_ours(run_id)
        return job.control

    def _not_ours(self, run_id: str) -> StudioError:
        run = self.store.run(run_id)
        refuse_foreign(run)
        status = run.status
        return StudioError(
            f"run {run_id!r} is {status}{' in another process' if status.is_live else ''}, "
            "so it cannot be controlled here."
        )

    # ---- lifetime ------------------------------------------------------------------------------

    @property
    def device(self) -> str:
        """What runs train on, in a few words."""
        return self.machine.header[0]

    @property
    def device_details(self) -> str:
        """More about it, for a tooltip."""
        return self.machine.header[1]

    @property
    def has_many_devices(self) -> bool:
        """Whether a run can have several devices."""
        return self.machine.has_many

    @property
    def running(self) -> dict[str, str]:
        """The runs that this process is training: name of the device -> id."""
        with self._lock:
            return {device: job.run_id for device, job in self._jobs.running.items()}

    def recover(self) -> list[str]:
        """Mark runs whose process has died as interrupted, and take over their queue.

        Returns the ids of the interrupted runs. Cheap: the server calls it regularly while idle.
        """
        with self._lock:
            if self._closed:
                return []
            if self._jobs:
                self._look_again()
                return []
            try:
                lost, adopted = self.store.recover(), self.store.adopt_queued()
            except StoreError as problem:  # it is tried again in a second
                if str(problem) != self._told:
                    log.warning("%s", problem)
                self._told = str(problem)
                return []
            self._told = ""
            for run_id in adopted:
                try:
                    run = self.store.run(run_id)
                    config = parse(run.config)
                    if self.machine.cluster is None:  # that of this server waits for devices
                        self.machine.candidates(config)
                    continues = run.steps_done or run.parent_run_id
                    start = where_to_start(self.store, run) if continues else None
                    self._enqueue(run_id, config, start)
                except StudioError as problem:
                    self.store.set_status(run_id, RunStatus.FAILED, str(problem))
            return lost

    def _look_again(self) -> None:
        """A cluster may have grown, or shrunk below what a waiting run needs."""
        self._start_waiting()
        waiting = {job.run_id: self.machine.lack(job.config) for job in self._jobs.waiting}
        for run_id in {*waiting, *self._lacks}:
            lack = waiting.get(run_id, "")
            if lack != self._lacks.get(run_id, ""):
                self._notice(
                    run_id, f"It waits until the cluster has grown. {lack}" if lack else ""
                )
        self._lacks = {run_id: lack for run_id, lack in waiting.items() if lack}

    def _notice(self, run_id: str, text: str) -> None:
        """Tell on the page and in the run's log why it waits; "" takes that back."""
        notice = Noticed(0, WAITING, "warning", text)
        try:
            with (
                Recorder(self.store, run_id) as record,
                RunLog(self.store.log_file(run_id), run_id) as run_log,
            ):
                record(notice)
                run_log.event(notice)
        except StudioError as problem:
            log.warning("run %s: %s (not recorded: %s)", run_id, text, problem)

    def close(self, timeout: float = 8.0) -> None:
        """Stop all runs and wait up to `timeout` seconds for them to end.

        Queued runs stay queued in the store; the next server trains them.
        """
        until = time.monotonic() + timeout
        with self._lock:
            self._closed = True
            waiting, threads = [job.run_id for job in self._jobs.waiting], list(self._threads)
            self._jobs.waiting.clear()
            for job in self._jobs.running.values():
                job.control.stop()
        for run_id in waiting:
            self.store.disown(run_id)
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _work(self, job: Job, devices: Devices) -> None:
        """Train a run on the devices that are kept for it, or on other free ones where it fits."""
        tried, train, kept = list[str](), self._train, job
        try:
            while (lack := self.machine.no_room(job.config, devices)) is not None:
                full, problem = lack
                tried.append(full)
                with self._lock:
                    others = self._jobs.move(job, tried)
                    self._start_waiting()
                if others is None:
                    train = _refusing(problem)
                    break
                devices = others
            job = replace(job, config=self.machine.placed(job.config, devices))
            job.context.run(execute, self.store, job, train, limit=self._limit)
        except NotFound:
            log.warning("run %s was deleted", job.run_id)
        except BaseException as problem:  # execute() could not write to the store
            trace = None if isinstance(problem, StudioError) else problem
            text = "run %s ended: its record cannot be written: %s"
            log.error(text, job.run_id, problem, exc_info=trace)
            self._mark_failed(job.run_id, with_traceback(problem))
        finally:
            with self._lock:
                self._jobs.release(kept)
                self._threads.discard(threading.current_thread())
                self._start_waiting()

    def _mark_failed(self, run_id: str, error: str) -> None:
        try:
            self.store.set_status(run_id, RunStatus.FAILED, error)
        except StudioError:
            # recover() marks it as interrupted as soon as the file can be written again.
            self.store.disown(run_id)


def _refusing(problem: StudioError) -> Train:
    """A trainer that refuses the run with this reason."""

    def refuse(config: RunConfig, emit: Emit, control: RunControl) -> None:
        raise problem

    return refuse
