"""Whether a run fits beside what other programs keep in a GPU's memory, before it starts."""

from __future__ import annotations

import os

import torch

from grpo_core.config import RunConfig
from grpo_core.config.devices import AUTO, CPU, candidates
from grpo_core.errors import FieldProblem, InvalidConfig
from grpo_core.models import check_model, pick_device
from grpo_core.models.device import device_names, free_memory, total_memory
from grpo_core.models.folder import BadModel
from grpo_core.models.load import examine, refuse
from grpo_core.preflight.model_report import model_size
from grpo_core.runs.device_queue import Machine, placed
from grpo_core.runs.ray_cluster import RayCluster, cluster_of
from grpo_core.training.memory_estimate import memory

# The parts of the memory that do not shrink with smaller waves or micro-batches.
FIXED = ("weights", "reference", "gradients", "optimiser")
IDLE = 0.9  # a card counts as unused while more than this share of its memory is free
CONTEXT_BYTES = 600 * 2**20  # what CUDA itself and its libraries take in a process


def check_start(config: RunConfig) -> None:
    """Check model, device and room before a run is created. Raises InvalidConfig."""
    check_model(config.model)
    if address := cluster_of(os.environ):
        cluster = RayCluster(address)
        try:
            Machine(devices=(AUTO, CPU), cluster=cluster).candidates(config)
        finally:
            cluster.close()
    choose_device(config)


def choose_device(config: RunConfig) -> str:
    """The device for a run of this process, for `placed`; several names for several workers.

    Idle ones if there are enough, and with room for it. Where too few have room, raises the
    InvalidConfig of the first one without.
    """
    if cluster_of(os.environ):
        return AUTO  # Ray chooses
    names = candidates(config.model.device, device_names(), config.train.workers)
    needed = 1 if names == (CPU,) else config.train.workers
    problems, idle, shared = [], list[str](), list[str]()
    # Stops at the last unused card that it needs: CUDA takes half a gigabyte on each that is
    # looked at.
    for name in names:
        try:
            check_room(placed(config, name))
        except InvalidConfig as problem:
            problems.append(problem)
            continue
        (shared if _is_in_use(name) else idle).append(name)
        if len(idle) == needed:
            break
    chosen = (idle + shared)[:needed]
    if len(chosen) < needed:
        raise problems[0]
    return ",".join(chosen)


def _is_in_use(name: str) -> bool:
    """Whether programs, such as another run, use more than a tenth of a card's memory."""
    device = torch.device(name)
    if device.type != "cuda":
        return False
    return free_memory(device, another_process=True) < IDLE * total_memory(device)


def check_room(config: RunConfig) -> None:
    """Raise InvalidConfig on `model.device` if the least that a run needs is not free on its GPU.

    Of several GPUs only the first is looked at.

    What other processes use is not free: on a shared card a run starts if it fits beside them.
    With less than the estimate of "Check model" it starts too, and works in smaller parts. A CPU is
    not checked here: loading the weights checks its memory.
    """
    device = pick_device(config.model.device)
    if device.type != "cuda":
        return
    needed = least_bytes(config)
    free = free_memory(device, another_process=True)
    if needed > free:
        problem = (
            f"the run needs at least {_gb(needed)}, and {_gb(free)} of {_gb(total_memory(device))} "
            f"are free on {device}; other programs use the rest"
        )
        hint = "End them, name another device, or use LoRA or a smaller model."
        raise InvalidConfig([FieldProblem("model.device", config.model.device, problem, hint)])


def least_bytes(config: RunConfig) -> int:
    """What the run's process needs on its GPU however small its waves and micro-batches are.

    Raises InvalidConfig.
    """
    try:
        _, shape, model = examine(config.model)
    except BadModel as error:
        refuse(config.model, error.problem, error.hint)
    size = model_size(config.model, shape, model)
    parts, _ = memory(config, size, recomputes=True)
    return CONTEXT_BYTES + sum(parts[name] for name in FIXED)


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GB"
