"""One instance of an environment for every rollout, many of them in each of a few processes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, NamedTuple, Self

from grpo_core.child_process import KILL_AFTER, Child, ChildFailed, one_line
from grpo_core.environments.environment import Environment
from grpo_core.environments.registry import worker

# A call that only waits keeps its process busy, so a small machine has more processes than cores.
WORKERS = max(4, min(8, os.cpu_count() or 1))
# So many once a call reached its time limit, and for a server, where calls only wait.
MOST_WORKERS = 32
LOOK_SECONDS = 0.1  # between two looks whether the run is to stop


class Call(NamedTuple):
    """A tool of a rollout's instance is called. seed: of the random numbers that it may draw."""

    instance: int
    tool: str
    arguments: Mapping[str, Any]
    seed: int


class Answer(NamedTuple):
    """What came back. error: why nothing did, else ""."""

    value: Any
    error: str
    seconds: float


@dataclass(slots=True)
class _Instance:
    """What is needed to make an instance again in a new process."""

    row: dict[str, Any]
    seed: int
    process: int = -1  # the process, counted, in which it lives
    calls: list[Call] = field(default_factory=list)  # those that came to an end


class Instances:
    """The instances of one environment. Each call has its own time limit.

    A tool that cannot be interrupted costs its process. The others of that process are then made
    again when they are next used: reset, and their calls that came to an end, in order. So a
    rollout whose tool hangs does not change its siblings, which it is compared with. A call that
    was cut off has no effect: its own instance is made again without it.

    A call waits for those before it in its process. Once one of them reached its limit, all that
    still wait go to MOST_WORKERS processes, where their instances are made again. So n calls that
    all hang take 1 + ceil((n - WORKERS) / MOST_WORKERS) times the limit and KILL_AFTER, and not
    n / WORKERS times. No call is cut off because another hangs.
    """

    def __init__(
        self, environment: Environment, seconds: float, check_interrupt: Callable[[], None]
    ) -> None:
        """seconds: for each call. check_interrupt: may raise; then all calls end at once."""
        self.environment = environment
        self._seconds, self._check_interrupt = seconds, check_interrupt
        # A process starts when it is first used.
        self._workers = [_Worker(environment, seconds) for _ in range(MOST_WORKERS)]
        self._homes: dict[int, int] = {}  # instance -> the worker that has it
        self._threads = ThreadPoolExecutor(MOST_WORKERS, "environment")
        self._under_way: list[Future[dict[int, Answer]]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all processes."""
        self._stop_all()
        self._threads.shutdown()
        for each in self._workers:
            each.child.close()

    def _stop_all(self) -> None:
        """End all calls under way. Again and again: a thread may just be starting its process."""
        for each in self._workers:
            each.is_stopped = True
        while wait(self._under_way, LOOK_SECONDS / 10).not_done:
            for each in self._workers:
                each.child.abort()

    def start(self, rows: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> list[Answer]:
        """New instances, one for each row; the values are what reset returns."""
        for each in self._workers:
            each.forget()
        num_workers = MOST_WORKERS if self.environment.is_server else WORKERS
        for number, (row, seed) in enumerate(zip(rows, seeds, strict=True)):
            self._homes[number] = number % num_workers
            self._workers[self._homes[number]].instances[number] = _Instance(dict(row), seed)
        return self._each(range(len(rows)), lambda worker, number: worker.reset(number))

    def call(self, calls: Sequence[Call]) -> list[Answer]:
        """Answers of the tools, in the order of the calls. Those of one instance run in order."""
        return self._each(calls, lambda worker, call: worker.call(call), lambda call: call.instance)

    def rewards(self, count: int) -> list[Answer]:
        """What get_reward returns for the first `count` instances."""
        return self._each(range(count), lambda worker, number: worker.reward(number))

    def _each(
        self,
        items: Sequence[Any],
        do: Callable[[_Worker, Any], Answer],
        instance_of: Callable[[Any], int] = lambda number: number,
    ) -> list[Answer]:
        """Do it for each item, one after the other in each process, all processes at once."""
        found: dict[int, Answer] = {}
        while left := [i for i in range(len(items)) if i not in found]:
            numbers = [instance_of(items[i]) for i in left]
            if found and not self.environment.is_server:
                self._spread(dict.fromkeys(numbers))
            shares: dict[int, list[int]] = {}
            for i, number in zip(left, numbers, strict=True):
                shares.setdefault(self._homes[number], []).append(i)
            found |= self._round(shares, lambda worker, i: do(worker, items[i]))
        return [found[i] for i in range(len(items))]

    def _round(
        self, shares: Mapping[int, Sequence[int]], do: Callable[[_Worker, int], Answer]
    ) -> dict[int, Answer]:
        """Do the shares of all processes at once, each until one of its items hangs."""

        def work(w: int) -> dict[int, Answer]:
            done: dict[int, Answer] = {}
            for i in shares[w]:
                done[i] = answer = do(self._workers[w], i)
                if answer.error and answer.seconds >= self._seconds:
                    break
            return done

        self._under_way = [self._threads.submit(work, w) for w in shares]
        try:
            while wait(self._under_way, LOOK_SECONDS).not_done:
                self._check_interrupt()
        except BaseException:
            self._stop_all()
            raise
        return {i: answer for each in self._under_way for i, answer in each.result().items()}

    def _spread(self, numbers: Iterable[int]) -> None:
        """Give these instances to all processes alike; one that moves is made again there."""
        loads = [0] * MOST_WORKERS
        for number in numbers:
            home = self._homes[number]
            w = home if not loads[home] else loads.index(min(loads))
            loads[w] += 1
            if w != home:
                instance = self._workers[home].instances.pop(number)
                instance.process = -1
                self._workers[w].instances[number] = instance
                self._homes[number] = w


class _Worker:
    """One process and the instances that live in it. Used by one thread at a time."""

    def __init__(self, environment: Environment, seconds: float) -> None:
        self.child: Child = worker(environment)
        self.instances: dict[int, _Instance] = {}
        self._name, self._seconds = environment.makes or environment.name, seconds
        self._process = 0  # grows whenever the process was lost
        self._has_made = False  # whether the process may have instances
        self.is_stopped = False  # no call is made any more

    def forget(self) -> None:
        """Delete all instances. A process that has none has nothing to delete."""
        self.is_stopped = False
        if self._has_made:
            self._ask("forget", [])
        self._has_made = False
        self.instances.clear()

    def reset(self, number: int) -> Answer:
        instance, self._has_made = self.instances[number], True
        answer = self._ask("reset", [number, self._name, instance.row, instance.seed])
        instance.process = -1 if answer.error else self._process
        return answer

    def call(self, call: Call) -> Answer:
        if (problem := self._made_again(call.instance)) is not None:
            return problem
        instance = self.instances[call.instance]
        answer = self._ask("call", [call.instance, call.tool, dict(call.arguments), call.seed])
        if self._is_whole(instance, answer):
            instance.calls.append(call)
        return answer

    def reward(self, number: int) -> Answer:
        seed = self.instances[number].seed + number + 1  # siblings began with the same numbers
        return self._made_again(number) or self._ask("reward", [number, seed])

    def _is_whole(self, instance: _Instance, answer: Answer) -> bool:
        """Whether a call came to an end, if with an error. Else the instance is made again."""
        if instance.process == self._process and answer.seconds < self._seconds:
            return True
        instance.process = -1
        return False

    def _made_again(self, number: int) -> Answer | None:
        """Make an instance again if it is not as its calls left it; why that failed, else None."""
        instance = self.instances[number]
        if instance.process == self._process:
            return None
        started = self.reset(number)
        if started.error:
            return started._replace(value=None, error=f"the environment: {started.error}")
        for call in instance.calls:
            answer = self._ask("call", [number, call.tool, dict(call.arguments), call.seed])
            if not self._is_whole(instance, answer):
                problem = answer.error or "it took too long"
                return answer._replace(value=None, error=f"the environment: {problem}")
        return None

    def _ask(self, do: str, arguments: list[Any]) -> Answer:
        if self.is_stopped:
            return Answer(None, "the run is stopped", 0.0)
        question = {"do": do, "arguments": arguments, "seconds": self._seconds}
        started = time.monotonic()

        def read(answer: Any) -> tuple[Any, str]:
            if answer.keys() == {"null"}:
                return None, one_line(str(answer["null"]), 500) or "it failed"
            return answer["value"], ""

        try:
            value, error = self.child.request(question, self._seconds + KILL_AFTER, read)
        except ChildFailed as failed:
            self._process += 1
            self._has_made = False
            value, error = None, str(failed)
        return Answer(value, error, time.monotonic() - started)
