"""Whether a run can be repeated to the last bit, and what makes it so on a GPU."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from grpo_core.errors import FieldProblem, InvalidConfig

FIELD = "train.deterministic"
CUBLAS_VARIABLE = "CUBLAS_WORKSPACE_CONFIG"
CUBLAS_VALUES = (":4096:8", ":16:8")  # the two that make cuBLAS repeat its sums
_TOLD = "(?s).*[Dd]eterminis"  # in every text of torch about an operation that does not repeat


@contextmanager
def determinism(on: bool) -> Iterator[None]:
    """With `on`, only operations whose results repeat to the last bit run inside the block.

    An operation for which torch has only a warning is an error too: InvalidConfig on
    `train.deterministic`. Flash attention, our own calls of it included, reads torch's setting and
    then adds its gradients up in a fixed order. A captured graph repeats what it captured.
    """
    if not on:
        yield
        return
    was = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.benchmark,
    )
    # cuBLAS reads it when it starts, which is later: nothing has used CUDA in a run's process yet.
    if os.environ.get(CUBLAS_VARIABLE) not in CUBLAS_VALUES:
        os.environ[CUBLAS_VARIABLE] = CUBLAS_VALUES[0]
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False  # it would choose kernels by their time
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=_TOLD)
            yield
    except (RuntimeError, UserWarning) as error:
        if "determinis" not in str(error).lower():
            raise
        problem = f"{str(error).partition(' does not have')[0]:.200} does not repeat its results"
        hint = "Switch it off, or change the setting that needs this operation."
        raise InvalidConfig([FieldProblem(FIELD, True, problem, hint)]) from error
    finally:
        enabled, warn_only, torch.backends.cudnn.benchmark = was
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)


def how_it_repeats(device: torch.device, deterministic: bool) -> str:
    """One sentence for the record: how equal a second run with the same seed is."""
    if device.type == "cpu" or (device.type == "cuda" and deterministic):
        return "The same seed, settings and machine repeat this run bit for bit."
    more = f" With {FIELD} they would agree bit for bit." if device.type == "cuda" else ""
    return (
        "The same seed, settings and machine repeat this run statistically: "
        f"sums are added in another order each time.{more}"
    )
