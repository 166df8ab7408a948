"""Which run trains on which device, and which runs wait: one run at a time on each device."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass

from grpo_core.config import RunConfig
from grpo_core.config.devices import AUTO, first_free
from grpo_core.errors import InvalidConfig, StudioError
from grpo_core.runs.execution import Job


@dataclass(frozen=True, slots=True)
class Machine:
    """What runs train on. text: for the page.

    devices: their names, the fastest kind first; AUTO alone leaves the choice to the trainer.
    check_room: raises StudioError if a run does not fit into the memory that is free on the device
    that its configuration names.
    """

    text: str = ""
    devices: tuple[str, ...] = (AUTO,)
    check_room: Callable[[RunConfig], None] = lambda config: None

    @property
    def named(self) -> tuple[str, ...]:
        """The devices that a configuration may name."""
        return tuple(name for name in self.devices if name != AUTO)

    def no_room(self, config: RunConfig, device: str) -> StudioError | None:
        """Why the run does not fit on this device now."""
        try:
            self.check_room(placed(config, device))
        except StudioError as problem:
            return problem
        return None


class DeviceQueue:
    """The runs of one process. Not for two threads at once: its user holds a lock."""

    def __init__(self, devices: tuple[str, ...]):
        self.waiting: deque[Job] = deque()
        self.running: dict[str, Job] = {}  # by the name of its device
        self._devices = devices

    def __bool__(self) -> bool:
        return bool(self.waiting or self.running)

    def job(self, run_id: str) -> Job | None:
        jobs = (*self.waiting, *self.running.values())
        return next((job for job in jobs if job.run_id == run_id), None)

    def start_next(self) -> tuple[Job, str] | None:
        """Give the oldest run for which a device is free that device; None if there is none.

        A run that waits for one device does not hold up a later one for another device. A resumed
        run waits until its last thread has ended.
        """
        ending = {job.run_id for job in self.running.values()}
        for job in self.waiting:
            if job.run_id not in ending and (device := self.free_device(job.config)) is not None:
                self.waiting.remove(job)
                self.running[device] = job
                return job, device
        return None

    def free_device(self, config: RunConfig, but: Collection[str] = ()) -> str | None:
        """The first device that this run may use and no run uses, `but` those."""
        wanted, taken = config.model.device, {*self.running, *but}
        try:
            return first_free(wanted, self._devices, taken)
        except InvalidConfig:  # queued on another machine; its trainer refuses it
            return None if wanted in taken else wanted

    def move(self, device: str, tried: Collection[str]) -> str | None:
        """Move the run on this device to a free one that was not tried; None if there is none."""
        other = self.free_device(self.running[device].config, tried)
        if other is not None:
            self.running[other] = self.running.pop(device)
        return other


def placed(config: RunConfig, device: str) -> RunConfig:
    """The configuration as it is trained: it names the device. The record keeps what was asked."""
    if device == AUTO:
        return config
    model = config.model.model_copy(update={"device": device})
    return config.model_copy(update={"model": model})
