"""A worker of a run: a process that Ray Train has placed and connected with its siblings."""

from __future__ import annotations

import logging
import os
import platform
import queue
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import ray
import ray.train
import ray.train.torch

from grpo_core.child_process import kill_all
from grpo_core.cluster.mailbox import Answered
from grpo_core.config import RunConfig
from grpo_core.config.devices import CPU, use_only
from grpo_core.environments.environment import Environment
from grpo_core.environments.registry import use_environments
from grpo_core.errors import StudioError
from grpo_core.learner.workers import ALONE, Distributed, Workers
from grpo_core.rubric import add_plugins
from grpo_core.training.control import RunControl, Start
from grpo_core.training.distant import Ended, Outbox, ended, obey

POLL_SECONDS = 10.0
# A failure reaches every worker. This long the others leave it to worker 0 to report it.
SILENCE_SECONDS = 5.0

log = logging.getLogger("grpo_studio")


@dataclass(frozen=True, slots=True)
class Share:
    """What every worker gets from the run's process."""

    config: RunConfig
    folder: Path | None  # of the run's checkpoints
    mailbox: Any  # the actor
    environment: Mapping[str, str]
    rewards: Sequence[str]  # plug-in files
    environments: Sequence[Environment]


class SiblingLost(Exception):
    """A sibling does not answer any more: Ray ends this worker too, and starts all again."""


def work(given: Mapping[str, Share]) -> None:
    """Train as one of the workers. Ray Train calls it in each of them.

    An error that another start would meet again goes to the mailbox. Any other is raised, so that
    Ray starts all workers again.
    """
    share = given["share"]
    os.environ.update(share.environment)
    world = ray.train.get_context().get_world_size()
    workers = Distributed() if world > 1 else ALONE
    life = workers.first(lambda: _get(share.mailbox.begin.remote()))
    post = _Post(share.mailbox, life, workers)
    try:
        end = ended(lambda: _train(share, post, workers), but=SiblingLost)
    finally:
        kill_all()
    post.close(end)


def _train(share: Share, post: _Post, workers: Workers) -> None:
    try:
        config = _placed(share.config)
        workers.together(lambda: _prepare(share))
        start = workers.first(lambda: _get(share.mailbox.started.remote(post.life)))
        if start is None:
            _end()
        workers.together(lambda: _check_folder(share.folder, start))
        # Only worker 0 saves, and waits for a person where it cannot.
        control = RunControl(share.folder if workers.is_first else None, start)
        post.listen(control)
        from grpo_core.training.trainer import train

        emit = post.outbox.emit if workers.is_first else lambda event: None
        train(config, emit, control, workers)
    except Exception as problem:
        if _is_of_torch(problem):
            raise SiblingLost(f"{type(problem).__name__}: {problem}") from problem
        raise


def _placed(config: RunConfig) -> RunConfig:
    """The configuration with the device that Ray gave to this worker."""
    device = str(ray.train.torch.get_device()) if ray.get_gpu_ids() else CPU
    os.environ.pop("GRPO_DEVICE", None)
    use_only(device)
    return config.model_copy(update={"model": config.model.model_copy(update={"device": device})})


def _prepare(share: Share) -> None:
    add_plugins(share.rewards)
    use_environments(share.environments)


def _check_folder(folder: Path | None, start: Start) -> None:
    """Raises StudioError if this worker does not see the files that all must see."""
    for seen in (folder, start.path):
        if seen is not None and not seen.exists():
            raise StudioError(
                f"The machine {platform.node()} does not see {str(seen)!r}. "
                "Put the file of the runs on a disk that all machines of the cluster share."
            )


def _is_of_torch(problem: Exception) -> bool:
    """Whether torch.distributed raised it itself: a connection to a sibling broke."""
    frames = traceback.extract_tb(problem.__traceback__)
    return not isinstance(problem, StudioError) and any(
        "torch/distributed" in Path(frame.filename).as_posix() for frame in frames[-3:]
    )


def _get(reference: Any) -> Any:
    return ray.get(reference)


class _Post:
    """The worker's side of the mailbox: what it says, and the commands that it gets."""

    def __init__(self, mailbox: Any, life: int, workers: Workers):
        self.life, self.outbox = life, Outbox()
        self._mailbox, self._workers = mailbox, workers
        self._unsent: queue.Queue[Any] = self.outbox.unsent  # None ends the sending
        self._handler = self.outbox.say_log(
            f"worker {workers.rank + 1}: " if workers.world > 1 else ""
        )
        self._sender = threading.Thread(target=_or_end(self._send), name="events", daemon=True)
        self._sender.start()

    def listen(self, control: RunControl) -> None:
        receive = _or_end(lambda: self._receive(control))
        threading.Thread(target=receive, name="control", daemon=True).start()

    def close(self, end: Ended) -> None:
        """Say how the training ended. Only worker 0 does, unless it is silent after a failure."""
        log.removeHandler(self._handler)
        says = self._workers.is_first or end.how == "failed"
        if not self._workers.is_first and says:
            time.sleep(SILENCE_SECONDS)
        self._unsent.put(end if says else None)
        self._sender.join()

    def _send(self) -> None:
        while (message := self._unsent.get()) is not None:
            messages = [message]
            while not self._unsent.empty() and messages[-1] is not None:
                messages.append(self._unsent.get())
            said = [message for message in messages if message is not None]
            if not _get(self._mailbox.put.remote(self.life, said)):
                _end()  # Ray has started other workers in place of these
            if messages[-1] is None or isinstance(messages[-1], Ended):
                return

    def _receive(self, control: RunControl) -> None:
        after = 0
        while True:
            first = self._workers.is_first
            got = _get(self._mailbox.commands.remote(self.life, after, first, POLL_SECONDS))
            if got is None:
                _end()
            after, commands = got
            for command, question in commands:
                refusal = obey(command, control, self.outbox)
                if question is not None:
                    self._unsent.put(Answered(question, refusal))


def _or_end(work: Any) -> Any:
    """`work`, but an error ends the process: without this thread nobody could control the run."""

    def guarded() -> None:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            _end()

    return guarded


def _end() -> NoReturn:
    kill_all()
    os._exit(1)
