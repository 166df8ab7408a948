"""What a CUDA graph does, on a CPU: records a function's operations and runs them again.

As in a graph, Python runs once, while it is recorded; a replay runs the same operations on the same
tensors. A function that reads a value from the device cannot be recorded.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

READS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::item", "aten::equal"}


class ReplayedOps(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.ops: list[tuple] = []
        self._undo: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.replays = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func._schema.name in READS:
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self._undo += [(t, t.clone()) for t in tree_leaves(value) if t is not None]
        self._undo += [(t, t.clone()) for t in tree_leaves(kwargs.get("out")) if t is not None]
        out = func(*args, **kwargs)
        self.ops.append((func, args, kwargs, tree_leaves(out)))
        return out

    def capture(self, step: Callable[[], None]) -> Callable[[], None]:
        with self:
            step()
        for tensor, value in reversed(self._undo):  # a graph computes nothing while recorded
            tensor.copy_(value)
        self._undo.clear()
        return self.replay

    def replay(self) -> None:
        self.replays += 1
        for func, args, kwargs, outs in self.ops:
            for old, new in zip(outs, tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)
