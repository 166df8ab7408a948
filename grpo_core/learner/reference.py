"""The reference of a policy that trains adapters: the same model with its adapters switched off, so no second copy is kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn


class AdapterOff(nn.Module):
    """Stands where a reference model stands. Knows the layers that carry adapters; holds no weights of its own."""

    def __init__(self, model: nn.Module, layers: Sequence[Any]):
        super().__init__()
        self._held = (model, tuple(layers))  # in a tuple: as a submodule the policy's weights would count as the reference's

    @contextmanager
    def off(self) -> Iterator[nn.Module]:
        """The model, its adapters silent for as long as this lasts."""
        model, layers = self._held
        # Not peft's enable_adapters: that would also stop their gradients, in the middle of a step.
        for layer in layers:
            layer._disable_adapters = True
        try:
            yield model
        finally:
            for layer in layers:
                layer._disable_adapters = False
