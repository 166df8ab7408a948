"""Names of devices: which of them a run may train on, and which of these are free.

`model.device` holds `auto` or such names: `cpu`, `mps`, `cuda:0`, `cuda:2,cuda:3`. Of several a run
takes as many as it has workers. Standard library only.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from grpo_core.errors import FieldProblem, InvalidConfig

AUTO = "auto"
CPU = "cpu"
# The only devices that this process may use. "lent" is set in the process of a ZeroGPU lease.
VARIABLE = "GRPO_DEVICE"
_NAMES = re.compile(r"cpu|mps|cuda:\d+(,cuda:\d+)*")


def split(names: str) -> tuple[str, ...]:
    """The devices that `model.device` names: "cuda:0, cuda:1" -> two of them."""
    return tuple(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))


def kind_of(name: str) -> str:
    """The kind of a device: "cuda" of "cuda:1"."""
    return name.partition(":")[0]


def only_devices(environment: Mapping[str, str]) -> tuple[str, ...]:
    """The devices that GRPO_DEVICE names; empty: all may be used."""
    names = environment.get(VARIABLE, "")
    return split(names) if _NAMES.fullmatch(names) else ()


def use_only(names: str) -> None:
    """Keep this process on the devices of its run: reward models then load there too."""
    if _NAMES.fullmatch(names):
        os.environ[VARIABLE] = names


@contextmanager
def using_only(name: str) -> Iterator[None]:
    """Like `use_only`, until the `with` block ends."""
    before = os.environ.get(VARIABLE)
    use_only(name)
    try:
        yield
    finally:
        os.environ.pop(VARIABLE, None)
        if before is not None:
            os.environ[VARIABLE] = before


def has_only_cpu(environment: Mapping[str, str], files: Path = Path("/dev")) -> bool:
    """Whether it is certain that no GPU can be used here. Does not import torch (seconds).

    On Linux a GPU has a file: nvidia0 (NVIDIA), kfd (AMD), dxg (any, in Windows' WSL). On other
    systems it is never certain.
    """
    if only := only_devices(environment):
        return only == (CPU,)
    gpus = (*files.glob("nvidia[0-9]*"), *files.glob("kfd"), *files.glob("dxg"))
    return sys.platform == "linux" and not gpus


def describe_cpu() -> str:
    return f"CPU, {os.cpu_count()} cores"


def candidates(
    wanted: str, there: Sequence[str], workers: int = 1, cores: int | None = None
) -> tuple[str, ...]:
    """The devices that a run may train on, best first. Raises InvalidConfig.

    there: names of devices, the fastest kind first. AUTO means every device of that kind. If
    `there` is AUTO alone, the trainer finds the device by itself. Each worker has a device of its
    own; on a CPU they share it, and are at most as many as its cores.
    """
    if AUTO in there:
        return (AUTO,)
    names = split(wanted)
    if wanted == AUTO:
        names = tuple(name for name in there if kind_of(name) == kind_of(there[0]))
    elif not names or not set(names) <= set(there):
        problem = "there is no such device here"
        hint = f"There are: {', '.join((AUTO, *there))}."
        raise InvalidConfig([FieldProblem("model.device", wanted, problem, hint)])
    elif len({*map(kind_of, names)}) > 1:
        problem, hint = "the devices of a run must be of one kind", "Name one kind only."
        raise InvalidConfig([FieldProblem("model.device", wanted, problem, hint)])
    on_cpu = names == (CPU,)
    # Two may always share a CPU: that is how to try it.
    most = max(2, cores or os.cpu_count() or 1) if on_cpu else len(names)
    if workers > most:
        what = "processor cores" if on_cpu else "devices"
        problem = f"this run can use {most} {what} here" if most > 1 else "there is one device here"
        raise InvalidConfig(
            [FieldProblem("train.workers", workers, problem, f"Use at most {most}.")]
        )
    return names


def free_devices(
    names: Sequence[str], in_use: Collection[str], workers: int = 1
) -> tuple[str, ...] | None:
    """Those of the candidates that a run gets: the first that no run uses; None: it must wait.

    One for each worker; the CPU is one device, whatever their number. in_use: AUTO among them
    means that a run may use any device.
    """
    needed = 1 if tuple(names) in ((AUTO,), (CPU,)) else workers
    free = [name for name in names if name not in in_use]
    return None if AUTO in in_use or len(free) < needed else tuple(free[:needed])


def shares(groups: int, workers: int) -> str:
    """How a step's groups (as many as workers or more) are dealt out; "" for one worker."""
    if workers < 2:
        return ""
    each, more = divmod(groups, workers)
    if not more:
        return f"Each worker takes {each} of the {groups} groups of a step."
    return (
        f"{more} of {workers} workers take {each + 1} groups of a step and the others {each}: "
        "those wait for them."
    )
