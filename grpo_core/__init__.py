"""GRPO Studio without the page: train, record and read runs.

    from grpo_core import RunConfig, RunControl, train
    train(RunConfig(), emit=print, control=RunControl())

Names are imported on first use, so `import grpo_core` does not import torch.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grpo_core.analysis.advisor import advise
    from grpo_core.analysis.what_if import what_if
    from grpo_core.config import RunConfig
    from grpo_core.config import parse as parse_config
    from grpo_core.models import load_policy
    from grpo_core.records.attach import attach
    from grpo_core.rubric import build_rubric
    from grpo_core.runs.manager import RunManager
    from grpo_core.store import Recorder, Store
    from grpo_core.tasks import TASKS, load_task
    from grpo_core.training.control import RunControl
    from grpo_core.training.trainer import train

__version__ = "0.2.0"

# A run shares its cores with a web server and often with a browser. OpenMP threads that spin while
# they wait make it several times slower as soon as another process needs a core
# (docs/measurements.md). OpenMP reads this variable once, when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Public name -> the module that defines it and the name there.
_EXPORTS = {
    "TASKS": ("grpo_core.tasks", "TASKS"),
    "Recorder": ("grpo_core.store", "Recorder"),
    "RunConfig": ("grpo_core.config", "RunConfig"),
    "RunControl": ("grpo_core.training.control", "RunControl"),
    "RunManager": ("grpo_core.runs.manager", "RunManager"),
    "Store": ("grpo_core.store", "Store"),
    "advise": ("grpo_core.analysis.advisor", "advise"),
    "attach": ("grpo_core.records.attach", "attach"),
    "build_rubric": ("grpo_core.rubric", "build_rubric"),
    "load_policy": ("grpo_core.models", "load_policy"),
    "load_task": ("grpo_core.tasks", "load_task"),
    "parse_config": ("grpo_core.config", "parse"),
    "train": ("grpo_core.training.trainer", "train"),
    "what_if": ("grpo_core.analysis.what_if", "what_if"),
}

__all__ = [
    "TASKS",
    "Recorder",
    "RunConfig",
    "RunControl",
    "RunManager",
    "Store",
    "__version__",
    "advise",
    "attach",
    "build_rubric",
    "load_policy",
    "load_task",
    "parse_config",
    "train",
    "what_if",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used; it is then an ordinary attribute."""
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _EXPORTS[name]
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
