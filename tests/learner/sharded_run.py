"""A learner's steps on a small model: alone, or in several processes that shard what it learns."""

from __future__ import annotations

import math
import resource
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from many_workers import in_workers
from many_workers import trained as trained_run
from tiny_shapes import make_model, ragged
from torch import Tensor
from torch.distributed.tensor import DTensor

from grpo_core.checkpoint_files import MANIFEST, file_hash
from grpo_core.config import AlgorithmConfig, TrainConfig
from grpo_core.errors import DiskFull, NonFinite
from grpo_core.learner import Batch, Learner, LearnerSettings, update
from grpo_core.learner.clipping import clip_gradient
from grpo_core.learner.packing import ANY_SIZE
from grpo_core.learner.workers import ALONE, Workers
from grpo_core.rubric import RunningStd
from grpo_core.training.checkpoint import Snapshot, load, put_weights, save, trained
from grpo_core.training.control import RunControl
from grpo_core.types import Checkpointed, Event, Phase, PhaseStarted

GROUP = 4


@dataclass(frozen=True)
class Steps:
    """What a learner of a small Qwen3 is asked to do. Its numbers of rows divide by nothing."""

    dtype: torch.dtype = torch.float64
    count: int = 5
    rate: float = 1e-2
    recompute: bool = False
    tied: bool = True
    with_reference: bool = True
    whole: bool = False  # every worker keeps all that is learned, instead of its shards
    silent: tuple[int, ...] = ()  # groups whose advantages are 0
    algorithm: dict[str, Any] = field(default_factory=dict)


def make(steps: Steps, workers: Workers = ALONE) -> Learner:
    # 41 tokens; heads of 4, so that 3 workers have 2, 2 and 0 rows of their norms and keys.
    shape = {"vocab_size": 41, "head_dim": 4, "tie_word_embeddings": steps.tied}
    model = make_model("Qwen3", steps.dtype, **shape)
    reference = None
    if steps.with_reference:
        reference = make_model("Qwen3", steps.dtype, **shape).requires_grad_(False)
    algorithm = AlgorithmConfig(**{"kl_coef": 0.1 * steps.with_reference, **steps.algorithm})
    # One row a micro-batch, and gradients that are clipped.
    train = TrainConfig(warmup_steps=0, micro_batch_tokens=64, max_grad_norm=0.5)
    settings = LearnerSettings(algorithm, train, steps.rate)
    with mock.patch.object(update, "WHOLE_PARAMETERS", 2**28 if steps.whole else 0):
        learner = Learner(model, reference, settings, steps.recompute, workers)
    learner.packing.exact_to = ANY_SIZE  # the test of it computes norms in float32
    return learner


def one_step(learner: Learner, steps: Steps, number: int) -> tuple[float, float]:
    """A step on this worker's groups: its loss and gradient norm."""
    batch = ragged(GROUP, seed=number)  # three groups
    advantages = torch.linspace(-1, 1, len(batch.completions)).to(steps.dtype)
    for group in steps.silent:
        advantages[group * GROUP : (group + 1) * GROUP] = 0
    workers = learner.workers
    own = [
        row
        for group in workers.mine(len(batch.prompts))
        for row in batch.completions[group * GROUP : (group + 1) * GROUP]
    ]
    share = Batch(
        batch.prompts[workers.rank :: workers.world], own, [True] * len(own), 0, batch.device
    )
    taken = learner.update(share, advantages)
    return taken.loss, taken.grad_norm


def learn(steps: Steps, workers: Workers = ALONE) -> dict[str, Any]:
    learner = make(steps, workers)
    numbers = [one_step(learner, steps, n) for n in range(steps.count)]
    return {"numbers": numbers, "weights": weights(learner), "state": whole(learner.state())}


def weights(learner: Learner) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in learner.model.named_parameters()}


