"""Names of devices: which of them a run may train on, and which of these is free.

`model.device` holds `auto` or such a name: `cpu`, `mps`, `cuda:0`. Standard library only.
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
# The only device that this process may use. "lent" is set in the process of a ZeroGPU lease.
VARIABLE = "GRPO_DEVICE"
_NAME = re.compile(r"cpu|mps|cuda:\d+")


def only_device(environment: Mapping[str, str]) -> str | None:
    """The device that GRPO_DEVICE names; None: all may be used."""
    name = environment.get(VARIABLE, "")
    return name if _NAME.fullmatch(name) else None


def use_only(name: str) -> None:
    """Keep this process on one device, that of its run: reward models then load there too."""
    if _NAME.fullmatch(name):
        os.environ[VARIABLE] = name


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
    if (only := only_device(environment)) is not None:
        return only == CPU
    gpus = (*files.glob("nvidia[0-9]*"), *files.glob("kfd"), *files.glob("dxg"))
    return sys.platform == "linux" and not gpus


def describe_cpu() -> str:
    return f"CPU, {os.cpu_count()} cores"


def candidates(wanted: str, there: Sequence[str]) -> tuple[str, ...]:
    """The devices that a run may train on, best first. Raises InvalidConfig on `model.device`.

    there: names of devices, the fastest kind first. AUTO means every device of that kind. If
    `there` is AUTO alone, the trainer finds the device by itself.
    """
    if AUTO in there:
        return (AUTO,)
    if wanted == AUTO:
        kind = there[0].partition(":")[0]
        return tuple(name for name in there if name.partition(":")[0] == kind)
    if wanted not in there:
        hint = f"There are: {', '.join((AUTO, *there))}."
        problem = "there is no such device here"
        raise InvalidConfig([FieldProblem("model.device", wanted, problem, hint)])
    return (wanted,)


def first_free(wanted: str, there: Sequence[str], in_use: Collection[str]) -> str | None:
    """The first device for a run that no other run uses; None: it must wait. Raises InvalidConfig.

    in_use: AUTO among them means that a run may use any device.
    """
    names = candidates(wanted, there)
    return None if AUTO in in_use else next((n for n in names if n not in in_use), None)
