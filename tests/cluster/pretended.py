"""A cluster without Ray: the real mailbox, and threads that are workers as a test wishes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any

from grpo_core.cluster.driver import follow
from grpo_core.cluster.mailbox import Letter, Mailbox
from grpo_core.errors import StopRequested
from grpo_core.training.control import Command, RunControl, Start
from grpo_core.training.distant import Ended


class Cluster:
    """An engine whose workers are `lives`: one function a life, called with the cluster."""

    def __init__(self, *lives: Callable[[Cluster], None]):
        self.mailbox, self.stopped = Mailbox(), False
        self.run: Any = None  # the driver's side
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._lives = lives
        self._thread = threading.Thread(target=self._work, daemon=True)
        self.problems: list[BaseException] = []
        self._thread.start()

    def ask(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def _work(self) -> None:
        for life in self._lives:
            try:
                life(self)
            except BaseException as problem:
                self.problems.append(problem)
                raise

    # ---- the engine ------------------------------------------------------------------------------

    def letters(self, seconds: float) -> Sequence[Letter]:
        return self.ask(self.mailbox.take(seconds))

    def begin_from(self, life: int, start: Start) -> None:
        self.ask(self.mailbox.start(life, start))

    def tell(self, command: Command, life: int | None = None, question: int | None = None) -> None:
        self.ask(self.mailbox.tell(command, life, question))

    def missing(self) -> str:
        return "It needs 2 × CPU. The cluster has 1."

    def stop(self) -> None:
        self.stopped = True

    # ---- for its workers -------------------------------------------------------------------------

    def begin(self) -> tuple[int, Start]:
        life = self.ask(self.mailbox.begin())
        return life, self.ask(self.mailbox.started(life))

    def say(self, life: int, *messages: Any) -> bool:
        return self.ask(self.mailbox.put(life, messages))

    def lose(self, reason: str) -> None:
        self.ask(self.mailbox.lost(reason))

    def commands(self, life: int, after: int = 0, first: bool = True, seconds: float = 5.0) -> Any:
        return self.ask(self.mailbox.commands(life, after, first, seconds))


class Followed:
    """The driver of a cluster in a thread: its events, and how it ended."""

    def __init__(self, cluster: Cluster, control: RunControl | None = None, emit: Any = None):
        self.cluster, self.control = cluster, control or RunControl()
        self.events: list[Any] = []
        self.problem: Exception | None = None
        self._emit = emit or self.events.append
        cluster.run = self
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        try:
            follow(self.cluster, self._emit, self.control)
        except Exception as problem:
            self.problem = problem

    def ended(self, seconds: float = 10.0) -> Exception | None:
        self._thread.join(seconds)
        assert not self._thread.is_alive(), "the driver goes on"
        assert self.cluster.stopped
        assert self.cluster.problems == []
        return self.problem


__all__ = ["Cluster", "Ended", "Followed", "StopRequested"]
