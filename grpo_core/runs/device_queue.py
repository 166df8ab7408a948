"""Which run trains on which devices, and which runs wait: one run at a time on each device.

A run takes a device for each of its workers, all at once or none.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass

from grpo_core.config import RunConfig
from grpo_core.config.devices import AUTO, candidates, free_devices, kind_of
from grpo_core.errors import FieldProblem, InvalidConfig, StudioError
from grpo_core.runs.execution import Job
from grpo_core.runs.ray_cluster import RayCluster

Devices = tuple[str, ...]  # their names


@dataclass(frozen=True, slots=True)
class Machine:
    """What runs train on: this machine, or a Ray cluster.

    text: for the page. devices: their names, the fastest kind first; AUTO alone leaves the choice
    to the trainer. check_room: raises StudioError if a run does not fit into the memory that is
    free on the device that its configuration names.
    cluster: what there is now, in place of the devices. Ray then chooses among them.
    """

    text: str = ""
    devices: Devices = (AUTO,)
    check_room: Callable[[RunConfig], None] = lambda config: None
    cluster: RayCluster | None = None

    @property
    def named(self) -> Devices:
        """The devices that a configuration may name."""
        return tuple(name for name in self.devices if name != AUTO)

    @property
    def has_many(self) -> bool:
        """Whether a run can have several devices."""
        kinds = [kind_of(name) for name in self.devices]
        return self.cluster is not None or kinds.count(kinds[0]) > 1

    @property
    def header(self) -> tuple[str, str]:
        """What the page says of the devices: in a few words, and more for a tooltip."""
        if self.cluster is None:
            return self.text, "the device that trains"
        return self.cluster.seen.text, self.cluster.seen.details

    def candidates(self, config: RunConfig) -> Devices:
        """The devices that a run may have. Raises InvalidConfig if it can never have enough."""
        wanted, workers = config.model.device, config.train.workers
        if self.cluster is None:
            return candidates(wanted, self.devices, workers)
        if wanted != AUTO and wanted not in self.devices:
            problem = "Ray chooses the devices of this cluster"
            hint = f"Use {' or '.join((AUTO, *self.named))}."
            raise InvalidConfig([FieldProblem("model.device", wanted, problem, hint)])
        cluster = self.cluster()
        return candidates(wanted, cluster.devices, workers, cluster.cores)

    def lack(self, config: RunConfig) -> str:
        """Why the run could not start even if all devices were free; "" if it could."""
        try:
            self.candidates(config)
        except StudioError as problem:
            return str(problem)
        return ""

    def placed(self, config: RunConfig, devices: Devices) -> RunConfig:
        """The configuration as it is trained on these devices."""
        return config if self.cluster is not None else placed(config, ",".join(devices))

    def no_room(self, config: RunConfig, devices: Devices) -> tuple[str, StudioError] | None:
        """The first of these devices on which the run does not fit now, and why."""
        for device in devices:
            try:
                self.check_room(self.placed(config, (device,)))
            except StudioError as problem:
                return device, problem
        return None


class DeviceQueue:
    """The runs of one process. Not for two threads at once: its user holds a lock."""

    def __init__(self, machine: Machine):
        self.waiting: deque[Job] = deque()
        self.running: dict[str, Job] = {}  # by the names of its devices
        self._machine = machine

    def __bool__(self) -> bool:
        return bool(self.waiting or self.running)

    def job(self, run_id: str) -> Job | None:
        jobs = (*self.waiting, *self.running.values())
        return next((job for job in jobs if job.run_id == run_id), None)

    def start_next(self) -> tuple[Job, Devices] | None:
        """Give the oldest run for which devices are free those devices; None if there is none.

        A run that waits for one device does not hold up a later one for another device. A run that
        waits for several keeps those that are free: else small runs could hold it up for ever. A
        resumed run waits until its last thread has ended.
        """
        ending = {job.run_id for job in self.running.values()}
        kept: set[str] = set()
        for job in self.waiting:
            if job.run_id in ending:
                continue
            if (devices := self.free(job.config, kept)) is not None:
                self.waiting.remove(job)
                self.running |= dict.fromkeys(devices, job)
                return job, devices
            kept.update(self._candidates(job.config))
        return None

    def free(self, config: RunConfig, but: Collection[str] = ()) -> Devices | None:
        """The first devices that this run may use and no run uses, `but` those."""
        names, taken = self._candidates(config), {*self.running, *but}
        return free_devices(names, taken, config.train.workers)

    def _candidates(self, config: RunConfig) -> Devices:
        """Empty while the cluster is too small for the run."""
        try:
            return self._machine.candidates(config)
        except StudioError:
            return ()

    def move(self, job: Job, tried: Collection[str]) -> Devices | None:
        """Give a run other devices, none of those that were tried; None if too few are free."""
        others = {name for name, of in self.running.items() if of is not job}
        names = self._candidates(job.config)
        devices = free_devices(names, {*others, *tried}, job.config.train.workers)
        if devices is not None:
            self.release(job)
            self.running |= dict.fromkeys(devices, job)
        return devices

    def release(self, job: Job) -> None:
        self.running = {name: of for name, of in self.running.items() if of is not job}


def placed(config: RunConfig, device: str) -> RunConfig:
    """The configuration as it is trained: it names the device. The record keeps what was asked."""
    if device == AUTO:
        return config
    model = config.model.model_copy(update={"device": device})
    return config.model_copy(update={"model": model})
