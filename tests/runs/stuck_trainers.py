"""Stand-ins for train() that hang, for runs in a subprocess. Module-level: they are pickled."""

from __future__ import annotations

import os
import time

from grpo_core.config.devices import VARIABLE
from grpo_core.training.timing import RunTimer
from grpo_core.types import ModelLoaded, StepCompleted, StepMetrics


def quick(config, emit, control):
    emit(ModelLoaded({}))
    emit(StepCompleted(1, StepMetrics(reward_mean=1.0), {}))


def hangs(config, emit, control):
    """Like a kernel or a file system that never returns. Seed 1: goes on after a fork."""
    quick(config, emit, control)
    if config.train.seed == 1 and os.fork() == 0:  # the copy keeps all pipes open
        time.sleep(20)
        os._exit(0)
    if config.train.seed < 2:
        time.sleep(600)


def tells_its_device(config, emit, control):
    """Records the only device that its process may use, and goes on until it is stopped."""
    control.points.timer = RunTimer(emit)
    emit(ModelLoaded({"device_name": os.environ.get(VARIABLE), "process": os.getpid()}))
    while True:
        control.points.check_interrupt()
        time.sleep(0.01)
