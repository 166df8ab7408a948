"""The processes that compute a run together: every one runs the same loop on its share of a step.

They wait for each other only in the methods below, which all of them call in the same order. So
the work that is given to a method must not call one itself: where it raises before that call, the
others would wait for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from traceback import format_exc
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from grpo_core.errors import NonFinite, StopRequested, StudioError

T = TypeVar("T")

# A paused worker 0 makes the others wait; whoever started the processes notices one that died.
PATIENCE = timedelta(days=30)
LARGE = 2**18  # elements of a tensor that is summed by itself


class Workers:
    """One process alone: it has the whole share, and nobody to wait for."""

    rank: int = 0
    world: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is worker 0, which records the run and obeys people."""
        return self.rank == 0

    def gather(self, work: Callable[[], T]) -> list[T]:
        """What the work of every worker returns, in rank order.

        If any of them raises, all raise that error, so nobody waits for one that gave up. A failure
        comes before StopRequested.
        """
        return [work()]

    def together(self, work: Callable[[], T]) -> T:
        """What the own work returns, once all workers are done with theirs. Errors: see gather."""
        return work()

    def first(self, work: Callable[[], T]) -> T:
        """What the work of worker 0 returns or raises. The others do not work."""
        return work()

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all workers."""

    def mine(self, num: int) -> range:
        """The places, among so many things, of those that this worker takes: one in `world`."""
        return range(self.rank, num, self.world)

    def in_order(self, dealt: Sequence[Sequence[T]], size: int = 1) -> list[T]:
        """Things that were dealt by `mine`, one list a worker, in their order.

        size: how many items each thing has, which stand together.
        """
        num = sum(map(len, dealt)) // size
        return [
            item
            for i in range(num)
            for item in dealt[i % self.world][i // self.world * size :][:size]
        ]


ALONE = Workers()


class Distributed(Workers):
    """The processes of torch.distributed's default group, which the caller has set up.

    Tensors are summed by it. All else goes through a group of its own, over the network's CPU side.
    """

    def __init__(self) -> None:
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        group = dist.new_group(backend="gloo", timeout=PATIENCE)
        assert isinstance(group, dist.ProcessGroup)
        self._objects = group

    def gather(self, work: Callable[[], T]) -> list[T]:
        outcome, error = _try(work)
        outcomes: list[Any] = [None] * self.world
        dist.all_gather_object(outcomes, outcome, group=self._objects)
        return _values(outcomes, self.rank, error)

    def together(self, work: Callable[[], T]) -> T:
        result: list[T] = []
        self.gather(lambda: result.append(work()))
        return result[0]

    def first(self, work: Callable[[], T]) -> T:
        outcome, error = _try(work) if self.is_first else (None, None)
        outcomes: list[Any] = [outcome]
        dist.broadcast_object_list(outcomes, 0, group=self._objects)
        return _values(outcomes, self.rank, error)[0]

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        # Large ones where they are: a copy of all would cost as much memory as the model.
        for t in (t.detach() for t in tensors if t.numel() >= LARGE):
            whole = t.contiguous()
            dist.all_reduce(whole)
            if whole.data_ptr() != t.data_ptr():
                t.copy_(whole)
        for same in _by_kind(t for t in tensors if t.numel() < LARGE):
            flat = torch.cat([t.detach().flatten() for t in same])
            dist.all_reduce(flat)
            for t, summed in zip(same, flat.split([t.numel() for t in same]), strict=True):
                t.detach().copy_(summed.view_as(t))


# How a work ended, and its result or the text of its error.
Outcome = tuple[str, Any]
_RETURNED, _STOPPED = "returned", "stopped"
# The kinds of errors, the gravest first.
_ERRORS: dict[str, type[Exception]] = {
    "failed": StudioError,
    "not finite": NonFinite,
    _STOPPED: StopRequested,
}


def _try(work: Callable[[], Any]) -> tuple[Outcome, Exception | None]:
    try:
        return (_RETURNED, work()), None
    except Exception as error:
        kind = next((k for k, t in _ERRORS.items() if isinstance(error, t)), None)
        text = str(error) if kind else f"{type(error).__name__}: {error}\n\n{format_exc()}"
        return (kind or "failed", text), error


def _values(outcomes: Sequence[Outcome], rank: int, own: Exception | None) -> list[Any]:
    """The results. Raises the gravest error: `own`, this rank's, itself, another by its text."""
    for kind in _ERRORS:
        for i, (ended, text) in enumerate(outcomes):
            if ended == kind:
                if i == rank and own is not None:
                    raise own
                raise _ERRORS[kind](text if kind == _STOPPED else f"Worker {i + 1}: {text}")
    return [result for _, result in outcomes]


def _by_kind(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """The tensors in groups that fit into one vector."""
    groups: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for t in tensors:
        groups.setdefault((t.dtype, t.device), []).append(t)
    return list(groups.values())