def whole(value: Any) -> Any:
    """Nested data with shards joined."""
    match value:
        case DTensor():
            return value.full_tensor()
        case dict():
            return {k: whole(v) for k, v in value.items()}
        case list() | tuple():
            return [whole(v) for v in value]
    return value


# ---- checkpoints ---------------------------------------------------------------------------------


def snapshot(learner: Learner) -> Snapshot:
    return Snapshot(
        learner.num_steps, trained(learner.model), learner.state(), RunningStd(), True, 0.5
    )


def learn_and_save(steps: Steps, folder: Path, workers: Workers = ALONE) -> Path:
    """The checkpoint after these steps."""
    learner = make(steps, workers)
    for n in range(steps.count):
        one_step(learner, steps, n)
    if learner.weights.in_shards:
        return save(folder, snapshot(learner), workers)
    return workers.first(lambda: save(folder, snapshot(learner)))


def go_on(steps: Steps, saved: Path, more: int, workers: Workers = ALONE) -> dict[str, Any]:
    """What `learn` returns, of a learner that starts from a checkpoint."""
    learner = make(steps, workers)
    read = load(saved, file_hash(saved / MANIFEST), learner.weights.room)
    put_weights(learner.model, read.weights)
    learner.load_state(dict(read.learner))
    kept = whole(learner.state())
    numbers = [one_step(learner, steps, steps.count + n) for n in range(more)]
    return {"kept": kept, "numbers": numbers, "weights": weights(learner)}


def save_on_a_full_disk(steps: Steps, folder: Path, workers: Workers) -> list[Any]:
    """Worker 1 may write 1,000 bytes a file: what each raises and what is left; then a save."""
    learner = make(steps, workers)
    one_step(learner, steps, 0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if workers.rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        save(folder, snapshot(learner), workers)
        raised = ""
    except DiskFull as error:
        raised = str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    left = workers.gather(lambda: (raised, sorted(p.name for p in folder.iterdir())))
    return [left, save(folder, snapshot(learner), workers)]


def not_finite(steps: Steps, workers: Workers) -> list[Any]:
    """What each worker says of a nan in one worker's gradient, and whether a weight moved."""
    learner = make(steps, workers)
    one_step(learner, steps, 0)
    before = weights(learner)
    name, weight = list(learner.model.named_parameters())[3]
    learner.weights.clear_gradients()
    if workers.rank == 1:
        weight.grad = torch.full_like(weight, math.nan)
    learner.weights.collect_gradients()
    learner.weights.reduce_gradients(workers)
    try:
        said = str(clip_gradient(learner.weights, None, 0.0, 1.0))
    except NonFinite as error:
        said = str(error)
    moved = any(not torch.equal(w, before[n]) for n, w in weights(learner).items())
    return workers.gather(lambda: (said, name, moved))


def saves_when_asked(settings: dict[str, object], workers: Workers) -> list[int]:
    """The steps that a run saves, of which a person asks for one while step 2 is sampled."""

    def ask(control: RunControl, event: Event, _: int) -> None:
        if event == PhaseStarted(Phase.SAMPLING, 2, 3):
            control.checkpoint()

    events = trained_run({**settings, "test.watch": ask, "test.shards": True}, workers)
    return [e.step for e in events if isinstance(e, Checkpointed)]


# ---- several processes ---------------------------------------------------------------------------

Check = tuple[int, Callable[..., Any], tuple[Any, ...]]  # workers, function, arguments


def run_all(checks: dict[str, Check], folder: Path) -> dict[str, Any]:
    """Each function's result on worker 0, called as function(*arguments, workers)."""
    results: dict[str, Any] = {}
    for world in sorted({world for world, _, _ in checks.values()}):
        of_world = {name: check for name, check in checks.items() if check[0] == world}
        results |= in_workers(world, _check, of_world, folder / f"{world} workers")[0]
    return results


def _check(workers: Workers, checks: dict[str, Check]) -> dict[str, Any]:
    return {name: function(*given, workers) for name, (_, function, given) in checks.items()}
