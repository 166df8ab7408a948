"""Runs of several workers: processes of gloo, without a launcher."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from grpo_core.config import nest, parse
from grpo_core.errors import StopRequested
from grpo_core.learner import update
from grpo_core.learner.workers import ALONE, PATIENCE, Distributed, Workers
from grpo_core.models import Policy, load_policy
from grpo_core.training import trainer
from grpo_core.training.control import RunControl, Start
from grpo_core.types import Checkpointed, Event

Settings = Mapping[str, object]


def in_workers(world: int, work: Callable[..., Any], given: Any, folder: Path) -> list[Any]:
    """What work(workers, given), a module-level function, returns in each of so many processes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["grpo_core.training.trainer"])
    folder.mkdir(parents=True, exist_ok=True)
    processes = [
        context.Process(target=_in_worker, args=(rank, world, work, given, folder))
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0] * world
    return [pickle.loads((folder / f"{rank}").read_bytes()) for rank in range(world)]


def _in_worker(rank: int, world: int, work: Callable, given: Any, folder: Path) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{folder / 'meeting'}"
    dist.init_process_group(
        "gloo", init_method=meeting, rank=rank, world_size=world, timeout=PATIENCE
    )
    (folder / f"{rank}").write_bytes(pickle.dumps(work(Distributed(), given)))
    dist.barrier()
    dist.destroy_process_group()


def run_of_workers(world: int, runs: Sequence[Settings], folder: Path) -> list[list[Event]]:
    """The events of worker 0 for each of these runs, one run after the other."""
    return in_workers(world, _train_all, list(runs), folder)[0]


def _train_all(workers: Workers, runs: Sequence[Settings]) -> list[list[Event]]:
    return [trained(settings, workers) for settings in runs]


def run_alone(runs: Sequence[Settings]) -> list[list[Event]]:
    """The same without workers, in this process."""
    return [trained(settings) for settings in runs]


def trained(settings: Settings, workers: Workers = ALONE) -> list[Event]:
    """The events of a run. Settings that begin with `test.` are for the test itself.

    test.float64: the model in float64. test.folder: of checkpoints. test.start: a Start.
    test.shards: the workers share what is learned, however small it is.
    test.watch: a function that sees control, event and rank at each event of every worker.
    """
    own: dict[str, Any] = {
        k.removeprefix("test."): v for k, v in settings.items() if k.startswith("test.")
    }
    config = parse(nest({k: v for k, v in settings.items() if not k.startswith("test.")}))
    events: list[Event] = []
    control = RunControl(own.get("folder") if workers.is_first else None, own.get("start"))

    def emit(event: Event) -> None:
        events.append(event)
        if "watch" in own:
            own["watch"](control, event, workers.rank)

    def load_in_float64(*arguments: Any) -> Policy:
        policy = load_policy(*arguments)
        policy.model.double()
        return policy

    load = load_in_float64 if own.get("float64") else load_policy
    whole = 0 if own.get("shards") else update.WHOLE_PARAMETERS
    with (
        suppress(StopRequested),
        mock.patch.object(trainer, "load_policy", load),
        mock.patch.object(update, "WHOLE_PARAMETERS", whole),
    ):
        trainer.train(config, emit, control, workers)
    return events


def last_checkpoint(events: Sequence[Event], step: int) -> Start:
    saved = next(e for e in events if isinstance(e, Checkpointed) and e.step == step)
    return Start(step, Path(saved.path), saved.sha256)
