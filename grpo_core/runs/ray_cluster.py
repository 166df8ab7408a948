"""The devices of a Ray cluster, as a helper process tells them: the server imports no Ray."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_core.child_process import KILL_AFTER, Child, ChildFailed
from grpo_core.cluster.address import LOCAL, address_in
from grpo_core.config.devices import CPU
from grpo_core.errors import StudioError

LOOK_SECONDS = 30.0  # for one answer: connecting to a cluster takes some seconds
EVERY_SECONDS = 10.0
# What Ray and the connections to its cluster read, beside the variables that begin with RAY_.
_KEPT = ("PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV")


def cluster_of(environment: Mapping[str, str]) -> str:
    """The address of the cluster on which all runs train; "" for this machine alone."""
    address = address_in(environment)
    return "" if address == LOCAL else address


@dataclass(frozen=True, slots=True)
class Node:
    """A machine of the cluster. kind: of its GPUs, as Ray names it; "" without any."""

    name: str
    gpus: int
    cores: int
    kind: str = ""

    def __str__(self) -> str:
        gpus = f"{self.gpus} × {self.kind or 'GPU'}, " if self.gpus else ""
        return f"{self.name}: {gpus}{_count(self.cores, 'core')}"


@dataclass(frozen=True, slots=True)
class Cluster:
    """What the cluster has now. problem: why it is not known; then there are no nodes."""

    nodes: tuple[Node, ...] = ()
    problem: str = ""

    @property
    def cores(self) -> int:
        return sum(node.cores for node in self.nodes)

    @property
    def devices(self) -> tuple[str, ...]:
        """A name for each GPU, and one for all processors. Raises StudioError if unknown.

        They only count: Ray chooses which GPU a worker gets.
        """
        if not self.nodes:
            raise StudioError(f"The Ray cluster cannot be used: {self.problem or 'it is empty'}.")
        return (*(f"cuda:{i}" for i in range(sum(node.gpus for node in self.nodes))), CPU)

    @property
    def text(self) -> str:
        """In a few words: "Ray: 16 GPUs, 2 nodes"."""
        if not self.nodes:
            return "Ray: not reachable"
        gpus, nodes = sum(node.gpus for node in self.nodes), len(self.nodes)
        what = _count(gpus, "GPU") if gpus else _count(self.cores, "core")
        return f"Ray: {what}, {_count(nodes, 'node')}"

    @property
    def details(self) -> str:
        """Every kind of node once, for a tooltip."""
        if not self.nodes:
            return self.problem
        kinds = Counter(map(str, self.nodes))
        return " · ".join(f"{n} × {kind}" if n > 1 else kind for kind, n in kinds.items())


class RayCluster:
    """Looks at a cluster now and then, in a thread; call it for what was seen last.

    The first call waits for the first look; `seen` does not. The helper process stays connected, so
    that a look costs little; one that hangs is killed and started again.
    """

    def __init__(self, address: str, child: Child | None = None):
        self._address = address
        self._child = child or Child(
            ["-m", "grpo_core.cluster.devices"], _environment(), str(Path(__file__).parents[2])
        )
        self.seen = Cluster(problem=f"{address}: not answered yet")
        self._looked = threading.Event()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="ray cluster", daemon=True)
        self._thread.start()

    def __call__(self) -> Cluster:
        self._looked.wait(LOOK_SECONDS)
        return self.seen

    def close(self) -> None:
        self._closed.set()
        self._child.abort()

    def _watch(self) -> None:
        while not self._closed.is_set():
            self.seen = self._look()
            self._looked.set()
            self._closed.wait(EVERY_SECONDS * (1 if self.seen.nodes else 3))
        self._child.close()

    def _look(self) -> Cluster:
        question = {"do": "look", "arguments": [self._address], "seconds": LOOK_SECONDS}
        try:
            return self._child.request(question, LOOK_SECONDS + KILL_AFTER, _read)
        except (ChildFailed, OSError, ValueError) as problem:  # the others while Python ends
            return Cluster(problem=f"{self._address}: {problem}")


def _read(answer: Any) -> Cluster:
    """The helper's answer. Raises ValueError, TypeError or LookupError for any other shape."""
    if isinstance(reason := answer.get("null"), str):
        raise ChildFailed(reason)
    nodes = [
        Node(str(n["name"])[:80], int(n["gpus"]), int(n["cores"]), str(n["kind"])[:40])
        for n in answer["value"]
    ]
    return Cluster(tuple(sorted(nodes, key=lambda node: (-node.gpus, node.name))))


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _environment() -> dict[str, str]:
    """No secrets but those of Ray, such as the token of its cluster."""
    kept = {k: v for k, v in os.environ.items() if k in _KEPT or k.startswith("RAY_")}
    return kept | {"PYTHONPATH": str(Path(__file__).parents[2])}
