"""Remarks about a loaded model that are made once, however often their cause returns."""

from __future__ import annotations

import logging

from torch import nn

log = logging.getLogger("grpo_studio")

_SAID = "grpo_studio_said"  # on a model: the remarks made about it


def say_once(model: nn.Module, text: str) -> None:
    """Log a warning, unless the same was logged about this model before."""
    said: set[str] = vars(model).setdefault(_SAID, set())
    if text not in said:
        said.add(text)
        log.warning("%s", text)
